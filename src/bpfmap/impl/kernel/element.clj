(ns ^:no-doc bpfmap.impl.kernel.element
  "Element operations: single elements by one system call, many by a few.

  Functions take the codecs of the map and return decoded values. ENOENT returns a value
  (not-found, false or nil). Any other errno throws the exception that the map makes of it."
  (:import (bpfmap.sys Abi BatchReader BatchWriter CallBuffer Codec ElementOps Elements
                       ErrnoException Fd KeyIterator KeyOrder Reader TypeCodec)
           (clojure.lang MapEntry)
           (java.lang.foreign MemorySegment)
           (java.util.function IntPredicate)))

(set! *warn-on-reflection* true)

(defprotocol Origin
  "Creates the exception for a failed operation.
  Open maps implement it."
  (failure [origin op outcome] "Returns the exception for a negated errno."))

(def ^:const any "Flag: write unconditionally." Abi/BPF_ANY)
(def ^:const no-exist "Flag: write only if the key does not exist." Abi/BPF_NOEXIST)
(def ^:const exist
  "Flag: write only if the key exists; a full queue drops its oldest value." Abi/BPF_EXIST)
(def ^:const lock
  "Flag: hold the value's spin lock; can be combined with the others." Abi/BPF_F_LOCK)

(defn only-new?
  "Returns true if flags allow a write only if the key does not exist."
  [flags]
  (== no-exist (bit-and no-exist (long flags))))

(defn cpu
  "Returns the flags that select the value of one CPU.
  Since Linux 7.0."
  ^long [^long number]
  (bit-or Abi/BPF_F_CPU (bit-shift-left number 32)))

