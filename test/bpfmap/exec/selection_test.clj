(ns bpfmap.exec.selection-test
  "Several maps at once: references, patterns of names, and holders."
  (:require [bpfmap.cli.calling :refer [bpfmap edn-of id-of json-of lines-of refused]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.selection :as selection]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (java.io Closeable)
           (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

(def ^:private pid (.pid (ProcessHandle/current)))

(def ^:private own
  "What the names of this process's maps begin with: others may run the same tests."
  (str "s" (Long/toString pid 36)))

(deftest patterns
  (are [pattern name match?] (= match? ((selection/named pattern) {:name name}))
    "flow_*" "flow_a" true
    "flow_*" "flow_" true
    "flow_?" "flow_" false
    "flow_?" "flow_ab" false
    "*" "" true
    "a.b" "a.b" true
    "a.b" "axb" false
    "[ab]" "a" false
    "flows" "flows_x" false)
  (testing "the name that the kernel keeps matches too"
    (is ((selection/named "flows_by_source") {:name "flows_by_source_port"
                                              :kernel-name "flows_by_source"})))
  (are [text process match?] (= match? ((selection/held-by text) process))
    "agent" {:pid 1 :command "agent"} true
    "age*" {:pid 1 :command "agent"} true
    "age" {:pid 1 :command "agent"} false
    "4711" {:pid 4711 :command "agent"} true
    "4711" {:pid 471 :command "4711"} true
    "4711" {:pid 14711 :command "agent"} false
    "a_long_name_of_a_command" {:pid 1 :command "a_long_name_of_"} true))

(defn- with-maps
  "Calls f with three open maps: two hash maps whose names differ in one letter, and a ring."
  [f]
  (let [spec {:type :hash :key :u32 :value :u64 :max-entries 8}]
    (with-open [^Closeable a (bpf/create (assoc spec :name (str own "_a") :contents {1 2, 3 4}))
                ^Closeable b (bpf/create (assoc spec :name (str own "_b")
                                                :value [:struct [:n :u64]] :contents {5 {:n 6}}))
                ^Closeable c (bpf/create {:name (str own "_ring") :type :ringbuf
                                          :max-entries 4096})]
      (f a b c))))

(kernel-test list-by-name-and-holder
  (with-maps
   (fn [a b c]
     (let [ids #(map :id (exec/list (assoc % :columns "id")))]
       (is (= (map id-of [a b c]) (ids {:name (str own "_*")})))
       (is (= (map id-of [a b]) (ids {:name (str own "_?")})))
       (is (= [(id-of a)] (ids {:name (str own "_a") :held-by (str pid)})))
       (is (= [] (ids {:name (str own "_*") :held-by "no_such_command"})))
       (is (= {:count 2} (exec/list {:name (str own "_?") :total true})
              (edn-of "list" "--name" (str own "_?") "--total")))
       (is (= {:exit 0 :out "2\n" :err ""} (bpfmap "list" "--name" (str own "_?") "--total")))))))

(kernel-test several-references
  (with-maps
   (fn [a b c]
     (let [about (fn [m] (select-keys (bpf/info m) [:id :name :type]))
           both [{:map (about a) :entries [{:key 1 :value 2} {:key 3 :value 4}]}
                 {:map (about b) :entries [{:key 5 :value {:n 6}}]}]
           sorted (fn [maps] (map #(update % :entries (partial sort-by :key)) maps))
           names [(str own "_a") (str own "_b")]]
       (testing "dump"
         (is (= both
                (sorted (exec/dump {:ref names}))
                (sorted (exec/dump {:ref [a b]}))
                (sorted (exec/dump {:ref (str own "_?")}))
                (sorted (exec/dump {:ref (conj names (str own "_?") (id-of a))}))
                (sorted (apply edn-of "dump" names))))
         (is (= [{"map" {"id" (id-of a) "name" (str own "_a") "type" "hash"}
                  "entries" [{"key" 3 "value" 4}]}]
                (json-of "dump" (str own "_a*") "--where" "key>1")))
         (is (= [(str "map " (id-of a) " (" own "_a), hash: 1 entry") "KEY  VALUE" "  3      4" ""
                 (str "map " (id-of b) " (" own "_b), hash: 1 entry") "KEY  n" "  5  6"]
                (str/split-lines (:out (apply bpfmap "dump" (conj names "--where" "key>1"))))))
         (is (= ["id,name,key,value" (str (id-of b) "," own "_b,5,{:n 6}")]
                (str/split-lines (:out (bpfmap "dump" (str own "_b*") "--csv"))))))
       (testing "numbers of entries"
         (is (= {:map (about a) :count 1} (exec/dump {:ref a :count true :where "key>1"})))
         (is (= {:exit 0 :out "2\n" :err ""} (bpfmap "dump" (id-of a) "--count")))
         (is (= [[(id-of a) 2] [(id-of b) 1]]
                (map (juxt (comp :id :map) :count) (exec/dump {:ref (str own "_?") :count true})))))
       (testing "show"
         (is (= names (map :name (exec/show {:ref (str own "_?")}))))
         (is (= 2 (count (re-seq #"(?m)^max-entries +8$" (:out (apply bpfmap "show" names)))))))
       (testing "of several maps with a name, those that a process has open"
         (with-open [twin ^Closeable (bpf/create {:name (str own "_a") :type :hash :key :u32
                                                  :value :u32 :max-entries 8})]
           (is (= #{(id-of a) (id-of twin)}
                  (set (map (comp :id :map) (exec/dump {:ref (str own "_a")
                                                        :held-by (str pid)})))))))
       (testing "without a reference, all maps that a process has open"
         (let [held (into #{} (map (comp :id :map)) (exec/dump {:held-by (str pid) :count true}))]
           (is (every? held (map id-of [a b])))
           (is (every? (into #{} (map :id) (exec/show {:held-by (str pid)})) (map id-of [a b c])))))
       (testing "a pattern that matches one map is a reference to it"
         (is (= {:key 1 :value 2} (exec/get {:ref (str own "_a*") :key 1})))
         (is (= [{:id (id-of a)}] (into [] (comp (take 1) (map #(select-keys (:map %) [:id])))
                                        (exec/watch {:ref (str own "_a*") :interval 0.1})))))
       (testing "a map that cannot be read is reported, and the others are printed"
         (let [{:keys [exit out err]} (bpfmap "dump" (str own "_*"))]
           (is (= 1 exit))
           (is (= 2 (count (re-seq #"(?m)^map " out))))
           (is (str/starts-with? err (str "bpfmap: The entries of map " (id-of c)))))
         (testing "in the words of the command line"
           (with-open [_ ^Closeable (bpf/create {:name (str own "_perf") :type :perf-event-array})]
             (is (re-find #"cannot be read: .*; --keys lists the indices in use\n"
                          (:err (bpfmap "dump" (str own "_perf*") (str own "_?")))))))
         (is (= :not-supported (:error (last (exec/dump {:ref (str own "_*")}))))))))))

(kernel-test missing-references
  (with-maps
   (fn [a b _]
     (let [missing (str own "_none")
           message (str "No map named \"" missing "\"")
           [found-a found-b] (map #(select-keys (bpf/info %) [:id :name :type]) [a b])
           all [(id-of a) missing (id-of b) (str own "_no*") "/no/such/pin"]
           messages [message (str "No map has a name like \"" own "_no*\"")
                     "Opening /no/such/pin failed with ENOENT: the file /no/such/pin does not exist"]]
       (testing "of several references, those without a map are errors, and the others are printed"
         (doseq [words [["dump"] ["dump" "--count"] ["show"]]
                 :let [{:keys [exit out err]} (apply bpfmap (concat words all))]]
           (is (= 1 exit) (str words))
           (is (= messages (map #(subs % 8) (str/split-lines err))) (str words))
           (is (every? #(str/includes? out (str (:id %))) [found-a found-b]) (str words)))
         (is (= 1 (:exit (bpfmap "dump" missing "no_such_map_either"))))
         (is (= [{:ref {:name missing} :error :not-found :message message}
                 {:map found-b :count 1}]
                (exec/dump {:ref [missing (id-of b)] :count true})))
         (is (= [{:ref {:name missing} :error :not-found :message message} (:id found-a)]
                (update (exec/show {:ref [missing a]}) 1 :id))))
       (testing "the only reference must have a map"
         (is (= [1 (str "bpfmap: " message)] (refused "dump" missing) (refused "show" missing))))
       (testing "a usage error concerns all"
         (is (= [2 "bpfmap: Unknown field nope: the fields are key, value"]
                (refused "dump" missing (id-of a) "--where" "nope=1"))))))))

(kernel-test refused-selections
  (with-maps
   (fn [a _ _]
     (are [words message] (= [(if (str/includes? message "see `") 2 1) (str "bpfmap: " message)]
                             (apply refused words))
       ["dump" (str own "_no*")] (str "No map has a name like \"" own "_no*\"")
       ["show" (str own "_?") "--held-by" "no_such"]
       "No process no_such has one of these maps open"
       ["dump" "--held-by" "no_such"] "No process no_such has a map open"
       ["show" (id-of a) "--held-by" "no_such"] "No process no_such has this map open"
       ["dump" (str own "_?") "--stream"]
       "--stream requires one map; see `bpfmap help dump`"
       ["dump" (str own "_a") "--stream" "--count"]
       "--stream cannot be combined with --count; see `bpfmap help dump`")
     (is (= [2 "bpfmap: Unknown field nope: the fields are key, value"]
            (refused "dump" (str own "_?") "--where" "nope=1")))
     (let [{:keys [exit out err]} (bpfmap "get" (str own "_?") "1")]
       (is (= [1 ""] [exit out]))
       (is (= [(str "bpfmap: 2 maps have a name like \"" own "_?\": this command takes one map; "
                    "use its id or name")
               2]
              [(first (str/split-lines err)) (dec (count (str/split-lines err)))]))))))

(kernel-test one-map-of-a-process
  (testing "--held-by chooses among maps with a name in every command that takes a map"
    (with-open [a ^Closeable (bpf/create {:name "t_same" :type :hash :key :u32 :value :u32
                                          :max-entries 4 :contents {1 10}})
                other ^Closeable (bpf/create {:name "t_same" :type :hash :key :u32 :value :u32
                                              :max-entries 4 :contents {1 20}})]
      (let [pin (fixture/new-pin)
            this (str (.pid (ProcessHandle/current)))]
        (bpf/pin! other pin)
        (bpf/close other)
        (is (re-find #"^bpfmap: More than one map named \"t_same\""
                     (:err (bpfmap "get" "t_same" "1"))))
        (doseq [[args line] [[["get" "t_same" "1"] "10"]
                             [["types" "t_same" "--template"] "{\"t_same\""]
                             [["hist" "t_same" "--field" "value" "--json"] nil]
                             [["diff" "t_same" "--seconds" "0.01" "--json"] "[]"]
                             [["watch" "t_same" "--seconds" "0.01" "--json"] nil]
                             [["put" "t_same" "2" "3" "--yes"] "2  3  (new)"]
                             [["take" "t_same" "2" "--yes"] "3"]
                             [["delete" "t_same" "1" "--yes"] "1  (was 10)"]
                             [["clear" "t_same" "--yes"] nil]
                             [["freeze" "t_same" "--yes"] nil]]]
          (let [found (apply lines-of (concat args ["--held-by" this]))]
            (is (seq found) args)
            (when line (is (= line (first found)) args))))
        (is (= {1 20} (with-open [m ^Closeable (bpf/open pin)] (into {} m)))
            "the other map is as before")
        (is (= [1 "bpfmap: No process no_such_command has a map named \"t_same\" open"]
               (refused "get" "t_same" "1" "--held-by" "no_such_command")))
        (is (= [2 (str "bpfmap: --follow cannot be combined with --held-by; see `bpfmap help"
                       " watch`")]
               (refused "watch" "t_same" "--follow" "--held-by" this)))))))
