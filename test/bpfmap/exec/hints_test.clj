(ns bpfmap.exec.hints-test
  "The options --as and --hints of the commands that read maps."
  (:require [bpfmap.cli.calling :as calling :refer [bpfmap edn-of id-of json-of lines-of refused]]
            [bpfmap.core :as bpf]
            [bpfmap.display :as display]
            [bpfmap.exec :as exec]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.hints :as hints]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.prog :as prog]
            [bpfmap.programs :as programs]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (java.io Closeable File)
           (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

(def ^:private spec
  {:name "shown" :type :hash :max-entries 16
   :key [:struct [:src :u32be] [:port :u16]]
   :value [:struct [:bytes :u64] [:flags :u32] [:mac [:array :u8 6]]]})

(def ^:private contents
  {{:src 0x0a000001 :port 0xbb01} {:bytes 90000 :flags 3 :mac [0 1 2 3 4 5]}
   {:src 0x0a000002 :port 0x3500} {:bytes 512 :flags 0 :mac [0 0 0 0 0 1]}})

(defn- shown-map ^Closeable [] (bpf/create (assoc spec :contents contents)))

(def ^:private as
  ["--as" "src=ipv4" "--as" "key.port=port-be" "--as" "bytes=size"
   "--as" "flags=[flags {SYN 1 ACK 2}]" "--as" "mac=mac"])

(kernel-test shown-in-every-format
  (testing "dump shows fields by hints, in a table, EDN, JSON and CSV"
    (with-open [m (shown-map)]
      (let [run (fn [f & args] (apply f (concat ["dump" (id-of m) "--sort" "bytes"] as args)))]
        (is (= ["src       port  bytes  flags    mac"
                "10.0.0.2    53  512B   0        00:00:00:00:00:01"
                "10.0.0.1   443  87.9K  SYN|ACK  00:01:02:03:04:05"]
               (run lines-of)))
        (is (= {:key {:src "10.0.0.1" :port 443}
                :value {:bytes "87.9K" :flags "SYN|ACK" :mac "00:01:02:03:04:05"}}
               (peek (run edn-of))))
        (is (= {"bytes" "512B" "flags" "0" "mac" "00:00:00:00:00:01"}
               (get (first (run json-of)) "value")))
        (is (= ["key.src,key.port,value.bytes,value.flags,value.mac"
                "10.0.0.2,53,512B,\"\"\"0\"\"\",00:00:00:00:00:01"
                "10.0.0.1,443,87.9K,SYN|ACK,00:01:02:03:04:05"]
               (run lines-of "--csv")))
        (is (= (set (run edn-of))
               (set (map calling/read-edn
                         (str/split-lines
                          (:out (apply bpfmap "dump" (id-of m) "--stream" "--edn" as)))))))))))

(kernel-test v4-conditions-see-values
  (testing "conditions and --sort see the values, and not what hints show"
    (with-open [m (shown-map)]
      (let [sources (fn [& args] (map (comp :src :key)
                                      (apply edn-of (concat ["dump" (id-of m)] as args))))]
        (is (= ["10.0.0.1"] (sources "--where" "bytes>80K")))
        (is (= ["10.0.0.1"] (sources "--where" "flags=3")))
        (is (= ["10.0.0.2"] (sources "--where" "src=167772162")))
        (is (= ["10.0.0.1" "10.0.0.2"] (sources "--sort" "-bytes")))
        (is (= [] (sources "--where" "port=443")))))))

(kernel-test every-command-that-reads
  (testing "get, watch, diff, hist and the functions show fields by hints"
    (with-open [m (shown-map)]
      (let [id (id-of m)
            value {:bytes "87.9K" :flags "SYN|ACK" :mac "00:01:02:03:04:05"}]
        (is (= [(str "{:bytes \"87.9K\", :flags \"SYN|ACK\", :mac \"00:01:02:03:04:05\"}")]
               (apply lines-of "get" id "{src 167772161 port 47873}" as)))
        (is (= {:key {:src "10.0.0.1" :port 443} :value value}
               (apply edn-of "get" id "{src 167772161 port 47873}" as)))
        (testing "watch, with rates of the values"
          (let [{:keys [rows]} (first (into [] (take 1) (exec/watch {:ref m :as {:src :ipv4
                                                                                 "bytes" "size"}})))]
            (is (= #{"10.0.0.1" "10.0.0.2"} (set (map (comp :src :key) rows))))
            (is (= #{"87.9K" "512B"} (set (map (comp :bytes :value) rows)))))
          (is (some #(str/includes? % "10.0.0.2")
                    (apply lines-of "watch" id "--seconds" "0.01" as))))
        (testing "diff, on both sides"
          (let [file (File/createTempFile "bpfmap" ".edn")]
            (try
              (bpfmap "save" id (str file))
              (bpf/put! m {:src 0x0a000001 :port 0xbb01} {:bytes 1024 :flags 0 :mac [0 1 2 3 4 5]})
              (bpf/delete! m {:src 0x0a000002 :port 0x3500})
              (is (= [{:change :changed :key {:src "10.0.0.1" :port 443} :old value
                       :new {:bytes "1.0K" :flags "0" :mac "00:01:02:03:04:05"}}
                      {:change :removed :key {:src "10.0.0.2" :port 53}
                       :old {:bytes "512B" :flags "0" :mac "00:00:00:00:00:01"}}]
                     (apply edn-of "diff" file id as)))
              (is (= "change,key.src,key.port,old.bytes,old.flags,old.mac,new.bytes,new.flags,new.mac"
                     (first (apply lines-of "diff" file id "--csv" as))))
              (finally (.delete file)))))
        (testing "hist, in titles and limits"
          (is (= [["1.0K" "2.0K" 1]]
                 (map (juxt :from :to :count)
                      (:buckets (first (exec/hist {:ref m :field "bytes" :as "bytes=size"}))))))))))
  (testing "titles of histograms are keys"
    (with-open [m ^Closeable (bpf/create {:type :hash :max-entries 4 :key :u32
                                          :value [:struct [:slots [:array :u32 8]]]
                                          :contents {16777226 {:slots [0 2 0 0 0 0 0 0]}}})]
      (is (= [{:title "10.0.0.1" :buckets [{:from "2us" :to "3us" :count 2}]}]
             (map #(select-keys % [:title :buckets])
                  (exec/hist {:ref m :as {:key :ipv4 :slots :us}}))))))
  (testing "devices are interfaces"
    (with-open [m ^Closeable (bpf/create {:type :devmap :max-entries 2 :value-size 8})]
      (bpf/put! m 1 {:ifindex 1 :program nil})
      (is (= {:key 1 :value {:ifindex "lo" :program nil}}
             (peek (exec/dump {:ref m :where "key=1" :as "ifindex=ifname"}))))))
  (testing "stacks are symbols"
    (with-open [m ^Closeable (bpf/create {:type :stack-trace :max-entries 64})]
      (programs/record-stacks m :user)
      (is (some #(re-find #"syscall\+0x[0-9a-f]+ \(libc\.so\S*\); " %)
                (lines-of "dump" (id-of m) "--as"
                          (str "value=[usym " (.pid (ProcessHandle/current)) "]")))))))

(kernel-test shown-events
  (testing "tail shows events by hints, and requires a type for them"
    (with-open [m ^Closeable (bpf/create {:name "shown_ring" :type :ringbuf :max-entries 4096})
                p ^Closeable (prog/load {:type :raw-tracepoint
                                         :insns [[:lddw :r1 16777226]
                                                 [:stxdw [:r10 -8] :r1]
                                                 [:lddw :r1 m]
                                                 [:mov64 :r2 :r10]
                                                 [:add64 :r2 -8]
                                                 [:mov64 :r3 8]
                                                 [:mov64 :r4 0]
                                                 [:call :ringbuf-output]
                                                 [:mov64 :r0 0]
                                                 [:exit]]})]
      (dotimes [_ 3] (prog/test-run p))
      (let [id (id-of m)
            args ["tail" id "--from" "oldest" "--limit" 1
                  "--value-type" "[struct [src u32] [n [array u16 2]]]"]]
        (is (= [{:value {:src "10.0.0.1" :n ["0x0" "0x0"]}}]
               (into [] (exec/tail {:ref m :from :oldest :limit 1 :as {:src :ipv4 :n :hex}
                                    :value-type [:struct [:src :u32] [:n [:array :u16 2]]]}))))
        (is (= ["   src  n" "10.0.0.1  none"]
               (apply lines-of (concat args ["--as" "src=ipv4" "--as" "n=cpus"]))))
        (is (= ["value.src,value.n" "10.0.0.1,none"]
               (map #(str/replace % #",+$|,extra.*" "")
                    (apply lines-of (concat args ["--csv" "--as" "src=ipv4" "--as" "n=cpus"])))))
        (is (= [2 (str "bpfmap: --as requires --value-type: events without a type have no fields; "
                       "see `bpfmap help tail`")]
               (refused "tail" id "--as" "src=ipv4")))))))

;; --- hints in a file

(defn- with-file
  "Calls f with the path of a file of hints."
  [text f]
  (let [file (File/createTempFile "bpfmap" ".edn")]
    (try
      (spit file text)
      (f (str file))
      (finally (.delete file)))))

(kernel-test hints-in-a-file
  (testing "--hints has hints by the name of the map, and --as replaces them"
    (with-open [m (shown-map)]
      (with-file "{\"shown\" {src ipv4, value.bytes size, flags nil} other {x hex}}"
        (fn [file]
          (is (= {:key {:src "10.0.0.1" :port 0xbb01}
                  :value {:bytes "87.9K" :flags 3 :mac [0 1 2 3 4 5]}}
                 (first (edn-of "dump" (id-of m) "--limit" 1 "--where" "flags=3"
                                "--hints" file))))
          (is (= ["0xa000001" "87.9K"]
                 ((juxt (comp :src :key) (comp :bytes :value))
                  (first (exec/dump {:ref m :where "flags=3" :hints file :as "key.src=hex"})))))))
      (testing "a map that the file does not name is shown as without it"
        (with-file "{other {x hex}}"
          (fn [file]
            (is (= (exec/dump {:ref m}) (exec/dump {:ref m :hints file}))))))
      (testing "a file that is none is an error"
        (are [text message]
             (with-file text
               (fn [file]
                 (= [2 (str "bpfmap: " (str/replace message "FILE" (pr-str file)))]
                    (refused "dump" (id-of m) "--hints" file))))
          "[1]" "The file of hints FILE must be a map of names of maps to maps of fields to hints: such as {\"flows\" {src ipv4, value.ts ktime}}"
          "{" "The file of hints FILE must be EDN (EOF while reading): such as {\"flows\" {src ipv4, value.ts ktime}}"
          "{shown {src ipv5}}" "The file of hints FILE must have a hint that exists for the field src of shown, got ipv5: did you mean ipv4 or ipv6?"
          "{other {x [flags 5]}}" "The file of hints FILE must have a hint with its parameter for the field x of other, got [flags 5]: The hint flags must have an enum, got [flags 5]: such as [flags {SYN 1 ACK 2}] or [flags BPF_F_NO_PREALLOC]")
        (are [text message]
             (with-file text
               (fn [file]
                 (= [2 (str "bpfmap: The file of hints " (pr-str file) " does not fit map " (id-of m)
                            " (shown): " message)]
                    (refused "dump" (id-of m) "--hints" file))))
          "{shown {srk ipv4}}" "Unknown field srk: did you mean key.src?"
          "{\"sh*\" {bytes ipv4}}"
          "The field bytes must be 4 bytes in network byte order for the hint ipv4, got u64"
          "{\"sh*\" {src hex} \"*n\" {key.src ipv4}}" "The field src must have one hint, got 2")
        (is (= [1 "bpfmap: Cannot read the file of hints \"/nowhere/h.edn\": there is no such file"]
               (refused "dump" (id-of m) "--hints" "/nowhere/h.edn")))))))

(kernel-test patterns-in-a-file
  (testing "a pattern is for all maps that match it, and the name of a map comes first"
    (with-open [m (shown-map)]
      (let [source (fn [text & as]
                     (with-file text
                       #(-> (apply edn-of "dump" (id-of m) "--where" "flags=3" "--hints" % as)
                            first :key :src)))]
        (is (= "10.0.0.1" (source "{\"sho*\" {src ipv4}}") (source "{\"?hown\" {src ipv4}}")))
        (is (= "0xa000001" (source "{\"*\" {src ipv4} shown {src hex}}")
               (source "{shown {src hex} \"*\" {key.src ipv4}}")
               (source "{shown {src ipv4}}" "--as" "src=hex")))
        (testing "--as also replaces a hint that does not fit"
          (is (= "0xa000001" (source "{shown {src mac}}" "--as" "src=hex")))))))
  (testing "a whole name is for the map that the kernel has shortened it for"
    (let [value (fn [m text]
                  (with-file text
                    #(:value (first (exec/dump {:ref (id-of m) :hints %})))))]
      (with-open [m ^Closeable (bpf/create {:name "connection_errors_total" :type :array :value :u64
                                            :max-entries 1})]
        (is (= "0B" (value m "{connection_errors_total {value size}}")
               (value m "{connection_erro {value size}}")
               (value m "{\"*_total\" {value size}}")))
        (is (= 0 (value m "{connection_errors_other {value size}}")))))))

(kernel-test file-without-the-map
  (testing "a file that has nothing for the map is noted"
    (with-open [m (shown-map)]
      (with-file "{showm {src ipv4}}"
        (fn [file]
          (let [note (str "bpfmap: the file of hints " file " has nothing for the map shown, but for"
                          " showm\n")]
            (doseq [args [["dump" (id-of m) "--json"]
                          ["get" (id-of m) "src=167772161 port=47873"]
                          ["diff" (id-of m) "--seconds" "0.01" "--json"]
                          ["watch" (id-of m) "--seconds" "0.05" "--interval" "0.01" "--json"]
                          ["hist" (id-of m) "--field" "bytes" "--json"]]]
              (let [{:keys [exit err]} (apply bpfmap (concat args ["--hints" file]))]
                (is (= [0 note] [exit err]) args)))
            (testing "unless there are several maps"
              (is (= "" (:err (bpfmap "dump" (id-of m) (id-of m) "--json" "--hints" file)))))))))))

(kernel-test fields-without-types
  (testing "an unknown field of a map without types leads to the options for types"
    (with-open [m ^Closeable (bpf/create {:name "shown" :type :hash :key-size 4 :value-size 8
                                          :max-entries 4})]
      (is (= [2 (str "bpfmap: Unknown field ts: the fields are key, value; the map has no types: set"
                     " --key-type and --value-type")]
             (refused "dump" (id-of m) "--as" "ts=hex"))))))

(kernel-test template-of-a-file
  (testing "types --template prints a file of hints, with every field and no hint"
    (with-open [m (shown-map)]
      (is (= ["{\"shown\""
              " {\"key.src\"     nil ; u32be"
              "  \"key.port\"    nil ; u16"
              "  \"value.bytes\" nil ; u64"
              "  \"value.flags\" nil ; u32"
              "  \"value.mac\"   nil ; [array u8 6]"
              " }}"]
             (lines-of "types" (id-of m) "--template")))
      (is (= {"shown" {"key.src" nil "key.port" nil "value.bytes" nil "value.flags" nil
                       "value.mac" nil}}
             (edn-of "types" (id-of m) "--template")
             (exec/types {:ref m :template true})))
      (with-file (:out (bpfmap "types" (id-of m) "--template"))
        (fn [file]
          (is (= (exec/dump {:ref m}) (exec/dump {:ref m :hints file}))))))))

;; --- hints that are wrong

(kernel-test v3-wrong-hints-on-the-command-line
  (testing "a wrong hint is a usage error"
    (with-open [m (shown-map)]
      (are [as message] (= [2 (str "bpfmap: " message)] (refused "dump" (id-of m) "--as" as))
        "src=ipv5"
        "--as must have a hint that exists, got \"src=ipv5\": did you mean ipv4 or ipv6? See `bpfmap help dump`"
        "src"
        "--as must be FIELD=HINT, got \"src\": such as src=ipv4 or 'flags=[flags {SYN 1 ACK 2}]'; see `bpfmap help dump`"
        "=ipv4"
        "--as must be FIELD=HINT, got \"=ipv4\": such as src=ipv4 or 'flags=[flags {SYN 1 ACK 2}]'; see `bpfmap help dump`"
        "flags=[flags"
        "--as must have a hint in EDN after =, got \"flags=[flags\": such as 'flags=[flags {SYN 1}]'; see `bpfmap help dump`"
        "flags=[flags 7]"
        "--as must have a hint with its parameter, got \"flags=[flags 7]\": The hint flags must have an enum, got [flags 7]: such as [flags {SYN 1 ACK 2}] or [flags BPF_F_NO_PREALLOC]; see `bpfmap help dump`"
        "srk=ipv4" "Unknown field srk: did you mean key.src?"
        "bytes=ipv4"
        "The field bytes must be 4 bytes in network byte order for the hint ipv4, got u64"
        "key=hex"
        "The field key must be an integer or bytes for the hint hex, got a struct: name one of its fields, such as key.src or key.port")
      (is (= [2 "bpfmap: The field src must have one hint, got 2"]
             (refused "dump" (id-of m) "--as" "src=hex" "--as" "key.src=ipv4")))
      (testing "before anything is read"
        (are [command] (= 2 (first (apply refused (concat command ["--as" "nope=hex"]))))
          ["get" (id-of m) "{src 1 port 1}"]
          ["hist" (id-of m) "--field" "bytes"]
          ["diff" (id-of m) "--seconds" 600]
          ["watch" (id-of m)])
        (is (= :usage (:bpfmap/error (fixture/caught #(exec/dump {:ref m :as 7})))))))))

(deftest option-as-data
  (testing "hints are text, or a map of data"
    (are [x pairs] (= pairs (hints/option x))
      "src=ipv4" [[["src"] :ipv4]]
      'src=ipv4 [[["src"] :ipv4]]
      " key.src = ipv4 " [[["key" "src"] :ipv4]]
      "\"a=b\".c=hex" [[["a=b" "c"] :hex]]
      "f=[flags {A 1}]" [[["f"] [:flags {:A 1}]]]
      "f=[usym key.pid]" [[["f"] [:usym :key.pid]]]
      '{src ipv4} [[["src"] :ipv4]]
      {:src [:usym 1] [:value :b] "hex"} [[["src"] [:usym 1]] [["value" "b"] "hex"]])))

(deftest help-lists-all-hints
  (testing "the help of dump has the name of every hint"
    (let [text (str/join " " (:text (commands/command-named "dump")))]
      (doseq [hint (keys display/hints)]
        (is (re-find (re-pattern (str "[ ,]" (name hint) "[,. ]")) text) hint)))))