(def empty-slot-errnos
  "Outcomes of deleting an empty slot, or an index beyond the end, by index."
  #{(- Abi/EINVAL) (- Abi/E2BIG)})

(def unregistered-errnos
  "Outcomes of deleting a struct_ops value that was unregistered before."
  #{(- Abi/EINPROGRESS)})

(def ^:private ^:const enoent (- Abi/ENOENT))
(def ^:private ^:const eexist (- Abi/EEXIST))

(defn elements
  "Returns the element operations of an open map, for the functions below.

  The sizes are the codecs' sizes. A key size of 0 means that the map has no keys."
  ^Elements [^Fd fd key-size value-size]
  (Elements. fd key-size value-size))

(defmacro ^:private with-failure
  "Evaluates a call; converts an `ErrnoException` to the exception of the origin."
  [[origin op] call]
  `(try
     ~call
     (catch ErrnoException e#
       (throw (failure ~origin ~op (.-outcome e#))))))

(defn lookup
  "Returns the decoded value of a key, or not-found."
  [^Elements es ^Codec key-codec ^Codec value-codec k not-found flags origin op]
  (with-failure [origin op]
    (ElementOps/lookup es key-codec value-codec k not-found (long flags))))

(defn might-contain?
  "Returns true if a value may be in a bloom filter."
  [^Elements es ^Codec value-codec v origin op]
  (let [outcome (ElementOps/contains es value-codec v)]
    (cond
      (zero? outcome) true
      (== enoent outcome) false
      :else (throw (failure origin op outcome)))))

(defn lookup-and-delete
  "Returns the decoded value of a key and deletes the key in the same step.

  Without keys, returns and removes the next value. Returns not-found if there is none. A value
  that cannot be decoded must not be deleted: a codec that may throw is therefore tried by a
  lookup before, although a writer may still come between the two."
  [^Elements es ^Codec key-codec ^Codec value-codec k not-found flags origin op]
  (when-not (.total value-codec)
    (lookup es key-codec value-codec k not-found flags origin op))
  (with-failure [origin op]
    (ElementOps/take es key-codec value-codec k not-found (long flags))))

(defn- false-or-throw
  "Returns false if the key prevented the write; throws for any other errno."
  [outcome flags origin op]
  (let [outcome (long outcome)]
    (if (or (== enoent outcome)
            ;; Without the flag, EEXIST is not about the key: a struct_ops value would register a
            ;; name that exists.
            (and (== eexist outcome) (only-new? flags)))
      false
      (throw (failure origin op outcome)))))

(defn write
  "Writes an entry under `any`, `no-exist` or `exist`; returns true if written."
  [^Elements es ^Codec key-codec ^Codec value-codec k v flags origin op]
  (let [outcome (ElementOps/update es key-codec value-codec k v (long flags))]
    (if (zero? outcome)
      true
      (false-or-throw outcome flags origin op))))

(defn delete
  "Deletes a key; returns true if it existed.

  `(missing-errnos origin)` returns the outcomes that mean the same as a missing key."
  [^Elements es ^Codec key-codec k missing-errnos origin op]
  (let [outcome (ElementOps/delete es key-codec k)]
    (cond
      (zero? outcome) true
      (== enoent outcome) false
      (contains? (missing-errnos origin) outcome) false
      :else (throw (failure origin op outcome)))))

(defn next-key
  "Returns the key after `k` in the kernel's order, or the first one.

  Returns nil after the last key."
  [^Elements es ^Codec key-codec k first? origin op]
  (with-failure [origin op]
    (ElementOps/nextKey es key-codec k (boolean first?))))

(defn check-encodable
  "Throws if the codec cannot encode a value."
  [^Codec codec value]
  (let [s (CallBuffer/take (+ CallBuffer/KEY (.size codec)))]
    (try
      (.encode codec value (.-memory s) CallBuffer/KEY)
      (finally (.give s)))))

(def ^:private orders
  "Key orders of the kernel by their names in `bpfmap.impl.map-types`."
  {nil KeyOrder/NONE, :index KeyOrder/INDEX, :prefix KeyOrder/PREFIX})

(defn batch-reader
  "Returns a reader that reads the whole map with a system call per chunk.

  Close it. Options: the options of [[key-iterator]]; `:delete`, true to delete entries as they
  are read; `:chunk`, the number of entries to begin with."
  ^Reader [^Fd fd key-size value-size {:keys [max-entries flags order delete chunk]}]
  (let [command (if delete Abi/BPF_MAP_LOOKUP_AND_DELETE_BATCH Abi/BPF_MAP_LOOKUP_BATCH)
        order ^KeyOrder (orders order)]
    (if chunk
      (BatchReader. fd command (long key-size) (long value-size) (long max-entries) (long flags)
                    order (long chunk))
      (BatchReader. fd command (long key-size) (long value-size) (long max-entries) (long flags)
                    order))))

(defn key-iterator
  "Returns a reader that reads the whole map key by key.

  Close it. For kernels and map types without batches. Options: `:max-entries`; `:flags` of every
  lookup; `:order`, a key order of `bpfmap.impl.map-types`; `:index-keys`, true if keys are
  indices."
  ^Reader [^Elements es key-size value-size {:keys [max-entries flags order index-keys]}]
  (KeyIterator. es (long key-size) (long value-size) (long max-entries) (long flags)
                ^KeyOrder (orders order) (boolean index-keys)))

(def ^:private no-batch-errnos
  "Outcomes of the first batch if the kernel or the map type has no batches."
  #{(- Abi/EINVAL) (- Abi/ENOTSUPP) (- Abi/EOPNOTSUPP)})

(defn no-batches?
  "Returns true if the first outcome of a batch reader means: no batches here."
  [outcome]
  (contains? no-batch-errnos outcome))

(defn aborted?
  "Returns true if a reader gave up because it was restarted too often."
  [outcome]
  (== Reader/ABORTED (long outcome)))

(defn fold-chunks
  "Folds `(chunk-step acc reader n)` over the chunks of a reader, n entries each.

  Stops at a `reduced`. Closes the reader. For an errno, returns `(on-error outcome first? acc)`:
  the negated errno, whether it was the first outcome, and the accumulator."
  [^Reader reader chunk-step init on-error]
  (with-open [reader reader]
    (loop [acc init first? true]
      (let [n (.read reader)]
        (cond
          (zero? n) acc
          (neg? n) (on-error n first? acc)
          :else
          (let [acc (chunk-step acc reader n)]
            (if (reduced? acc)
              (unreduced acc)
              (recur acc false))))))))

(defmacro ^:private each-entry
  "Returns a chunk step that evaluates `expression` for each decoded entry.

  `expression` computes the next `acc` from `acc`, `k` and `v`."
  [[acc k v key-codec value-codec] expression]
  `(let [key-codec# (TypeCodec/of ~key-codec)
         value-codec# (TypeCodec/of ~value-codec)
         key-size# (.size key-codec#)
         value-size# (.size value-codec#)]
     (fn [acc# ~(with-meta 'reader {:tag `Reader}) ~(with-meta 'n {:tag 'long})]
       ;; In locals of this function, their class is checked once for each chunk.
       (let [key-codec# key-codec#
             value-codec# value-codec#
             keys# (.keys ~'reader)
             values# (.values ~'reader)]
         (loop [i# 0 ~acc acc#]
           (if (or (== i# ~'n) (reduced? ~acc))
             ~acc
             (let [~k (.decode key-codec# keys# (unchecked-multiply i# key-size#))
                   ~v (.decode value-codec# values# (unchecked-multiply i# value-size#))]
               (recur (unchecked-inc i#) ~expression))))))))

(defn entry-step
  "Returns a chunk step that calls `(step acc key value)` for each decoded entry."
  [^Codec key-codec ^Codec value-codec step]
  (each-entry [acc k v key-codec value-codec] (step acc k v)))

(defn pair-step
  "Returns a chunk step that calls `(f acc entry)` for each decoded entry."
  [^Codec key-codec ^Codec value-codec f]
  (each-entry [acc k v key-codec value-codec] (f acc (MapEntry/create k v))))

(def raw-key-codec
  "Codec of keys that are memory segments with the encoded bytes.

  Operations on keys that were read use these bytes, and not the decoded key."
  (reify Codec
    (size [_] 0)
    (encode [_ value memory offset]
      (MemorySegment/copy ^MemorySegment value 0 memory offset (.byteSize ^MemorySegment value)))
    (decode [_ _memory _offset] nil)))

(defn key-step
  "Returns a chunk step that calls `(step acc key raw)` for each decoded key.

  `raw` is the key for [[raw-key-codec]]."
  [^Codec key-codec step]
  (let [key-size (.size key-codec)]
    (fn [acc ^Reader reader ^long n]
      (let [keys (.keys reader)]
        (loop [i 0 acc acc]
          (if (or (== i n) (reduced? acc))
            acc
            (let [at (* i key-size)]
              (recur (inc i)
                     (step acc (.decode key-codec keys at) (.asSlice keys at key-size))))))))))

(defn count-step
  "Counts entries without decoding any.
  A chunk step."
  [^long acc _ ^long n]
  (+ acc n))

(defn count-step-until
  "Returns a [[count-step]] that ends with nil at a time of `System/nanoTime`."
  [^long deadline]
  (fn [acc _ n]
    (if (neg? (- (System/nanoTime) deadline))
      (+ (long acc) (long n))
      (reduced nil))))

;; --- writing and deleting many elements

(defn batch-writer
  "Returns a buffer that collects entries to write, or keys to delete.

  Close it. Without a value codec it collects keys."
  ^BatchWriter [^Fd fd ^Codec key-codec ^Codec value-codec]
  (BatchWriter. fd (.size key-codec) (if value-codec (.size value-codec) 0)))

(defn add
  "Encodes an entry, or a key, into a batch writer."
  [^BatchWriter writer ^Codec key-codec ^Codec value-codec k v]
  (let [i (.add writer)]
    (.encode key-codec k (.keys writer) (* i (.size key-codec)))
    (when value-codec
      (.encode value-codec v (.values writer) (* i (.size value-codec))))))

(defn write-all
  "Writes all collected entries; returns `[done outcome]`.

  `done` is the number of entries written, `outcome` 0 or the negated errno that ended it. Writes
  one by one without `batches?`, or if the kernel has no batches."
  [^BatchWriter writer ^Elements es batches? flags]
  (let [outcome (.writeAll writer es (boolean batches?) (long flags))]
    [(.completed writer) outcome]))

(defn count-present
  "Returns the number of different keys among all entries written.

  With `prefixes?`, only the leading bits of a key count, as in an LPM trie. With `es`, counts
  only keys that the map still contains."
  [^BatchWriter writer prefixes? ^Elements es]
  (.present writer (.size writer) (boolean prefixes?) es))

(defn delete-all
  "Deletes all collected keys; returns `[done outcome]`.

  `done` is the number of keys that existed, `outcome` 0 or the negated errno that ended it."
  [^BatchWriter writer ^Elements es batches? missing-errnos]
  (let [missing (reify IntPredicate (test [_ outcome] (contains? missing-errnos outcome)))
        outcome (.deleteAll writer es (boolean batches?) missing)]
    [(.completed writer) outcome]))

(defn entry
  "Returns an entry of a map as data that destructures as a pair."
  [k v]
  (MapEntry/create k v))
