(ns ^:volume bpfmap.examples-test
  "The scripts of examples/, run as their first lines say."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [clojure.data.json :as json]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable File)))

(set! *warn-on-reflection* true)

(defn- script [name & args]
  (fixture/run (into ["bin/clj" "-M:exec" (str "examples/" name ".clj")] (map str) args)))

(defn- id-of [m] (:id (bpf/info m)))

(kernel-test map-exported-to-json
  (testing "exports a map to JSON repeatedly"
    (with-open [^Closeable m (bpf/create {:name "ex_export" :type :hash :key :ipv4
                                          :value [:struct [:n :u64]] :max-entries 4
                                          :contents {"10.0.0.1" {:n 18446744073709551615N}}})]
      (let [dir (fixture/temporary-directory)
            file (str dir "/flows.json")]
        (try
          (let [{:keys [exit out err]} (script "export" (id-of m) file 1 2)]
            (is (= [0 ""] [exit err]))
            (is (= ["1 entries" "1 entries"]
                   (map #(str/replace % #"^\S+ " "") (str/split-lines out)))))
          (is (= [{"key" "10.0.0.1" "value" {"n" "18446744073709551615"}}]
                 (json/read-str (slurp file))))
          (is (= ["flows.json"] (vec (.list dir))))
          (finally (run! #(.delete ^File %) (reverse (file-seq dir)))))))))

(kernel-test fullest-map-is-found
  (testing "finds the fullest map"
    (with-open [^Closeable _ (bpf/create {:name "ex_full" :type :hash :key :u32 :value :u64
                                          :max-entries 200000
                                          :contents (zipmap (range 200000) (repeat 1))})
                ^Closeable _ (bpf/create {:name "ex_array" :type :array :value :u64
                                          :max-entries 4})]
      (let [{:keys [exit out err]} (script "fullest" 1000)]
        (is (= [0 ""] [exit err]))
        (is
         (re-find
          #"(?m)^\| +100.0 \| +\d+ \| +:hash \| +ex_full \| +200000 \| +200000 \| +\[.*\"java\"" out))
        (is (not (str/includes? out "ex_array")))))))

(kernel-test address-is-blocked
  (testing "blocks an address"
    (with-open [^Closeable hosts (bpf/create {:name "ex_blocked" :type :hash :key :ipv4 :value :u8
                                              :max-entries 8})
                ^Closeable nets (bpf/create {:name "ex_nets" :type :lpm-trie :key [:prefix :ipv4]
                                             :value :u32 :max-entries 8
                                             :flags #{:no-prealloc}})]
      (is (= {:exit 0 :err "" :out "192.0.2.7 is blocked now\nthe map has 1 addresses\n"}
             (script "block" "ex_blocked" "192.0.2.7")))
      (is (= {"192.0.2.7" 1} (bpf/snapshot hosts)))
      (is (= {:exit 0 :err "" :out "192.0.2.0/24 is blocked now\nthe map has 1 addresses\n"}
             (script "block" (id-of nets) "192.0.2.0/24")))
      (is (= 1 (nets "192.0.2.9"))))))

(kernel-test saved-hosts-compared
  (testing "compares what two hosts saved"
    (let [dir (fixture/temporary-directory)
          [one two] (map #(str dir "/" %) ["one.edn" "two.edn"])
          spec {:name "ex_routes" :type :hash :key :ipv4 :value :u32 :max-entries 8}]
      (try
        (with-open [^Closeable a (bpf/create (assoc spec :contents
                                                    {"10.0.0.1" 1, "10.0.0.2" 2, "10.0.0.3" 3}))
                    ^Closeable b (bpf/create (assoc spec :contents
                                                    {"10.0.0.2" 2, "10.0.0.3" 4, "10.0.0.4" 5}))]
          (exec/save {:ref a :file one})
          (exec/save {:ref b :file two}))
        (is (= {:exit 1 :err ""
                :out (str
                      "only in the first:\n  10.0.0.1 1\nonly in the second:\n  10.0.0.4 "
                      "5\ndifferent:\n  10.0.0.3 3 4\n1 the same\n")}
               (script "compare" one two)))
        (is (= {:exit 0 :err "" :out "3 the same\n"} (script "compare" one one)))
        (finally (run! #(.delete ^File %) (reverse (file-seq dir))))))))

(kernel-test dev-repl-tables
  (testing "the development REPL has tables and a scratch map"
    (fixture/run ["bin/clj" "-P" "-M:dev"]) ; fetches the libraries, which it reports once
    (let [{:keys [exit out err]}
          (fixture/run ["bin/clj" "-M:dev" "-e"
                        "(with-open [m (scratch)] (maps \"name=scratch\") (prn (m 7) (keys (explore)) (reload)))"])]
      (is (= [0 ""] [exit err]))
      (is (re-find #"(?m)^\| +:id \| +:type \| +:name" out))
      (is (re-find #"\| +:hash \| scratch \| +1 \| +1024 \|" out))
      (is (str/ends-with? out "42 (:maps :programs :links :pins) []\n")))))
