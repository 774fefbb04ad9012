(ns bpfmap.impl.sys.objects
  "The commands of bpf(2) that are the same for any kind of object: ids, infos, pins, and telling one kind from another.

  A kind of object is `:map`, `:program` or `:link`."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.sys :as sys]
            [clojure.string :as str])
  (:import (bpfmap.sys Abi Attr Fd)))

(set! *warn-on-reflection* true)

(def ^:private commands
  "By kind: the command that lists ids, and the one that opens one."
  {:map {:next-id Abi/BPF_MAP_GET_NEXT_ID :by-id Abi/BPF_MAP_GET_FD_BY_ID}
   :program {:next-id Abi/BPF_PROG_GET_NEXT_ID :by-id Abi/BPF_PROG_GET_FD_BY_ID}
   :link {:next-id Abi/BPF_LINK_GET_NEXT_ID :by-id Abi/BPF_LINK_GET_FD_BY_ID}})

(defn- next-id [kind id facts]
  (sys/command (str "Listing the " (name kind) "s") facts (get-in commands [kind :next-id])
               (fn [^Attr attr]
                 (.int32 attr Abi/ID_START_ID id)
                 (.int32 attr Abi/ID_NEXT_ID 0))
               (fn [outcome ^Attr attr _]
                 (when (zero? (long outcome)) (.int32 attr Abi/ID_NEXT_ID)))
               #{(- Abi/ENOENT)}))

(defn ids
  "The ids of all objects of a kind, ascending."
  [kind facts]
  (let [facts (assoc facts :object kind)]
    (into [] (take-while some?) (rest (iterate #(next-id kind % facts) 0)))))

(defn by-id
  "Opens an object of a kind by its id; returns its descriptor. `flags` say which way it may be used, 0 for both."
  (^Fd [kind id facts] (by-id kind id 0 facts))
  (^Fd [kind id flags facts]
   (sys/command (str "Opening " (name kind) " " id) (assoc facts :object kind) (get-in commands [kind :by-id])
                (fn [^Attr attr]
                  (.int32 attr Abi/ID_START_ID id)
                  (when-not (zero? (long flags)) (.int32 attr Abi/ID_OPEN_FLAGS flags)))
                sys/own)))

(defn info
  "Reads an object's info, of `size` bytes: `(fill attr memory)` says where the kernel may write more, and `(result memory
  filled)` reads what it wrote."
  [^Fd fd kind size facts fill result]
  (sys/command (str "Reading the " (name kind) "'s info") facts Abi/BPF_OBJ_GET_INFO_BY_FD
               (fn [^Attr attr]
                 (.fd attr Abi/INFO_BPF_FD fd)
                 (.int32 attr Abi/INFO_INFO_LEN size)
                 (let [memory (.buffer attr Abi/INFO_INFO size)]
                   [memory (fill attr memory)]))
               (fn [_ _ [memory filled]]
                 (result memory filled))))

;; --- pins

(defn path-text
  "A file's path as the kernel takes it; throws `:invalid-value` for one that it cannot take."
  [file op]
  (let [text (str file)
        refuse (fn [hint]
                 (throw (error/error :invalid-value (str "Not a path: " (pr-str (error/shown text)))
                                     {:bpfmap/op op :bpfmap/file (error/shown text) :bpfmap/hint hint})))]
    (cond
      (str/blank? text) (refuse "it is empty")
      (str/includes? text "\u0000") (refuse "it has a NUL character")
      :else text)))

(defn pin
  "Pins an object at a path."
  [^Fd fd path facts]
  ;; The kernel answers EPERM to a dot, as it does to a path on another file system.
  (when (re-find #"\.[^/]*/*$" path)
    (throw (error/error :invalid-value (str "Cannot pin to " path)
                        {:bpfmap/op (:op facts) :bpfmap/file path
                         :bpfmap/hint "the BPF file system takes no dots in a name"})))
  (sys/command (str "Pinning to " path) facts Abi/BPF_OBJ_PIN
               (fn [^Attr attr]
                 (.string attr Abi/OBJ_PATHNAME path)
                 (.fd attr Abi/OBJ_BPF_FD fd))
               (constantly nil)))

(defn- get-pinned ^Fd [path flags facts expected]
  (sys/command (str "Opening " path) facts Abi/BPF_OBJ_GET
               (fn [^Attr attr]
                 (.string attr Abi/OBJ_PATHNAME path)
                 (when-not (zero? (long flags)) (.int32 attr Abi/OBJ_FILE_FLAGS flags)))
               (fn [outcome attr filled]
                 (when-not (neg? (long outcome)) (sys/own outcome attr filled)))
               expected))

(defn by-path
  "Opens whatever is pinned at a path; returns its descriptor. `flags` say which way it may be used, reading unless given."
  (^Fd [path facts] (by-path path Abi/BPF_F_RDONLY facts))
  (^Fd [path flags facts]
   (or (get-pinned path flags facts #{(- Abi/EINVAL)})
       ;; A pinned link answers EINVAL to anything but plain opening.
       (get-pinned path 0 facts #{}))))

;; --- telling them apart

(defn kind
  "What a descriptor is: `:map`, `:program` or `:link`, or `:other`. Where that cannot be told, the error names `place`."
  [^Fd fd place facts]
  (or (sys/kind fd)
      (throw (error/error :kernel (str "What " place " is cannot be told")
                          {:bpfmap/op (:op facts) :bpfmap/file (:path facts)
                           :bpfmap/hint (str "/proc cannot be read: it is not mounted, "
                                             "or this process has no descriptor left (ulimit -n)")}))))

(defn- checked
  "The descriptor if it is one of the kind that is wanted; else closes it and says what it is."
  ^Fd [^Fd fd wanted place facts]
  (try
    (let [found (kind fd place facts)]
      (when (not= wanted found)
        (throw (error/error (keyword (str "not-a-" (name wanted))) (str place " is not a " (name wanted))
                            {:bpfmap/op (:op facts) :bpfmap/file (:path facts)
                             :bpfmap/hint (str "it is " (if (= :other found) "something else" (str "a " (name found))))})))
      fd)
    (catch Throwable e
      (sys/close fd)
      (throw e))))

(defn pinned
  "Opens the object of a kind that is pinned at a path; throws `:not-a-program` and its like for another kind."
  (^Fd [wanted path facts] (checked (by-path path facts) wanted path facts))
  (^Fd [wanted path flags facts] (checked (by-path path flags facts) wanted path facts)))

(defn of-number
  "Duplicates the descriptor of an object of a kind that somebody else owns, given by its number."
  ^Fd [wanted number facts]
  (checked (sys/duplicate-number number facts) wanted (str "Descriptor " number) facts))
