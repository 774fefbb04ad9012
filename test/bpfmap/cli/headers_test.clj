(ns bpfmap.cli.headers-test
  "What a table shows above a column, and in front of a row, is what `--where`, `--sort` and
  `--columns` take."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.cli.calling :refer [bpfmap id-of read-edn]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.query :as query]
            [bpfmap.exec.tail]
            [bpfmap.exec.views]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.edn-text :refer [edn-text]]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.prog :as prog]
            [clojure.data.csv :as csv]
            [clojure.data.json :as json]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(defn- create ^Closeable [options]
  (bpf/create (merge {:name "headers" :type :hash :max-entries 16} options)))

(def ^:private flow [:struct [:src :ipv4] [:port :u16be]])
(def ^:private stats
  [:struct [:bytes :u64] [(keyword "pick.turn") :u64] [:tx [:struct [:a.b :u32] [:errors :u32]]]
   [:comm [:string 8]]])

(def ^:private one {:bytes 1000 (keyword "pick.turn") 5 :tx {:a.b 1 :errors 2} :comm "curl"})
(def ^:private two (assoc one :bytes 3000 (keyword "pick.turn") 6 :tx {:a.b 8 :errors 9}))

(def ^:private kinds
  "Maps by what is odd about their names: a spec, a key, and two values that differ in each number."
  {"plain" [{:key :u32 :value :u64} 7 1 2]
   "structs" [{:key flow :value stats} {:src "10.0.0.1" :port 443} one two]
   "the same names" [{:key [:struct [:n :u32] [:id :u32]] :value [:struct [:n :u32] [:m :u32]]}
                     {:n 1 :id 2} {:n 1 :m 1} {:n 2 :m 2}]
   "names of columns" [{:key [:struct [:key :u32] [:value :u32] [:old :u32] [:NEW :u32]
                              [:change :u32]]
                        :value [:struct [:KEY :u32] [:mark :u32] [:per-second :u32]]}
                       {:key 1 :value 2 :old 3 :NEW 4 :change 5} {:KEY 1 :mark 1 :per-second 1}
                       {:KEY 3 :mark 3 :per-second 3}]
   "names in two cases" [{:key [:struct [:SRC :u32] [:dst :u32]]
                          :value [:struct [:src :u32] [:DST :u32]]}
                         {:SRC 1 :dst 2} {:src 1 :DST 1} {:src 2 :DST 2}]
   "odd names" [{:key [:struct [(keyword "a b") :u32] [(keyword "a=b") :u32]]
                 :value [:struct [(keyword "x>y") :u32] [(keyword "q\"q") :u32]]}
                {(keyword "a b") 1 (keyword "a=b") 2} {(keyword "x>y") 1 (keyword "q\"q") 1}
                {(keyword "x>y") 2 (keyword "q\"q") 2}]
   "an array" [{:key :u32
                :value [:struct [:counts [:array :u32 2]] [:all [:array [:struct [:n :u32]] 2]]]}
               1 {:counts [1 2] :all [{:n 1} {:n 2}]} {:counts [3 4] :all [{:n 5} {:n 6}]}]
   "values of CPUs" [{:type :percpu-hash :key :u32 :value [:struct [:n :u64] [:m :u64]]} 1
                     {:n 1 :m 1} {:n 2 :m 2}]})

(defn- write! [m {:keys [type]} key value]
  (if (= :percpu-hash type) (bpf/put! m key value {:cpus :all}) (bpf/put! m key value)))

(defn- accepted
  "What a command says if a header is given to one of its options; nil if it takes it."
  [words option text]
  (let [{:keys [exit err]} (apply bpfmap (concat words [option text]))]
    (when-not (zero? exit) [words option text err])))

(defn- term
  "A condition that holds for whatever is in a field of this name."
  [header]
  (str header "~"))

