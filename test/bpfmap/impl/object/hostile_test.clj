(ns bpfmap.impl.object.hostile-test
  "Objects that are broken on purpose: whatever the bytes, the answer is data or
  `:malformed-object`, soon and in little memory.

  The system property bpfmap.mutations sets the number of broken objects; a long run has 100,000."
  (:require [bpfmap.asm :as asm]
            [bpfmap.fixture :as fixture]
            [bpfmap.impl.btf.elf :as elf]
            [bpfmap.impl.btf.samples :as samples]
            [bpfmap.impl.object.reader :as reader]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (clojure.lang ExceptionInfo)
           (java.io File)
           (java.nio ByteBuffer)
           (java.nio.file Files)
           (java.util Arrays SplittableRandom)))

(set! *warn-on-reflection* true)

(def ^:private mutations (Long/getLong "bpfmap.mutations" 3000))

(defn- parsed
  "The bytes of an object, and the ranges of it that are worth breaking: `[offset size]`."
  [^bytes bytes]
  (let [{:keys [sections buffer]} (elf/parse bytes)
        start (.getLong ^ByteBuffer buffer 0x28)]
    {:bytes bytes
     :order (.order ^ByteBuffer buffer)
     :ranges (vec (concat [[0 64] [start (- (alength bytes) start)]]
                          (for [{:keys [type offset size]} sections
                                :when (and (not= 8 type) (< 8 (long size)))]
                            [offset size])))}))

(def ^:private folder
  "Where the objects are. The system property bpfmap.objects names another folder for a long run."
  (System/getProperty "bpfmap.objects" "test/objects"))

(def ^:private seeds
  (delay (vec (for [^File file (sort (file-seq (io/file folder)))
                    :when (re-find #"\.(o|elf)$" (.getName file))]
                (parsed (Files/readAllBytes (.toPath file)))))))

(def ^:private words
  "Words that mean something somewhere."
  (int-array [0 1 2 3 4 7 8 12 16 23 24 32 63 64 255 256 4096 65535 65536 0xffffff 0x7fffffff -1 -2
              -8 -2147483648 0x01000000 0x04000001 0x0d000002 0x0f000003]))

(defn- random-word [^SplittableRandom random length]
  (case (.nextInt random 4)
    0 (.nextInt random)
    1 (.nextInt random 40)
    2 (.nextInt random (inc (* 2 (int length))))
    (aget ^ints words (.nextInt random (alength ^ints words)))))

(defn- broken
  "A copy of an object that is broken in one to four places."
  ^bytes [{:keys [^bytes bytes order ranges]} ^SplittableRandom random]
  (loop [bytes (aclone bytes) n (inc (.nextInt random 4))]
    (if (zero? n)
      bytes
      (let [length (alength bytes)
            [from size] (nth ranges (.nextInt random (count ranges)))
            place (fn [unit] (let [at (+ (long from)
                                         (* (long unit)
                                            (quot (.nextInt random (int size)) (long unit))))]
                               (when (<= at (- length (long unit))) (int at))))
            put-word! (fn [x]
                        (when-let [at (place 4)]
                          (.putInt (.order (ByteBuffer/wrap bytes) order) (int at) (int x))))]
        (recur
         (case (.nextInt random 12)
           0 (if (zero? (.nextInt random 4)) ; cut short
               (Arrays/copyOf bytes (.nextInt random (inc length)))
               (Arrays/copyOf bytes (int (- length (min length (.nextInt random 200))))))
           1 (let [[other-from other-size] (nth ranges (.nextInt random (count ranges))) ; splice
                   n (min 64 (long other-size) (long size))]
               (when (<= (+ (max (long from) (long other-from)) n) length)
                 (System/arraycopy bytes (int other-from) bytes (int from) (int n)))
               bytes)
           (2 3 4) (do (put-word! (random-word random length)) bytes)
           (5 6) (do (put-word! (.nextInt random 40)) bytes)
           7 (do (when-let [at (place 8)] ; a long
                   (.putLong (.order (ByteBuffer/wrap bytes) order) (int at)
                             (case (.nextInt random 3)
                               0 (.nextLong random)
                               1 (.nextInt random 64)
                               -1)))
                 bytes)
           (do (when-let [at (place 1)]
                 (aset bytes (int at) (unchecked-byte (bit-flip (aget bytes (int at))
                                                                (.nextInt random 8)))))
               bytes))
         (dec n))))))

(defn- used
  "Reads an object, and disassembles what it has; returns how it went."
  [^bytes bytes]
  (try
    (let [{:keys [programs functions maps variables]} (reader/of-bytes bytes)]
      (doseq [function (concat (vals programs) (vals functions))]
        (asm/disassemble function))
      (if (and (map? maps) (map? variables)) :read :not-a-map))
    (catch ExceptionInfo e
      (let [{:bpfmap/keys [error path]} (ex-data e)]
        (if (and (= :malformed-object error) (vector? path) (keyword? (first path))
                 (not (str/blank? (ex-message e))))
          :malformed-object
          e)))
    (catch Throwable e e)))

(deftest o5-mutated-objects
  (testing "broken objects are read or are malformed objects, soon and in little memory"
    (let [outcomes
          (reduce (fn [outcomes i]
                    (let [random (SplittableRandom. i)
                          bytes (broken (@seeds (.nextInt random (count @seeds))) random)
                          {:keys [result ms] allocated :bytes} (samples/cost #(used bytes))]
                      (cond-> (-> outcomes
                                  (update :worst-ms max ms)
                                  (update :worst-bytes max allocated))
                        (keyword? result) (update result (fnil inc 0))
                        (not (keyword? result)) (update :thrown conj [i result]))))
                  {:worst-ms 0 :worst-bytes 0 :thrown []}
                  (range mutations))]
      (is (= [] (take 3 (:thrown outcomes))))
      (is (every? #(< (/ (long mutations) 20) (long (outcomes % 0))) [:read :malformed-object])
          (pr-str (dissoc outcomes :thrown)))
      (is (< (double (:worst-ms outcomes)) (* fixture/slowness 1000)))
      (is (< (long (:worst-bytes outcomes)) 300e6)))))

(deftest o5-truncated-objects
  (testing "an object that is cut short is malformed"
    (doseq [{:keys [^bytes bytes]} (take 2 @seeds)
            n (range 0 (alength bytes) 97)]
      (is (= :malformed-object (used (Arrays/copyOf bytes (int n)))) n))))
