(ns ^:volume bpfmap.exec-test
  "The commands as functions of one options map: what they take, from a program, from a shell, as
  a tool."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.options :refer [doc-of function-name]]
            [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.tool :as tool]
            [clojure.datafy :as datafy]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.pprint :as pprint]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

;; --- one table

(deftest command-docstrings
  (testing "every command of the table is a documented function"
    (doseq [{:keys [name fn args doc] :as command} commands/commands :when fn
            ns '[bpfmap.exec bpfmap.tool]
            :let [v (ns-resolve ns (symbol (function-name name)))]]
      (testing (str v)
        (is (= '([options]) (:arglists (meta v))))
        (is (str/starts-with? (:doc (meta v)) (str (#'exec/third-person doc) ".\n")))
        (doseq [k (concat args (:options command))]
          (is (str/includes? (:doc (meta v)) (str "    " k " "))))))
    (are [imperative sentence] (= sentence (#'exec/third-person imperative))
      "Pin a map" "Pins a map"
      "Watch a map" "Watches a map")
    (is (str/starts-with? (:doc (meta #'exec/list))
                          "Lists the BPF maps on this host and their owners.\n"))))

(deftest babashka-cli-spec
  (testing "the metadata for babashka.cli matches the table"
    (doseq [{:keys [name fn args] :as command} commands/commands :when fn
            :let [v (ns-resolve 'bpfmap.exec (symbol (function-name name)))
                  {:keys [args->opts spec]} (:org.babashka/cli (meta v))]]
      (testing name
        (is (= (vec args) args->opts))
        (is (= (set (concat args (:options command))) (set (keys spec))))
        (doseq [[k {:keys [desc coerce require]}] spec]
          (is (= (doc-of command k) desc))
          (is (contains? #{:string :boolean :long :double :keyword :edn}
                         (if (vector? coerce) (first coerce) coerce)))
          (is (= (boolean (some #{k} (arguments/required command))) (boolean require))))))))

;; --- what they take

(defn- usage [f]
  (let [{:keys [message] :as data} (fixture/caught f)]
    (is (= :usage (:bpfmap/error data)))
    message))

(deftest odd-options-first
  (testing "rejects odd options before doing anything"
    (are [message call] (= message (usage (fn [] call)))
      "show requires :ref or :held-by" (exec/show {})
      "show requires :ref or :held-by" (exec/show nil)
      "show requires :ref or :held-by" (exec/show {:ref nil})
      "Options must be a map, got [1]" (exec/show [1])
      "Unknown option :limt: did you mean :limit?" (exec/dump {:ref 1 :limt 5})
      "Unknown option :x: (doc bpfmap.exec/show) lists the options" (exec/show {:ref 1 :x 1})
      ":limit must be a non-negative integer, got \"x\"" (exec/dump {:ref 1 :limit "x"})
      ":limit must be a non-negative integer, got -1" (exec/dump {:ref 1 :limit -1})
      ":keys must be true or false, got \"maybe\"" (exec/dump {:ref 1 :keys "maybe"})
      ":ref must be an id, a pin path or a name, got \"\"" (exec/show {:ref ""})
      ":sort must be the name of a column, got 7" (exec/list {:sort 7})
      ":key-type must be a type, got \"u33\": unknown type :u33"
      (try (exec/dump {:ref 1 :key-type "u33"})
           (catch Exception e
             (throw
              (ex-info
               (first (str/split (ex-message e) #";"))
               (ex-data e)))))
      "put requires :value"
      (with-open [m ^Closeable (bpf/create {:type :array :value :u8 :max-entries 1})]
        (exec/put {:ref m :key 0}))
      "restore requires :pin or :into" (exec/restore {:file "/x"})
      ":print must be :table, :edn, :json or :csv, got \"xml\"" (exec/list {:print "xml"})
      ":print :csv requires a command that returns rows"
      (with-open [m ^Closeable (bpf/create {:type :array :value :u8 :max-entries 1})]
        (exec/show {:ref m :print :csv})))))

(kernel-test option-formats
  (testing "strings, symbols and data mean the same"
    (with-open [m ^Closeable (bpf/create {:name "exec_same" :type :hash :key :u32 :value :u64
                                          :max-entries 8 :contents {1 10, 2 20}})]
      (let [id (:id (bpf/info m))]
        (are [options] (= [{:key 2 :value 20}] (exec/dump options))
          {:ref id :where "value>10"}
          {:ref (str id) :where ["value>10"]}
          {:ref 'exec_same :where '[:> value 10]}
          {:ref "exec_same" :where [[:> :value 10]]}
          {:ref :exec_same :where [:> :value 10] :limit "1"}
          {:ref {:name "exec_same"} :sort "-value" :limit 1}
          {:ref {:id id} :sort '-value :limit '1}
          {:ref id :key-type "u32" :value-type 'u64 :where "key=2"}
          {:ref m :where ["value>10" [:< :value 100]]})
        (is (= [{:key 2}] (exec/dump {:ref id :keys true :where "value>10"}))
            "conditions see the whole entry")
        (is (= [{:key 2}] (exec/dump {:ref id :keys "true" :where "key=2"})))))))

(kernel-test stream-reads-again
  (testing "a stream reads again for each reduction and stops early"
    (with-open [m ^Closeable (bpf/create {:type :array :value :u64 :max-entries 10000})]
      (let [before (fixture/settled-descriptors)
            rows (exec/dump {:ref m :stream true})]
        (is (= 10000 (reduce (fn [n _] (inc n)) 0 rows)))
        (is (= [0 1 2] (into [] (comp (map :key) (take 3)) rows)))
        (is (= before (fixture/open-descriptors)))))))

(kernel-test print-option-formats
  (testing "returns data and prints it in the requested format"
    (with-open [m ^Closeable (bpf/create {:name "exec_print" :type :hash :key :u32 :value :u64
                                          :max-entries 8 :contents {1 10}})]
      (is (= "" (with-out-str (is (= [{:key 1 :value 10}] (exec/dump {:ref m}))))))
      (are [format text]
           (= text (with-out-str (is (= [{:key 1 :value 10}] (exec/dump {:ref m :print format})))))
        :table "KEY  VALUE\n  1     10\n"
        "edn" "[{:key 1, :value 10}]\n"
        'json "[{\"key\":1,\"value\":10}]\n"
        :csv "key,value\n1,10\n")
      (is (= "KEY  VALUE\n  1     10\n" (with-out-str (tool/dump {:ref m}))) "a tool prints")
      (is (= "[{:key 1, :value 10}]\n" (with-out-str (tool/dump {:ref m :print :edn})))))))

(deftest reducible-printing
  (testing "a reducible result prints as its options"
    (testing "no such map is there: nothing is opened"
      (are [printed x]
           (= printed (pr-str x) (str x) (str/trim-newline (with-out-str (pprint/pprint x))))
        "#bpfmap.exec/watch {:ref 4294967295, :interval 1.0}" (exec/watch {:ref 4294967295})
        "#bpfmap.exec/watch {:ref {:name \"no_such\"}, :interval 0.5, :where [\"value>1\"], :sort \"-value\"}"
        (exec/watch {:ref "no_such" :where ["value>1"] :sort "-value" :interval "0.5"})
        "#bpfmap.exec/watch {:ref {:path \"/sys/fs/bpf/no_such\"}, :interval 1.0, :follow true}"
        (exec/watch {:ref (io/file "/sys/fs/bpf/no_such") :follow true})
        "#bpfmap.exec/dump {:ref 4294967295, :stream true, :key-type :u32}"
        (exec/dump {:ref 4294967295 :stream true :key-type "u32"})))
    (let [x (exec/watch {:ref 4294967295})
          {:keys [command options]} (datafy/datafy x)]
      (is (= "watch" command))
      (is (= (pr-str x) (pr-str (exec/watch options))) "its options go in again")
      (is (= (tagged-literal 'bpfmap.exec/watch options)
             (edn/read-string {:default tagged-literal} (pr-str x))))
      (is (= {:here 1} (meta (with-meta x {:here 1}))))
      (is (= (pr-str x) (pr-str (with-meta x {:here 1}))))
      (is (= :not-found (:bpfmap/error (fixture/error-of (reduce conj [] x))))))))

(kernel-test reducible-results
  (testing "every reducible result is data and can be reduced"
    (with-open [m ^Closeable (bpf/create {:name "exec_reduce" :type :hash :key :u32 :value :u64
                                          :max-entries 8
                                          :contents {1 10, 2 20}})]
      (let [id (:id (bpf/info m))
            before (fixture/settled-descriptors)]
        (doseq [[name x] {"list" (exec/list {:where "name=exec_reduce" :stream true})
                          "features" (exec/features {:where "name=hash" :stream true})
                          "dump" (exec/dump {:ref m :stream true})
                          "hist" (exec/hist {:ref m :field "value" :stream true})
                          "diff" (exec/diff {:old m :new m :stream true})
                          "watch" (exec/watch {:ref m :seconds 0.1})}
                :let [printed (edn/read-string {:default vector} (pr-str x))]]
          (testing name
            (is (= [(symbol "bpfmap.exec" name) (:options (datafy/datafy x))] printed))
            (doseq [ref (keep (second printed) [:ref :old :new])]
              (is (= {:id id :name "exec_reduce" :type :hash} ref)))
            (is (vector? (into [] x)))))
        (is (= before (fixture/open-descriptors)))
        (testing "without an initial value, as reduce of anything"
          (is (= 3
                 (:key (reduce (fn [a b] {:key (+ (:key a) (:key b))})
                               (exec/dump {:ref m :stream true})))))
          (is (= :none
                 (reduce (constantly :none) (exec/dump {:ref m :stream true :where "value>99"}))))
          (is (= 1 (reduce (fn [_ _] (reduced 1)) (exec/dump {:ref m :stream true})))))))
    (doseq [name ["watch" "dump" "list"]]
      (is (str/includes? (:doc (meta (ns-resolve 'bpfmap.exec (symbol name))))
                         (str "prints as #bpfmap.exec/" name))))))

(kernel-test watch-and-demo-data
  (testing "watch and demo also print as data"
    (with-open [m ^Closeable (bpf/create {:name "exec_print" :type :hash :key :u32 :value :u64
                                          :max-entries 8 :contents {1 10}})]
      (let
       [lines (str/split-lines
               (with-out-str (exec/watch {:ref m :seconds 0.15 :interval 0.1 :print :edn})))]
        (is (= [1 1] (map (comp :entries edn/read-string) lines))))
      (is (= #{:map :seconds :total :calls}
             (set
              (keys (edn/read-string (with-out-str (exec/demo {:seconds 0.2 :print :table}))))))))))

(kernel-test list-chosen-columns
  (testing "list has the requested columns"
    (with-open [_ ^Closeable (bpf/create {:name "exec_columns" :type :hash :key :u32 :value :u64
                                          :max-entries 8})]
      (is (= [{:name "exec_columns" :frozen false}]
             (exec/list {:columns "name,frozen" :where "name=exec_columns"})))
      (is (= [{:max-entries 8 :entries 0}]
             (exec/list {:columns [:max-entries :entries] :where "name=exec_columns"})))
      (is (re-find #"^Unknown field foo: the fields are id, type, name, key-size"
                   (:message (fixture/error-of (exec/list {:columns "name,foo"}))))))))

(kernel-test list-rows-independent
  (testing "list reports the same regardless of the other columns"
    (with-open [m ^Closeable (bpf/create {:name "exec_some" :type :hash :key :u32 :value :u64
                                          :max-entries 8 :freeze true})
                _ ^Closeable (bpf/create {:name "exec_others" :type :hash :key :u32 :value :u64
                                          :max-entries 8 :contents {1 1}})]
      (let [id (:id (bpf/info m))
            whole (first (exec/list {:where (str "id=" id)}))]
        (is (= [id true 0 [] 1]
               [(:id whole) (:frozen whole) (:entries whole) (:pinned whole)
                (count (:held whole))]))
        (doseq [k (keys whole)
                :let [column (if (= :frozen k) :frozen k)]
                options [{:columns [column]} {:columns [column :id]}
                         {:columns [:id column] :sort "-memlock"}
                         {:columns [column] :sort "frozen"}]]
          (is (= [(select-keys whole (replace {:frozen :frozen} (:columns options)))]
                 (exec/list (assoc options :where (str "id=" id))))
              options))
        (testing "and conditions may use fields that are not shown"
          (doseq [condition ["frozen=true" "entries=0" "memlock>0" "held.command=java"
                             "held-by.pid>0" "value=8"]]
            (is (= [{:name "exec_some"}]
                   (exec/list {:columns [:name] :where [(str "id=" id) condition]})) condition))
          (doseq [condition ["frozen=false" "entries>0" "memlock<1" "held.pid=1" "used-by.id>0"]]
            (is (= [] (exec/list {:columns [:name] :where [(str "id=" id) condition]}))
                condition)))))))

;; --- descriptions

(deftest docstrings-name-options
  (testing "docstrings name options and not flags"
    (doseq [{:keys [name fn]} commands/commands :when fn
            :let [doc (:doc (meta (ns-resolve 'bpfmap.exec (symbol (function-name name)))))]]
      (is (not (re-find #"(?<![\w-])--[a-z]" doc)) (str name ": " doc)))))

(deftest missing-library
  (testing "an output format names its missing library"
    (let [{:keys [exit out err]}
          (fixture/run [(str (System/getProperty "java.home") "/bin/java")
                        "--enable-native-access=ALL-UNNAMED"
                        "-cp"
                        (str/join ":"
                                  (remove #(re-find #"data\.(json|csv)" %)
                                          (str/split (System/getProperty "java.class.path") #":")))
                        "clojure.main" "-e"
                        (str "(require '[bpfmap.exec :as exec])"
                             "(doseq [format [:json :csv]]"
                             "  (try (exec/features {:where [:= :name :hash] :print format}) "
                             "(catch Exception e (println (ex-message e)))))")])]
      (is (= [0 ""] [exit err]))
      (is (= [":print :json requires org.clojure/data.json, which is not on the class path"
              ":print :csv requires org.clojure/data.csv, which is not on the class path"]
             (map #(first (str/split % #": add it")) (str/split-lines out)))))))

;; --- from a shell

(kernel-test clojure-x-and-tool
  (testing "the functions work with clojure -X and -T"
    (with-open [m ^Closeable (bpf/create {:name "exec_shell" :type :hash :key :u32 :value :u64
                                          :max-entries 8 :contents {1 10, 2 20}})]
      (let [id (str (:id (bpf/info m)))
            clj (str (.getAbsolutePath (io/file "bin/clj")))
            {:keys [exit out err]} (fixture/run [clj "-X:exec" "dump" ":ref" id ":where"
                                                 "[:> :value 10]" ":print" "edn"])]
        (is (= 0 exit) err)
        (is (= [{:key 2 :value 20}] (edn/read-string out)))
        (let [dir (fixture/temporary-directory)
              tools (io/file dir "tools")]
          (try
            (.mkdir tools)
            (spit (io/file tools "bpfmap.edn")
                  (pr-str {:lib 'io.github.bpfmap/bpfmap
                           :coord {:local/root (str (.getAbsolutePath (io/file ".")))}}))
            (let [{:keys [exit out err]} (fixture/run [clj "-Tbpfmap" "get" ":ref" id ":key" "2"]
                                                      :env {"CLJ_CONFIG" (str dir)} :dir dir)]
              (is (= 0 exit) err)
              (is (= "20\n" out)))
            (finally
              (run! #(.delete ^java.io.File %) (reverse (file-seq dir))))))))))

;; --- what they return

(defn- map-keys
  "Returns the keys of all maps in a value, at any depth."
  [x]
  (into #{} (mapcat #(when (map? %) (keys %))) (tree-seq coll? seq x)))

(kernel-test ^{:needs [[:map-type :bloom-filter]]} data-keys-are-no-questions
  (testing "no key of a result ends in a question mark"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value [:struct [:a :u32]]
                                          :max-entries 4 :contents {1 {:a 1}}})
                seen ^Closeable (bpf/create {:type :bloom-filter :value :u32 :max-entries 4})]
      (doseq [[what result] {"info" (bpf/info m) "spec" (bpf/spec m)
                             "maps" (host/maps) "programs" (host/programs) "links" (host/links)
                             "report" (feature/report)
                             "flag" (feature/map-flag :hash :no-prealloc)
                             "list" (exec/list {}) "show" (exec/show {:ref m})
                             "features" (exec/features {}) "types" (exec/types {:ref m})
                             "get" (exec/get {:ref m :key 1}) "bloom" (exec/get {:ref seen :key 1})
                             "dump" (exec/dump {:ref m})
                             "put" (exec/put {:ref m :key 2 :value {:a 2}})
                             "diff" (exec/diff {:old m :new m})}]
        (is (= [] (filter #(and (keyword? %) (str/ends-with? (name %) "?")) (map-keys result)))
            what)))))
