(ns ^:no-doc bpfmap.impl.kernel.element
  "The hot paths: one element, one system call; many elements, few system calls.

  Every function takes the codecs of the map and answers with decoded values.
  A missing key is an answer; any other refusal is thrown as the exception that
  the map itself makes of it."
  (:import (bpfmap.sys Abi BatchReader BatchWriter CallBuffer Codec ElementOps Elements
                       ErrnoException Fd Integers KeyIterator KeyOrder Reader)
           (clojure.lang MapEntry)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(defprotocol Origin
  "Where an operation comes from: it knows how to say what went wrong."
  (failure [origin op outcome] "The exception for a negated errno."))

(def ^:const any "Write whether or not the key exists." Abi/BPF_ANY)
(def ^:const no-exist "Write only where the key does not exist." Abi/BPF_NOEXIST)
(def ^:const exist "Write only where the key exists; of a full queue, its oldest." Abi/BPF_EXIST)
(def ^:const lock "Hold the value's spin lock; a flag beside the others." Abi/BPF_F_LOCK)

(defn only-new?
  "Whether flags ask for writing only where the key does not exist."
  [flags]
  (== no-exist (bit-and no-exist (long flags))))

(defn cpu
  "The flags for the value of one CPU alone. Since Linux 7.0."
  ^long [^long number]
  (bit-or Abi/BPF_F_CPU (bit-shift-left number 32)))

(def empty-slot
  "What the kernel answers to deleting an empty slot, or an index beyond the end, of the maps
  whose keys are indices."
  #{(- Abi/EINVAL) (- Abi/E2BIG)})

(def not-registered
  "What the kernel answers to deleting a struct_ops value that was unregistered before."
  #{(- Abi/EINPROGRESS)})

(def ^:private ^:const absent (- Abi/ENOENT))
(def ^:private ^:const exists (- Abi/EEXIST))

(defn elements
  "The element operations of an open map, for the functions below. Sizes are those of the codecs;
  a key of 0 bytes is none."
  ^Elements [^Fd fd key-size value-size]
  (Elements. fd key-size value-size))

(defmacro ^:private answered
  "What a call returns; another refusal than that of a missing key becomes its exception."
  [[origin op] call]
  `(try
     ~call
     (catch ErrnoException e#
       (throw (failure ~origin ~op (.-outcome e#))))))

(defn lookup
  "The decoded value of a key, or not-found."
  [^Elements es ^Codec key-codec ^Codec value-codec k not-found flags origin op]
  (answered [origin op]
    (ElementOps/lookup es key-codec value-codec k not-found (long flags))))

(defn contained?
  "Whether a value may be in a bloom filter."
  [^Elements es ^Codec value-codec v origin op]
  (let [outcome (ElementOps/contains es value-codec v)]
    (cond
      (zero? outcome) true
      (== absent outcome) false
      :else (throw (failure origin op outcome)))))

(defn take-out
  "As [[lookup]], and deletes the key in the same step; of a map without keys, the next value.

  What cannot be decoded must not be deleted. A codec that may throw is
  therefore asked first, with a lookup of its own; a writer may still come between the two."
  [^Elements es ^Codec key-codec ^Codec value-codec k not-found flags origin op]
  (when-not (.total value-codec)
    (lookup es key-codec value-codec k not-found flags origin op))
  (answered [origin op]
    (ElementOps/take es key-codec value-codec k not-found (long flags))))

(defn- not-written
  "False where the entry was not to be written because of its key; throws for any other answer."
  [outcome flags origin op]
  (let [outcome (long outcome)]
    (if (or (== absent outcome)
            ;; Without the flag it is about something else: a name that a struct_ops value would
            ;; register.
            (and (== exists outcome) (only-new? flags)))
      false
      (throw (failure origin op outcome)))))

(defn write
  "Writes an entry under `any`, `no-exist` or `exist`; whether it was written."
  [^Elements es ^Codec key-codec ^Codec value-codec k v flags origin op]
  (let [outcome (ElementOps/update es key-codec value-codec k v (long flags))]
    (if (zero? outcome)
      true
      (not-written outcome flags origin op))))

(defn delete
  "Deletes a key; whether it was there. `none` makes of the origin a set of answers that mean the
  same as a missing key."
  [^Elements es ^Codec key-codec k none origin op]
  (let [outcome (ElementOps/delete es key-codec k)]
    (cond
      (zero? outcome) true
      (== absent outcome) false
      (contains? (none origin) outcome) false
      :else (throw (failure origin op outcome)))))

(defn next-key
  "The key after `k` in the kernel's order, or the first one; nil after the last."
  [^Elements es ^Codec key-codec k first? origin op]
  (answered [origin op]
    (ElementOps/nextKey es key-codec k (boolean first?))))

(defn check
  "Encodes a value to nowhere: throws what encoding it would throw."
  [^Codec codec value]
  (let [s (CallBuffer/take (+ CallBuffer/KEY (.size codec)))]
    (try
      (.encode codec value (.-memory s) CallBuffer/KEY)
      (finally (.give s)))))

(def ^:private orders
  "The orders in which the kernel goes through keys, by their names in the rules."
  {nil KeyOrder/NONE, :index KeyOrder/INDEX, :prefix KeyOrder/PREFIX})

(defn batches
  "A reader of the whole map by chunks, one system call for each. Close it.

  `options` are those of [[walk]], with `:taking` to delete what is read, and `:chunk`, how many
  entries to begin with."
  ^Reader [^Fd fd key-size value-size {:keys [max-entries flags order taking chunk]}]
  (let [command (if taking Abi/BPF_MAP_LOOKUP_AND_DELETE_BATCH Abi/BPF_MAP_LOOKUP_BATCH)
        order ^KeyOrder (orders order)]
    (if chunk
      (BatchReader. fd command (long key-size) (long value-size) (long max-entries) (long flags)
                    order (long chunk))
      (BatchReader. fd command (long key-size) (long value-size) (long max-entries) (long flags)
                    order))))

(defn walk
  "A reader of the whole map key by key, for kernels and types without batches. Close it.

  Of `options`, `:flags` are those of every lookup, `:order` is that of the keys, a name of the
  rules, and with `:keys-stay` keys are indices."
  ^Reader [^Elements es key-size value-size {:keys [max-entries flags order keys-stay]}]
  (KeyIterator. es (long key-size) (long value-size) (long max-entries) (long flags)
                ^KeyOrder (orders order) (boolean keys-stay)))

(def ^:private no-batches
  "What a kernel or map type without batches answers to the first one."
  #{(- Abi/EINVAL) (- Abi/ENOTSUPP) (- Abi/EOPNOTSUPP)})

(defn no-batches?
  "Whether the first answer of a batch reader says that there are no batches here."
  [outcome]
  (contains? no-batches outcome))

(defn aborted?
  "Whether a reader was thrown back to the beginning too often to come to an end."
  [outcome]
  (== Reader/ABORTED (long outcome)))

(defn fold-chunks
  "Folds `(chunk-step acc reader n)` over the chunks of a reader, n entries each. Stops at a
  `reduced`. Closes the reader.

  `refused` is called with the negated errno, whether it was the first answer, and acc; what it
  returns is the result."
  [^Reader reader chunk-step init refused]
  (with-open [reader reader]
    (loop [acc init first? true]
      (let [n (.read reader)]
        (cond
          (zero? n) acc
          (neg? n) (refused n first? acc)
          :else
          (let [acc (chunk-step acc reader n)]
            (if (reduced? acc)
              (unreduced acc)
              (recur acc false))))))))

(defmacro ^:private each-entry
  "The step of [[fold-chunks]] that makes a new acc of `acc`, a key `k` and a value `v`, decoded,
  for each entry."
  [[acc k v key-codec value-codec] expression]
  `(let [key-size# (.size ~key-codec)
         value-size# (.size ~value-codec)
         key-kind# (.integers ~key-codec)
         value-kind# (.integers ~value-codec)]
     (fn [acc# ~(with-meta 'reader {:tag `Reader}) ~(with-meta 'n {:tag 'long})]
       (let [keys# (.keys ~'reader)
             values# (.values ~'reader)]
         (loop [i# 0 ~acc acc#]
           (if (or (== i# ~'n) (reduced? ~acc))
             ~acc
             (let [~k (Integers/read key-kind# ~key-codec keys# (unchecked-multiply i# key-size#))
                   ~v (Integers/read value-kind# ~value-codec values#
                                     (unchecked-multiply i# value-size#))]
               (recur (unchecked-inc i#) ~expression))))))))

(defn entry-step
  "The step of [[fold-chunks]] that calls `(step acc key value)` with each decoded entry."
  [^Codec key-codec ^Codec value-codec step]
  (each-entry [acc k v key-codec value-codec] (step acc k v)))

(defn pair-step
  "The step of [[fold-chunks]] that calls `(f acc entry)` with each decoded entry."
  [^Codec key-codec ^Codec value-codec f]
  (each-entry [acc k v key-codec value-codec] (f acc (MapEntry/create k v))))

(def raw-key
  "A codec of keys that are given as the memory that holds their bytes: what acts on keys that
  were read acts on these."
  (reify Codec
    (size [_] 0)
    (encode [_ value memory offset]
      (MemorySegment/copy ^MemorySegment value 0 memory offset (.byteSize ^MemorySegment value)))
    (decode [_ _memory _offset] nil)))

(defn key-step
  "The step of [[fold-chunks]] that calls `(step acc key raw)` with each decoded key, and its
  bytes for [[raw-key]]."
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
  "The step of [[fold-chunks]] that counts entries, and decodes none."
  [^long acc _ ^long n]
  (+ acc n))

;; --- many on their way in or out

(defn bulk
  "A place to collect entries, or keys where there is no value codec, before they are written or
  deleted. Close it."
  ^BatchWriter [^Fd fd ^Codec key-codec ^Codec value-codec]
  (BatchWriter. fd (.size key-codec) (if value-codec (.size value-codec) 0)))

(defn collect
  "Encodes one more entry, or key."
  [^BatchWriter bulk ^Codec key-codec ^Codec value-codec k v]
  (let [i (.add bulk)]
    (.encode key-codec k (.keys bulk) (* i (.size key-codec)))
    (when value-codec
      (.encode value-codec v (.values bulk) (* i (.size value-codec))))))

(def ^:private ^:const most "How many entries go to the kernel with one call." 0x10000)

(defn- one-by-one
  "Calls `one` with each index from `i`; returns `[done outcome]` as [[write-bulk]] does."
  [^BatchWriter bulk i one]
  (loop [i (long i) done i]
    (if (= i (.size bulk))
      [done 0]
      (let [outcome (long (one i))]
        (cond
          (zero? outcome) (recur (inc i) (inc done))
          (== absent outcome) (do (.skip bulk (int i)) (recur (inc i) done))
          :else [done outcome])))))

(defn- all-at-once
  "Calls `many` with ranges of entries, past keys that are missing; goes over to `one` where the
  kernel has no batches."
  [^BatchWriter bulk many one]
  (loop [i 0 done 0]
    (if (= i (.size bulk))
      [done 0]
      (let [n (min most (- (.size bulk) i))
            outcome (long (many i n))
            now (.done bulk)]
        (cond
          (zero? outcome) (recur (+ i n) (+ done n))
          ;; Refused before it began: the count is still the one given.
          (and (= now n) (no-batches? outcome)) (if (zero? i)
                                                  (one-by-one bulk 0 one)
                                                  [done outcome])
          (= now n) [done outcome]
          (== absent outcome) (do (.skip bulk (int (+ i now))) (recur (+ i now 1) (+ done now)))
          :else [(+ done now) outcome])))))

(defn write-bulk
  "Writes all that was collected; returns how many were written and 0, or the negated errno that
  ended it.

  Without `batches?`, or where the kernel has none, one by one."
  [^BatchWriter bulk ^Elements es batches? flags]
  (let [flags (long flags)
        one (fn [i] (.updateOne bulk es (int i) flags))]
    (if batches?
      (all-at-once bulk (fn [i n] (.update bulk (int i) (int n) (bit-and flags lock))) one)
      (one-by-one bulk 0 one))))

(defn present
  "How many different keys there are among all that were written of a bulk. Of an LPM trie's,
  `prefixes?`, only the leading bits count; with `es`, only those count that the map holds now."
  [^BatchWriter bulk prefixes? ^Elements es]
  (.present bulk (.size bulk) (boolean prefixes?) es))

(defn delete-bulk
  "Deletes all keys that were collected; returns how many were there and 0, or the negated errno
  that ended it."
  [^BatchWriter bulk ^Elements es batches? none]
  (let [one (fn [i]
              (let [outcome (.deleteOne bulk es (int i))]
                (if (contains? none outcome) absent outcome)))]
    (if batches?
      (all-at-once bulk (fn [i n] (.delete bulk (int i) (int n))) one)
      (one-by-one bulk 0 one))))

(defn entry
  "One entry of a map as data: a key and a value that destructure as a pair."
  [k v]
  (MapEntry/create k v))
