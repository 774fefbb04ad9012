(ns bpfmap.cli.output-test
  "What the command line prints, without a kernel."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.exec.output :as output]
            [bpfmap.impl.edn-text :as edn-text]
            [clojure.data.json :as json]
            [clojure.edn :as edn]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop]))

(set! *warn-on-reflection* true)

;; --- for people

(deftest cell-shows-readable-value
  (testing "a cell shows a value in readable form"
    (are [x text] (= text (output/cell x))
      nil "-"
      "" "-"
      "counts" "counts"
      :lru-hash "lru-hash"
      12 "12"
      18446744073709551615N "18446744073709551615"
      1.5 "1.5"
      true "true"
      false "false"
      \a "\\a"
      (bytes/->bytes [10 255]) "0a ff"
      [:bytes 4] "[:bytes 4]"
      {:a 1} "{:a 1}")))

(deftest cell-escapes-controls
  (testing "a cell contains no control characters"
    (are [x text] (= text (output/cell x))
      "a\u001b[2Jb" "a\\u001b[2Jb"
      "two\nlines" "two\\u000alines"
      (char 7) "\\u0007"
      (char 0x9b) "\\u009b"
      "\u009b2J" "\\u009b2J"
      ["\u001b[0m"] "[\"\\u001b[0m\"]"
      [(char 27) \\ (char 0)] "[\\u001b \\\\ \\u0000]")))

(deftest table-aligns-columns
  (testing "a table aligns its columns"
    (is (= ["ID  NAME       SIZE"
            " 7  counts       12"
            "12  -          1.5K"
            "99  flows   1000000"]
           (output/table [{:title "ID" :of :id}
                          {:title "NAME" :of :name}
                          {:title "SIZE" :of :size :align :right}]
                         [{:id 7 :name "counts" :size 12}
                          {:id 12 :name nil :size "1.5K"}
                          {:id 99 :name "flows" :size 1000000}])))))

(deftest table-without-rows
  (testing "a table without rows is its heading"
    (is (= ["ID  NAME"] (output/table [{:title "ID" :of :id} {:title "NAME" :of :name}] [])))))

(deftest no-trailing-blanks
  (testing "no line of a table ends in blanks"
    (is (= ["NAME" "long-name" "x"]
           (output/table [{:title "NAME" :of identity}] ["long-name" "x"])))))

(def ^:private wide
  [{:title "ID" :of :id}
   {:title "NAME" :of :name :least 8}
   {:title "PATH" :of :path :least 6 :cut-at :left :rank 1}
   {:title "HELD" :of :held :least 9 :cut-at :middle :rank 2}
   {:title "NONE" :of :none :rank 1}])

(def ^:private row
  {:id 123456 :name "a-long-name" :path "/sys/fs/bpf/x" :held "agent-of-mine[4711]"})

(deftest table-fits-the-screen
  (testing "a table fits the width of the screen"
    (are [width lines left-out] (= {:lines lines :left-out left-out}
                                   (select-keys (output/fitted wide [row] width)
                                                [:lines :left-out]))
      80 ["    ID  NAME         PATH           HELD                 NONE"
          "123456  a-long-name  /sys/fs/bpf/x  agent-of-mine[4711]  -"] []
      57 ["    ID  NAME         PATH           HELD"
          "123456  a-long-name  /sys/fs/bpf/x  agent-of-mine[4711]"] ["NONE"]
      52 ["    ID  NAME         PATH           HELD"
          "123456  a-long-name  /sys/fs/bpf/x  agent-of-…[4711]"] ["NONE"]
      39 ["    ID  NAME       PATH       HELD"
          "123456  a-long-n…  …fs/bpf/x  ag…[4711]"] ["NONE"]
      30 ["    ID  NAME        PATH"
          "123456  a-long-na…  …/fs/bpf/x"] ["HELD" "NONE"]
      18 ["    ID  NAME"
          "123456  a-long-na…"] ["PATH" "HELD" "NONE"]
      5 ["    ID  NAME"
         "123456  a-long-…"] ["PATH" "HELD" "NONE"])))

(deftest number-is-never-cut
  (testing "never truncates a number"
    (is (= ["      N" "1234567"]
           (:lines (output/fitted [{:title "N" :of :n :least 2}] [{:n 1234567}] 3))))))

