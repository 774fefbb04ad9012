(ns ^:no-doc bpfmap.impl.object.context
  "What all parts of reading an object share: sections, symbols, relocations, BTF."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.elf :as elf]
            [bpfmap.impl.btf.object-file :as object-file]
            [bpfmap.impl.btf.types :as types]
            [bpfmap.impl.object.malformed :refer [in-section malformed]]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.nio ByteBuffer)
           (java.util HashMap)))

(set! *warn-on-reflection* true)

;; --- sections

(def ^:private progbits 1)
(def ^:private nobits "Zeros that the file does not contain." 8)

(def ^:private alloc 2)
(def ^:private executable 4)

(defn code?
  "Returns true if a section has instructions."
  [{:keys [type flags size]}]
  (and (= progbits type) (= executable (bit-and executable (long flags))) (pos? (long size))))

(defn text?
  "Returns true if a section of code has only functions that programs call."
  [{:keys [name]}]
  (or (= ".text" name) (str/starts-with? name ".text.")))

(defn zeros?
  "Returns true if the bytes of a section are zeros that the file does not contain."
  [{:keys [type]}]
  (= nobits type))

(defn- named-or-below? [section-name prefix]
  (or (= prefix section-name) (str/starts-with? section-name (str prefix "."))))

(def ^:private arena-section
  "The section of variables in the memory of an arena."
  ".addr_space.1")

(defn arena?
  "Returns true for the section of variables that lie in an arena."
  [section]
  (= arena-section (:name section)))

(def ^:private percpu-section "The section of variables that each CPU has." ".percpu")

(defn percpu?
  "Returns true for a section of variables that each CPU has."
  [{:keys [name]}]
  (named-or-below? name percpu-section))

