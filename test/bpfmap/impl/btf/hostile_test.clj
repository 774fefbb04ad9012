(ns bpfmap.impl.btf.hostile-test
  "Blobs that are broken on purpose: whatever the bytes, the answer is data or `:malformed-btf`,
  soon and in little memory."
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.samples :as samples]
            [bpfmap.impl.btf.writer :as writer]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]]
            [clojure.test.check.generators :as gen])
  (:import (java.nio ByteBuffer ByteOrder)
           (java.util Arrays SplittableRandom)))

(set! *warn-on-reflection* true)

(def ^:private blobs 100000)

;; ---------------------------------------------------------------- breaking

(def ^:private words
  "Words that mean something somewhere."
  (long-array (concat [0 1 2 3 4 8 12 20 23 24 25 28 32 63 64 65 255 256 65535 65536 0xffffff
                       0x1000000 0x7ffffffc
                       0x7fffffff 0x80000000 0xfffffff4 0xfffffffc 0xfffffffe 0xffffffff]
                      (for [kind (range 21) vlen [0 1 3 0xffff] flag [0 1]]
                        (samples/info kind vlen flag)))))

(defn- put-word! [^bytes bytes ^long at ^long x ^ByteOrder order]
  (when (<= 0 at (- (alength bytes) 4))
    (.putInt (.order (ByteBuffer/wrap bytes) order) (int at) (unchecked-int x))))

(defn- broken
  "A copy of a blob that is broken in one to four places."
  ^bytes [^bytes bytes order ^SplittableRandom random]
  (loop [bytes (aclone bytes) n (max 1 (- (.nextInt random 7) 2))]
    (let [length (alength bytes)
          place (fn [] (if (zero? length) 0 (.nextInt random length)))
          word-place (fn [] (* 4 (quot (long (place)) 4)))
          word (fn [] (case (.nextInt random 4)
                        0 (.nextInt random)
                        1 (.nextInt random 40)
                        2 (.nextInt random (inc (* 2 length)))
                        (aget ^longs words (.nextInt random (alength ^longs words)))))]
      (if (zero? n)
        bytes
        (recur (case (.nextInt random 16)
                 0 (Arrays/copyOf bytes (int (place)))                             ; cut short
                 ;; Longer, with zeros
                 1 (Arrays/copyOf bytes (int (+ length (.nextInt random 64))))
                 ;; A field of the header
                 2 (do (put-word! bytes (* 4 (.nextInt random 8)) (word) order)
                       bytes)
                 ;; A piece over another
                 (3 4 5) (let [from (int (word-place))
                               to (int (word-place))
                               n (min (.nextInt random 48) (- length (max from to)))]
                           (System/arraycopy bytes from bytes to n)
                           bytes)
                 (6 7 8) (do (put-word! bytes (word-place) (word) order)           ; a word
                             bytes)
                 ;; A small one: an id, a size
                 (9 10 11) (do (put-word! bytes (word-place) (.nextInt random 40) order)
                               bytes)
                 (do (when (pos? length)                                           ; a bit
                       (let [i (int (place))]
                         (aset bytes i
                               (unchecked-byte (bit-flip (aget bytes i) (.nextInt random 8))))))
                     bytes))
               (dec n))))))

;; ---------------------------------------------------------------- walking

