(ns bpfmap.cli.main-test
  "The commands that read, their help and their errors, called within this process; and bpftool as
  a witness."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.cli.calling :refer [bpfmap edn-of id-of json-of refused words]]
            [bpfmap.cli.main :as main]
            [bpfmap.core :as bpf]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.options :as options]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.prog :as prog]
            [clojure.data.json :as json]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (java.io Closeable IOException Writer)
           (java.nio.file Files Path)))

(set! *warn-on-reflection* true)

;; --- helpers

(defn- counts
  "A map with two entries, whose types nobody knows: `01 00 00 00` to eight times `ff`, and `c8 01
  00 00` to one `01`."
  ^Closeable [name]
  (bpf/create {:name name :type :hash :key-size 4 :value-size 8 :max-entries 16
               :flags #{:no-prealloc}
               :contents {[1 0 0 0] (repeat 8 255)
                          [200 1 0 0] (cons 1 (repeat 7 0))}}))

(def ^:private this-process
  (let [pid (.pid (java.lang.ProcessHandle/current))]
    {:pid pid :command (procfs/command pid)}))

(defn- line-with [text id]
  (first (filter #(= (str id) (first (words %))) (str/split-lines text))))

;; --- list

(kernel-test list-prints-all-maps
  (testing "list prints a table of all maps"
    (with-open [m (counts "cli_list")]
      (let [{:keys [exit out err]} (bpfmap "list")
            {:keys [memlock id]} (bpf/info m)]
        (is (= [0 ""] [exit err]))
        (is (= ["ID" "TYPE" "NAME" "KEY" "VALUE" "ENTRIES" "MAX" "FULL" "MEMORY"]
               (take 9 (words out))))
        (is (= [(str id) "hash" "cli_list" "4" "8" "2" "16" "12.5%"
                (format "%.1fK" (/ memlock 1024.0))]
               (take 9 (words (line-with out id)))))
        (is (= ["FLAGS" "no-prealloc"]
               [(last (words (first (str/split-lines out)))) (last (words (line-with out id)))]))
        (is (apply =
                   (map #(str/index-of % "  ")
                        (filter #(re-find #"^ID|cli_list" %) (str/split-lines out))))
            "the columns stand under each other")))))

(kernel-test list-frozen-column
  (testing "list has a FROZEN column if a map is frozen"
    (with-open [m (counts "cli_list")
                ^Closeable frozen (bpf/create {:name "cli_frozen" :type :array :key :u32 :value :u32
                                               :max-entries 1
                                               :freeze true})]
      (let [out (:out (bpfmap "list"))]
        (is (= "FROZEN" (nth (words (first (str/split-lines out))) 9)))
        (is (= "yes" (nth (words (line-with out (id-of frozen))) 9)))
        (is (= "no" (nth (words (line-with out (id-of m))) 9)))))))

(kernel-test list-as-data
  (testing "list as data equals the result of bpfmap.host"
    (with-open [m (counts "cli_list")]
      (let [id (id-of m)
            of-id (fn [key maps] (first (filter #(= id (get % key)) maps)))]
        (is (= (assoc (of-id :id (host/maps)) :entries 2 :full 12.5 :pinned []
                      :held [this-process] :used-by [])
               (of-id :id (edn-of "list"))))
        (is (= {"id" id "type" "hash" "name" "cli_list" "key-size" 4 "value-size" 8 "max-entries" 16
                "flags" ["no-prealloc"] "frozen" false "memlock" (:memlock (bpf/info m))
                "entries" 2 "full" 12.5 "pinned" [] "held" [(update-keys this-process name)] "used-by" []}
               (of-id "id" (json-of "list"))))))))

(deftest list-reports-skipped
  (testing "list reports the maps that it omits"
    (with-redefs [holders/maps (fn [& _]
                                 (with-meta []
                                   {:skipped [{:id 12 :error :permission :message "no"}]}))]
      (is (= {:exit 0
              :out "ID  TYPE  NAME  KEY  VALUE  ENTRIES  MAX  MEMORY  HELD BY  USED BY  PINNED  FLAGS\n"
              :err "bpfmap: map 12 is omitted: no\nno maps\n"}
             (bpfmap "list")))
      (is (= {:exit 0 :out "[]\n" :err "bpfmap: map 12 is omitted: no\n"}
             (bpfmap "list" "--edn"))))))

(deftest unknown-memory
  (testing "prints a dash if the kernel does not report the memory"
    (with-redefs [holders/maps (fn [{:keys [row]}]
                                 [(row nil {:id 4294967295 :type 99 :name "" :key-size 4
                                            :value-size 4 :max-entries 1
                                            :flags #{1073741824}})])]
      (is (= ["4294967295" "99" "-" "4" "4" "-" "1" "-" "-" "-" "-" "0x40000000"]
             (words (second (str/split-lines (:out (bpfmap "list"))))))))))

;; --- conditions, as a shell gives them

(kernel-test list-with-conditions
  (testing "list applies conditions and rejects invalid ones"
    (with-open [small (counts "cli_where")
                ^Closeable large (bpf/create {:name "cli_where" :type :percpu-hash :key :u32
                                              :value [:bytes 4096] :max-entries 4096})]
      (let [ids (fn [& conditions]
                  (map :id
                       (apply edn-of "list" "--where" "name=cli_where"
                              (mapcat #(vector "--where" %) conditions))))
            [a b] (map id-of [small large])]
        (are [conditions found] (= found (apply ids conditions))
          ["memlock>1M"] [b]
          ["memory>1M"] [b]
          ["MEMORY<=1024Ki"] [a]
          ["type=percpu_hash"] [b]
          ["type==\"percpu_hash\""] [b]
          ["type=BPF_MAP_TYPE_HASH"] [a]
          ["type=5"] [b]
          ["max=16"] [a]
          ["held-by=nobody-has-it"] []
          [(str "held=" (:command this-process))] [a b]
          [(str "held=" (:pid this-process))] [a b]
          [(str "held=" (:command this-process) "[" (:pid this-process) "]")] [a b]
          ["flags=no_prealloc"] [a]
          ["flags=-"] [b]
          ["frozen=no"] [a b])
        (are [condition message]
             (= [2 (str "bpfmap: " message)] (refused "list" "--where" condition))
          "memlock>1Q"
          "memlock must be compared with a number, such as 10, 0x1f, 64K or 5ms, got 1Q"
          "type=hsh"
          "type must be compared with one of its names or their numbers, got hsh: did you mean hash?"
          "frozen=maybe" "frozen must be compared with true or false, got maybe"
          "memlok>1M" "Unknown field memlok: did you mean memlock?"
          "flags=nopreallok"
          "flags must be compared with one of its names or their numbers, got nopreallok: did you mean no-prealloc?")))))

(kernel-test dump-with-conditions
  (testing "dump applies conditions and rejects invalid ones"
    (with-open [^Closeable m (bpf/create {:name "cli_where" :type :hash :max-entries 8
                                          :key [:struct [:src :ipv4] [:port :port]]
                                          :value [:struct [:packets :u64]
                                                  [:d [:enum :u32 {:D0 0 :D1 1}]]
                                                  [:comm [:string 16]]]
                                          :contents {{:src "10.0.0.1" :port 443} {:packets 2000
                                                                                  :d :D1
                                                                                  :comm "curl"}
                                                     {:src "10.0.1.2" :port 53} {:packets 900 :d 7
                                                                                 :comm "dig"}}})]
      (let [ports (fn [condition]
                    (sort (map (comp :port :key) (edn-of "dump" (id-of m) "--where" condition))))]
        (are [condition found] (= found (ports condition))
          "packets>1k" [443]
          "packets>0.8kB" [53 443]
          "comm==\"curl\"" [443]
          "src=10.0.0.0/24" [443]
          "src=10.0.0.0/16" [53 443]
          "d=1" [443]
          "d=D1" [443]
          "d=7" [53]
          "d=0" []
          "d!=D1" [53])
        (are [condition message]
             (= [2 (str "bpfmap: " message)] (refused "dump" (id-of m) "--where" condition))
          "d=D7"
          "value.d must be compared with one of its names or their numbers, got D7: did you mean D0 or D1?"
          "src=host"
          "key.src must be compared with an address or a prefix, such as 10.0.0.1 or 10.0.0.0/24, got host"
          "packets=\"many\""
          "value.packets must be compared with a number, such as 10, 0x1f, 64K or 5ms, got many")
        (run! #(bpf/delete! m %) (keys (bpf/snapshot m)))
        (is (= [2 "bpfmap: Unknown field pakets: did you mean value.packets?"]
               (refused "dump" (id-of m) "--where" "pakets>1"))
            "of no entries too")
        (is (= [2 "bpfmap: Unknown field pakets: did you mean value.packets?"]
               (refused "dump" (id-of m) "--sort" "pakets")))
        (is (= [2 "bpfmap: Unknown field pakets: did you mean value.packets?"]
               (refused "hist" (id-of m) "--field" "pakets")))
        (is (= [2
                "bpfmap: Unknown field pakets: did you mean value.packets or per-second.packets?"]
               (refused "watch" (id-of m) "--seconds" "0.1" "--where" "pakets>1")))))))

(kernel-test dotted-field-names
  (testing "a field whose name contains a dot is addressed by that name"
    (with-open [^Closeable m (bpf/create {:name "cli_odd" :type :array :key-size 4 :value-size 8
                                          :max-entries 2
                                          :contents {1 [5 0 0 0 6 0 7 0]}})]
      (let [typed ["--value-type" "[struct [pick.turn u32] [pick [struct [turn u16] [side u16]]]]"]
            keys-of (fn [& more]
                      (map :key
                           (apply edn-of "dump" (id-of m) "--key-type" "u32" (concat typed more))))]
        (are [words found] (= found (apply keys-of words))
          ["--where" "pick.turn=5"] [1]
          ["--where" "value.pick.turn=5"] [1]
          ["--where" "\"pick\".turn=6"] [1]
          ["--where" "pick.side=7"] [1]
          ["--sort" "-pick.turn"] [1 0]
          ["--sort" "pick.turn"] [0 1])
        (is (= [[4 7 1]] (map (juxt :from :to :count)
                              (:buckets (first (apply edn-of "hist" (id-of m) "--field" "pick.turn"
                                                      "--where" "key=1" typed))))))))))

(kernel-test kernel-type-names
  (testing "accepts the kernel names of map types and flags"
    (doseq [[type more] [["percpu_hash" ["--key-type" "u32" "--value-type" "u32"]]
                         ["BPF_MAP_TYPE_PERCPU_HASH"
                          ["--key-type" "u32" "--value-type" "u32" "--flags" "no_prealloc"]]
                         ["percpu-hash"
                          ["--key-type" "u32" "--value-type" "u32" "--flags" "BPF_F_NO_PREALLOC"]]
                         [nil ["--spec" "{type percpu_hash key u32 value u32}"]]]
            :let [pin (fixture/new-pin)]]
      (try
        (is (= 0
               (:exit (apply bpfmap "create" pin "--max-entries" "4"
                             (concat (when type ["--type" type]) more)))))
        (is (= :percpu-hash (:type (edn-of "show" pin))))
        (finally (io/delete-file pin true))))))

;; --- show

(kernel-test show-field-per-line
  (testing "show prints one field per line"
    (with-open [m (counts "cli_show")]
      (let [{:keys [id memlock]} (bpf/info m)]
        (is (= {:exit 0
                :err ""
                :out (str "id           " id "\n"
                          "type         hash\n"
                          "name         cli_show\n"
                          "key          [:bytes 4]\n"
                          "key-size     4\n"
                          "value        [:bytes 8]\n"
                          "value-size   8\n"
                          "max-entries  16\n"
                          "entries      2\n"
                          "full         12.5%\n"
                          "memlock      " memlock "\n"
                          "frozen       no\n"
                          "flags        no-prealloc\n"
                          "pinned       -\n"
                          "held         " (:command this-process) "[" (:pid this-process) "]\n"
                          "used-by      -\n")}
               (bpfmap "show" id)))))))

(kernel-test show-as-data
  (testing "show as data equals the map info"
    (with-open [m (counts "cli_show")]
      (let [id (id-of m)
            info (bpf/info m)]
        (is (= (assoc info :entries 2 :full 12.5 :pinned [] :held [this-process] :used-by [])
               (edn-of "show" id)))
        (is (= {"id" id "type" "hash" "name" "cli_show" "key" ["bytes" 4] "key-size" 4
                "value" ["bytes" 8]
                "value-size" 8 "max-entries" 16 "flags" ["no-prealloc"] "frozen" false
                "memlock" (:memlock info)
                "entries" 2 "full" 12.5 "pinned" [] "held" [(update-keys this-process name)] "used-by" []}
               (json-of "show" id)))))))

;; --- dump

(kernel-test dump-untyped-hex
  (testing "dump prints hexadecimal and text unless types are given"
    (with-open [m (counts "cli_dump")]
      (let [id (id-of m)
            rows (fn [& args] (set (str/split-lines (:out (apply bpfmap "dump" id args)))))]
        (is (= {:exit 0
                :err (str "2 entries\n"
                          "shown as bytes: the map has no BTF; "
                          "set --key-type and --value-type\n")}
               (dissoc (bpfmap "dump" id) :out)))
        (is (= #{"KEY          VALUE"
                 "01 00 00 00  ff ff ff ff ff ff ff ff  |........|"
                 "c8 01 00 00  01 00 00 00 00 00 00 00  |........|"}
               (rows)))
        (is (= #{"KEY                 VALUE"
                 "  1  18446744073709551615"
                 "456                     1"}
               (rows "--key-type" "u32" "--value-type" ":u64")))
        (is (= #{"       KEY  VALUE"
                 "  16777216  ff ff ff ff ff ff ff ff  |........|"
                 "3355508736  01 00 00 00 00 00 00 00  |........|"}
               (rows "--key-type" "u32be" "--value-type" "[:bytes 8]")))))))

(kernel-test dump-as-data
  (testing "dump as data has :key and :value"
    (with-open [m (counts "cli_dump")]
      (let [id (id-of m)]
        (is (= #{{:key (bytes/->bytes "01000000") :value (bytes/->bytes "ffffffffffffffff")}
                 {:key (bytes/->bytes "c8010000") :value (bytes/->bytes "0100000000000000")}}
               (set (edn-of "dump" id))))
        (is (= #{{:key 1 :value 18446744073709551615N} {:key 456 :value 1}}
               (set (edn-of "dump" id "--key-type" "u32" "--value-type" "u64"))))
        (is (= #{{"key" "01 00 00 00" "value" "ff ff ff ff ff ff ff ff"}
                 {"key" "c8 01 00 00" "value" "01 00 00 00 00 00 00 00"}}
               (set (json-of "dump" id))))
        (is (= #{{"key" 1 "value" "18446744073709551615"} {"key" 456 "value" 1}}
               (set (json-of "dump" id "--key-type" "u32" "--value-type" "u64"))))))))

(kernel-test dump-given-types
  (testing "dump decodes with any type of a spec"
    (with-open [m ^Closeable (bpf/create {:type :array :key-size 4 :value-size 12 :max-entries 1
                                          :contents {0 (concat (map int "ssh\u001b") (repeat 4 0)
                                                               [1 2 3 4])}})]
      (let [args ["dump" (id-of m) "--value-type" "[struct [comm [string 8]] [from ipv4]]"]]
        (is (= "KEY  comm         from\n  0  \"ssh\\u001b\"  1.2.3.4\n" (:out (apply bpfmap args))))
        (is (= [{:key 0 :value {:comm "ssh\u001b" :from "1.2.3.4"}}] (apply edn-of args)))
        (is (= [{"key" 0 "value" {"comm" "ssh\u001b" "from" "1.2.3.4"}}] (apply json-of args)))))))

(kernel-test dump-empty-map
  (testing "dump of an empty map prints only the heading"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 1})]
      (is (= {:exit 0 :out "KEY  VALUE\n" :err "0 entries\n"} (bpfmap "dump" (id-of m))))
      (is (= [] (edn-of "dump" (id-of m)) (json-of "dump" (id-of m)))))))

(kernel-test dump-large-map
  (testing "dumps a large map quickly"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 100000})]
      (dotimes [i 100000] (bpf/put! m i i))
      (let [begun (System/nanoTime)
            {:keys [out err]} (bpfmap "dump" (id-of m))]
        (is (= "100000 entries\n" err))
        (is (= 100001 (count (str/split-lines out))))
        (is (< (/ (- (System/nanoTime) begun) 1e6) fixture/patience))))))

;; --- which map is meant

(kernel-test map-references
  (testing "a map is referenced by id, name or pin"
    (with-open [m (counts "cli_ref_unique")]
      (let [path (fixture/new-pin)
            id (id-of m)]
        (bpf/pin! m path)
        (is (= id
               (:id (edn-of "show" id))
               (:id (edn-of "show" "cli_ref_unique"))
               (:id (edn-of "show" path))))
        (bpf/unpin! m)))))

(kernel-test long-name-from-btf
  (testing "finds a long name in the BTF of the map"
    (with-open [m (counts "cli_a_longer_name_than_fits")]
      (is (= (id-of m) (:id (edn-of "show" "cli_a_longer_name_than_fits")))))))

(kernel-test relative-pin-path
  (testing "resolves a relative path from the directory of the user"
    (with-open [m (counts "cli_relative")]
      (let [path (fixture/new-pin)
            dir (str (.getParent (io/file path)))]
        (bpf/pin! m path)
        (try
          (System/setProperty "bpfmap.directory" dir)
          (is (= (id-of m) (:id (edn-of "show" (str "./" (.getName (io/file path)))))))
          (is (= (id-of m) (:id (edn-of "show" path))) "an absolute path stays as it is")
          (finally
            (System/clearProperty "bpfmap.directory")
            (bpf/unpin! m)))))))

(kernel-test ^{:needs [[:kernel :bpf-of-the-unprivileged]]} read-only-maps
  (testing "reads a map that can only be opened read-only"
    (with-open [m ^Closeable (bpf/create {:name "cli_read_only" :type :array :key :u32 :value :u32
                                          :max-entries 2
                                          :contents {0 7} :freeze true})]
      (let [path (fixture/new-pin)]
        (bpf/pin! m path)
        (Files/setPosixFilePermissions (Path/of path (make-array String 0))
                                       (java.nio.file.attribute.PosixFilePermissions/fromString
                                        "r--r--r--"))
        (try
          (Files/setPosixFilePermissions (Path/of (fixture/bpffs) (make-array String 0))
                                         (java.nio.file.attribute.PosixFilePermissions/fromString
                                          "rwxr-xr-x"))
          (is (= [7 0]
                 (map :value (fixture/unprivileged #(edn-of "dump" path "--value-type" "u32"))))
              "nobody may read it")
          (finally (bpf/unpin! m)))))))

;; --- bpftool agrees

(defn- bpftool [& args]
  (let [{:keys [exit out err]} (fixture/run (into [(fixture/executable "bpftool") "-j"] (map str)
                                                  (flatten args)))]
    (is (= [0 ""] [exit err]))
    (json/read-str out :key-fn keyword)))

(defn- as-bpftool-shows [{:strs [id type name key-size value-size max-entries memlock]}]
  (cond-> {:id id :type (str/replace type "-" "_") :bytes_key key-size :bytes_value value-size
           :max_entries max-entries :bytes_memlock memlock}
    (seq name) (assoc :name name)))

(defn- hex->list
  "Bytes in hexadecimal, or an index, as bpftool lists bytes."
  [x]
  (mapv #(str "0x" %) (if (number? x)
                        (map #(format "%02x" (bit-and 0xff (bit-shift-right x (* 8 %)))) (range 4))
                        (str/split x #" "))))

(defn- as-bpftool-dumps [{:strs [key value]}]
  (if (sequential? value) ; a value for each CPU
    {:key (hex->list key) :values (map-indexed (fn [i v] {:cpu i :value (hex->list v)}) value)}
    {:key (hex->list key) :value (hex->list value)}))

(defn- agree-with-bpftool [id]
  (let [theirs (bpftool "map" "show" "id" id)
        ours (json-of "show" id)]
    (is (= (select-keys theirs
                        [:id :type :name :bytes_key :bytes_value :max_entries :bytes_memlock])
           (as-bpftool-shows ours)))
    (is (= (= 1 (:frozen theirs)) (ours "frozen")))
    (is (= (dissoc ours "key" "value")
           (first (filter #(= id (% "id")) (json-of "list")))))
    (is (= (map #(select-keys % [:key :value :values]) (bpftool "map" "dump" "id" id))
           (map as-bpftool-dumps (json-of "dump" id))))
    theirs))

(kernel-test bpftool-reads-ours
  (testing "bpftool reports the same for our maps"
    (if-not (fixture/executable "bpftool")
      (fixture/skip! "there is no bpftool")
      (with-open [hash (counts "cli_ours")
                  array ^Closeable (bpf/create {:name "cli_array" :type :array :key-size 4
                                                :value-size 3
                                                :max-entries 5 :flags #{:mmapable}
                                                :contents {4 [1 2 255]}})
                  frozen ^Closeable (bpf/create {:type :array :key-size 4 :value-size 1
                                                 :max-entries 1
                                                 :freeze true :flags #{:rdonly-prog}})]
        (doseq [[m flags] {hash 1, array 0x400, frozen 0x80}]
          (is (= flags (:flags (agree-with-bpftool (id-of m))))))))))

(kernel-test reads-bpftool-maps
  (testing "reports the same as bpftool for maps that bpftool created"
    (if-not (fixture/executable "bpftool")
      (fixture/skip! "there is no bpftool")
      (doseq [[type key value flags shown] [["hash" 4 8 1 ["no-prealloc"]]
                                            ["hash" 20 64 0x81 ["no-prealloc" "rdonly-prog"]]
                                            ["array" 4 3 0x1000 ["inner-map"]]
                                            ["lru_hash" 7 9 2 ["no-common-lru"]]
                                            ["percpu_hash" 5 6 0 []]
                                            ["percpu_array" 4 12 0x80 ["rdonly-prog"]]
                                            ["lru_percpu_hash" 4 8 0 []]
                                            ["lpm_trie" 8 4 1 ["no-prealloc"]]]
              :let [path (fixture/new-pin)]]
        (bpftool "map" "create" path "type" type "key" key "value" value "entries" 16 "name" "x"
                 "flags" flags)
        (try
          (bpftool "map" "update" "pinned" path "key" "hex" (repeat key "00") "value" "hex"
                   (repeat value "fe"))
          (let [{:strs [id] :as ours} (json-of "show" path)]
            (is (= shown (ours "flags")))
            (is (= "x" (:name (agree-with-bpftool id)))))
          (finally (io/delete-file path)))))))

;; --- errors

(deftest usage-error-exit-code
  (testing "wrong usage exits with 2 and names the help page"
    (are [args line] (= [2 line] (apply refused args))
      ["lst"] "bpfmap: Unknown command \"lst\": did you mean list? See `bpfmap help`"
      ["help" "xyzzy"] "bpfmap: Unknown command \"xyzzy\"; see `bpfmap help`"
      ["dum"] "bpfmap: Unknown command \"dum\": did you mean dump? See `bpfmap help`"
      ["--foo" "list"] "bpfmap: Unknown option \"--foo\"; see `bpfmap help`"
      ["list" "--foo"] "bpfmap: Unknown option \"--foo\"; see `bpfmap help list`"
      ["list" "--limt" "5"]
      "bpfmap: Unknown option \"--limt\": did you mean --limit? See `bpfmap help list`"
      ["list" "--jsn"]
      "bpfmap: Unknown option \"--jsn\": did you mean --json? See `bpfmap help list`"
      ["list" "--edn" "--json"]
      "bpfmap: --edn and --json cannot be combined; see `bpfmap help list`"
      ["--edn" "list" "--json"]
      "bpfmap: --edn and --json cannot be combined; see `bpfmap help list`"
      ["show"] "bpfmap: show requires REF or --held-by PROCESS; see `bpfmap help show`"
      ["show" "--json"] "bpfmap: show requires REF or --held-by PROCESS; see `bpfmap help show`"
      ["dump"] "bpfmap: dump requires REF or --held-by PROCESS; see `bpfmap help dump`"
      ["types" "1" "2"]
      "bpfmap: Unexpected argument \"2\": types takes only REF; see `bpfmap help types`"
      ["list" "1"]
      "bpfmap: Unexpected argument \"1\": list takes no arguments; see `bpfmap help list`"
      ["dump" "1" "--key-type"]
      "bpfmap: --key-type TYPE requires a value; see `bpfmap help dump`"
      ["demo" "--seconds" "0"]
      "bpfmap: --seconds must be a positive number, got \"0\"; see `bpfmap help demo`"
      ["demo" "--seconds" "NaN"]
      "bpfmap: --seconds must be a positive number, got \"NaN\"; see `bpfmap help demo`"
      ["demo" "--seconds" "soon"]
      "bpfmap: --seconds must be a positive number, got \"soon\"; see `bpfmap help demo`")))

(deftest bad-type-exit-code
  (testing "a malformed type exits with 2 and explains types"
    (are [text pattern] (let [[exit line] (refused "dump" "1" "--key-type" text)]
                          (is (= 2 exit))
                          (is (re-matches pattern line)))
      "u33"
      #"bpfmap: --key-type must be a type, got \"u33\": unknown type u33.*u32.*; see `bpfmap help dump`"
      "[:bytes 0]"
      #"bpfmap: --key-type must be a type, got \"\[:bytes 0\]\": .*; see `bpfmap help dump`"
      "[:bytes" #"bpfmap: --key-type must be a type, got \"\[:bytes\": .*; see `bpfmap help dump`"
      "" #"bpfmap: --key-type must be a type, got \"\": .*; see `bpfmap help dump`")))

(kernel-test missing-map-exit-code
  (testing "a missing map exits with 1"
    (are [ref pattern] (let [[exit line] (refused "show" ref)]
                         (is (= 1 exit))
                         (is (re-matches pattern line)))
      "2147483647" #"bpfmap: Opening map 2147483647 failed with ENOENT: no map has that id.*"
      "99999999999999999999"
      #"bpfmap: The id of a map must be an integer from 0 to 4294967295, got .*99999999999999999999.*"
      "no_such_map"
      #"bpfmap: No map named \"no_such_map\".*"
      "/no/such/pin"
      #"bpfmap: Opening /no/such/pin failed with ENOENT: the file /no/such/pin does not exist")))

(kernel-test vanished-map-exit-code
  (testing "a map that is gone exits with 1"
    (let [id (with-open [m (counts "cli_vanished")] (id-of m))
          [exit line] (do (Thread/sleep 100) (refused "dump" id))]
      (is (= 1 exit))
      (is (str/includes? line "no map has that id (any more)")))))

(kernel-test ambiguous-name
  (testing "an ambiguous name lists the candidates"
    (with-open [one (counts "cli_twin")
                two ^Closeable (bpf/create {:name "cli_twin" :type :array :key :u32 :value :u8
                                            :max-entries 1})]
      (let [{:keys [exit out err]} (bpfmap "dump" "cli_twin")
            lines (str/split-lines err)]
        (is (= [1 ""] [exit out]))
        (is (str/starts-with? (first lines)
                              "bpfmap: More than one map named \"cli_twin\": "))
        (is (= [[(str (id-of one)) "hash" "cli_twin"]
                [(str (id-of two)) "array" "cli_twin"]]
               (map (comp pop words) (rest lines))))
        (is (every? #(str/ends-with? % (str (:command this-process) "[" (:pid this-process) "]"))
                    (rest lines))
            "who has each tells them apart")))))

(kernel-test wrong-size-exit-code
  (testing "types of the wrong size exit with 1"
    (with-open [m (counts "cli_sizes")]
      (let [id (id-of m)]
        (is (= [1
                (str "bpfmap: The key of map " id
                     " cannot be a u64: it has 4 bytes, and the type has 8")]
               (refused "dump" id "--key-type" "u64")))
        (is (= [1
                (str "bpfmap: The value of map " id
                     " cannot be a [bytes 3]: it has 8 bytes, and the type has 3")]
               (refused "dump" id "--value-type" "[bytes 3]")))))))

(kernel-test pin-of-a-program
  (testing "rejects the pin of a program as a map"
    (let [bpftool (fixture/executable "bpftool")
          path (fixture/new-pin)]
      (if-not bpftool
        (fixture/skip! "there is no bpftool to pin a program")
        (with-open [_ ^Closeable (prog/load {:type :socket-filter :name "cli_prog"
                                             :insns [[:mov64 :r0 0] [:exit]]})]
          (let [{:keys [exit err]} (fixture/run [bpftool "prog" "pin" "name" "cli_prog" path])]
            (is (zero? exit) err))
          (try
            (is (= [1 (str "bpfmap: " path " is not a map: it is a program")]
                   (refused "show" path)))
            (finally (io/delete-file path))))))))

(kernel-test unreadable-elements
  (testing "a map whose elements cannot be read exits with 1"
    (when (fixture/executable "bpftool")
      (let [path (fixture/new-pin)]
        (bpftool "map" "create" path "type" "perf_event_array" "key" 4 "value" 4 "entries" 4 "name"
                 "perf")
        (try
          (let [[exit line] (refused "dump" path)]
            (is (= 1 exit))
            (is (str/ends-with? line
                                (str
                                 "(perf), perf-event-array, cannot be read: the kernel does not "
                                 "return its values; "
                                 "--keys lists the indices in use"))))
          (finally (io/delete-file path)))))))

(kernel-test missing-capability
  (testing "without privileges the error names the missing capability"
    (are [args capability] (let [[exit line] (fixture/unprivileged #(apply refused args))]
                             (is (= 1 exit))
                             (is (re-find (re-pattern (str "^bpfmap: .* EPERM: .*" capability))
                                          line)))
      ["list"] "CAP_SYS_ADMIN"
      ["show" "1"] "CAP_SYS_ADMIN"
      ["dump" "no_such_map"] "CAP_SYS_ADMIN"
      ["demo"] "CAP_BPF")))

(kernel-test verbose-errors
  (testing "--verbose adds the error data"
    (let [{:keys [exit out err]} (bpfmap "show" "2147483647" "--verbose")
          [line data] (str/split-lines err)]
      (is (= [1 ""] [exit out]))
      (is (str/starts-with? line "bpfmap: Opening map 2147483647 failed"))
      (is (= {:bpfmap/error :not-found :bpfmap/op :open :bpfmap/errno :ENOENT}
             (select-keys (edn/read-string data) [:bpfmap/error :bpfmap/op :bpfmap/errno]))))))

(deftest unexpected-errors
  (testing "an unexpected exception is reported on one line as a bug"
    (with-redefs [holders/maps (fn [& _]
                                 (throw
                                  (RuntimeException. "outside"
                                                     (IllegalStateException. "inside"))))]
      (is (= [1
              "bpfmap: This is a bug in bpfmap: java.lang.IllegalStateException: inside; --verbose prints the stack trace"]
             (refused "list")))
      (is (str/includes? (:err (bpfmap "list" "--verbose")) "\tat bpfmap.cli.main")))))

(deftest output-io-error
  (testing "an I/O error of the output is thrown to the caller"
    (let [full (proxy [Writer] []
                 (write [& _] (throw (IOException. "No space left on device")))
                 (flush [])
                 (close []))]
      (is (thrown? IOException (binding [*out* full] (main/run ["help"])))))))

;; --- unstored types, invisible maps, and numbers beyond JSON

(kernel-test types-without-btf
  (testing "create reports types that the kernel does not store"
    (let [pin (fixture/new-pin)]
      (try
        (let [{:keys [exit out err]} (bpfmap "create" pin "--type" "hash-of-maps" "--key-type" "u32"
                                             "--max-entries" "4"
                                             "--spec"
                                             "{inner-map {type array key u32 value u32 max-entries 1}}")]
          (is (= 0 exit))
          (is (re-find #"is pinned at" out))
          (is
           (=
            "bpfmap: a hash-of-maps map does not keep its types in the kernel: give --key-type u32 to dump, get and put too\n" err)))
        (finally (io/delete-file pin true)))
      (try
        (is (= ""
               (:err (bpfmap "create" pin "--type" "hash" "--key-type" "u32" "--value-type"
                             "[bytes 3]" "--max-entries" "4"))))
        (finally (io/delete-file pin true))))))

(kernel-test unreadable-tree-error
  (testing "a tree without permission is an error and not an empty tree"
    (with-open [m (counts "cli_tree")]
      (let [pin (fixture/new-pin)]
        (bpf/pin! m pin)
        (try
          (is (= {:exit 1 :out ""}
                 (dissoc (fixture/unprivileged #(bpfmap "tree" (fixture/bpffs))) :err)))
          (is (re-find #"no pins visible: permission denied"
                       (:err (fixture/unprivileged #(bpfmap "tree" (fixture/bpffs))))))
          (is (= 0 (:exit (bpfmap "tree" (fixture/bpffs)))))
          (finally (bpf/unpin! m)))))))

(kernel-test types-json-keys
  (testing "types as JSON has field names as keys"
    (with-open [^Closeable m (bpf/create {:name "cli_types" :type :hash :key :u32 :max-entries 1
                                          :value [:struct [:a :u8] [:in [:struct [:b :u16]]]
                                                  [:c [:array [:struct [:d :u8]] 2]]]})]
      (is (= ["a" "c" "c.0.d" "in" "in.b"]
             (sort (keys (get-in (json-of "types" (id-of m)) ["value" "offsets"]))))))))

;; --- help

(deftest help-lists-all-commands
  (testing "help has one line for each command"
    (let [{:keys [exit out err]} (bpfmap "help")]
      (is (= [0 ""] [exit err]))
      (doseq [{:keys [name doc]} commands/commands]
        (is (re-find (re-pattern (str "(?m)^  " name "\\b.*" (java.util.regex.Pattern/quote doc)
                                      "$")) out)))
      (is (= out (:out (bpfmap "--help")) (:out (bpfmap "-h")) (:out (bpfmap "--json" "help")))))))

(deftest help-of-each-command
  (testing "the help of a command has its usage and options"
    (doseq [{:keys [name args options] :as command} commands/commands
            :let [{:keys [exit out err]} (bpfmap "help" name)]]
      (testing name
        (is (= [0 ""] [exit err]))
        (is (str/starts-with? out (str "Usage: bpfmap " name)))
        (doseq [option options]
          (is (str/includes? out (str "--" (clojure.core/name option) " "))))
        (is (= (when (some #{:ref} args)
                 (case (options/kind-of command :ref)
                   :ref "REF is a map's id"
                   :program-ref "REF is a program's id"
                   :link-ref "REF is a link's id"))
               (re-find #"REF is a \w+'s id" out)))
        (is (= out (:out (bpfmap name "--help")) (:out (bpfmap "--help" name))))))))

(deftest help-fits-80-columns
  (testing "the help fits into 80 columns"
    (doseq [name (cons nil (map :name commands/commands))
            line (str/split-lines (:out (apply bpfmap "help" (when name [name]))))]
      (is (<= (count line) 79) line))))

(deftest function-per-command
  (testing "every command of the table has a function"
    (is (= (set (map :name (filter :run commands/commands))) (set (keys @#'main/runners))))
    (doseq [{:keys [fn view run name]} commands/commands]
      (is (or (and fn view) run) name)
      (doseq [f (remove nil? [fn view (when run (@#'main/runners name))])]
        (is (ifn? @(requiring-resolve f)) name)))))

(deftest known-command-options
  (testing "every option and default of a command is defined"
    (doseq [{:keys [name args optional needs defaults examples] :as command} commands/commands
            :let [known (concat args (:options command))]]
      (testing name
        (is (every? options/options known))
        (is (apply distinct? nil known))
        (is (every? (set args) optional))
        (is (every? (set known) (concat needs (keys defaults) (mapcat keys examples))))
        (doseq [example examples]
          (is (map? (arguments/checked command example))))))))

(deftest version-of-the-build
  (testing "--version prints the version of the build"
    (is (= {:exit 0 :out (str "bpfmap " main/version "\n") :err ""} (bpfmap "--version")))
    (is (= main/version (str/trim (slurp "resources/bpfmap/version"))) "which build.clj reads")))