(defspec no-partial-numbers 300
  (prop/for-all [words
                 (gen/not-empty
                  (gen/vector (gen/one-of [gen/nat
                                           (gen/fmap #(str "agent[" % "] +2")
                                                     (gen/choose 1 10000000))
                                           (gen/fmap #(str "{:a " % "}") gen/large-integer)
                                           (gen/fmap #(str "/x/" %) (gen/choose 0 999999))]) 1 3))
                 width (gen/choose 1 40)
                 side (gen/elements [nil :left :middle])]
                (let [text (str/join " " words)
                      line (second
                            (:lines (output/fitted [{:title "N" :of identity :least 1 :cut-at side}]
                                                   [text] width)))
                      numbers (set (re-seq #"\d+" text))]
                  (every? numbers (re-seq #"\d+" line)))))

(deftest fields-are-aligned
  (testing "aligns the values of fields"
    (is (= ["id    12" "name  counts" "none  -"]
           (output/fields [[:id 12] [:name "counts"] ["none" nil]])))))

(deftest human-readable-sizes
  (testing "prints sizes in units of 1024"
    (are [n text] (= text (output/human-size n))
      0 "0"
      1023 "1023"
      1024 "1.0K"
      16864 "16.5K"
      1048524 "1023.9K"
      1048575 "1.0M"
      1311760 "1.3M"
      (* 5 1024 1024 1024) "5.0G"
      Long/MAX_VALUE "8.0E")))

(deftest one-decimal-place
  (testing "prints a number of any size with one decimal place"
    (are [x text] (= text (output/format-1dp x))
      0 "0.0"
      16.46 "16.5"
      -0.25 "-0.3"
      1234567.85 "1234567.9"
      (double 18446744073709551615N) "18446744073709552000.0")))

;; --- for programs

(defn- edn-of [x]
  (edn/read-string {:readers edn-text/readers} (with-out-str (output/print-edn x))))

(defn- json-of [x]
  (json/read-str (with-out-str (output/print-json x)) :bigdec true))

(def ^:private scalars
  (gen/one-of [gen/large-integer gen/boolean gen/keyword (gen/fmap keyword gen/string)
               gen/string-ascii gen/size-bounded-bigint
               (gen/fmap bytes/wrap gen/bytes) (gen/return nil)]))

(defspec edn-output-reads-back 200
  (prop/for-all [x
                 (gen/recursive-gen #(gen/one-of [(gen/vector %) (gen/map gen/keyword %)
                                                  (gen/set scalars)]) scalars)]
                (= x (edn-of x))))

(defspec edn-output-escaped 200
  (prop/for-all [x (gen/vector
                    (gen/one-of [(gen/fmap str/join
                                           (gen/vector
                                            (gen/elements [\\ \" \u001b \u0000 \u009b \a])))
                                 (gen/fmap char (gen/choose 0 255))]))]
                (and (= x (edn-of x))
                     (not (re-find #"[\x00-\x09\x0b-\x1f\x7f-\x9f]"
                                   (with-out-str (output/print-edn x)))))))

(deftest edn-element-per-line
  (testing "EDN output has one element per line"
    (is (= "[{:id 1}\n ,{:id 2}]\n"
           (str/replace (with-out-str (output/print-edn [{:id 1} {:id 2}])) ",\n " "\n ,")))
    (is (= "[]\n" (with-out-str (output/print-edn []))))
    (is (= "{:bpfmap/error :closed}\n" (with-out-str (output/print-edn {:bpfmap/error :closed}))))))

(deftest edn-print-settings
  (testing "EDN output ignores *print-length* and *print-level*"
    (binding [*print-length* 1 *print-level* 1]
      (is (= [[1 2] [3 (bytes/->bytes [4 5])]] (edn-of [[1 2] [3 (bytes/->bytes [4 5])]]))))))

(deftest json-value-formats
  (testing "JSON output uses strings, arrays and hexadecimal"
    (are [x json] (= json (json-of x))
      {:frozen true :flags #{:mmapable :inner-map}} {"frozen" true "flags" ["inner-map" "mmapable"]}
      {:flags #{:mmapable 1073741824}} {"flags" [1073741824 "mmapable"]}
      {:bpfmap/error :closed} {"bpfmap/error" "closed"}
      [:bytes 4] ["bytes" 4]
      (bytes/->bytes [10 0]) "0a 00"
      {(bytes/->bytes [1]) 1, 7 2} {"01" 1 "7" 2}
      \a "a"
      nil nil
      [] [])))

(deftest json-large-integers
  (testing "JSON output keeps every digit of a large integer"
    (are [n json] (= (str json "\n") (with-out-str (output/print-json n)))
      9007199254740991 "9007199254740991"
      -9007199254740991 "-9007199254740991"
      9007199254740992 "\"9007199254740992\""
      -9007199254740993 "\"-9007199254740993\""
      18446744073709551615N "\"18446744073709551615\"")))

(deftest json-special-floats
  (testing "JSON output has strings for NaN and infinities"
    (is (= ["NaN" "Infinity" "-Infinity" 1.5M] (json-of [##NaN ##Inf ##-Inf 1.5])))))

(deftest json-keeps-key-order
  (testing "JSON output keeps the order of keys"
    (let [m (apply array-map (mapcat #(vector (keyword (str "k" %)) %) (range 20 0 -1)))]
      (is (str/starts-with? (with-out-str (output/print-json m)) "{\"k20\":20,\"k19\":19,")))))