(defmacro ^:private attempt
  "The value of the expression, or :malformed; anything else that is thrown goes on."
  [& body]
  `(try
     ~@body
     (catch clojure.lang.ExceptionInfo e#
       (let [{error# :bpfmap/error path# :bpfmap/path} (ex-data e#)]
         (if (and (= :malformed-btf error#) (vector? path#) (keyword? (first path#)))
           :malformed
           (throw e#))))))

(defn- walk
  "Asks a blob everything about some of its types; returns how many answers were :malformed."
  [b ^SplittableRandom random]
  (let [n (blob/type-count b)
        ids (if (<= n 8) (range (inc n)) (repeatedly 8 #(.nextInt random (int (inc n)))))]
    (reduce (fn [bad id]
              (let [record (attempt (blob/record b id))
                    answers [record (attempt (blob/resolve b id)) (attempt (blob/size-of b id))
                             (attempt (blob/kind b id))
                             (attempt (blob/string b
                                                   (.nextInt
                                                    random (int (inc (blob/string-end b))))))]
                    name (when (map? record) (:name record))]
                (when name
                  (assert (or (some #{id} (blob/ids-named b name (:kind record)))
                              (str/includes? name "\uFFFD")) ; it was not UTF-8
                          "a type is found by its name"))
                (+ bad (count (filter #{:malformed} answers)))))
            0
            ids)))

(defn- try-one
  "Parses and walks one broken blob; returns :malformed or how many answers of the walk were."
  [bytes base random]
  (let [b (attempt (blob/parse bytes base))]
    (if (= :malformed b)
      :malformed
      (walk b random))))

(def ^:private seeds
  "Blobs to break: of all kinds, generated, in both byte orders, split ones with their base, one
  with a layout."
  (delay
    (into
     [{:bytes (samples/raw [1 (samples/info 20 2) 0, 11, 12 13, 14 15, 0 (samples/info :ptr) 1]
                           ["" "new" "" "" ""]
                           :header {:layout-len 84} :extra (concat (repeat 80 0) [4 8 0 0]))
       :order ByteOrder/LITTLE_ENDIAN}]
     (for [order [samples/little samples/big]
           i (range 20)
           :let [base (when (< 13 i) (blob/parse (writer/blob samples/every-kind order)))
                 n (if base (blob/type-count base) 0)
                 records
                 (if (zero? i)
                   samples/every-kind
                   (gen/generate (samples/gen-records (+ 2 i) n) 30 i))]]
       {:bytes (writer/blob records (assoc order :base base)) :order (:byte-order order)
        :base base}))))

(deftest random-mutations
  (testing "a hundred thousand broken blobs return data or throw malformed-BTF"
    (let [outcomes
          (reduce
           (fn [{:keys [worst-ms worst-ratio] :as outcomes} i]
             (let [random (SplittableRandom. i)
                   {:keys [bytes order base]} (@seeds (.nextInt random (count @seeds)))
                   bytes (broken bytes order random)
                   {:keys [result ms] allocated :bytes}
                   (samples/cost #(try (try-one bytes base random)
                                       (catch Throwable e [:thrown i e])))
                   ratio (/ allocated (+ 1024.0 (alength ^bytes bytes)))]
               (cond-> (assoc outcomes :worst-ms (max worst-ms ms) :worst-ratio
                              (max worst-ratio ratio))
                 (vector? result) (update :thrown conj result)
                 (= :malformed result) (update :refused inc)
                 (and (number? result) (zero? result)) (update :whole inc)
                 (and (number? result) (pos? result)) (update :in-part inc))))
           {:worst-ms 0 :worst-ratio 0 :thrown [] :refused 0 :whole 0 :in-part 0}
           (range blobs))]
      (is (= [] (take 3 (:thrown outcomes))))
      (is (= blobs (+ (:refused outcomes) (:whole outcomes) (:in-part outcomes))))
      (is (every? #(< (/ blobs 20) (% outcomes)) [:refused :whole :in-part])
          "the mutations reach everywhere")
      (is (< (:worst-ms outcomes) (* fixture/slowness 500)))
      (is (< (:worst-ratio outcomes) 500) "memory, by byte of the blob"))))

(deftest mutated-kernel-blob
  (testing "a broken blob of the kernel returns data or throws malformed-BTF"
    (if-not (.canRead (io/file samples/vmlinux))
      (fixture/skip! (str "this kernel has no " samples/vmlinux))
      (let [bytes (samples/read-bytes samples/vmlinux)]
        (dotimes [i 40]
          (let [random (SplittableRandom. i)
                bytes (broken bytes (ByteOrder/nativeOrder) random)
                {:keys [result ms] allocated :bytes} (samples/cost #(try-one bytes nil random))]
            (is (some? result))
            (is (< ms (* fixture/slowness 2000)))
            (is (< allocated (+ 1e6 (* 2 (alength bytes)))))))))))

(deftest random-bytes-as-blob
  (testing "any bytes return data or throw malformed-BTF"
    (dotimes [i 10000]
      (let [random (SplittableRandom. i)
            bytes (byte-array (.nextInt random 80))]
        (.nextBytes random bytes)
        ;; Most would end at the magic.
        (dotimes [j (min (alength bytes) (.nextInt random 9))]
          (aset bytes j (unchecked-byte (aget (int-array [0x9f 0xeb 1 0 24 0 0 0]) j))))
        (is (some? (try-one bytes nil random)))))))

(deftest truncated-blob
  (testing "a blob truncated at any byte is malformed"
    (let [bytes (writer/blob samples/every-kind)]
      (dotimes [n (alength bytes)]
        (is (= :malformed (attempt (blob/parse (Arrays/copyOf bytes n)))) n)))))

(deftest every-bit-flipped
  (testing "any flipped bit returns data or throws malformed-BTF"
    (let [bytes (writer/blob samples/every-kind)
          n (* 8 (alength bytes))]
      (is (= n (count (for [i (range n)
                            :let [bytes (aclone bytes)
                                  at (int (quot i 8))]]
                        (do (aset bytes at (unchecked-byte (bit-flip (aget bytes at) (rem i 8))))
                            (try-one bytes nil (SplittableRandom. i))))))))))
