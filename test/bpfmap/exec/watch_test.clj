(ns bpfmap.exec.watch-test
  "What changes between two looks at a map: rates, marks, frames; and the command line's `watch`
  and `diff`."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.cli.calling :as calling :refer [bpfmap id-of read-edn]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.watch :as watch]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [clojure.data.json :as json]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io Closeable StringWriter)
           (java.nio.file.attribute PosixFilePermissions)))

(set! *warn-on-reflection* true)

(deftest entries-marked-by-change
  (testing "marks each entry as added, changed or removed"
    (let [plain {:key-out identity :value-out identity :same =}]
      (is (= #{{:key 1 :value 5 :per-second 0.0} {:key 2 :value 9 :change :changed :per-second 4.0}
               {:key 3 :value 1 :change :added :per-second 1.0} {:key 4 :value 7 :change :removed}}
             (into #{} (watch/compared {1 5, 2 5, 4 7} {1 5, 2 9, 3 1} 1.0 plain))))
      (is (= [{:key 1 :value 5}] (into [] (watch/compared nil {1 5} 1.0 plain)))
          "the first look compares with nothing"))))

(defn- counts ^Closeable [contents]
  (bpf/create {:name "live" :type :hash :key :u32 :value :u64 :max-entries 64 :contents contents}))

(defn- changing
  "The first n frames of a map, before the second and later of which f is called with their number."
  [m options n f]
  (reduce (fn [frames frame]
            (let [frames (conj frames frame)]
              (if (= n (count frames))
                (reduced frames)
                (do (f (count frames)) frames))))
          [] (exec/watch (assoc options :ref (id-of m)))))

(kernel-test frames-report-changes
  (testing "each frame reports added, changed and removed entries"
    (with-open [m (counts {1 10, 2 20, 3 30})]
      (let [[first-one second-one] (changing m {:interval 0.05} 2 (fn [_]
                                                                    (bpf/put! m 2 25)
                                                                    (bpf/put! m 4 1)
                                                                    (bpf/delete! m 3)))]
        (is (= [3 0 0 0] ((juxt :entries :added :changed :removed) first-one)))
        (is (= {:id (id-of m) :name "live" :type :hash :max-entries 64} (:map first-one)))
        (is (= [3 1 1 1] ((juxt :entries :added :changed :removed) second-one)))
        (is (= [[2 :changed] [4 :added] [3 :removed] [1 nil]]
               (map (juxt :key :change) (:rows second-one)))
            "the liveliest first, then what changed, then the rest")
        (is (pos? (:interval second-one)))
        (is (= 0.0 (:elapsed first-one)))))))

(kernel-test selected-rows
  (testing "a frame has the rows that were selected"
    (with-open [m (counts {1 10, 2 20, 3 30})]
      (let [rows (fn [options]
                   (map :key
                        (:rows (second (changing m (assoc options :interval 0.01) 2
                                                 (fn [_] (bpf/put! m 2 99)))))))]
        (is (= [2] (rows {:changed true})))
        (is (= [3 2] (rows {:where "value>20" :sort "value"})))
        (bpf/put! m 2 20)
        (is (= [2 1] (rows {:limit 2})))))))

(kernel-test per-cpu-values
  (testing "adds per-CPU values or shows them separately"
    (with-open [m ^Closeable (bpf/create {:type :percpu-array :key :u32 :value :u64
                                          :max-entries 1})]
      (bpf/put! m 0 3 {:cpus :all})
      (let [cpus (count (m 0))
            value (fn [options] (:value (first (:rows (first (changing m options 1 nil))))))]
        (is (= (* 3 cpus) (value {})))
        (is (= (repeat cpus 3) (value {:cpus "each"})))
        (is (= 3 (value {:cpus 0})))))))

(kernel-test watch-ends-on-request
  (testing "a watch ends on request and closes the map"
    (with-open [m (counts {1 10})]
      (let [before (fixture/settled-descriptors)]
        (is (contains? #{2 3} ; the third comes too late if the machine is
                       (reduce (fn [n _] (inc n)) 0
                               (exec/watch {:ref (id-of m) :interval 0.1 :seconds 0.25}))))
        (is (= 1 (reduce (fn [n _] (reduced (inc n))) 0 (exec/watch {:ref (id-of m)}))))
        (is (= before (fixture/open-descriptors)))))))

(kernel-test entries-compared-by-bytes
  (testing "distinguishes entries by their bytes"
    (with-open [m ^Closeable (bpf/create {:type :hash :key [:struct [:group :u64] [:cache :u32]]
                                          :value :f32 :max-entries 8})
                raw ^Closeable (raw-entries/open-raw m)]
      (let [k (fn [x] (bytes/->bytes (concat (repeat 15 0) [x])))
            nan (bytes/->bytes "0000c07f")]
        (bpf/put-all! raw {(k 0) nan (k 1) nan (k 2) nan})
        (let [[first-one same third] (changing m {:interval 0.02} 3
                                               (fn [n]
                                                 (when (= 2 n)
                                                   (bpf/delete! raw (k 1))
                                                   (bpf/put! raw (k 3) nan))))]
          (is (= [3 0 0 0] ((juxt :entries :added :changed :removed) first-one)))
          (is (= [3 0 0 0] ((juxt :entries :added :changed :removed) same)) "a NaN is not a change")
          (is (= [3 1 0 1] ((juxt :entries :added :changed :removed) third)))
          (is (= 4 (count (:rows third)))))))))

;; --- what becomes of the map

(defn- there? [id]
  (some #(= id (:id %)) (host/maps)))

(defn- frames-of
  "Frames of a watch until `(enough? frames)`; before each look but the first, `(f number)` is
  called."
  [options f enough?]
  (reduce (fn [frames frame]
            (let [frames (conj frames frame)]
              (if (or (enough? frames) (< 50 (count frames)))
                (reduced frames)
                (do (f (count frames)) frames))))
          [] (exec/watch (merge {:interval 0.02} options))))

(kernel-test watch-of-closed-map
  (testing "a watch does not keep the map alive and reports its end"
    (doseq [ref [#(hash-map :id (id-of %)) (constantly "watch_gone")]]
      (let [m ^Closeable (bpf/create {:name "watch_gone" :type :hash :key :u32 :value :u64
                                      :max-entries 8 :contents {1 10}})
            id (id-of m)
            frames (frames-of {:ref (ref m)} (fn [n] (when (= 2 n)
                                                       (.close m)
                                                       (is (not (there? id))
                                                           "nothing holds it between two frames")))
                              (constantly false))]
        (is (= [nil nil :gone] (map :status frames)))
        (is (= [1 1 0] (map :entries frames)))
        (is (= id (:id (:map (last frames)))))))))

(kernel-test pin-removed-or-replaced
  (testing "reports a pin that was removed or replaced"
    (let [pin (fixture/new-pin)]
      (with-open [old ^Closeable (counts {1 10})
                  new ^Closeable (counts {1 20, 2 20})]
        (bpf/pin! old pin)
        (let [frames (frames-of {:ref pin} (fn [n] (case (int n)
                                                     1 (bpf/unpin! old)
                                                     2 (bpf/pin! new pin)
                                                     3 (bpf/put! old 1 11)
                                                     nil))
                                #(= 4 (count %)))]
          (is (= [nil :pin-removed :pin-replaced :pin-replaced] (map :status frames)))
          (is (= [nil pin pin pin] (map :pin frames)))
          (is (= [nil nil (id-of new) (id-of new)] (map :other frames)))
          (is (apply = (id-of old) (map (comp :id :map) frames))
              "it stays with the map that it began with")
          (is (= [0 0 0 1] (map :changed frames))))
        (is (true? (bpf/pinned-at? new pin)))
        (is (false? (bpf/pinned-at? old pin)))
        (bpf/unpin! new)
        (is (false? (bpf/pinned-at? new pin)))))))

(kernel-test pinned-map-is-gone
  (testing "a watch of a pin ends if its map is gone"
    (let [pin (fixture/new-pin)
          old (bpf/create {:type :array :value :u32 :max-entries 1})]
      (with-open [new ^Closeable (bpf/create {:type :array :value :u32 :max-entries 1})]
        (bpf/pin! old pin)
        (let [frames (frames-of {:ref pin} (fn [n] (when (= 1 n)
                                                     (bpf/unpin! old)
                                                     (bpf/close old)
                                                     (bpf/pin! new pin)))
                                (constantly false))]
          (is (= [[nil nil] [:gone (id-of new)]] (map (juxt :status :other) frames))))
        (bpf/unpin! new)))))

(kernel-test watch-follows-a-pin
  (testing "a watch can follow the pin to another map"
    (let [pin (fixture/new-pin)
          old (counts {1 10})]
      (with-open [new ^Closeable (counts {1 20, 2 20})]
        (bpf/pin! old pin)
        (let [ids (mapv id-of [old new])
              frames (frames-of {:ref pin :follow true} (fn [n] (case (int n)
                                                                  1 (do (bpf/unpin! old)
                                                                        (bpf/close old))
                                                                  2 (bpf/pin! new pin)
                                                                  3 (bpf/put! new 2 25)
                                                                  nil))
                                #(= 4 (count %)))]
          (is (= [nil :waiting :followed nil] (map :status frames)))
          (is (= [(first ids) (first ids) (second ids) (second ids)] (map (comp :id :map) frames)))
          (is (= [[1 0 0 0] [0 0 0 0] [2 0 0 0] [2 0 1 0]]
                 (map (juxt :entries :added :changed :removed) frames)))
          (is (= [nil nil] (map :per-second (:rows (nth frames 2))))
              "nothing is held against the map before"))
        (bpf/unpin! new)))))

(kernel-test watch-follows-a-name
  (testing "a watch can follow the name to another map"
    (let [create #(bpf/create {:name "watch_name" :type :array :value :u32 :max-entries 1})
          maps (atom [(create)])]
      (is (= [nil :waiting :followed nil]
             (map :status (frames-of {:ref "watch_name" :follow true}
                                     (fn [n] (case (int n)
                                               1 (bpf/close (first @maps))
                                               2 (swap! maps conj (create))
                                               nil))
                                     #(= 4 (count %))))))
      (run! bpf/close @maps)
      (is (re-find #":follow requires a map given by its pin path or name"
                   (:message (fixture/error-of (exec/watch {:ref 1 :follow true}))))))))

(kernel-test handle-without-pin
  (testing "a watch of a handle reports the removed pin"
    (let [pin (fixture/new-pin)]
      (with-open [m ^Closeable (counts {1 10})]
        (bpf/pin! m pin)
        (is (= [nil :pin-removed]
               (map :status
                    (frames-of {:ref m} (fn [_] (.delete (java.io.File. ^String pin)))
                               #(= 2 (count %))))))))))

(kernel-test ^{:needs [[:kernel :bpf-of-the-unprivileged]]} unprivileged-pin
  (testing "reports pin changes to a user who can only open the pin"
    (let [pin (fixture/new-pin)
          beside (fixture/new-pin)]
      (with-open [old ^Closeable (counts {1 10})
                  new ^Closeable (counts {1 20})]
        (bpf/pin! old pin)
        (let
         [readable #(java.nio.file.Files/setPosixFilePermissions
                     (java.nio.file.Path/of % (make-array String 0))
                     (PosixFilePermissions/fromString %2))
          go (promise)
          _ (readable pin "r--r--r--")
          _ (readable (fixture/bpffs) "rwxr-xr-x")
          frames (future (fixture/unprivileged
                          (fn []
                            (reduce (fn [frames frame]
                                      (deliver go true)
                                      (conj frames (:status frame)))
                                    [] (exec/watch {:ref pin :interval 0.05 :seconds 5})))))]
          (bpf/pin! new beside)
          (readable beside "r--r--r--")
          (deref go fixture/patience nil)
          (bpf/unpin! old)
          (bpf/move-pin! new beside pin)
          (is (= :gone (last @frames)))
          (bpf/unpin! new))))))

;; --- on the command line

(kernel-test frames-without-terminal
  (testing "without a terminal frames are printed one after the other"
    (with-open [m (counts {1 10})]
      (let [{:keys [exit out err]} (bpfmap "watch" (id-of m) "--interval" "0.5" "--seconds" "0.75")]
        (is (= [0 ""] [exit err]))
        (is (= 2 (count (re-seq #"(?m)^Map \d+ live \(hash\): 1 of 64 entries$" out))))
        (is (re-find #"every 0\.5 s: first reading; stop with Ctrl-C" out))
        (is (re-find #"every 0\.5 s: 0 added, 0 changed, 0 removed; stop with Ctrl-C" out)))
      (is (re-find #"every 0\.02 s: "
                   (:out (bpfmap "watch" (id-of m) "--interval" "0.02" "--seconds" "0.02"))))
      (is (re-find #"every 3\.0 s: "
                   (:out (bpfmap "watch" (id-of m) "--interval" "3" "--seconds" "0.02"))))
      (doseq [[format read] {"--edn" read-edn, "--json" #(json/read-str % :key-fn keyword)}]
        (let [lines (str/split-lines (:out (bpfmap "watch" (id-of m) "--interval" "0.5" "--seconds"
                                                   "0.75" format)))]
          (is (= [1 1] (map (comp :entries read) lines))))))))

(kernel-test map-status-is-printed
  (testing "prints the status of the map"
    (let [pin (fixture/new-pin)
          old (counts {1 10})
          id (id-of old)]
      (with-open [new ^Closeable (counts {1 20})]
        (bpf/pin! old pin)
        (let [printed (StringWriter.)
              prints? (fn [text] (fixture/eventually #(str/includes? (str printed) text)))
              watch (future (calling/bpfmap-to printed "watch" pin "--interval" "0.3"
                                               "--seconds" "60"))]
          (is (prints? " live (hash): 1 of 64 entries\n"))
          (bpf/unpin! old)
          (bpf/pin! new pin)
          (is (prints? (str " is now map " (id-of new))))
          (bpf/close old)
          (let [{:keys [exit out err]} @watch]
            (is (= 1 exit))
            (is (str/includes? out
                               (str "\n" pin " is now map " (id-of new)
                                    "; --follow continues with it\n")))
            (is (str/includes? out (str "Map " id " live (hash): 1 of 64 entries\n")))
            (is (= (str "bpfmap: map " id " no longer exists; "
                        pin " is now map " (id-of new) "\n") err))))
        (let [{:keys [exit out]} (bpfmap "watch" pin "--interval" "0.01" "--seconds" "0.05"
                                         "--follow" "--edn")]
          (is (= 0 exit))
          (is (every? #(= (id-of new) (:id (:map (read-edn %)))) (str/split-lines out))))
        (bpf/unpin! new)))))

(kernel-test diff-over-seconds
  (testing "diff compares a map with itself some seconds later"
    (with-open [m (counts {1 10, 2 20, 3 30})]
      (exec/diff {:old (id-of m) :seconds 0.01}) ; loads what a first look needs
      (let [diff (future (exec/diff {:old (id-of m) :seconds 2.0}))]
        (Thread/sleep 1000)
        (bpf/put! m 2 25)
        (bpf/delete! m 3)
        (bpf/put! m 4 1)
        (let [rows @diff]
          (is (= [[:changed 2 20 25] [:removed 3 30 nil] [:added 4 nil 1]]
                 (map (juxt :change :key :old :new) rows)))
          (is (= {:added 1 :changed 1 :removed 1 :same 1}
                 (select-keys (meta rows) [:added :changed :removed :same])))
          (is (< 0.5 (:per-second (first rows)) 2.6)))))))

(kernel-test diff-of-two-maps
  (testing "diff compares two maps"
    (with-open [a (counts {1 10, 2 20})
                b (counts {1 10, 2 25, 3 1})]
      (is (= [{:change :changed :key 2 :old 20 :new 25} {:change :added :key 3 :new 1}]
             (exec/diff {:old (id-of a) :new (id-of b)})))
      (is (= {:exit 0
              :out "   KEY  OLD  NEW\n*    2  20    25\n+    3  -      1\n"
              :err "1 added, 1 changed, 0 removed, 1 the same\n"}
             (bpfmap "diff" (id-of a) (id-of b))))
      (is (= [3] (map :key (exec/diff {:old (id-of a) :new (id-of b) :where "change=added"})))))))
