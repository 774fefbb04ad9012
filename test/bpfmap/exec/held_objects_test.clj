(ns bpfmap.exec.held-objects-test
  "The maps, programs and links that a process has open."
  (:require [bpfmap.cli.calling :refer [bpfmap lines-of refused]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.fixture :refer [kernel-test]]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.open-object :refer [id]]
            [bpfmap.link :as link]
            [bpfmap.prog :as prog]
            [clojure.data.json :as json]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable)
           (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

(kernel-test objects-of-process
  (with-open [m ^Closeable (bpf/create {:name "t_held" :type :hash :key :u32 :value :u64
                                        :max-entries 4})
              p ^Closeable (prog/load {:type :raw-tracepoint :name "t_holds"
                                       :insns [[:mov64 :r0 0] [:exit]]})
              a ^Closeable (link/attach p {:raw-tracepoint "sys_enter"})]
    (let [pid (.pid (ProcessHandle/current))
          own (set (map id [m p a]))
          ours (fn [rows] (filter #(own (:id %)) rows))
          holder {:pid pid :command (procfs/command pid)}]
      (is (= [{:kind :map :id (id m) :type :hash :name "t_held"}
              {:kind :program :id (id p) :type :raw-tracepoint :name "t_holds"}
              {:kind :link :id (id a) :type :raw-tracepoint :name "sys_enter"}]
             (for [row (ours (exec/holds {:process pid}))
                   :when (some #{holder} (:held row))]
               (select-keys row [:kind :id :type :name]))))
      (is (= [(id m)]
             (map :id (exec/holds {:process (:command holder)
                                   :where ["kind=map" "memory>0" (str "id=" (id m))]}))))
      (testing "on the command line"
        (let [[heading & rows] (lines-of "holds" pid "--where" (str "id=" (id a)) "--where"
                                         "kind=link")]
          (is (= ["KIND" "ID" "TYPE" "NAME" "MEMORY" "HELD" "BY"] (str/split heading #" +")))
          (is (str/includes? (first rows) "sys_enter")))
        (is (= [{"id" (id p) "name" "t_holds"}]
               (json/read-str (:out (bpfmap "holds" pid "--where" "kind=program" "--where"
                                            (str "id=" (id p)) "--columns" "id,name" "--json")))))
        (is (= [1 "bpfmap: No process no_such_command has a map, program or link open"]
               (refused "holds" "no_such_command")))))))
