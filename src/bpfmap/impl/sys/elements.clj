(ns bpfmap.impl.sys.elements
  "The hot paths: one element, one system call; many elements, few system calls.

  Every function takes the codecs of the map and answers with decoded values.
  A missing key is an answer; any other refusal is thrown as the exception that
  the map itself makes of it."
  (:import (bpfmap.sys Abi Batch Codec Elements Fd Reader Scratch Walk)
           (clojure.lang MapEntry)))

(set! *warn-on-reflection* true)

(defprotocol Origin
  "Where an operation comes from: it knows how to say what went wrong."
  (failure [origin op outcome] "The exception for a negated errno."))

(def ^:const any "Write whether or not the key exists." Abi/BPF_ANY)
(def ^:const no-exist "Write only where the key does not exist." Abi/BPF_NOEXIST)
(def ^:const exist "Write only where the key exists." Abi/BPF_EXIST)

(def ^:private ^:const absent (- Abi/ENOENT))
(def ^:private ^:const present (- Abi/EEXIST))

(defn elements
  "The element operations of an open map, for the functions below."
  ^Elements [^Fd fd key-size value-size]
  (Elements. fd key-size value-size))

(defmacro ^:private with-key
  "Runs body with memory for one operation, in which the key is encoded."
  [[s es key-codec k] & body]
  `(let [~s (.take ~es)]
     (try
       (.encode ~key-codec ~k (.-memory ~s) Scratch/KEY)
       ~@body
       (finally (.give ~s)))))

(defmacro ^:private answer
  "What a call comes to: `done` where it succeeded, `missing` where there is no such key, else its exception."
  [outcome origin op done missing]
  `(let [outcome# (long ~outcome)]
     (cond
       (zero? outcome#) ~done
       (== absent outcome#) ~missing
       :else (throw (failure ~origin ~op outcome#)))))

(defn lookup
  "The decoded value of a key, or not-found."
  [^Elements es ^Codec key-codec ^Codec value-codec k not-found origin op]
  (with-key [s es key-codec k]
    (answer (.lookup es s any) origin op
            (.decode value-codec (.-memory s) (.valueOffset es))
            not-found)))

(defn take-out
  "As [[lookup]], and deletes the key in the same step.

  What cannot be decoded must not be deleted. A codec that may throw is
  therefore asked first, with a lookup of its own; a writer may still come between the two."
  [^Elements es ^Codec key-codec ^Codec value-codec k not-found origin op]
  (when-not (.total value-codec)
    (lookup es key-codec value-codec k not-found origin op))
  (with-key [s es key-codec k]
    (answer (.lookupAndDelete es s any) origin op
            (.decode value-codec (.-memory s) (.valueOffset es))
            not-found)))

(defn write
  "Writes an entry under `any`, `no-exist` or `exist`; whether it was written."
  [^Elements es ^Codec key-codec ^Codec value-codec k v flags origin op]
  (with-key [s es key-codec k]
    (.encode value-codec v (.-memory s) (.valueOffset es))
    (let [outcome (.update es s (long flags))]
      (if (== present outcome)
        false
        (answer outcome origin op true false)))))

(defn delete
  "Deletes a key; whether it was there."
  [^Elements es ^Codec key-codec k origin op]
  (with-key [s es key-codec k]
    (answer (.delete es s) origin op true false)))

(defn next-key
  "The key after `k` in the kernel's order, or the first one; nil after the last."
  [^Elements es ^Codec key-codec k first? origin op]
  (let [s (.take es)]
    (try
      (when-not first?
        (.encode key-codec k (.-memory s) Scratch/KEY))
      (answer (.nextKey es s (boolean first?)) origin op
              (.decode key-codec (.-memory s) (.valueOffset es))
              nil)
      (finally (.give s)))))

(defn check
  "Encodes a value to nowhere: throws what encoding it would throw."
  [^Codec codec value]
  (let [s (Scratch/take (+ Scratch/KEY (.size codec)))]
    (try
      (.encode codec value (.-memory s) Scratch/KEY)
      (finally (.give s)))))

(defn batches
  "A reader of the whole map by chunks, one system call for each. Close it."
  ^Reader [^Fd fd key-size value-size max-entries]
  (Batch. fd (long key-size) (long value-size) (long max-entries)))

(defn walk
  "A reader of the whole map key by key, for kernels and types without batches. Close it."
  ^Reader [^Elements es key-size value-size max-entries]
  (Walk. es (long key-size) (long value-size) (long max-entries)))

(def ^:private no-batches
  "What a kernel or map type without batches answers to the first one."
  #{(- Abi/EINVAL) (- Abi/ENOTSUPP) (- Abi/EOPNOTSUPP)})

(defn no-batches?
  "Whether the first answer of a batch reader says that there are no batches here."
  [outcome]
  (contains? no-batches outcome))

(defn aborted?
  "Whether a walk was thrown back to the beginning more often than the map has entries."
  [outcome]
  (== Walk/ABORTED (long outcome)))

(defn reduce-chunks
  "Reduces over all entries of a reader with `(step acc key value)`.

  `refused` is called with the negated errno and whether it was the first
  answer; what it returns is the result. Stops at a `reduced`. Closes the reader."
  [^Reader reader ^Codec key-codec ^Codec value-codec step init refused]
  (let [key-size (.size key-codec)
        value-size (.size value-codec)]
    (with-open [reader reader]
      (loop [acc init first? true]
        (let [n (.read reader)]
          (cond
            (zero? n) acc
            (neg? n) (refused n first?)
            :else
            (let [keys (.keys reader)
                  values (.values reader)
                  acc (loop [i 0 acc acc]
                        (if (or (== i n) (reduced? acc))
                          acc
                          (recur (inc i)
                                 (step acc
                                       (.decode key-codec keys (* i key-size))
                                       (.decode value-codec values (* i value-size))))))]
              (if (reduced? acc)
                (unreduced acc)
                (recur acc false)))))))))

(defn entry
  "One entry of a map as data: a key and a value that destructure as a pair."
  [k v]
  (MapEntry/create k v))
