(ns bpfmap.exec.held-objects-test
  "The maps, programs and links that a process has open."
  (:require [bpfmap.cli.calling :refer [bpfmap lines-of refused]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.open-object :refer [id]]
            [bpfmap.link :as link]
            [bpfmap.prog :as prog]
            [clojure.data.json :as json]
            [clojure.java.io :as io]
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
          (is (= ["KIND" "ID" "TYPE" "NAME" "MEMORY" "ENDS" "HELD" "BY" "PINNED"]
                 (str/split heading #" +")))
          (is (str/includes? (first rows) "sys_enter")))
        (is (= [{"id" (id p) "name" "t_holds"}]
               (json/read-str (:out (bpfmap "holds" pid "--where" "kind=program" "--where"
                                            (str "id=" (id p)) "--columns" "id,name" "--json")))))
        (is (= [1 "bpfmap: No process no_such_command has a map, program or link open"]
               (refused "holds" "no_such_command")))))))

(kernel-test objects-that-end-with-the-process
  (testing "ends is false for what another process, a pin, or an object that stays keeps"
    (let [this (.pid (ProcessHandle/current))
          ends (fn [& objects]
                 (let [rows (exec/holds {:process this})]
                   (map (fn [o] (:ends (first (filter #(= (id o) (:id %)) rows)))) objects)))
          new-map #(bpf/create {:name % :type :hash :key :u32 :value :u64 :max-entries 4})
          program (fn [m] (prog/load {:type :raw-tracepoint :name "t_ends"
                                      :insns [[:lddw :r1 m] [:mov64 :r0 0] [:exit]]}))]
      (with-open [m ^Closeable (new-map "t_ends_m")
                  p ^Closeable (program m)
                  a ^Closeable (link/attach p {:raw-tracepoint "sys_enter"})
                  inner ^Closeable (new-map "t_ends_in")
                  outer ^Closeable (bpf/create {:name "t_ends_out" :type :hash-of-maps :key :u32
                                                :max-entries 2 :inner-map (bpf/spec inner)})]
        (bpf/put! outer 1 inner)
        (let [objects [m p a inner outer]
              path (str (fixture/new-pin))]
          (is (= [true true true true true] (apply ends objects)))
          (testing "the pin of a link keeps its program, and the maps of that"
            (link/pin! a path)
            (is (= [false false false true true] (apply ends objects)))
            (is (= [path] (mapcat :pinned (exec/holds {:process this
                                                       :where ["kind=link"
                                                               (str "id=" (id a))]}))))
            (io/delete-file path))
          (testing "the pin of a map of maps keeps the inner maps"
            (bpf/pin! outer path)
            (is (= [true true true false false] (apply ends objects)))
            (bpf/unpin! outer))
          (testing "one condition selects what ends"
            (is (= #{(id a)}
                   (set (map :id (exec/holds {:process this :where ["kind=link" "ends=true"
                                                                    (str "id=" (id a))]})))))))))))
