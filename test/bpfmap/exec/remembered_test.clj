(ns bpfmap.exec.remembered-test
  "Types that are remembered for maps without BTF."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.cli.calling :refer [bpfmap id-of lines-of]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.remembered :as remembered]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.prog :as prog]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are is testing]])
  (:import (java.io Closeable File)
           (java.nio.file Files Path)
           (java.nio.file.attribute FileAttribute PosixFilePermissions)))

(set! *warn-on-reflection* true)

(def ^:private types {:key :u32 :value [:struct [:rx :u32] [:tx :u32]]})

(defn- a-map ^Closeable [spec]
  (bpf/create (merge {:name "remembered" :type :hash :key-size 4 :value-size 8 :max-entries 8
                      :contents {[1 0 0 0] [2 0 0 0 3 0 0 0]}}
                     spec)))

(defn- directory
  "A new directory that only this user can read."
  ^String []
  (str (Files/createTempDirectory "bpfmap-types" (make-array FileAttribute 0))))

(defn- mode [path text]
  (Files/setPosixFilePermissions (Path/of path (make-array String 0))
                                 (PosixFilePermissions/fromString text)))

(kernel-test saved-types-are-used
  (testing "types --save writes the types, and other commands use them for the same name"
    (with-open [m (a-map {})
                other (a-map {:name "other"})
                wider (a-map {:value-size 16 :contents {[1 0 0 0] (range 16)}})
                typed (a-map (assoc types :key-size nil :value-size nil
                                    :contents {1 {:rx 2 :tx 3}}))]
      (let [file (str (directory) "/deep/types.edn")
            dumped (fn [m & more] (:value (first (exec/dump (merge {:ref (id-of m) :types file}
                                                                   (apply hash-map more))))))]
        (is (= [(str "the types of maps named remembered are saved in " file)]
               (lines-of "types" (id-of m) "--save" "--types" file "--key-type" "u32"
                         "--value-type" "[struct [rx u32] [tx u32]]")))
        (is (= "{\"remembered\" [{:key :u32, :value [:struct [:rx :u32] [:tx :u32]]}]}\n"
               (slurp file)))
        (is (= {:rx 2 :tx 3} (dumped m)))
        (is (= {:rx 2 :tx 3} (dumped typed)) "a map with BTF keeps its own types")
        (is (= [2 0 3 0] (dumped m :value-type [:array :u16 4] :where "key=1"))
            "an option replaces one side")
        (is (bytes/byte-view? (dumped m :value-type [:bytes 8])))
        (is (bytes/byte-view? (dumped other)))
        (is (bytes/byte-view? (dumped wider)) "the size differs")
        (is (bytes/byte-view? (:value (first (exec/dump {:ref (id-of m) :types "none"})))))
        (testing "by get, put, diff, watch and save too"
          (is (= {:rx 2 :tx 3} (:value (exec/get {:ref (id-of m) :key "1" :types file}))))
          (is (= ["1  {:rx 5, :tx 3}  (was {:rx 2, :tx 3})"]
                 (lines-of "put" "--yes" (id-of m) "1" "5" "--field" "rx" "--types" file)))
          (let [saved (str (directory) "/saved.edn")]
            (exec/save {:ref (id-of m) :file saved :types file})
            (is (str/includes? (slurp saved) ":rx 5"))
            (is (= [{:change :changed :key 1 :old {:rx 5 :tx 3} :new {:rx 6 :tx 3}}]
                   (do (bpf/put! m [1 0 0 0] [6 0 0 0 3 0 0 0])
                       (exec/diff {:old saved :new (id-of m) :types file}))))))
        (testing "show names the file"
          (is (= (assoc types :types-from file)
                 (select-keys (exec/show {:ref (id-of m) :types file}) [:key :value :types-from])))
          (is (nil? (:types-from (exec/show {:ref (id-of m) :types "none"})))))
        (testing "a second map and a second time"
          (exec/types {:ref (id-of other) :key-type :u32 :value-type :u64 :save true :types file})
          (exec/types {:ref (id-of m) :key-type :s32 :save true :types file})
          (is (= (str "{\"other\" [{:key :u32, :value :u64}]\n"
                      " \"remembered\" [{:key :s32, :value [:struct [:rx :u32] [:tx :u32]]}]}\n")
                 (slurp file))))))))

(kernel-test u5-types-by-owner
  (testing "types are saved for the owner of the map, and used for no other"
    (let [file (str (directory) "/types.edn")]
      (with-open [m (a-map {})]
        (with-open [_ ^Closeable (prog/load {:type :socket-filter :name "owns_it"
                                             :insns [[:lddw :r1 m] [:mov64 :r0 0] [:exit]]})]
          (is (= {:owner "owns_it" :file file :key :u32 :value :u64}
                 (:saved (exec/types {:ref (id-of m) :key-type :u32 :value-type :u64 :save true
                                      :types file}))))
          (is (= 1 (:key (first (exec/dump {:ref (id-of m) :types file}))))))
        (is (bytes/byte-view? (:key (first (exec/dump {:ref (id-of m) :types file}))))
            "the program is gone")))))

