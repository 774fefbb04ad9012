(ns bpfmap.exec.entry-file-test
  "Entries that `put` reads from files, in each format."
  (:require [bpfmap.cli.calling :refer [bpfmap id-of lines-of]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.entry-file :as entry-file]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.impl.type.node :as node]
            [bpfmap.type :as type]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are is testing]])
  (:import (java.io ByteArrayInputStream Closeable File InputStream)
           (java.util Random)))

(set! *warn-on-reflection* true)

(defn- a-map ^Closeable [spec]
  (bpf/create (merge {:name "filed" :type :hash :max-entries 64} spec)))

(defn- file-of
  "A new file with a text; its name ends in `ext`."
  ^String [ext text]
  (let [file (doto (File/createTempFile "bpfmap-entries" ext) .deleteOnExit)]
    (spit file text)
    (str file)))

(def ^:private flow
  {:key [:struct [:src :ipv4] [:port :port]]
   :value [:struct [:n :u64] [:comm [:string 8]] [:s [:array :u8 2]]]})

(def ^:private two-flows
  {{:src "10.0.0.1" :port 443} {:n 1 :comm "a b" :s [1 2]}
   {:src "10.0.0.2" :port 53} {:n 2 :comm "" :s [3 4]}})

(kernel-test formats-of-entries
  (testing "EDN, JSON and CSV, by the file's name or its contents"
    (are [ext text] (with-open [m (a-map flow)]
                      (let [file (file-of ext text)]
                        (is (= {:read 2 :written 2 :skipped 0 :missing 0 :entries 2 :file file}
                               (dissoc (exec/put {:yes true :ref m :file file}) :map)))
                        (= two-flows (bpf/snapshot m))))
      ".edn" "[{:key {:src \"10.0.0.1\" :port 443} :value {:n 1 :comm \"a b\" :s [1 2]}}
               {key \"src=10.0.0.2 port=53\" value {n 2 comm \"\" s [3 4]}}]"
      ".txt" "; a comment\n{:key \"src=10.0.0.1 port=443\" :value \"n=1 comm=\\\"a b\\\" s=[1 2]\"}
              [{src \"10.0.0.2\" port 53}, {n 2 comm \"\" s [3 4]}]\n"
      "" "{{src \"10.0.0.1\" port 443} {n 1 comm \"a b\" s [1 2]}
           \"0a 00 00 02 00 35 00 00\" \"n=2 comm= s=[3 4]\"}"
      ".jsonl" "{\"key\":{\"src\":\"10.0.0.1\",\"port\":443},\"value\":{\"n\":1,\"comm\":\"a b\",\"s\":[1,2]}}
{\"value\":\"n=2 comm= s=[3,4]\",\"key\":\"src=10.0.0.2 port=53\"}\n"
      "" "[{\"key\":{\"src\":\"10.0.0.1\",\"port\":443},\n\"value\":{\"n\":1,\"comm\":\"a b\",\"s\":[1,2]}},
           {\"key\":{\"src\":\"10.0.0.2\",\"port\":53},\"value\":{\"n\":\"2\",\"comm\":\"\",\"s\":[3,4]}}]"
      ".CSV" "key.src,key.port,value\n10.0.0.1,443,\"n=1 comm=\"\"a b\"\" s=[1 2]\"\r\n10.0.0.2,53,{n 2 comm \"\" s [3 4]}\n"
      "" "value.s.1,key,value.n,value.s.0,value.comm\n2,src=10.0.0.1 port=443,1,1,a b
4,0a 00 00 02 00 35 00 00,2,3,\"\"\"\"\"\"\n")))

(kernel-test u3-printed-entries-read-back
  (testing "what dump prints in each format is read back as the same bytes"
    (let [random (Random. 11)
          types [:u8 :s32be :u64 :f64 :bool :char :ipv4 :ipv6 :mac :port [:string 6] [:bytes 3]
                 [:enum :u32 {:D0 0 :D1 1}] [:array :u16 3] [:prefix :ipv4]
                 [:struct [:proto :u8] [:addr :u32]]
                 [:struct [:a [:bits :u32 5]] [:comm [:string 4]]
                  [:in [:struct [:x :f32] [:y [:array :char 2]]]]]
                 [:union [:n :u32] [:b [:array :u8 4]]]]
          likely [0 0 0 0x7f 0xff 45 34 35 44 10 48 97 98 1 2]
          some-bytes (fn [n] (repeatedly n #(nth likely (.nextInt random (count likely)))))]
      (doseq [[key-type value-type] (map vector types (shuffle types))
              :let [spec {:name "printed" :key-size (type/size key-type) :max-entries 32
                          :value-size (type/size value-type)}
                    given ["--key-type" (pr-str key-type) "--value-type" (pr-str value-type)]]]
        (with-open [from (a-map spec)]
          (dotimes [_ 5]
            (bpf/put! from (bpf/->bytes (some-bytes (:key-size spec)))
                      (bpf/->bytes (some-bytes (:value-size spec)))))
          (doseq [[ext format] {".edn" "--edn", ".json" "--json", ".csv" "--csv"}
                  :let [text (:out (apply bpfmap "dump" (id-of from) format given))]]
            (testing (str format " " key-type " " value-type "\n" text)
              (with-open [to (a-map spec)]
                (let [{:keys [exit err]} (apply bpfmap "put" "--yes" (id-of to) "--file" (file-of ext text)
                                                given)]
                  (is (= [0 ""] [exit err])))
                (is (= (raw-entries/snapshot (raw-entries/entries from))
                       (raw-entries/snapshot (raw-entries/entries to))))))))))))

(kernel-test per-cpu-entries-read-back
  (testing "the values of CPUs, apart or the same for all"
    (with-open [from (a-map {:type :percpu-hash :key :u32
                             :value [:struct [:rx :u32] [:t [:string 4]]]})
                to (a-map (bpf/spec from))]
      (let [cpus (count (call/possible-cpus))
            values (mapv (fn [i] {:rx i :t (str "t" i)}) (range cpus))]
        (bpf/put! from 7 values)
        (doseq [[ext format] {".edn" "--edn", ".json" "--json", ".csv" "--csv"}]
          (testing format
            (exec/put {:yes true :ref to :file (file-of ext (:out (bpfmap "dump" (id-of from) format)))})
            (is (= {7 values} (bpf/snapshot to)))
            (bpf/delete! to 7)))
        (exec/put {:yes true :ref to :file (file-of ".csv" "key,value.rx,value.t\n1,5,x\n") :cpus :all})
        (is (= {1 (vec (repeat cpus {:rx 5 :t "x"}))} (bpf/snapshot to)))
        (is (= "bpfmap: --cpus must be all with --file, got 0; see `bpfmap help put`\n"
               (:err (bpfmap "put" "--yes" (id-of to) "--file" "/dev/null" "--cpus" "0"))))))))

(defn- problems-of
  "The lines of stderr of a put from a file, which must fail and write nothing."
  [m ext text]
  (let [before (bpf/count-entries m)
        file (file-of ext text)
        {:keys [exit out err]} (bpfmap "put" "--yes" (id-of m) "--file" file)]
    (is (= [1 ""] [exit out]))
    (is (= before (bpf/count-entries m)))
    (mapv #(str/replace % file "FILE") (str/split-lines err))))

(kernel-test u2-all-problems-by-line
  (testing "all entries are checked first, and the problems have their lines"
    (with-open [m (a-map flow)]
      (is (= ["bpfmap: 4 entries of 6 in FILE cannot be written, and nothing was"
              "  line 2: value.s: the field s is missing: every field is required"
              "  line 3: it must have 3 cells, got 2"
              "  line 5: key.port: 70000 is not a port: it must be an integer from 0 to 65535"
              "  line 7: the value is missing"]
             (problems-of m ".csv" (str "key.src,key.port,value\n"
                                        "10.0.0.1,1,n=1 comm=x\n"
                                        "10.0.0.1,1\n"
                                        "10.0.0.2,1,n=1 comm=x s=[1 2]\n"
                                        "10.0.0.1,70000,n=1 comm=x s=[1 2]\n"
                                        "10.0.0.3,1,n=1 comm=x s=[1 2]\n"
                                        "10.0.0.4,1,\n"))))
      (is (= ["bpfmap: 3 entries of 4 in FILE cannot be written, and nothing was"
              "  line 4: the value is missing"
              "  line 5: it must be {\"key\": …, \"value\": …}, got 3"
              "  line 7: it is not JSON"]
             (problems-of m ".json" (str "[{\"key\": \"src=10.0.0.1 port=1\",\n \"value\":\n"
                                         " \"n=1 comm=x s=[1 2]\"},\n"
                                         "{\"key\": \"src=10.0.0.1 port=1\"},\n3,\n\n nonsense]"))))
      (is (= ["bpfmap: 3 entries of 3 in FILE cannot be written, and nothing was"
              "  line 1: it must be {key … value …} or [key value], got 1"
              "  line 2: the key is missing"
              "  line 3: the vector has no end"]
             (problems-of m ".edn" "[1\n {value 1}\n")))
      (is (= 20 (count (:bpfmap/problems
                        (fixture/error-of
                         (exec/put {:yes true :ref m :file (file-of ".edn" (str/join "\n" (range 100)))})))))
          "no more than 20 are listed")
      (are [ext text line] (= [(str "bpfmap: FILE has no entries that can be read: " line)]
                              (problems-of m ext text))
        ".csv" "" "it is empty"
        ".edn" "[]" "it is empty"
        ".csv" "src,value\n" "the header must have columns such as key, key.src and value.rx, got \"src\""
        ".csv" "key.prt,value\n1,2\n"
        "key must name fields of the type, got \"key.prt\": key.prt is not a field: use src or port")
      (are [text pattern] (re-find pattern (second (problems-of m ".edn" text)))
        "{:bpfmap/saved 1 :spec {}}" #"line 1: it is a saved map: use restore --into"
        "[{:key 1 :value}" #"line 1: Map literal must contain an even number of forms"
        "#foo 1" #"line 1: the tag #foo is unknown"))))

(kernel-test truncated-and-joined-files
  (testing "a text that is cut off, or has something after its end, is not written in part"
    (with-open [m (a-map {:key :u32 :value :u64})]
      ;; Each good row of these texts has one 7.
      (are [ext text problems] (= (into [(str "bpfmap: " (count problems)
                                              (if (next problems) " entries" " entry") " of "
                                              (+ (count problems) (count (re-seq #"7" text)))
                                              " in FILE cannot be written, and nothing was")]
                                        (map #(str "  " %)) problems)
                                  (problems-of m ext text))
        ".json" "[{\"key\":1,\"value\":7},\n {\"key\":2,\"value\":7}\n"
        ["line 3: the array has no end"]
        ".json" "[{\"key\":1,\"value\":7},\n" ["line 2: the array has no end"]
        ".json" "[{\"key\":1,\"value\":7},\n {\"key\":2,\"val"
        ["line 2: it is not JSON" "line 2: the array has no end"]
        ".json" "[{\"key\":1,\"value\":7}]\n[{\"key\":2,\"value\":8}]"
        ["line 2: there must be nothing after the array"]
        ".json" "[{\"key\":1,\"value\":7}\n{\"key\":2,\"value\":8}]"
        ["line 2: there must be a comma between two rows"]
        ".json" "[{\"key\":1,\"value\":7},\n]" ["line 2: there is a comma too many"]
        "" "[,{\"key\":1,\"value\":8}]" ["line 1: there is a comma too many"]
        ".json" "{\"key\":1,\"value\":7}\n}" ["line 2: there is a } too many"]
        ".json" "{\"key\":1,\"value\":7}\n{\"key\":1,\n\"value\":[}" ["line 2: it is not JSON"]
        ".edn" "[[1 7]\n [2 7]\n" ["line 3: the vector has no end"]
        ".edn" "[[1 7]]]" ["line 1: Unmatched delimiter: ]"]
        ".edn" "[1 7]\n[2 7]\n[3" ["line 3: EOF while reading, starting at line 3"]
        ".csv" "key,value\n1,7\n2,\"9\n3,8" ["line 3: a quoted cell has no end"]
        ".csv" "key,value\n1,7\n2,\"8\"3\n4,5\n"
        ["line 3: a quoted cell must end before a comma or the end of the line"])
      (is (= ["bpfmap: 1 entry of 3 in FILE cannot be written, and nothing was"
              "  line 1: it must be {key … value …} or [key value], got [[1 7]]"]
             (problems-of m ".edn" "[[1 7]]\n[2 7]\n[3 7]"))
          "rows after a vector of rows")
      (are [ext text line] (= [(str "bpfmap: FILE has no entries that can be read: " line)]
                              (problems-of m ext text))
        "" " \n\n" "it is empty"
        "" "key;value\n1;2\n" (str "the header must have columns such as key, key.src and"
                                   " value.rx, got \"key;value\": separate the columns by commas")
        "" "key,\"val\"ue\n1,2"
        "line 1: a quoted cell must end before a comma or the end of the line"
        "" "\"abc" "line 1: a quoted cell has no end"
        ".csv" "key,value,key\n1,2,3" "the header must have each column once, got key twice")
      (is (= [(str "bpfmap: FILE has no entries that can be read: the header must not have both key"
                   " and key.src")]
             (with-open [m (a-map flow)] (problems-of m "" "key,key.src,value\n1,2,3")))))))

(kernel-test lenient-files
  (testing "pairs one after another or alone, comments, and the byte order mark of spreadsheets"
    (are [ext text entries] (with-open [m (a-map {:key :u32 :value :u64})]
                              (exec/put {:yes true :ref m :file (file-of ext text)})
                              (= entries (bpf/snapshot m)))
      ".edn" "[1 2]\n[3 4]\n" {1 2, 3 4}
      ".edn" "[1 2]" {1 2}
      ".edn" "{1 2}\n{3 4}" {1 2, 3 4}
      "" "#_[5 6] [1 2] ; seven\n#_[7 8]" {1 2}
      "" "\ufeff[{\"key\":1,\"value\":2}]" {1 2}
      "" "\ufeffkey,value\r\n1,2\r\n\r\n" {1 2})
    (with-open [m (a-map flow)]
      (exec/put {:yes true :ref m
                 :file (file-of ".edn" "[{src \"10.0.0.1\" port 443} {n 1 comm \"a b\" s [1 2]}]")})
      (is (= (dissoc two-flows {:src "10.0.0.2" :port 53}) (bpf/snapshot m))
          "a pair whose key is a map"))))

(kernel-test files-that-are-refused
  (testing "options that do not fit, and files that cannot be read"
    (with-open [m (a-map flow)]
      (are [args code line] (= [code (str "bpfmap: " line "\n")]
                               ((juxt :exit :err) (apply bpfmap "put" "--yes" (id-of m) args)))
        [] 2 "put requires KEY or --file FILE; see `bpfmap help put`"
        ["1" "--file" "/x"] 2 "KEY cannot be combined with --file; see `bpfmap help put`"
        ["--file" "/x" "--field" "n"] 2 "--field cannot be combined with --file; see `bpfmap help put`"
        ["--file" "/no/such"] 1 "Cannot read the entries in \"/no/such\": there is no such file"
        ["--file" "/tmp"] 1 "Cannot read the entries in \"/tmp\": it is a directory"
        ["--file" "/dev/zero"] 1 "Cannot read the entries in \"/dev/zero\": it is a device")
      (let [file (file-of ".csv" "")]
        (with-open [out (io/output-stream file)] (.write out (byte-array [(unchecked-byte 0xff)])))
        (is (= (str "bpfmap: Cannot read the entries in " (pr-str file) ": it is not UTF-8 text\n")
               (:err (bpfmap "put" "--yes" (id-of m) "--file" file))))))))

(kernel-test types-checked-once
  (testing "the types of a map are checked once, not for each entry of a file"
    (with-open [m (a-map flow)]
      (let [checks (atom 0)
            node node/node
            rows (fn [n]
                   (reset! checks 0)
                   (with-redefs [node/node (fn [& more] (swap! checks inc) (apply node more))]
                     (count (entry-file/rows-of m {:file "x.json"}
                                                (apply str (repeat n (str "{\"key\":{\"src\":\"10.0.0.1\""
                                                                          ",\"port\":1},\"value\":{\"n\":1,"
                                                                          "\"comm\":\"a\",\"s\":[1,2]}}\n")))
                                                identity))))]
        (is (= [2 20] [(rows 2) (rows 20)]))
        (is (= (do (rows 2) @checks) (do (rows 20) @checks)))))))

(kernel-test insert-and-replace-from-file
  (testing "--insert and --replace skip entries, and a queue takes values"
    (with-open [m (a-map {:key :u32 :value :u32 :contents {1 10 2 20}})
                q (a-map {:type :queue :value :u32})]
      (let [file (file-of ".csv" "key,value\n2,21\n3,31\n")
            id (id-of m)]
        (is (= [(str "1 entry written into map " id " (filed), 1 already there; it has 3 entries")]
               (lines-of "put" "--yes" id "--file" file "--insert")))
        (is (= {1 10 2 20 3 31} (bpf/snapshot m)))
        (bpf/delete! m 3)
        (is (= [(str "1 entry written into map " id " (filed), 1 not there; it has 2 entries")]
               (lines-of "put" "--yes" id "--file" file "--replace")))
        (is (= {1 10 2 21} (bpf/snapshot m)))
        (is (= [(str "2 entries written into map " (id-of q) " (filed)")]
               (lines-of "put" "--yes" (id-of q) "--file" (file-of ".csv" "value\n5\n6\n")
                         "--value-type" "u32")))
        (is (= [5 6] (bpf/drain! q)))))))

(kernel-test repeated-and-evicted-keys
  (testing "a key that is there twice counts once; evicted entries are reported"
    (with-open [m (a-map {:key :u32 :value :u32})
                lru (a-map {:type :lru-hash :key :u32 :value :u32 :max-entries 1
                            :flags #{:no-common-lru}})]
      (let [file (file-of ".csv" "key,value\n1,1\n2,2\n01 00 00 00,3\n")]
        (is (= {:read 3 :written 2 :missing 0 :repeated 1 :entries 2}
               (select-keys (exec/put {:yes true :ref m :file file})
                            [:read :written :missing :repeated :entries])))
        (is (= {1 3 2 2} (bpf/snapshot m)))
        (is (= "bpfmap: 1 entry had the key of a later one, which was written\n"
               (:err (bpfmap "put" "--yes" (id-of m) "--file" file)))))
      (let [n 1000
            file (file-of ".csv" (str "key,value\n" (str/join (for [i (range n)] (str i ",1\n")))))
            {:keys [written missing entries]} (exec/put {:yes true :ref lru :file file})]
        (is (pos? (long missing)))
        (is (= n (+ (long written) (long missing))))
        (is (<= (long entries) n))
        (is (= 1 (:exit (bpfmap "put" "--yes" (id-of lru) "--file" file))))))))

(kernel-test standard-input
  (testing "- is standard input"
    (with-open [m (a-map {:key :u32 :value :u32})]
      (let [in System/in]
        (try
          (System/setIn (ByteArrayInputStream. (.getBytes "{\"key\":1,\"value\":2}\n")))
          (is (= [(str "1 entry written into map " (id-of m) " (filed); it has 1 entry")]
                 (lines-of "put" "--yes" (id-of m) "--file" "-")))
          (System/setIn (ByteArrayInputStream. (byte-array 0)))
          (is (= "bpfmap: standard input has no entries that can be read: it is empty\n"
                 (:err (bpfmap "put" "--yes" (id-of m) "--file" "-"))))
          (finally (System/setIn ^InputStream in))))
      (is (= {1 2} (bpf/snapshot m))))))
