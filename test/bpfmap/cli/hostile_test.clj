(ns ^:volume bpfmap.cli.hostile-test
  "Names and contents that were made to steer a terminal: whatever prints them, nothing of it gets
  there raw."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.cli.calling :refer [bpfmap id-of]]
            [bpfmap.core :as bpf]
            [bpfmap.exec.output :as output]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.escape-test :refer [raw?]]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io Closeable FileOutputStream)
           (java.nio.file Files Path)))

(set! *warn-on-reflection* true)

(defn- check
  "Runs a command in every format: on standard output and standard error is nothing raw but the
  ends of lines."
  [& words]
  (doseq [format [nil "--edn" "--json" "--csv" "--verbose"]
          :let [words (cond-> (vec words) format (conj format))
                {:keys [out err]} (apply bpfmap words)]]
    (testing (pr-str words)
      (is (not= "" (str out err)))
      (doseq [text [out err]
              :let [raw
                    (re-find #"[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}&&[^\n]]"
                             (str/replace text "\r\n" "\n"))]]
        (is (nil? raw))))))

(def ^:private hostile "\u001b]0;owned\u0007\u001b[2J\u202egpj.\u009b31m\u200b\ufeff")

(defn- with-command
  "Calls f while this process has another name, of any bytes."
  [^bytes name f]
  (let [comm "/proc/self/comm"
        before (Files/readAllBytes (Path/of comm (make-array String 0)))
        write (fn [^bytes b] (with-open [out (FileOutputStream. comm)] (.write out b)))]
    (try
      (write name)
      (f)
      (finally (write (.getBytes (str/trim-newline (String. before))))))))

(kernel-test escaped-process-names
  (testing "escapes control characters in process names"
    (with-open [^Closeable m (bpf/create {:name "hostile" :type :hash :key :u32 :value :u32
                                          :max-entries 4})]
      (doseq [name [(.getBytes "\u001b[31m\nbpfmap:") (.getBytes "\u202e\u200b\u009b2J")
                    (byte-array [0x1b 0x5d 0xff 0xfe 0x9b 0x07 0x0d])]]
        (with-command name
          (fn []
            (check "list")
            (check "show" (id-of m))
            (with-open [^Closeable _ (bpf/create {:name "hostile" :type :array :value :u32
                                                  :max-entries 1})]
              (check "show" "hostile")))))))) ; two have the name: the error lists who holds them

(kernel-test escaped-pin-names
  (testing "escapes control characters in pin names"
    (let [dir (str (fixture/new-pin) "dir")]
      (.mkdirs (io/file dir))
      (with-open [^Closeable m (bpf/create {:name "hostile" :type :hash :key :u32 :value :u32
                                            :max-entries 4})]
        (doseq [name ["a\u001b[2Jb" "line\nbpfmap: done" "\u202efdp"
                      (apply str (repeat 60 "\u001b[7m"))]
                :let [path (str dir "/" name)]]
          (bpf/pin! m path)
          (try
            (check "list")
            (check "tree" "--root" dir)
            (check "tree" dir)
            (check "show" path)
            (check "show" (id-of m))
            (check "dump" path)
            (finally (io/delete-file path)))))
      (io/delete-file dir))))

(kernel-test escaped-map-contents
  (testing "escapes control characters in keys and values"
    (doseq [spec [{:key [:string 64]
                   :value [:struct [:comm [:string 64]] [:c :char] [:more [:array [:string 32] 2]]]
                   :contents {hostile {:comm hostile :c (char 0x9b) :more ["\u001b[2J" "\r\n"]}}}
                  {:key :u32 :value [:string 8]
                   :contents {1 (bytes/->bytes "1b 5b 32 4a 00 41 1b 00")}}]]
      (with-open [^Closeable m (bpf/create (merge {:name "hostile" :type :hash :max-entries 4}
                                                  (try
                                                    (with-open
                                                     [^Closeable _ (bpf/create
                                                                    (assoc spec :type :hash
                                                                           :max-entries 4))] spec)
                                                    (catch Exception _
                                                      (assoc spec :contents {})))))]
        (check "dump" (id-of m))
        (check "get" (id-of m) (if (= :u32 (:key spec)) "1" hostile))
        (check "get" (id-of m) (str hostile "no such key"))))))

(kernel-test escaped-command-line
  (testing "escapes control characters of the command line in errors"
    (with-open [^Closeable m (bpf/create {:name "hostile" :type :hash :key :u32 :value :u32
                                          :max-entries 4})]
      (doseq [words [["show" hostile] ["show" (str "/" hostile)] [hostile]
                     ["list" (str "--" hostile)] ["list" "--where" hostile]
                     ["list" "--where" (str "name=" hostile)] ["list" "--columns" hostile]
                     ["list" "--sort" hostile] ["dump" (id-of m) "--key-type" hostile]
                     ["put" (id-of m) hostile "1"] ["put" (id-of m) "1" (str "\"" hostile "\"")]
                     ["restore" hostile "--pin" "/x"] ["save" (id-of m) "--file" hostile]
                     ["list" "--limit" hostile] ["types" hostile]
                     ["show" (apply str (repeat 4096 "\u001b"))] ["create" "--type" hostile]]]
        (apply check words)))))

(deftest escaped-titles
  (testing "escapes control characters in titles and field names"
    (is (not-any? raw? (output/table [{:title hostile :of #(get % hostile)}] [{hostile hostile}])))
    (is (not-any? raw?
                  (:lines (output/fitted [{:title hostile :of :a}] [{:a (keyword hostile)}] 80))))
    (is (not-any? raw?
                  (output/fields [[hostile hostile] [(keyword hostile) (symbol hostile)]
                                  [1 [hostile {hostile #{hostile}}]]])))
    (is
     (not
      (raw?
       (str/trim-newline
        (with-out-str (output/print-json [{hostile (str hostile "\u007f\ud800")}])))))
     "JSON")))
