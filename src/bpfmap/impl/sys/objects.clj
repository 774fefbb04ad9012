(ns bpfmap.impl.sys.objects
  "The commands of bpf(2) that are the same for any kind of object: ids, infos, pins, and telling one kind from another.

  A kind of object is `:map`, `:program` or `:link`."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.sys :as sys]
            [bpfmap.impl.sys.paths :as paths]
            [clojure.string :as str])
  (:import (bpfmap.sys Abi Attr Fd)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(def ^:private commands
  "By kind: the command that lists ids, and the one that opens one."
  {:map {:next-id Abi/BPF_MAP_GET_NEXT_ID :by-id Abi/BPF_MAP_GET_FD_BY_ID}
   :program {:next-id Abi/BPF_PROG_GET_NEXT_ID :by-id Abi/BPF_PROG_GET_FD_BY_ID}
   :link {:next-id Abi/BPF_LINK_GET_NEXT_ID :by-id Abi/BPF_LINK_GET_FD_BY_ID}})

(defn ids
  "The ids of all objects of a kind, ascending."
  [kind facts]
  (let [facts (assoc facts :object kind)
        number (int (get-in commands [kind :next-id]))]
    (try
      (with-open [attr (Attr.)]
        (loop [id 0 found (transient [])]
          (.int32 attr Abi/ID_START_ID id)
          (.int32 attr Abi/ID_NEXT_ID 0)
          (let [outcome (.call attr number)]
            (cond
              (= outcome (- Abi/ENOENT)) (persistent! found)
              (neg? outcome) (throw (sys/failure (str "Listing the " (name kind) "s") outcome facts))
              :else (let [id (.int32 attr Abi/ID_NEXT_ID)]
                      (recur id (conj! found id)))))))
      (catch RuntimeException e
        (throw (sys/in-context e facts))))))

(defn- opened-by-id
  "Opens an object by its id; nil if the outcome is in `expected`."
  [kind id flags facts expected]
  (sys/command #(str "Opening " (name kind) " " id) (assoc facts :object kind)
               (:by-id (commands kind))
               (fn [^Attr attr]
                 (.int32 attr Abi/ID_START_ID id)
                 (when-not (zero? (long flags)) (.int32 attr Abi/ID_OPEN_FLAGS flags)))
               (fn [outcome attr filled]
                 (when-not (neg? (long outcome)) (sys/own outcome attr filled)))
               expected))

(def ^:private no-flags
  "Outcomes with which a kernel refuses flags that it does not know."
  #{(- Abi/EINVAL)})

(defn by-id
  "Opens an object of a kind by its id; returns its descriptor. `flags` say which way it may be used, 0 for both.

  Before Linux 4.15 the kernel takes no flags, and the descriptor may be used both ways."
  (^Fd [kind id facts] (by-id kind id 0 facts))
  (^Fd [kind id flags facts]
   (or (opened-by-id kind id flags facts (if (zero? (long flags)) #{} no-flags))
       (opened-by-id kind id 0 facts #{}))))

(defn- asked
  "The bytes of an info before its last 32 bits that are not zero, if any are: what to ask for if all was too much."
  [^MemorySegment memory ^long size]
  (loop [size size]
    (when (<= 4 size)
      (if (zero? (long (sys/u32 memory (- size 4))))
        (recur (- size 4))
        (- size 4)))))

(defn- read-info
  "One call for an info of at most `size` bytes: 0 or the negated errno. Of a struct that has fewer bytes, or whose end was
  not asked for, the rest is zero."
  [^Attr attr ^MemorySegment memory ^long size]
  (.int32 attr Abi/INFO_INFO_LEN size)
  (let [outcome (.call attr Abi/BPF_OBJ_GET_INFO_BY_FD)]
    (when-not (neg? outcome)
      (.fill (.asSlice memory (min (.byteSize memory) (.int32 attr Abi/INFO_INFO_LEN))) 0))
    outcome))

(defn info
  "Reads an object's info, of `size` bytes: `(fill attr memory)`, if given, sets where the kernel may write more,
  and `(result memory filled)` reads what it wrote. `what` begins the message of an error.

  A kernel whose struct is longer writes what there is room for. One whose struct is shorter answers E2BIG if a field that it
  lacks is set: it is asked again, each time without the last field that is set, and the fields that it lacks read as zero."
  [what ^Fd fd size facts fill result]
  (try
    (with-open [attr (Attr.)]
      (.fd attr Abi/INFO_BPF_FD fd)
      (let [memory (.buffer attr Abi/INFO_INFO size)
            filled (when fill (fill attr memory))]
        (loop [size (long size)]
          (let [outcome (long (read-info attr memory size))
                less (when (= outcome (- Abi/E2BIG)) (asked memory size))]
            (cond
              less (recur (long less))
              (neg? outcome) (throw (sys/failure what outcome facts))
              :else (result memory filled))))))
    (catch RuntimeException e
      (throw (sys/in-context e facts)))))

;; --- pins

(defn path-text
  "Returns the text of a path that a user gave, see `bpfmap.impl.sys.paths`; throws `:invalid-value` for one that the kernel
  cannot take, and `:ambiguous` if two files may be meant."
  [file op]
  (let [given (str file)
        refuse (fn [kind hint]
                 (throw (error/error kind (str (if (= :ambiguous kind) "Two paths are meant by " "Not a path: ")
                                               (pr-str (error/shown given)))
                                     {:bpfmap/op op :bpfmap/file (error/shown given) :bpfmap/hint hint})))]
    (cond
      (str/blank? given) (refuse :invalid-value "it is empty")
      (str/includes? given "\u0000") (refuse :invalid-value "it has a NUL character")
      :else (or (paths/resolve file #(refuse :ambiguous %))
                (refuse :invalid-value "it has half a character: a lone surrogate")))))

(defn check-pin-path
  "Throws `:invalid-value` for a path that no pin can have."
  [path op]
  ;; The kernel answers EPERM to a dot, as it does to a path on another file system.
  (when (re-find #"\.[^/]*/*$" path)
    (throw (error/error :invalid-value (str "Cannot pin to " (paths/printed path))
                        {:bpfmap/op op :bpfmap/file path
                         :bpfmap/hint "the BPF file system takes no dots in a name"}))))

(defn pin
  "Pins an object at a path."
  [^Fd fd path facts]
  (check-pin-path path (:op facts))
  (sys/command (str "Pinning to " (paths/printed path)) facts Abi/BPF_OBJ_PIN
               (fn [^Attr attr]
                 (.bytes attr Abi/OBJ_PATHNAME (paths/terminated path))
                 (.fd attr Abi/OBJ_BPF_FD fd))
               (constantly nil)))

(defn- get-pinned ^Fd [path flags facts expected]
  (sys/command (str "Opening " (paths/printed path)) facts Abi/BPF_OBJ_GET
               (fn [^Attr attr]
                 (.bytes attr Abi/OBJ_PATHNAME (paths/terminated path))
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
  (^Fd [wanted path facts] (checked (by-path path facts) wanted (paths/printed path) facts))
  (^Fd [wanted path flags facts] (checked (by-path path flags facts) wanted (paths/printed path) facts)))

(defn of-number
  "Duplicates the descriptor of an object of a kind that somebody else owns, given by its number."
  ^Fd [wanted number facts]
  (checked (sys/duplicate-number number facts) wanted (str "Descriptor " number) facts))