(kernel-test u5-files-that-are-refused
  (testing "a file that another user can change, and one that is malformed"
    (with-open [m (a-map {})]
      (let [dir (directory)
            file (str dir "/types.edn")
            line (fn [& args] (str/trim-newline
                               (:err (apply bpfmap "dump" (id-of m) (or args ["--types" file])))))]
        (is (= (str "bpfmap: Cannot read the file of types " (pr-str file) ": there is no such file") (line)))
        (spit file "{\"remembered\" [{:key :u32}]}")
        (mode file "rw-r--r--")
        (is (= 1 (:key (first (exec/dump {:ref (id-of m) :types file})))))
        (doseq [[path bad good] [[file "rw-rw-r--" "rw-r--r--"] [file "rw-r--rw-" "rw-r--r--"]
                                 [dir "rwxrwxr-x" "rwxr-xr-x"]]]
          (mode path bad)
          (is (= (str "bpfmap: The file of types " file " is not used: another user can change " path
                      "; use chmod go-w, or pass --types none")
                 (line)))
          (mode path good))
        (is (= "" (:err (bpfmap "get" (id-of m) "1" "--types" file))))
        (fixture/run ["chown" "1" file])
        (is (= (str "bpfmap: The file of types " file " is not used: another user can change " file
                    "; use chmod go-w, or pass --types none")
               (line)))
        (fixture/run ["chown" "0" file])
        (are [text problem] (= (str "bpfmap: The file of types " file " must be " problem
                                    ": such as {\"flows\" [{key u32, value u64}]}")
                               (do (spit file text) (line)))
          "{" "EDN (EOF while reading)"
          "[]" "a map of names of maps to vectors of types"
          "{remembered [5]}" "a map of names of maps to vectors of types (remembered: it is not a map)"
          "{other [{kee u32}]}"
          (str "a map of names of maps to vectors of types (other: kee is not one of owner, key and"
               " value)")
          "{\"remembered\" [{:key :u33}]}"
          (str "a map of names of maps to vectors of types (remembered: the key is not a type: "
               "unknown type u33; did you mean u32? See bpfmap.type for all types)"))
        (is (= "bpfmap: --save cannot be combined with --template; see `bpfmap help types`\n"
               (:err (bpfmap "types" (id-of m) "--save" "--template"))))
        (is (= (str "bpfmap: There is no file to save the types in: set HOME, or pass the path of a"
                    " file as --types\n")
               (:err (bpfmap "types" (id-of m) "--save" "--types" "none"))))))))

(kernel-test written-by-hand
  (testing "names can be patterns, and symbols stand for keywords"
    (with-open [m (a-map {})]
      (let [file (str (directory) "/types.edn")
            value (fn [text] (spit file text)
                    (:value (first (exec/dump {:ref (id-of m) :types file}))))]
        (is (= 12884901890 (value "{remembered [{key u32, value u64}]}")
               (value "{\"rem*\" [{value u64}]}")
               (value "{\"*\" [{value s64}], remembered [{value u64}]}")))))))