(defn- titles
  "The titles of the columns of a view."
  [{:keys [columns csv-columns]} value]
  (let
   [as-csv (with-out-str
             ((requiring-resolve 'bpfmap.exec.csv/print-rows) (or csv-columns columns) value))]
    (concat (map :title columns) (first (csv/read-csv as-csv)))))

(def ^:private ^:dynamic *sorted*
  "How many titles are tried by one command each."
  100)

(defn- check-headers
  "Every title is taken by `--sort` and `--where`."
  [words titles]
  (let [titles (distinct (remove str/blank? titles))]
    (is (nil? (accepted (concat words (interleave (repeat "--where") (map term (rest titles))))
                        "--where" (term (first titles)))))
    (doseq [title (take *sorted* titles)]
      (is (nil? (accepted words "--sort" title))))))

(defn- leaf-paths [x]
  (if (and (map? x) (seq x))
    (mapcat (fn [[k v]] (map #(cons (fields/name-of k) %) (leaf-paths v))) x)
    [[]]))

(defn- check-columns
  "Each column shows what a field of its title is in the same row."
  [{:keys [columns]} row row-field]
  (doseq [{:keys [title of path]} columns :when (and path (not (str/blank? title)))]
    (let [found (fields/find-path row-field (query/path-of title))]
      (is (= (map #(if (keyword? %) (fields/name-of %) (str %)) path) (first found)) title))
    (is (some? (of row)))))

(kernel-test entry-headers
  (testing "the table headers of entries are field names"
    (doseq [[kind [spec key before after]] kinds
            cpus (if (= :percpu-hash (:type spec)) [nil "sum" "0"] [nil])]
      (binding [*sorted* (if (#{"plain" "structs"} kind) 100 1)]
        (with-open [^Closeable m (create spec)
                    ^Closeable old (create spec)]
          (write! old spec key before)
          (write! m spec key after)
          (let [{key-type :key value-type :value :as specs} (bpf/spec m)
                ;; BTF has no names that C could not have.
                with-options #(cond-> (concat %
                                              ["--key-type" (edn-text key-type) "--value-type"
                                               (edn-text value-type)])
                                cpus (concat ["--cpus" cpus]))
                options (cond-> {:key-type key-type :value-type value-type} cpus (assoc :cpus cpus))
                id (id-of m)
                dumped (exec/dump (assoc options :ref id))
                two-maps (exec/diff (assoc options :old (id-of old) :new id))
                dump-view (bpfmap.exec.views/entries dumped {})
                diff-view (bpfmap.exec.views/diff two-maps {:new m})
                frame (reduce (fn [n frame]
                                (if (= 1 (long n))
                                  (reduced frame)
                                  (do (write! m spec key before) (inc (long n)))))
                              0 (exec/watch (assoc options :ref id :interval 0.01)))
                changed (loop [wait 30]
                          (write! m spec key before)
                          (let [change (future (Thread/sleep wait) (write! m spec key after))
                                rows (exec/diff (assoc options :old id :seconds (/ wait 200.0)))]
                            @change
                            (if (or (seq rows) (< 2000 wait)) rows (recur (* 2 wait)))))
                changed-view (bpfmap.exec.views/diff changed {})
                watch-columns (bpfmap.exec.views/entry-columns
                               (:rows frame)
                               (distinct
                                (mapcat #(bpfmap.exec.views/numeric-paths [] (:per-second %))
                                        (:rows frame))))
                cpus (when cpus (if (= "sum" cpus) :sum 0))]
            (check-headers (with-options ["dump" id]) (titles dump-view dumped))
            (check-columns dump-view (first dumped) (fields/of-entries specs cpus))
            (check-headers (with-options ["diff" (id-of old) id]) (titles diff-view two-maps))
            (check-columns diff-view (first two-maps) (fields/of-changes specs specs cpus false))
            (is (some #(= :per-second (first (:path %))) (:columns changed-view)))
            (check-headers (with-options ["diff" id "--seconds" "0.01"])
                           (titles changed-view changed))
            (check-columns changed-view (first changed) (fields/of-changes specs specs cpus true))
            (check-headers (with-options ["watch" id "--interval" "0.01" "--seconds" "0.02"])
                           (map :title watch-columns))
            (check-columns {:columns watch-columns}
                           (first (:rows frame)) (fields/of-watched specs (or cpus :sum)))))))))

(kernel-test data-keys-are-fields
  (testing "the keys of the output data are field names"
    (with-open [^Closeable m (create {:key flow :value stats})]
      (bpf/put! m {:src "10.0.0.1" :port 443} one)
      (doseq [words [["list" "--where" (str "id=" (id-of m))] ["features" "--where" "of=hash"]
                     ["dump" (id-of m)]]
              :let [[row] (read-edn (:out (apply bpfmap "--edn" words)))
                    json-row (first (json/read-str (:out (apply bpfmap "--json" words))))]
              :let [headers (for [[k v] (concat row json-row)
                                  path (if (#{"key" "value"} (fields/name-of k))
                                         (leaf-paths v)
                                         [[]])
                                  header [(fields/path-text (cons (fields/name-of k) path))
                                          (if (keyword? k) (subs (str k) 1) k)]]
                              header)]]
        (is (< 4 (count (distinct headers))))
        (binding [*sorted* 4]
          (check-headers words headers))))))

(kernel-test host-headers-are-fields
  (testing "the table headers of host lists are field names"
    (with-open [^Closeable m (create {:key :u32 :value :u32})]
      (let [rows (exec/list {:where (str "id=" (id-of m))})
            {:keys [columns] :as view} (bpfmap.exec.views/maps
                                        (map #(assoc % :frozen true) rows) {})
            words ["list" "--where" (str "id=" (id-of m))]]
        (is (= 14 (count columns)))
        (binding [*sorted* 4]
          (check-headers words (titles view rows)))
        (is (nil? (accepted words "--columns" (str/join "," (titles view rows)))))
        (doseq [title ["HELD BY" "used by" "MEMORY"]]
          (is (= (bpfmap "list" "--where" (str "id=" (id-of m)) "--columns" title)
                 (bpfmap "list" "--where" (str "id=" (id-of m)) "--columns"
                         (str/lower-case title)))))))
    (with-open [p ^Closeable (prog/load {:type :raw-tracepoint :name "headers"
                                         :insns [[:mov64 :r0 0] [:exit]]})
                ^Closeable _ (prog/attach-raw-tracepoint p "sys_enter")]
      (doseq [[words rows view] [[["prog" "list"] (exec/prog-list {:where "name=headers"})
                                  bpfmap.exec.views/programs]
                                 [["link" "list"] (exec/link-list {:where "program.name=headers"})
                                  bpfmap.exec.views/links]]
              :let [all (titles (view rows {}) rows)]]
        (is (= 1 (count rows)))
        (binding [*sorted* 2]
          (check-headers words all))
        (is (nil? (accepted words "--columns" (str/join "," all)))))
      (let [words ["holds" (.pid (java.lang.ProcessHandle/current))]
            rows (exec/holds {:process (second words)})
            all (titles (bpfmap.exec.views/held-objects rows {}) rows)]
        (binding [*sorted* 2]
          (check-headers words all))
        (is (nil? (accepted words "--columns" (str/join "," all))))))
    (let [rows (exec/features {:where "of=hash"})
          view (bpfmap.exec.views/features rows {:where []})]
      (check-headers ["features" "--where" "of=hash"] (titles view rows)))))

(kernel-test event-headers-are-fields
  (testing "the table headers of events are names that --where takes"
    (doseq [[kind [{:keys [value]}]] (dissoc kinds "values of CPUs")]
      (with-open [^Closeable m (bpf/create {:name "headers" :type :ringbuf :max-entries 4096})]
        (let [words ["tail" (id-of m) "--value-type" (edn-text value) "--seconds" "0.01"]
              about {:map {:type :ringbuf} :type value
                     :fields (#'bpfmap.exec.tail/fields-of {:type :ringbuf} value)}
              headers (distinct
                       (concat (map :title (#'bpfmap.exec.views/event-columns about))
                               ;; The rest is about rows that are not events.
                               (remove #{"extra" "missing" "error" "lost" "missed" "status"}
                                       (first (csv/read-csv (:out (apply bpfmap "--csv" words)))))))]
          (is (seq headers) kind)
          (is (nil? (accepted (concat words (interleave (repeat "--where")
                                                        (map term (rest headers))))
                              "--where" (term (first headers))))))))))

(deftest all-row-commands-tried
  (testing "this file tries every command that prints rows"
    (is (= #{"list" "holds" "features" "dump" "diff" "hist" "tail" "prog list" "link list"}
           (into #{} (comp (filter :rows) (map :name)) commands/commands))
        "hist and tail have no --sort; --where of hist is about the entries that are counted")))

(kernel-test shown-padding-field
  (testing "padding is a field if it is shown"
    (with-open [^Closeable m (create {:key :u8 :value [:struct [:a :u8] [:b :u32]]})]
      (with-open [^Closeable raw (raw-entries/open-raw m)]
        (bpf/put-all! raw [[(bytes/->bytes [1]) (bytes/->bytes "01 ff ff ff 01 00 00 00")]
                           [(bytes/->bytes [2]) (bytes/->bytes "01 00 00 00 01 00 00 00")]]))
      (let [rows (exec/dump {:ref m})]
        (check-headers ["dump" (id-of m)]
                       (map :title (:columns (bpfmap.exec.views/entries rows {}))))
        (is (= [1] (map :key (exec/dump {:ref m :where "bpfmap/padding='ff ff ff'"}))))))))

(kernel-test change-marks-as-signs
  (testing "conditions compare the change marks by their signs"
    (with-open [^Closeable a (create {:key :u32 :value :u32 :contents {1 1, 2 2, 3 3}})
                ^Closeable b (create {:key :u32 :value :u32 :contents {2 2, 3 4, 5 5}})]
      (let [keys-where #(map :key (exec/diff {:old a :new b :where %}))]
        (is (= [[5] [3] [1]] (map keys-where ["change=+" "change=*" "change=-"])))
        (is (= [[5] [3] [1]] (map keys-where ["change=added" "change==changed" "CHANGE=removed"])))
        (is (= [3 5] (keys-where "change!=-")))
        (is (= [5] (keys-where [:= :change :added]))))
      (let [marked (fn [where]
                     (reduce (fn [n {:keys [rows]}]
                               (if (= 1 (long n))
                                 (reduced (map :key rows))
                                 (do (bpf/put! a 1 9)
                                     (bpf/delete! a 2)
                                     (bpf/put! a 7 7)
                                     (inc (long n)))))
                             0 (exec/watch {:ref a :interval 0.01 :where where})))]
        (is (= [7] (marked "change=+")))
        (bpf/delete! a 7) (bpf/put! a 1 1) (bpf/put! a 2 2)
        (is (= [1] (marked "change=*")))
        (bpf/delete! a 7) (bpf/put! a 1 1) (bpf/put! a 2 2)
        (is (= [2] (marked "change=-")))))))

(deftest unknown-feature-sign
  (testing "a condition matches an unknown result by its displayed sign"
    (is (zero? (:exit (bpfmap "features" "--where" "here=?"))))
    (is (zero? (:exit (bpfmap "features" "--where" "here=yes"))))))

;; --- rows that are not there yet

(kernel-test fields-without-rows
  (testing "knows the fields even if there are no rows"
    (with-open [^Closeable m (create {:key flow
                                      :value [:struct [:bytes :u64]
                                              [:state [:enum :u32 {:NEW 0 :OLD 1}]]]})
                ^Closeable n (create {:key flow
                                      :value [:struct [:bytes :u64]
                                              [:state [:enum :u32 {:NEW 0 :OLD 1}]]]})]
      (doseq [command [["dump" (id-of m)] ["diff" (id-of m) (id-of n)]
                       ["diff" (id-of m) "--seconds" "30"]
                       ["watch" (id-of m) "--seconds" "0.01"]]
              :let [[side other]
                    (if (= "diff" (first command)) ["new." "old."] ["value." "value."])]
              [term message] {"nope=1" #"Unknown field nope"
                              (str side "bites>1") (re-pattern (str "did you mean .*" side "bytes"))
                              (str other "bytes=curl") #"must be compared with a number"
                              (str side
                                   "state=MEW") #"must be compared with one of its names or their numbers.*did you mean NEW"
                              "key.src=443" #"must be compared with an address"
                              "src=x" #"must be compared with an address"}]
        (let [{:keys [exit out err]} (apply bpfmap (concat command ["--where" term]))]
          (is (= [2 ""] [exit out]) [command term])
          (is (re-find message err)))
        (let [{:keys [exit err]} (apply bpfmap (concat command ["--sort" "nope"]))]
          (is (= 2 exit))
          (is (re-find #"Unknown field nope" err))))
      (is (re-find #"change must be compared with one of its names"
                   (:err (bpfmap "diff" (id-of m) (id-of n) "--where" "change=gone"))))
      (is (re-find #"Unknown field per-second"
                   (:err (bpfmap "diff" (id-of m) (id-of n) "--sort" "per-second.bytes"))))
      (is (= 2 (:exit (bpfmap "hist" (id-of m) "--field" "bytes" "--where" "bytes=curl"))))
      (bpf/put! n {:src "10.0.0.1" :port 443} {:bytes 3 :state :OLD})
      (doseq [where ["new.state=OLD" "new.state=1" "NEW.STATE=OLD" "new.state>NEW"
                     "key.src=10.0.0.0/24" "src=10.0.0.1" "new.bytes>2" "old=-"]]
        (is (= [3] (map (comp :bytes :new) (exec/diff {:old m :new n :where where}))) where))
      (is (= [] (exec/diff {:old m :new n :where "new.state=0"}))))))

(kernel-test sides-of-different-types
  (testing "each side of a diff has the fields of its own types"
    (with-open [^Closeable a (create {:key :u32 :value [:struct [:n :u32]] :contents {1 {:n 1}}})
                ^Closeable b (create {:key :u64 :value [:struct [:m :u64]] :contents {1 {:m 1}}})]
      (is (= [{:n 1}] (map :old (exec/diff {:old a :new b :where ["old.n=1" "new.m=1"]}))))
      (is (re-find #"Unknown field old.m"
                   (:message (fixture/error-of (exec/diff {:old a :new b :where "old.m=1"}))))))))
