(ns bpfmap.exec.progress-test
  "Commands that read or write many entries report how many."
  (:require [bpfmap.cli.calling :refer [id-of]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.progress :as progress]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(defn- reports
  "The reports of a call, each once."
  [f]
  (let [found (atom [])]
    (binding [progress/*report* (fn [what n] (swap! found conj [what n]))]
      (f))
    (vec (distinct @found))))

(kernel-test long-commands-report
  (with-open [m ^Closeable (bpf/create {:name "progress" :type :hash :key :u32 :value :u32
                                        :max-entries 10000})]
    (let [dir (fixture/temporary-directory)
          file (str (io/file dir "progress.edn"))
          expected [["entries" 4096] ["entries" 8192]]
          ;; Some report each item, and reading a file each buffer.
          coarse (fn [found]
                   (filter (fn [[what n]]
                             (and (not= "bytes read" what) (contains? #{4096 8192} n)))
                           found))]
      (try
        (bpf/put-all! m (map #(vector % %) (range 10000)))
        (doseq [[name f] {"dump" #(exec/dump {:ref m})
                          "dump :count" #(exec/dump {:ref m :count true})
                          "dump of several" #(exec/dump {:ref [(id-of m)]})
                          "hist" #(exec/hist {:ref m :field "value"})
                          "diff" #(exec/diff {:old m :new m})
                          "save" #(exec/save {:ref m :file file})}]
          (testing name
            (is (= expected (reports f)))))
        (testing "restore"
          (let [counts (fn [what] [[what 4096] [what 8192]])
                pin (fixture/new-pin)]
            (try
              (is (= (concat (counts "entries checked") (counts "entries written")
                             (counts "entries compared"))
                     (coarse (reports #(exec/restore {:file file :pin pin})))))
              (is (= (concat (counts "entries checked") (counts "entries compared"))
                     (coarse (reports #(exec/restore {:file file :into pin}))))
                  "all are there already")
              (finally (io/delete-file pin true)))))
        (testing "reading a saved file"
          (is (= ["bytes read" (.length (io/file file))]
                 (last (filter #(= "bytes read" (first %))
                               (reports #(exec/diff {:old file :new m})))))))
        (testing "watch"
          (is (= expected (reports #(reduce (fn [_ frame] (reduced frame)) nil
                                             (exec/watch {:ref m}))))))
        (testing "list, for each map"
          (is (< 0 (count (filter #(= "maps" (first %)) (reports #(exec/list {:count true})))))))
        (testing "put from a file"
          (doseq [[form text] {"edn" (str/join " " (map #(str [% %]) (range 10000)))
                               "json" (str/join " " (map #(str "{\"key\":" % ",\"value\":" % "}")
                                                         (range 10000)))
                               "csv" (str/join "\n" (cons "key,value" (map #(str % "," %)
                                                                           (range 10000))))}
                  :let [file (str (io/file dir (str "put." form)))]]
            (spit file text)
            (testing form
              (is (= [["entries read" 4096] ["entries read" 8192]
                      ["entries checked" 4096] ["entries checked" 8192]
                      ["entries written" 4096] ["entries written" 8192]]
                     (coarse (reports #(exec/put {:ref m :file file :yes true}))))))
            (io/delete-file file)))
        (testing "clear, which comes last"
          (is (= expected (reports #(exec/clear {:ref m :yes true}))))
          (is (= 0 (bpf/count-entries m))))
        (finally
          (io/delete-file file true)
          (io/delete-file dir true))))))