(kernel-test types-that-are-not-used
  (testing "the reason is shown if a file has types for the name, and none fits"
    (let [file (str (directory) "/types.edn")
          remade (fn [size]
                   (a-map {:value-size size :contents {[1 0 0 0] (range size)}}))
          save (fn [m type]
                 (exec/types {:ref (id-of m) :key-type :u32 :value-type type :save true
                              :types file}))
          closing (fn [m] (last (str/split-lines
                                 (:err (bpfmap "dump" (id-of m) "--types" file)))))
          why #(str "the map has no BTF, and the types for its name in " file " are for " %)]
      (with-open [m ^Closeable (remade 8)] (save m :u64))
      (with-open [m ^Closeable (remade 16)]
        (is (= (str "shown as bytes: " (why "values of 8 bytes, not 16")
                    "; set --key-type and --value-type")
               (closing m)))
        (is (= (why "values of 8 bytes, not 16") (:untyped (exec/types {:ref (id-of m) :types file}))))
        (testing "types of another size are added, and replace none"
          (save m [:array :u64 2])
          (is (= "{\"remembered\" [{:key :u32, :value :u64}\n               {:key :u32, :value [:array :u64 2]}]}\n"
                 (slurp file)))
          (is (= [{:key 1 :value [506097522914230528 1084818905618843912]}]
                 (exec/dump {:ref (id-of m) :types file})))))
      (with-open [m ^Closeable (remade 8)]
        (is (= [{:key 1 :value 506097522914230528}] (exec/dump {:ref (id-of m) :types file})))
        (spit file "{remembered [{owner \"agent\" value u64}]}")
        (is (= (str "shown as bytes: " (why "maps that agent uses, and this one is not")
                    "; set --key-type and --value-type")
               (closing m))))))
  (testing "a key of an unknown type must be bytes, and the error leads to the options for types"
    (with-open [m (a-map {})]
      (is (= (str "bpfmap: Bytes must be pairs of hexadecimal digits, such as \"0a 00\" or \"0x0a00\","
                  " got \"1\": its type is unknown; set --key-type and --value-type\n")
             (:err (bpfmap "get" (id-of m) "1" "--types" "none"))))))
  (testing "a map without types has nothing to save"
    (with-open [m (a-map {})]
      (let [file (str (directory) "/types.edn")]
        (is (= (str "bpfmap: Map " (id-of m) " (remembered) has no types to save: pass --key-type and"
                    " --value-type\n")
               (:err (bpfmap "types" (id-of m) "--save" "--types" file))))
        (exec/types {:ref (id-of m) :key-type :u32 :save true :types file})
        (is (= "{\"remembered\" [{:key :u32}]}\n" (slurp file)))
        (testing "and names the file that its types are from"
          (is (= (str "the map has no BTF; these types are from " file "\n")
                 (:err (bpfmap "types" (id-of m) "--types" file))))
          (is (= "the map has no BTF\n"
                 (:err (bpfmap "types" (id-of m) "--types" file "--key-type" "s32")))))))))

(kernel-test types-of-events
  (testing "the type of the events of a ring is saved, and used by tail"
    (with-open [m ^Closeable (bpf/create {:name "remembered" :type :ringbuf :max-entries 4096})
                p ^Closeable (prog/load {:type :raw-tracepoint
                                         :insns [[:stdw [:r10 -8] 7]
                                                 [:lddw :r1 m] [:mov64 :r2 :r10] [:add64 :r2 -8]
                                                 [:mov64 :r3 8] [:mov64 :r4 0]
                                                 [:call :ringbuf-output]
                                                 [:mov64 :r0 0] [:exit]]})]
      (prog/test-run p)
      (let [file (str (directory) "/types.edn")
            id (id-of m)
            tail (fn [& args] (apply lines-of "tail" id "--from" "oldest" "--limit" 1 args))]
        (spit file "{remembered [{key u32 value [array u8 8]}]}")
        (is (nil? (:value (exec/types {:ref id :types file}))) "a map with keys is another one")
        (exec/types {:ref id :value-type [:struct [:a :u32] [:b :u32]] :save true :types file})
        (is (= [:struct [:a :u32] [:b :u32]] (:type (:value (exec/types {:ref id :types file})))))
        (is (= {"remembered" {"value.a" nil "value.b" nil}}
               (exec/types {:ref id :types file :template true})))
        (is (= ["     a       b" "     7       0"] (tail "--types" file)))
        (is (= ["     a       b" "   0x7       0"] (tail "--types" file "--as" "a=hex")))
        (is (= ["BYTES  DATA" "    8  07 00 00 00 00 00 00 00  |........|"] (tail "--types" "none")))
        (is (= ["   cpu" "     7"]
               (map #(subs % 0 6) (tail "--types" file "--value-type" "[struct [cpu u64]]"))))))))

(kernel-test numbers-of-bpftrace
  (testing "keys and values of 8 bytes are numbers; other sizes cannot be known"
    (with-open [m (a-map {:name "AT_start" :key-size 8 :contents {(range 8) [2 0 0 0 0 0 0 0]}})
                comms (a-map {:name "AT_calls" :type :percpu-hash :key-size 16 :contents {}})]
      (is (bytes/byte-view? (:value (first (exec/dump {:ref (id-of m)}))))
          "no process of bpftrace has it open")
      (is (= [{:key 506097522914230528 :value 2}]
             (exec/dump {:ref (id-of m) :types "bpftrace"})))
      (is (= {:value :u64 :from "bpftrace"}
             (remembered/find-types (bpf/info comms) "bpftrace")))
      (with-redefs [remembered/owners (constantly #{"bpftrace"})]
        (is (= [{:key 506097522914230528 :value 2}] (exec/dump {:ref (id-of m)})))
        (is (bytes/byte-view?
             (:value (first (exec/dump {:ref (id-of m) :types "none"})))))))))

(kernel-test default-file-of-types
  (testing "the file is in the configuration of the user who runs bpfmap"
    (is (str/ends-with? (str (remembered/default-file)) "/bpfmap/types.edn"))
    (is (.isAbsolute (File. (str (remembered/default-file)))))
    (is (io/file (remembered/default-file)))))
