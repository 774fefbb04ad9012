(ns bpfmap.cli.demo-test
  "The command `demo` within this process: what it counts, and how its live table reads."
  (:require [bpfmap.cli.calling :refer [bpfmap]]
            [bpfmap.cli.interactive :as interactive]
            [bpfmap.cli.live-commands :as live-commands]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.demo :as demo]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.host :as host]
            [clojure.data.json :as json]
            [clojure.edn :as edn]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (java.io Closeable StringWriter)
           (sun.misc Signal)))

(set! *warn-on-reflection* true)

;; --- counting

(defn- demo-maps []
  (into #{} (comp (filter #(= (:name demo/map-spec) (:name %))) (map :id)) (host/maps)))

(defn- counting?
  "Whether a map of a demo has entries: its program is attached."
  [id]
  (try
    (with-open [m ^Closeable (bpf/open id {:access :read-only})]
      (some? (bpf/next-key m)))
    (catch clojure.lang.ExceptionInfo _ false)))

(defn- during-demo
  "Runs the demo with the arguments, and f once it counts; returns what the demo said."
  [args f]
  (let [before (demo-maps)
        running (future (apply bpfmap "demo" args))]
    (fixture/eventually #(or (some counting? (remove before (demo-maps))) (realized? running)))
    (f)
    @running))

(def ^:private unused-number
  "No system call has it; the kernel answers ENOSYS, and no other program asks."
  499)

(kernel-test all-calls-counted
  (testing "counts every system call on every CPU"
    (let [{:keys [exit out err]} (during-demo ["--seconds" "600" "--edn"]
                                              (fn []
                                                (fixture/in-threads
                                                  4
                                                  (fn [_]
                                                    (dotimes [_ 5000]
                                                      (fixture/syscall unused-number))))
                                                (Signal/raise (Signal. "INT"))))
          {:keys [seconds total calls missed] {:keys [id type name]} :map} (edn/read-string out)
          found (first (filter #(= unused-number (:number %)) calls))]
      (is (= [130 ""] [exit err]))
      (is (= {:number 499 :name "syscall_499"} (select-keys found [:number :name])))
      (is (<= (- 20000 (or missed 0)) (:count found) 20000))
      (is (= [:hash "bpfmap_demo"] [type name]))
      (is (= total (transduce (map :count) + calls)))
      (is (every? pos? (map :count calls)))
      (is (apply >= (map :count calls)))
      (is (some #{"futex" "read" "write" "bpf"} (map :name calls)))
      (is (every? (fn [{:keys [count per-second]}] (< (abs (- per-second (/ count seconds))) 0.001))
                  calls))
      (is (= :not-found (:bpfmap/error (fixture/error-of (bpf/open id))))))))

(deftest missed-calls
  (testing "the result says how many calls the program missed, if it did"
    (let [run {:map {:id 1 :type :hash :name "bpfmap_demo"} :elapsed 2.0 :counts {39 30}}
          closing (fn [run] (first (:closing (#'live-commands/view run nil nil))))]
      (is (= {:total 30} (select-keys (demo/result run) [:total :missed])))
      (is (= {:total 30 :missed 4} (select-keys (demo/result (assoc run :missed 4))
                                                [:total :missed])))
      (is (= "Counted 30 system calls of 1 kind in 2.0 s" (closing run)))
      (is (= "Counted 30 system calls of 1 kind in 2.0 s, without 4 that the program missed"
             (closing (assoc run :missed 4)))))))

(kernel-test same-json-structure
  (testing "the JSON output has the same structure as the EDN output"
    (let [{:keys [exit out err]} (bpfmap "demo" "--seconds" "0.3" "--json")
          {:strs [map seconds total calls]} (json/read-str out)]
      (is (= [0 ""] [exit err]))
      (is (= ["hash" "bpfmap_demo"] [(map "type") (map "name")]))
      (is (<= 0.3 seconds))
      (is (pos? total))
      (is (= #{"number" "name" "count" "per-second"} (set (keys (first calls))))))))

(kernel-test interrupt-prints-counts
  (testing "an interrupt ends the demo and prints the counts so far"
    (let [{:keys [exit out]} (during-demo ["--seconds" "60" "--edn"]
                                          #(Signal/raise (Signal. "INT")))]
      (is (= 130 exit))
      (is (pos? (:total (edn/read-string out)))))))

(deftest signal-handlers
  (testing "restores the previous signal handlers afterwards"
    (let [seen (promise)
          former (Signal/handle (Signal. "HUP")
                                (reify sun.misc.SignalHandler
                                  (handle [_ _] (deliver seen :former))))]
      (try
        (is (= :inner (interactive/handling {"HUP" #(deliver seen :inner)}
                                            #(do (Signal/raise (Signal. "HUP"))
                                                 (deref seen fixture/patience nil)))))
        (let [seen-again (promise)]
          (interactive/handling {"HUP" #(deliver seen-again :inner)} (constantly nil))
          (Signal/raise (Signal. "HUP"))
          (is (nil? (deref seen-again 200 nil))))
        (finally (Signal/handle (Signal. "HUP") former))))))

;; --- events

(kernel-test events-of-processes
  (testing "--events prints the start and end of each program as it happens"
    (let [running (future (bpfmap "demo" "--events" "--seconds" "3" "--edn"))
          _ (fixture/eventually
             (fn []
               (some #(and (= "bpfmap_demo" (:name %)) (= :raw-tracepoint (:type %)))
                     (host/programs))))
          _ (Thread/sleep 200)
          ^java.util.List command ["/bin/sh" "-c" "exit 0"]
          process (.start (ProcessBuilder. command))
          pid (.pid process)
          {:keys [exit out err]} @running
          rows (map #(:value (edn/read-string %)) (str/split-lines out))]
      (is (= [0 ""] [exit err]))
      (is (= [:exec :exit] (map :kind (filter #(and (= pid (:pid %)) (= "sh" (:comm %))) rows))))
      (is (every? #{:exec :exit} (map :kind rows)))
      (is (= [0] (distinct (map :uid (filter #(= pid (:pid %)) rows))))))))

(kernel-test events-for-people
  (testing "--events ends with the number of events, and leaves no map behind"
    (let [{:keys [exit out err]} (bpfmap "demo" "--events" "--seconds" "0.5")
          [_ n id] (re-matches #"(?s)(\d+) events? of this host\nBPF map (\d+) \(ringbuf, bpfmap_demo\) no longer exists\n" err)]
      (is (= 0 exit))
      (is (some? id) err)
      (is (= (max 0 (dec (count (remove str/blank? (str/split-lines out))))) (parse-long n))))))

(kernel-test events-as-data
  (testing "exec/demo returns events as rows"
    (is (every? #(= #{:kind :pid :uid :comm} (set (keys (:value %))))
                (exec/demo {:events true :seconds 0.3})))))

;; --- the table

(deftest calls-sorted-with-rates
  (testing "sorts the calls by count and computes their rates"
    (are [counts earlier seconds rows]
         (= rows (map (juxt :number :count :per-second) (demo/calls counts earlier seconds)))
      {39 30} {} 3.0 [[39 30 10.0]]
      {39 30} {39 10} 2.0 [[39 30 10.0]]
      {1 5, 0 5, 2 7} {} 1.0 [[2 7 7.0] [0 5 5.0] [1 5 5.0]]
      {7 1} {} 3.0 [[7 1 0.333]]
      {7 18446744073709551615N} {7 18446744073709551614N} 1.0 [[7 18446744073709551615N 1.0]]
      {} {} 1.0 [])))

(def ^:private state
  {:samples [[1.0 {499 10}] [1.5 {499 20}]]
   :counts {499 30, 9999 1}
   :elapsed 2.0
   :seconds 5.0
   :map {:id 12}})

(deftest live-table-rates
  (testing "the live table has a title and the rates of the last second"
    (is (= ["System calls of this host, counted in BPF map 12 (hash)"
            "2.0 of 5.0 s: 31 calls of 2 kinds; stop with Ctrl-C"
            ""
            "  NR  NAME          COUNT  PER-SECOND"
            " 499  syscall_499      30        20.0"
            "9999  syscall_9999      1         1.0"]
           (#'live-commands/frame state {:height 24})))))

(deftest live-table-height
  (testing "the live table fits the height of the screen"
    (doseq [height (range 4 8)]
      (is (= (min 6 height) (count (#'live-commands/frame state {:height height})))))
    (is (= 4 (count (#'live-commands/frame state {:height 1})))
        "the screen cuts lines below it")))

(deftest samples-of-one-second
  (testing "the samples reach back one second"
    (let [samples (reductions #'demo/with-sample [[0.0 {}]] (for [t (range 0.25 3.0 0.25)] [t {}]))]
      (doseq [window samples
              :let [newest (first (peek window))]]
        (is (<= (- newest (ffirst window)) 1.25))
        (is (or (zero? (ffirst window)) (<= 1.0 (- newest (ffirst window)))))))))

(deftest final-table-fits-screen
  (testing "the final table has the most frequent calls that fit the screen"
    (let [run {:elapsed 2.0 :counts (zipmap (range 1000 1100) (range 1 101))
               :map {:id 1 :type :hash :name "x"}}]
      (with-redefs [bpf/open (fn [& _] (throw (ex-info "" {:bpfmap/error :not-found})))]
        (let [{:keys [rows closing exit]} (#'live-commands/view run nil 24)]
          (is (= 20 (count rows)))
          (is (= ["Counted 5050 system calls of 100 kinds in 2.0 s; the top 20 are above"
                  "BPF map 1 (hash, x) no longer exists"]
                 closing))
          (is (= 0 exit)))
        (let [{:keys [rows closing exit]} (#'live-commands/view run "INT" nil)]
          (is (= 100 (count rows)))
          (is (= "Counted 5050 system calls of 100 kinds in 2.0 s" (first closing)))
          (is (= 130 exit)))))))
