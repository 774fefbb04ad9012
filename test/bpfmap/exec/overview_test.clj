(ns bpfmap.exec.overview-test
  "The overview of the host, which bpfmap prints without a command."
  (:require [bpfmap.cli.calling :refer [bpfmap edn-of]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.views :as views]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(def ^:private go-on
  ["Commands to go on with"
   "  bpfmap list --sort -full  all maps, the fullest first"
   "  bpfmap top                all maps, live"
   "  bpfmap show REF           everything about a map, by its id, name or pin"
   "  bpfmap dump REF           the entries of a map"
   "  bpfmap help               all commands"])

(deftest overview-as-text
  (let [lines #((:lines (views/overview % {})) nil)
        held [{:pid 4711 :command "agent"}]]
    (is (= (concat ["Linux 6.18: 2 maps with 1.5K, 1 program, 3 links" ""] go-on)
           (lines {:kernel "6.18" :maps 2 :memory 1536 :programs 1 :links 3
                   :fullest [] :fastest []})))
    (is (= ["" "Fullest maps" "  flows[12]  lru 97.7%  agent[4711]"
            "  a[7]           12.0%  -" ""
            "Fastest maps, changes/s" "  a[7]  3.0  -" ""]
           (->> (lines {:kernel "6.18" :maps 2 :memory 0
                        :fullest [{:id 12 :type :lru-hash :name "flows" :full 97.7 :held held}
                                  {:id 7 :type :hash :name "a" :full 12.0}]
                        :fastest [{:id 7 :name "a" :changes-per-second 3.0}]})
                rest
                (take 8))))
    (is (= ["Linux 6.18: no permission" "1 pin visible" "" "Commands to go on with"
            "  sudo bpfmap          this overview, as root"]
           (take 5 (lines {:kernel "6.18" :maps nil :reason "no permission" :pins 1}))))))

(deftest overview-on-narrow-terminals
  (testing "no line is longer than the terminal is wide, and numbers and ids are whole"
    (let [held [{:pid 3971117 :command "bpf_exporter"} {:pid 1 :command "systemd"}]
          rows [{:id 4711230 :type :lru-hash :name "connection_errors_total" :full 100.0
                 :memlock 80000000 :changes-per-second 12345.6 :held held}
                {:id 7 :type :hash :name "a" :full 1.0 :memlock 8 :changes-per-second 0.1}]
          lines (:lines (views/overview {:kernel "6.18.44-fc-v1045" :maps 5014 :memory 149212364
                                         :programs 14 :links 11 :largest rows :fullest rows
                                         :fastest rows} {}))]
      (doseq [width [30 40 80 200]
              :let [found (lines width)]]
        (is (every? #(<= (count %) width) found) width)
        (is (= 3 (count (filter #(str/includes? % "[4711230]") found))) width)
        (is (every? (set (map str/trim found)) ["Largest maps" "Fullest maps"])
            width)
        (is (some #(str/includes? % "12345.6") found) width))
      (is (some #{"    all maps, live"} (lines 30)))
      (is (some #{"  bpfmap top                all maps, live"} (lines 80)))
      (is (= (lines nil) (lines 200))))
    (let [lines (:lines (views/overview {:kernel "6.18" :maps nil :pins 1
                                         :reason "no permission to list BPF maps (EPERM)"} {}))]
      (is (every? #(<= (count %) 30) (lines 30))))))

(kernel-test overview-of-the-host
  (with-open [_ ^Closeable (bpf/create {:name "overview_full" :type :hash :key :u32 :value :u32
                                        :max-entries 4 :contents (zipmap (range 4) (range))})]
    (let [{:keys [kernel maps memory largest fullest fastest] :as found} (exec/overview {})]
      (is (= (System/getProperty "os.version") kernel))
      (is (= [:kernel :maps :memory :programs :links :largest :fullest :fastest] (keys found)))
      (is (and (pos? maps) (pos? memory)))
      (is (<= 1 (count largest) 3))
      (is (apply >= (map :memlock largest)))
      (is (<= 1 (count fullest) 3))
      (is (= 100.0 (:full (first fullest))) "no map is fuller than this one")
      (is (<= (count fastest) 3)))
    (testing "without a command"
      (let [{:keys [exit out err]} (bpfmap)]
        (is (= [0 ""] [exit err]))
        (is (re-find #"^Linux \S+: \d+ maps? with " out))
        (is (= go-on (take-last 6 (str/split-lines out)))))
      (is (= (set (keys (edn-of "overview"))) (set (keys (edn-of))))))))

(kernel-test overview-without-privileges
  (fixture/unprivileged
   #(let [{:keys [exit out err]} (bpfmap)]
      (is (= [0 ""] [exit err]))
      (is (re-find #"^Linux \S+: .*EPERM.*\n\d+ pins? visible|^Linux \S+: .*EPERM.*\nno pins" out))
      (is (str/includes? out "  sudo bpfmap "))
      (is (nil? (:maps (edn-of)))))))
