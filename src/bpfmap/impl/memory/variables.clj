(ns ^:no-doc bpfmap.impl.memory.variables
  "Finds, reads and writes the global variables of a data section by name.

  Also registers views and variables with pprint."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.kernel.element :as kernel.element]
            [bpfmap.impl.kernel.map :as kernel.map]
            [bpfmap.impl.map.bpf-map :as bpf-map :refer [with-error-context]]
            [bpfmap.impl.map.mapped :as mapped]
            [bpfmap.impl.memory.bytes :as memory.bytes]
            [bpfmap.impl.memory.layout :as layout]
            [bpfmap.impl.memory.view :as view]
            [bpfmap.type :as type]
            [clojure.pprint :as pprint])
  (:import (bpfmap.bytes ByteView)
           (bpfmap.impl.map.bpf_map BpfMap)
           (bpfmap.impl.memory.view ArrayView Cell StructView)
           (bpfmap.sys Codec)
           (clojure.lang IDeref ILookup)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

;; --- variables

(declare value-of text change)

;; `view` is a view for reading; nil if the section is not mapped. `member` is {:offset :layout},
;; the layout a delay.
(deftype Variable [^BpfMap m name member view]
  IDeref
  (deref [this] (value-of this))
  ILookup
  (valAt [this k] (get (value-of this) k))
  (valAt [this k not-found] (get (value-of this) k not-found))
  view/Writable
  (write [this x] (change this [] x))
  view/WritableBySyscall
  (write-part [this path x] (change this (if (vector? path) path [path]) x))
  Object
  (toString [this] (text this)))

(defmethod print-method Variable [v ^java.io.Writer w] (.write w (str v)))

;; --- access by system calls

(defn- as-bytes
  "Returns the codecs of a section's index and of its bytes."
  [^BpfMap m]
  [(codec/codec :u32) (codec/codec [:bytes (:value-size (.-spec m))])])

(defn- section-bytes ^bytes [^BpfMap m op]
  (let [[index bytes] (as-bytes m)]
    (.-array ^ByteView (kernel.element/lookup (.-elements m) index bytes 0 nil kernel.element/any m
                                              op))))

(defn- value-of [^Variable v]
  (let [^BpfMap m (.-m v)
        {:keys [offset layout]} (.-member v)]
    (if-let [view (.-view v)]
      @view
      (with-error-context [m :deref]
        (.decode ^Codec (:codec @layout) (MemorySegment/ofArray (section-bytes m :deref))
                 (long offset))))))

(defn- frozen? [^BpfMap m]
  (with-error-context [m :info]
    (:frozen (kernel.map/info (.-fd m) {:op :info :map (.-identity m)}))))

(defn- check-variable [^BpfMap m]
  (when (frozen? m)
    (throw (error/error :read-only
                        (str "The variables of map " (:id (.-identity m)) " are constants")
                        {:bpfmap/hint "the map is frozen, which cannot be undone"}))))

(defn- change
  "Changes one variable, or the part that a path leads to.

  Reads the whole section, changes it and writes it back."
  [^Variable v path x]
  (let [^BpfMap m (.-m v)
        {:keys [offset layout]} (.-member v)
        [index bytes] (as-bytes m)]
    (bpf-map/check-allowed m :put!)
    (with-error-context [m :write!]
      (when (and (empty? path) (:private @layout))
        (throw (error/error :invalid-value
                            (str "A " (type/summary (:type @layout))
                                 " must not be written as a whole")
                            {:bpfmap/hint "the kernel has a private part in it"})))
      (check-variable m)
      (let [section (section-bytes m :write!)]
        (-> (view/over-copy (.-identity m) section @layout offset (list (.-name v)))
            (view/at path :write!)
            (view/write x))
        (kernel.element/write (.-elements m) index bytes 0 section kernel.element/any m :write!)))
    v))

(defn- text ^String [^Variable v]
  (str "#<bpf-variable " (.-name v) " " (type/summary (:type @(:layout (.-member v))))
       " of map " (error/id-and-name (.-identity ^BpfMap (.-m v))) ">"))

;; --- the variables of a map

(defn variable
  "Returns a variable of a section that is read and written by system calls.

  `member` is its place, `{:offset :layout}` with a delay of the layout."
  [m name member]
  (Variable. m name member nil))

(defn- section
  "Returns the layout of a map that is a data section; throws for any other."
  [^BpfMap m]
  (let [{:keys [type max-entries value types untyped]} (.-spec m)
        layout (when (and (= :array type) (= 1 max-entries)) (layout/of-type value types))]
    (if (seq (:members layout))
      layout
      (throw (error/error :not-supported (str "Map " (:id (.-identity m)) " has no variables")
                          {:bpfmap/hint (str
                                         "they are in a data section, an array with a single "
                                         "value, whose BTF names them"
                                         (when untyped
                                           (str "; and its BTF cannot be used: "
                                                untyped)))})))))

(defn- writable-by-syscall?
  "Returns true if system calls can write a section that is mapped read-only.

  This is a section that programs cannot write."
  [^BpfMap m]
  (and (contains? (:flags (.-spec m)) :rdonly-prog)
       (= :read-write (.-access m))
       (not (frozen? m))))

(defn variables
  "Returns the variables of a map, by name."
  [^BpfMap m]
  (with-error-context [m :variables]
    (let [{:keys [members] :as layout} (section m)
          memory (mapped/memory-or-nil m)
          whole (when memory (view/over memory layout 0 :variables))
          views? (and memory (or (memory.bytes/writable? memory) (not (writable-by-syscall? m))))]
      (into {}
            (map (fn [[name member]]
                   [name (if views?
                           (view/at whole name :variables)
                           (Variable. m name member
                                      (when whole (view/at whole name :variables))))]))
            members))))

;; --- printing

(doseq [class [ArrayView Cell StructView Variable]]
  (.addMethod ^clojure.lang.MultiFn pprint/simple-dispatch class pr))
