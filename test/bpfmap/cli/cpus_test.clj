(ns bpfmap.cli.cpus-test
  "`--cpus` does what the help of each command says, for each of its values and on a map that is
  not per-CPU."
  (:require [bpfmap.cli.calling :refer [bpfmap edn-of id-of read-edn]]
            [bpfmap.core :as bpf]
            [bpfmap.exec]
            [bpfmap.exec.commands :as commands]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io Closeable)
           (java.util.regex Pattern)))

(set! *warn-on-reflection* true)

(def ^:private described
  "The help of `--cpus` by command, the values that it accepts, and its default."
  {"put" ["CPU to write: N, or all for one VALUE on every CPU" #{"all" "0"} nil]
   "get" ["Per-CPU values: each, sum or CPU N (default: each)" #{"each" "all" "sum" "0"} "each"]
   "dump" ["Per-CPU values: each, sum or CPU N (default: each)" #{"each" "all" "sum" "0"} "each"]
   "diff" ["Per-CPU values: each, sum or CPU N (default: each)" #{"each" "all" "sum" "0"} "each"]
   "watch" ["Per-CPU values: each, sum or CPU N (default: sum)" #{"each" "all" "sum" "0"} "sum"]
   "hist" ["Per-CPU values: sum or CPU N (default: sum)" #{"sum" "0"} "sum"]})

(deftest help-describes-cpus
  (testing "the help describes the per-CPU behaviour of every command that has --cpus"
    (is (= (set (keys described))
           (into #{} (comp (filter #(some #{:cpus} (:options %))) (map :name)) commands/commands)))
    (doseq [[command [text]] described]
      (is (re-find (re-pattern (str "--cpus WHICH +" (Pattern/quote text) "\n"))
                   (:out (bpfmap "help" command))))
      (is (str/includes? (:doc (meta (ns-resolve 'bpfmap.exec (symbol command)))) text)))))

(defn- per-cpu ^Closeable [contents]
  (let [m (bpf/create {:name "cpus" :type :percpu-hash :key :u32 :value :u64 :max-entries 8})]
    (doseq [[k v] contents] (bpf/put! m k v))
    m))

(defn- answer
  "What a command makes of the map's value of key 1, or its exit code."
  [command m other cpus]
  (let [words (case command
                "get" ["get" (id-of m) "1"]
                "dump" ["dump" (id-of m)]
                "watch" ["watch" (id-of m) "--seconds" "0.001" "--interval" "0.001"]
                "diff" ["diff" (id-of other) (id-of m)]
                "hist" ["hist" (id-of m) "--field" "value"])
        {:keys [exit out]} (apply bpfmap "--edn" (concat words (when cpus ["--cpus" cpus])))]
    (if-not (zero? exit)
      exit
      (let [data (read-edn (first (str/split-lines out)))]
        (case command
          "get" (:value data)
          "dump" (:value (first (read-edn out)))
          "watch" (:value (first (:rows data)))
          "diff" (:new (first (read-edn out)))
          "hist" (mapv (juxt :from :to :count) (:buckets (first (read-edn out)))))))))

(defn- slot
  "The bucket of 2^n that a value is in."
  [x]
  (let [from (Long/highestOneBit x)] [[from (dec (* 2 from)) 1]]))

(kernel-test combined-cpu-values
  (testing "combines the values of CPUs as the help describes"
    (let [n (with-open [m (per-cpu nil)] (bpf/put! m 1 0 {:cpus :all}) (count (m 1)))
          values (vec (range 10 (+ 10 n)))
          sum (reduce + values)]
      (with-open [m (per-cpu {1 values})
                  other (per-cpu {1 (vec (repeat n 1))})]
        (doseq [[command [_ takes default]] described :when (not= "put" command)
                which [nil "each" "all" "sum" "0" (str (dec n)) "5000"]
                :let [found (answer command m other which)
                      shown (if (= "hist" command) slot identity)]]
          (is (= (case (or which default)
                   ("each" "all") (if (contains? takes "each") values 2)
                   "sum" (shown sum)
                   "5000" 1
                   (shown (values (parse-long which))))
                 found)
              [command which]))))))

(kernel-test put-for-cpus
  (testing "put writes the value for all CPUs or for one"
    (with-open [m (per-cpu nil)]
      (bpf/put! m 1 0 {:cpus :all})
      (let [n (count (m 1))
            put (fn [cpus] (:exit (bpfmap "put" (id-of m) "1" "7" "--yes" "--cpus" cpus)))]
        (is (zero? (put "all")))
        (is (= (repeat n 7) (m 1)))
        (bpf/put! m 1 0 {:cpus :all})
        (when (zero? (put "0"))
          (is (= (cons 7 (repeat (dec n) 0)) (m 1))))
        (is (= [2 2 1] (map put ["each" "sum" "5000"])))
        (is (= 1 (:exit (bpfmap "put" (id-of m) "1" "7" "--yes")))
            "without --cpus it takes a vector")))))

(kernel-test single-value-maps
  (testing "maps with one value per key reject --cpus"
    (with-open [^Closeable m (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 8
                                          :contents {1 5}})
                ^Closeable other (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 8})]
      (doseq [command ["get" "dump" "diff" "watch"]]
        (is (= [5 5 5 5 1] (map #(answer command m other %) [nil "each" "all" "sum" "0"])) command))
      (is (= [(slot 5) 1] (map #(answer "hist" m other %) ["sum" "0"])))
      (doseq [words [["diff" (id-of other) (id-of m)] ["watch" (id-of m)] ["dump" (id-of m)]]]
        (is (re-find #"The map is not a per-CPU map: each key has one value"
                     (:err (apply bpfmap (concat words ["--cpus" "0"])))))))))

(kernel-test saved-map-by-cpu
  (testing "compares a saved map by CPU"
    (let [n (with-open [m (per-cpu nil)] (bpf/put! m 1 0 {:cpus :all}) (count (m 1)))]
      (with-open [m (per-cpu {1 (vec (range n))})]
        (let [dir (fixture/temporary-directory)
              file (str dir "/cpus.edn")]
          (try
            (is (= {:exit 0 :out (str "1 entry of map " (id-of m) " (cpus) is saved in " file "\n")
                    :err ""}
                   (bpfmap "save" (id-of m) file)))
            (bpf/put! m 1 (vec (range 1 (inc n))))
            (doseq [which ["each" "all"]]
              (is (= [[(vec (range n)) (vec (range 1 (inc n)))]]
                     (map (juxt :old :new) (edn-of "diff" file (id-of m) "--cpus" which)))))
            (finally (run! #(io/delete-file % true) [file dir]))))))))