(defn data?
  "Returns true if a section has the variables of programs."
  [{:keys [name type flags size] :as section}]
  (and (or (= progbits type) (= nobits type))
       (= alloc (bit-and alloc (long flags)))
       (pos? (long size))
       (not (code? section))
       (or (arena? section)
           (some #(named-or-below? name %) [".data" ".rodata" ".bss" percpu-section]))))

(defn read-only?
  "Returns true if a section of data is constant."
  [{:keys [name]}]
  (named-or-below? name ".rodata"))

(defn contents
  "Returns the bytes of a section of the file; empty for a section of zeros."
  ^bytes [{:keys [elf]} section]
  (elf/contents elf section))

(defn section-named
  "Returns the first section of a name, or nil."
  [{:keys [by-name]} section-name]
  (by-name section-name))

(defn relocations
  "Returns the relocations of a section: offset to `{:type :symbol :addend}`.

  `:symbol` is the symbol itself. Checks that the offsets and the symbols exist."
  [{:keys [symbols tables elf]} {:keys [index size] :as section}]
  (if-not (tables index)
    {}
    (into {}
          (map (fn [{:keys [offset symbol] :as relocation}]
                 (when-not (< -1 (long offset) (long size))
                   (throw (malformed (in-section section offset)
                                     (str "a relocation lies outside the section, which has "
                                          (error/plural size "byte")))))
                 (when-not (contains? symbols symbol)
                   (throw (malformed (in-section section offset)
                                     (str "a relocation names symbol " symbol ", and there are "
                                          (count symbols)))))
                 [offset (assoc relocation :symbol (symbols symbol))]))
          (remove #(= 0 (:type %)) (elf/relocation-list elf section)))))

;; --- types

(defn record
  "Returns the record of a type of the object's BTF, which is read once."
  [{:keys [btf ^HashMap records]} id]
  (or (.get records id)
      (let [found (blob/record btf id)]
        (.put records id found)
        found)))

(defn type-of
  "Returns a type of the object's BTF and its weight, as `[type weight]`.

  A type that `bpfmap.type` cannot describe is bytes of its size; nil if it has no size."
  [{:keys [btf types ^HashMap known]} id]
  (if (.containsKey known id)
    (.get known id)
    (let [found (try
                  (types id)
                  (catch ExceptionInfo e
                    (if (= :malformed-btf (:bpfmap/error (ex-data e)))
                      (when-let [size (blob/size-of btf id)]
                        [[:bytes size] 1])
                      (throw e))))]
      (.put known id found)
      found)))

(defn tags
  "Returns the tags of a variable or function by its id in the BTF, or nil."
  [{:keys [tags]} id]
  (@tags id))

(defn- ids-of-kinds
  "Returns the ids of types of the BTF, ascending, by kind, for the given kinds."
  [b kinds]
  (when b
    (loop [id 1 found {}]
      (if (<= id (blob/type-count b))
        (let [kind (blob/kind b id)]
          (recur (inc id)
                 (if (contains? kinds kind) (update found kind (fnil conj []) id) found)))
        found))))

(defn- all-tags
  "Returns the declaration tags of the BTF, except those of members and parameters."
  [b ids]
  (reduce (fn [found id]
            (let [{:keys [type component name]} (blob/record b id)]
              (cond-> found
                (= -1 component) (update type (fnil conj []) (str name)))))
          {} ids))

(defn data-sections
  "Returns the data sections of the BTF by name, as records."
  [{:keys [sections-of-btf]}]
  @sections-of-btf)

(defn- all-data-sections [b ids]
  (into {}
        (comp (map #(blob/record b %))
              (map (juxt (comp str :name) identity)))
        ;; The first of a name counts, so it comes last.
        (rseq (vec ids))))

;; --- names

(defn distinct-names
  "Returns a function of a name and places to a name that it did not return before.

  The first is the name itself; another is the name with `#` and a place behind it. No C identifier
  has this character."
  []
  (let [used (volatile! #{})]
    (fn [text & places]
      (let [found (first (remove @used (cons text (concat (map #(str text "#" %) places)
                                                          (map #(str text "#" %) (range))))))]
        (vswap! used conj found)
        found))))

;; --- the whole

(def ^:private relocatable "ET_REL." 1)
(def ^:private bpf "EM_BPF." 247)

(defn- check-file
  "Throws unless the file is an object for BPF whose sections do not overlap."
  [{:keys [file-type machine sections bytes]}]
  (when-not (= bpf machine)
    (throw (malformed [:elf :machine] (str "it is for machine " machine ", and BPF is 247")
                      "compile it with clang -target bpf -g -O2 -c")))
  (when-not (= relocatable file-type)
    (throw (malformed [:elf :type] (str "the type of the file must be 1, an object, got "
                                        file-type))))
  (let [sizes (map :size (remove #(#{0 nobits} (:type %)) sections))]
    (when-let [section (first (filter #(neg? (long (:size %))) sections))]
      (throw (malformed [:section (:name section)] (str "its size is " (:size section)))))
    (when (< (alength ^bytes bytes) (reduce +' 0 sizes))
      (throw (malformed [:elf :sections]
                        "they overlap: together they are longer than the file")))))

(defn of
  "Reads the tables of an object's bytes.

  Returns a map with `:elf :sections :symbols :btf`, and what the functions of this namespace keep."
  [^bytes bytes]
  (let [{:keys [sections] :as elf} (elf/parse bytes)
        _ (check-file elf)
        symbols (delay (elf/symbols elf))
        b (object-file/of-elf elf symbols)
        {:keys [datasec decl-tag]} (ids-of-kinds b #{:datasec :decl-tag})]
    {:elf elf
     :order (.order ^ByteBuffer (:buffer elf))
     :sections sections
     :by-name (into {} (map (juxt :name identity)) (rseq sections))
     :symbols @symbols
     ;; The sections that have relocations.
     :tables (into #{} (comp (filter #(#{4 9} (:type %))) (map :info)) sections)
     :btf b
     :records (HashMap.)
     :known (HashMap.)
     :types (when b (types/reader b))
     :datasecs datasec
     :tags (delay (all-tags b decl-tag))
     :sections-of-btf (delay (all-data-sections b datasec))}))
