(ns bpfmap.impl.btf.samples
  "What the tests of BTF share: blobs from words, records of all kinds, generators, and a reader
  of ELF sections."
  (:require [bpfmap.fixture :refer [error-of]]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.kinds :as kinds]
            [clojure.string :as str]
            [clojure.test :refer [is]]
            [clojure.test.check.generators :as gen])
  (:import (com.sun.management ThreadMXBean)
           (java.lang.management ManagementFactory)
           (java.nio ByteBuffer ByteOrder)
           (java.nio.charset StandardCharsets)
           (java.nio.file Files Path)))

(set! *warn-on-reflection* true)

(def little {:byte-order ByteOrder/LITTLE_ENDIAN})
(def big {:byte-order ByteOrder/BIG_ENDIAN})

(defn read-bytes
  "The content of a file."
  ^bytes [path]
  (Files/readAllBytes (Path/of (str path) (make-array String 0))))

(def needs-base
  "pass the BTF of vmlinux as the base if this is the BTF of a module")

(defn refusal
  "What an error says, after checking that it is of this kind: its path and its message."
  [{:keys [message] :bpfmap/keys [error path hint]}]
  (is (= :malformed-btf error) message)
  (is (or (nil? hint) (str/ends-with? message hint)))
  [path message])

(defmacro refused
  "As [[refusal]], of what body throws."
  [& body]
  `(refusal (error-of ~@body)))

(def vmlinux "/sys/kernel/btf/vmlinux")

(defn all-records
  "Every record of a blob but void; of a split one, those it adds to its base."
  [b]
  (let [from (inc (if-let [base (blob/base b)] (blob/type-count base) 0))]
    (mapv #(blob/record b %) (range from (inc (blob/type-count b))))))

(defn numbered
  "Records with the ids that their places give them, from 1 or another first."
  ([records] (numbered records 1))
  ([records from] (mapv #(assoc %1 :id %2) records (iterate inc from))))

;; ---------------------------------------------------------------- blobs from words

(defn info
  "The second word of a type."
  ([kind] (info kind 0))
  ([kind vlen] (info kind vlen 0))
  ([kind vlen flag]
   (bit-or (bit-shift-left (long (kinds/numbers kind kind)) 24) (long vlen)
           (bit-shift-left (long flag) 31))))

(defn raw
  "A blob from words of types, and the strings: a vector of them, or text that says itself where
  they end. `header` replaces fields of the header, which has room for the layout when :layout-len
  is among them; `extra` follows."
  ^bytes [words strings & {:keys [order header extra] :or {order ByteOrder/LITTLE_ENDIAN}}]
  (let [^String text (if (string? strings)
                       strings
                       (apply str (mapcat #(vector % (char 0)) strings)))
        text (.getBytes text StandardCharsets/UTF_8)
        extra (byte-array extra)
        types (* 4 (count words))
        fields (merge {:magic 0xeb9f :version 1 :flags 0 :hdr-len (if (:layout-len header) 32 24)
                       :type-off 0 :type-len types :str-off types :str-len (alength text)
                       :layout-off (+ types (alength text)) :layout-len 0}
                      header)
        out (doto (ByteBuffer/allocate (+ 32 types (alength text) (alength extra))) (.order order))]
    (.putShort out (unchecked-short (:magic fields)))
    (.put out (unchecked-byte (:version fields)))
    (.put out (unchecked-byte (:flags fields)))
    (doseq [k (concat [:hdr-len :type-off :type-len :str-off :str-len]
                      (when (:layout-len header) [:layout-off :layout-len]))]
      (.putInt out (unchecked-int (fields k))))
    (doseq [word words] (.putInt out (unchecked-int word)))
    (.put out text)
    (.put out extra)
    (java.util.Arrays/copyOf (.array out) (.position out))))

;; ---------------------------------------------------------------- records

(def every-kind
  "Types of all kinds that the kernel takes, too."
  (numbered
   [{:kind :int :name "int" :size 4 :bits 32 :offset 0 :signed true :char false :bool false}
    {:kind :int :name "char" :size 1 :bits 8 :offset 0 :signed false :char true :bool false}
    {:kind :int :name "_Bool" :size 1 :bits 8 :offset 0 :signed false :char false :bool true}
    {:kind :ptr :type 0}
    {:kind :array :element 1 :index 1 :count 3}
    {:kind :struct :name "pair" :size 16
     :members [{:name "left" :type 1 :bit-offset 0 :bits 0}
               {:name "right" :type 4 :bit-offset 64 :bits 0}]}
    {:kind :struct :size 8
     :members [{:name "low" :type 1 :bit-offset 0 :bits 3}
               {:name "high" :type 1 :bit-offset 3 :bits 29}
               {:name "whole" :type 1 :bit-offset 32 :bits 0}]}
    {:kind :union :name "either" :size 16
     :members [{:name "number" :type 1 :bit-offset 0 :bits 0} {:type 6 :bit-offset 0 :bits 0}]}
    {:kind :enum :name "small" :size 4 :signed true
     :values [["LEAST" -2147483648] ["NONE" -1] ["MOST" 2147483647]]}
    {:kind :enum :name "mask" :size 4 :signed false :values [["ALL" 4294967295]]}
    {:kind :fwd :name "later" :union false}
    {:kind :fwd :name "later_union" :union true}
    {:kind :typedef :name "number_t" :type 15}
    {:kind :volatile :type 1}
    {:kind :const :type 14}
    {:kind :restrict :type 4}
    {:kind :func-proto :return 1
     :params [{:name "first" :type 1} {:name "second" :type 4} {:type 0}]}
    {:kind :func :name "call" :type 17 :linkage :global}
    {:kind :var :name "counter" :type 13 :linkage :static}
    {:kind :var :name "total" :type 25 :linkage :global}
    {:kind :datasec :name ".data" :size 12
     :vars [{:type 19 :offset 0 :size 4} {:type 20 :offset 4 :size 8}]}
    {:kind :float :name "float" :size 4}
    {:kind :decl-tag :name "of the whole" :type 6 :component -1}
    {:kind :decl-tag :name "of a member" :type 6 :component 1}
    {:kind :enum64 :name "wide" :size 8 :signed false
     :values [["ZERO" 0] ["TOP" 18446744073709551615N] ["HALF" 9223372036854775808N]]}
    {:kind :enum64 :name "wide_signed" :size 8 :signed true
     :values [["LOWEST" -9223372036854775808] ["HIGHEST" 9223372036854775807]]}
    {:kind :type-tag :name "user" :type 1}
    {:kind :ptr :type 27}]))

(def attributes
  "Tags that stand for attributes, which is newer than the rest."
  [{:kind :int :name "int" :size 4 :bits 32 :offset 0 :signed true :char false :bool false}
   {:kind :type-tag :name "address_space(1)" :type 1 :attribute true}
   {:kind :decl-tag :name "pure" :type 1 :component -1 :attribute true}])

(def ^:private gen-name
  (gen/frequency [[6 (gen/fmap #(apply str %) (gen/vector gen/char-alphanumeric 1 12))]
                  [2 (gen/elements ["a" "name" "the_same" "another"])]
                  [1 (gen/elements ["größe" "名前" "😀" "with space" "(anon)"])]]))

(def ^:private edge-u32
  (gen/frequency [[4 (gen/choose 0 200)]
                  [1
                   (gen/elements [0 1 255 256 65535 65536 0xffffff 0x1000000 0x7fffffff 0x80000000
                                  0xffffffff])]]))

(defn- canonical
  "An integer as it is read: of 64 bits, but beyond those a BigInt."
  [x]
  (if (<= Long/MIN_VALUE x Long/MAX_VALUE) (long x) (bigint x)))

(defn- gen-value [bits signed?]
  (let [values (bigint (.pow (biginteger 2) (int bits)))
        [low high] (if signed? [(- (/ values 2)) (dec (/ values 2))] [0 (dec values)])]
    (gen/fmap canonical
              (gen/one-of [(gen/elements (map canonical [low high (dec high) 0 1]))
                           (gen/choose 0 127)
                           (gen/fmap #(+ low (mod (bigint %) (inc (- high low))))
                                     gen/large-integer)]))))

(defn- gen-map
  "A map of generators, where the name may be missing."
  [generators]
  (gen/let [m (apply gen/hash-map (mapcat identity generators))
            name (gen/one-of [gen-name gen-name (gen/return nil)])]
    (cond-> m name (assoc :name name))))

(defn- gen-members [reference]
  (gen/let [bits? gen/boolean]
    (let [member (gen/hash-map :type reference
                               :bit-offset (if bits? (gen/choose 0 0xffffff) edge-u32)
                               :bits (if bits? (gen/choose 0 255) (gen/return 0)))]
      (gen/fmap (fn [pairs] (mapv (fn [[m name]] (cond-> m name (assoc :name name))) pairs))
                (gen/vector (gen/tuple member (gen/one-of [gen-name (gen/return nil)])) 0 6)))))

(defn- gen-enum [kind bits]
  (gen/let [signed? gen/boolean
            values (gen/vector (gen/tuple (gen/one-of [gen-name (gen/return nil)])
                                          (gen-value bits signed?)) 0 5)
            m (gen-map {:kind (gen/return kind) :size (gen/elements [1 2 4 8])})]
    (assoc m :signed signed? :values values)))

(defn- marked [g]
  (gen/let [m g mark gen/boolean] (cond-> m mark (assoc :attribute true))))

(defn gen-record
  "A generator of records of a kind whose references reach to the last id."
  [kind last-id]
  (let [reference (gen/choose 0 last-id)
        of (fn [& {:as generators}] (gen-map (assoc generators :kind (gen/return kind))))
        linkage (gen/frequency [[6 (gen/elements kinds/linkages)] [1 (gen/choose 3 65535)]])]
    (case kind
      :int (of :size edge-u32 :bits (gen/choose 0 255) :offset (gen/choose 0 255)
               :signed gen/boolean :char gen/boolean :bool gen/boolean)
      :array (of :element reference :index reference :count edge-u32)
      (:struct :union) (gen/let [m (of :size edge-u32) members (gen-members reference)]
                         (assoc m :members members))
      :enum (gen-enum kind 32)
      :enum64 (gen-enum kind 64)
      :fwd (of :union gen/boolean)
      (:ptr :typedef :volatile :const :restrict) (of :type reference)
      :type-tag (marked (of :type reference))
      :decl-tag (marked (of :type reference :component
                            (gen/one-of [(gen/choose -1 8) (gen-value 32 true)])))
      (:func :var) (of :type reference :linkage linkage)
      :func-proto (gen/let [m (of :return reference)
                            params (gen/vector (gen-map {:type reference}) 0 5)]
                    (assoc m :params params))
      :datasec (of :size edge-u32
                   :vars
                   (gen/vector (gen/hash-map :type reference :offset edge-u32 :size edge-u32) 0 5))
      :float (of :size edge-u32))))

(defn gen-records
  "A generator of up to `most` records, as they are read, for a blob that follows a base of so
  many types."
  ([most] (gen-records most 0))
  ([most base-count]
   (gen/let [kinds (gen/vector (gen/elements kinds/kinds) 0 most)
             records (apply gen/tuple (map #(gen-record % (+ base-count (count kinds))) kinds))]
     (numbered records (inc base-count)))))

;; ---------------------------------------------------------------- ELF

(defn elf-section
  "The bytes of a section of a 64-bit little-endian ELF file, or nil."
  ^bytes [^bytes elf wanted]
  (let [b (.order (ByteBuffer/wrap elf) ByteOrder/LITTLE_ENDIAN)
        table (.getLong b 40)
        entry (.getShort b 58)
        n (.getShort b 60)
        place (fn [i] (+ table (* entry i)))
        from (fn [i] (.getLong b (+ (place i) 24)))
        strings (from (.getShort b 62))
        text (fn [from]
               (loop [to from]
                 (if (zero? (aget elf to))
                   (String. elf (int from) (int (- to from)))
                   (recur (inc to)))))]
    (some (fn [i]
            (when (= wanted (text (+ strings (.getInt b (place i)))))
              (java.util.Arrays/copyOfRange elf (int (from i))
                                            (int (+ (from i) (.getLong b (+ (place i) 32)))))))
          (range n))))

;; ---------------------------------------------------------------- cost

(def ^:private ^ThreadMXBean threads (ManagementFactory/getThreadMXBean))

(defn cost
  "What calling f takes of this thread: {:result :bytes :ms}, memory allocated and time of the
  processor."
  [f]
  (let [bytes (.getCurrentThreadAllocatedBytes threads)
        time (.getCurrentThreadCpuTime threads)
        result (f)]
    {:result result
     :bytes (- (.getCurrentThreadAllocatedBytes threads) bytes)
     :ms (/ (- (.getCurrentThreadCpuTime threads) time) 1e6)}))

(defn median-ms
  "The median time in milliseconds of calling f n times, after as many calls to warm up."
  [n f]
  (dotimes [_ n] (f))
  (nth (sort (repeatedly n #(let [begun (System/nanoTime)]
                              (f)
                              (/ (- (System/nanoTime) begun) 1e6))))
       (quot n 2)))
