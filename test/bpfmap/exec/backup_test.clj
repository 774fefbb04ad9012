(ns bpfmap.exec.backup-test
  "Saved maps are restored unchanged, and a file is either old or new."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.cli.calling :refer [bpfmap id-of refused]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.backup :as backup]
            [bpfmap.exec.saved-file :as saved-file]
            [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.type :as type]
            [bpfmap.types :as types]
            [bpfmap.uses :as uses]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check :as tc]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (java.io BufferedWriter Closeable File)
           (java.nio.file Files LinkOption Path)
           (java.nio.file.attribute FileAttribute PosixFilePermissions)))

(set! *warn-on-reflection* true)

(defmacro ^:private with-directory
  "Runs body with a new directory, which is deleted afterwards with its contents."
  [[dir] & body]
  `(let [dir# (fixture/temporary-directory)
         ~dir (str dir#)]
     (try
       ~@body
       (finally (run! #(.delete ^File %) (reverse (file-seq dir#)))))))

(defn- files [dir] (sort (.list (io/file dir))))

(kernel-test ^{:needs [[:kernel :floats]]} save-restore-round-trip
  (testing "a saved map is restored with the same entries and types"
    (with-directory [dir]
      (doseq [spec [{:type :hash :key [:struct {:name "k"} [:src :ipv4] [:port :port]]
                     :value [:struct {:name "v"} [:n :u64] [:s [:enum :u32 {:NEW 0 :OLD 1}]]
                             [:c :char] [:f :f64] [:comm [:string 8]]]
                     :max-entries 8
                     :contents {{:src "10.0.0.1" :port 443} {:n 18446744073709551615N :s :OLD :c \"
                                                             :f ##Inf :comm "a \"b\" \u001b"}
                                {:src "10.0.0.2" :port 80} {:n 0 :s 7 :c \space :f -0.5 :comm ""}}}
                    {:type :hash :key-size 3 :value-size 2 :max-entries 8
                     :contents {[1 2 255] [0 9]}}
                    {:type :array :value :u32 :max-entries 3 :contents {1 7}}
                    {:type :lpm-trie :key [:prefix :ipv4] :value :u32 :max-entries 4
                     :flags #{:no-prealloc} :contents {"10.0.0.0/8" 1}}
                    {:type :percpu-hash :key :u32 :value :u64 :max-entries 4}
                    {:type :array :value :u32 :max-entries 1 :contents {0 5} :freeze true}]
              :let [file (str dir "/saved.edn")
                    path (fixture/new-pin)]]
        (with-open [^Closeable m (bpf/create (assoc spec :name "saving"))]
          (when (= :percpu-hash (:type spec)) (bpf/put! m 1 5 {:cpus :all}))
          (is (= {:file file :map {:id (id-of m) :name "saving" :type (:type spec)}
                  :entries (count (bpf/snapshot m))}
                 (exec/save {:ref (id-of m) :file file})))
          (is (= (bpf/snapshot m) (into {} (:entries (saved-file/read-file file)))))
          (exec/restore {:file file :pin path})
          (try
            (with-open [^Closeable restored (bpf/open path {:access :read-only})]
              (is (= (bpf/snapshot m) (bpf/snapshot restored)))
              (is (= (bpf/spec m) (dissoc (bpf/spec restored) :untyped)))
              (is (= (:frozen (bpf/info m)) (:frozen (bpf/info restored)))))
            (is (= [] (exec/diff {:old file :new path})))
            (finally (io/delete-file path)))))
      (is (= ["saved.edn"] (files dir))))))

(kernel-test file-permissions
  (testing "only the owner can read the file"
    (with-directory [dir]
      (with-open [^Closeable m (bpf/create {:type :hash :key :u32 :value :u32 :max-entries 1})]
        (exec/save {:ref (id-of m) :file (str dir "/a.edn")})
        (is (= "rw-------" (PosixFilePermissions/toString
                            (Files/getPosixFilePermissions
                             (Path/of dir (into-array ["a.edn"])) (make-array LinkOption 0)))))))))

(kernel-test restore-into-map
  (testing "restores a file into an existing map"
    (with-directory [dir]
      (let [file (str dir "/a.edn")]
        (with-open [^Closeable m (bpf/create {:name "into" :type :hash :key :u32 :value :u64
                                              :max-entries 8 :contents {1 10, 2 20}})
                    ^Closeable larger (bpf/create {:name "into2" :type :hash :key :u32 :value :u64
                                                   :max-entries 99 :contents {2 0, 3 0}})
                    ^Closeable other (bpf/create {:name "into3" :type :hash :key :u64 :value :u64
                                                  :max-entries 8})]
          (exec/save {:ref (id-of m) :file file})
          (is (= {:entries 2 :deleted 0}
                 (select-keys (exec/restore {:file file :into (id-of larger)})
                              [:entries :deleted])))
          (is (= {1 10, 2 20, 3 0} (bpf/snapshot larger)))
          (is (= {:entries 2 :deleted 1}
                 (select-keys (exec/restore {:file file :into (id-of larger) :exact true})
                              [:entries :deleted])))
          (is (= {1 10, 2 20} (bpf/snapshot larger)))
          (let [[exit line] (refused "restore" file "--into" (id-of other))]
            (is (= 1 exit))
            (is (str/includes? line "they differ: {key-size {spec 4, map 8}}"))
            (is (= {} (bpf/snapshot other)))))))))

(deftest failed-write-keeps-file
  (testing "a failed write leaves the old file"
    (with-directory [dir]
      (let [file (str dir "/a.edn")]
        (spit file "old")
        (is (= "broken" (:message (fixture/error-of (saved-file/write-whole file (fn [^BufferedWriter w]
                                                                               (.write w
                                                                                       (.repeat
                                                                                        "x" 100000))
                                                                               (throw
                                                                                (ex-info
                                                                                 "broken" {}))))))))
        (is (= "old" (slurp file)))
        (saved-file/write-whole file (fn [^BufferedWriter w] (.write w "new")))
        (is (= "new" (slurp file)))
        (is (= ["a.edn"] (files dir)))))))

(deftest link-target-is-written
  (testing "writes the target of a symbolic link"
    (with-directory [dir]
      (let [path #(Path/of dir (into-array [%]))]
        (spit (str dir "/real") "old")
        (Files/createSymbolicLink (path "link") (path "real") (make-array FileAttribute 0))
        (saved-file/write-whole (str dir "/link") (fn [^BufferedWriter w] (.write w "new")))
        (is (= "new" (slurp (str dir "/real"))))
        (is (Files/isSymbolicLink (path "link")))))))

(kernel-test full-disk-keeps-file
  (testing "a full disk is an error and leaves the old file"
    (with-directory [dir]
      (let [small (str dir "/small")]
        (.mkdir (io/file small))
        (is (zero? (:exit (fixture/run ["mount" "-t" "tmpfs" "-o" "size=16k" "tmpfs" small]))))
        (try
          (let [file (str small "/flows.edn")]
            (spit file "old")
            (with-open [^Closeable m (bpf/create {:type :array :value :u64 :max-entries 100000})]
              (is (= [1 (str "bpfmap: Cannot write the file " (pr-str file) ": No space left on device")]
                     (refused "save" (id-of m) file))))
            (is (= "old" (slurp file)))
            (is (= ["flows.edn"] (files small)) "and nothing half-written"))
          (finally (fixture/run ["umount" small])))))))

(kernel-test special-files-kept
  (testing "does not replace anything that is not a regular file"
    (with-open [^Closeable m (bpf/create {:type :array :value :u64 :max-entries 1})]
      (doseq [file ["/dev/full" "/dev/null" "/tmp"]]
        (is (= [1
                (str "bpfmap: Cannot write the file " (pr-str file)
                     ": it is not a regular file")]
               (refused "save" (id-of m) file)))
        (is (.exists (io/file file)))))))

(deftest foreign-file-rejected
  (testing "rejects a file that bpfmap did not save"
    (with-directory [dir]
      (let [file (str dir "/x.edn")
            hint (fn [text]
                   (spit file text)
                   (:bpfmap/hint (fixture/error-of (saved-file/read-file file))))]
        (are [text pattern] (re-find pattern (hint text))
          "" #"writes a map with :bpfmap/saved,"
          "{}" #"writes a map with :bpfmap/saved,"
          "{:bpfmap/saved 2 :spec {} :entries []}" #"writes a map with :bpfmap/saved,"
          "{:bpfmap/saved 1 :spec {} :entries [[1]]}" #"writes a map with :bpfmap/saved,"
          "{:bpfmap/saved 1 :spec {} :entries [" #"EOF"
          "{:bpfmap/saved 1 :spec {} :entries []} 7" #"it has more than one EDN form"
          "{:a #foo 1}" #"the tag #foo is unknown"
          "#=(+ 1 2)" #"No dispatch macro for: ="))
      (with-open [out (io/output-stream (str dir "/bin"))] (.write out (byte-array [-1 -2 -3])))
      (is (= "it is not UTF-8 text"
             (:bpfmap/hint (fixture/error-of (saved-file/read-file (str dir "/bin"))))))
      (is (= "there is no such file"
             (:bpfmap/hint (fixture/error-of (saved-file/read-file (str dir "/none")))))))))

(kernel-test failed-restore
  (testing "a failed restore creates no map"
    (with-directory [dir]
      (let [file (str dir "/x.edn")
            path (fixture/new-pin)]
        (spit file
              "{:bpfmap/saved 1 :spec {:type :hash :key :u32 :value :u32 :max-entries 1} :entries [[1 1] [2 :x]]}")
        (let [[exit line] (refused "restore" file "--pin" path)]
          (is (= 1 exit))
          (is (str/includes? line "In contents, the entry of 2: value: x is not a u32")))
        (is (not (.exists (io/file path))))))))

(kernel-test queue-cannot-be-saved
  (testing "does not save a map that cannot be listed"
    (with-directory [dir]
      (with-open [^Closeable q (bpf/create {:type :queue :value :u32 :max-entries 1 :contents [1]})]
        (let [{:keys [exit err]} (bpfmap "save" (id-of q) (str dir "/q.edn"))]
          (is (= 1 exit))
          (is (str/includes? err "cannot be saved: it has no keys"))
          (is (= [] (files dir))))))))

;; --- every type of map

(def ^:private refusals
  "Why a map of a type is not saved, as `save` says it."
  {:perf-event-array #"the kernel does not return its values"
   :stack-trace #"they cannot be restored: only a program's bpf_get_stackid fills it"
   :cgroup-array #"the kernel does not return its values"
   :sockmap #"the kernel returns only the cookies of sockets|only if values have 8 bytes"
   :sockhash #"the kernel returns only the cookies of sockets|only if values have 8 bytes"
   :reuseport-sockarray #"the kernel returns only the cookies of sockets|only if values have 8 bytes"
   :xskmap #"the kernel does not return its values"
   :cgroup-storage #"they cannot be restored: the kernel makes an element for each cgroup"
   :percpu-cgroup-storage #"they cannot be restored: the kernel makes an element for each cgroup"
   :queue #"it has no keys"
   :stack #"it has no keys"
   :bloom-filter #"it can only tell whether a value may be in it"
   :sk-storage #"the kernel cannot list it"
   :inode-storage #"the kernel cannot list it"
   :task-storage #"the kernel cannot list it"
   :cgrp-storage #"the kernel cannot list it"
   :ringbuf #"it has no entries"
   :user-ringbuf #"it has no entries"
   :arena #"it has no entries"})

(defn- contents-of
  "Returns the entries of a map; for a map of maps, the entries of each inner map."
  [m]
  (update-vals (bpf/snapshot m)
               (fn [v]
                 (if-let [id (and (map? v) (:map-id v))]
                   (with-open [^Closeable inner (bpf/open id)]
                     [(dissoc (bpf/spec inner) :name) (bpf/snapshot inner)])
                   v))))

(kernel-test every-type-saved
  (testing "saves and restores a map of any type or rejects it"
    (with-directory [dir]
      (let [file (str dir "/any.edn")]
        (doseq [{{:keys [type] :as spec} :spec :as use} uses/uses :when (uses/here? use)]
          (testing spec
            (uses/used use
                       (fn [m _]
                         (if-let [why (refusals type)]
                           (let [[exit line] (refused "save" (id-of m) file)]
                             (is (= 1 exit))
                             (is (re-find why line))
                             (is
                              (re-find #"^bpfmap: The contents of map [0-9]+.*, cannot be saved: "
                                       line))
                             (is (= [] (files dir))))
                           (let [pin (fixture/new-pin)
                                 before (contents-of m)]
                             (try
                               (is (= 0 (:exit (bpfmap "save" (id-of m) file))))
                               (is (= 0 (:exit (bpfmap "restore" file "--pin" pin))))
                               (with-open
                                [^Closeable restored (bpf/open
                                                      pin (select-keys (bpf/spec m) [:key]))]
                                 (is (seq before))
                                 (is (= before (contents-of restored)))
                                 (is (nil? (bpf/spec-diff restored
                                                          (saved-file/completed
                                                           (:spec (saved-file/read-file file)))))))
                               (is (= 0 (:exit (bpfmap "restore" file "--into" pin "--exact"))))
                               (with-open
                                [^Closeable restored (bpf/open
                                                      pin (select-keys (bpf/spec m) [:key]))]
                                 (is (= before (contents-of restored))))
                               (finally
                                 (io/delete-file pin true)
                                 (io/delete-file file true)))))))))))))

(kernel-test struct-ops-values
  (testing "does not save a value that the kernel owns"
    (is (= "restoring its value would register it with the kernel"
           (#'backup/not-restored (get-in (map-types/types :struct-ops) [:refers :value :out]))))))

;; --- maps of maps

(def ^:private inner-spec
  {:type :hash :key :u32 :value [:struct {:name "v"} [:n :u64]] :max-entries 8})

(kernel-test inner-maps-saved-once
  (testing "saves a map of maps with each inner map once"
    (with-directory [dir]
      (let [file (str dir "/tenants.edn")
            pin (fixture/new-pin)]
        (with-open [^Closeable outer (bpf/create {:name "tenants" :type :hash-of-maps
                                                  :key [:string 8] :max-entries 8
                                                  :inner-map inner-spec})
                    ^Closeable shared (bpf/create
                                       (assoc inner-spec :name "shared" :contents {1 {:n 10}}))
                    ^Closeable own (bpf/create (assoc inner-spec :name "own" :contents
                                                      {2 {:n 20}, 3 {:n 30}} :freeze true))]
          (bpf/put-all! outer {"blue" shared "red" shared "green" own})
          (is (= {:exit 0
                  :out (str "3 entries of map " (id-of outer) " (tenants) are saved in " file "\n")
                  :err ""}
                 (bpfmap "save" (id-of outer) file)))
          (let [{:keys [inner] :as saved} (saved-file/read-file file)]
            (is (= 2 (:bpfmap/saved saved)))
            (is (= #{(id-of shared) (id-of own)} (set (keys inner))))
            (is (= 3 (count (:entries saved)))))
          (is (= [0 ""] ((juxt :exit :err) (bpfmap "restore" file "--pin" pin))))
          (try
            (with-open [^Closeable restored (bpf/open pin {:key [:string 8]})]
              (let [{blue "blue" red "red" green "green" :as all} (bpf/snapshot restored)]
                (is (= 3 (count all)))
                (is (= blue red) "shared inner maps stay shared")
                (is (not= blue green))
                (is (not= blue {:map-id (id-of shared)}) "and is another map")
                (is (= (contents-of outer) (contents-of restored)))
                (with-open [^Closeable frozen (bpf/open green)]
                  (is (= ["own" true] ((juxt :name :frozen) (bpf/info frozen)))))))
            (testing "inner maps are compared by contents, not by id"
              (is (= [] (exec/diff {:old file :new pin :key-type [:string 8]})))
              (is (= [] (exec/diff {:old outer :new pin :key-type [:string 8]})))
              (with-open [^Closeable in (bpf/open (get (bpf/snapshot outer) "red"))]
                (bpf/put! in 1 {:n 11})
                (is (= ["blue" "red"] (sort (map :key (exec/diff {:old file :new outer})))))
                (bpf/put! in 1 {:n 10})))
            (testing "into a map that is there, which keeps its other entries unless :exact"
              (bpf/delete! outer "blue")
              (bpf/put! outer "black" own)
              (is (= {:entries 3 :changed 0 :missing 0 :skipped 0 :deleted 0}
                     (dissoc (exec/restore {:file file :into (id-of outer)}) :map)))
              (is (= #{"blue" "red" "green" "black"} (set (keys (bpf/snapshot outer)))))
              (is (= {:entries 3 :changed 0 :missing 0 :skipped 0 :deleted 1}
                     (dissoc (exec/restore {:file file :into (id-of outer) :exact true}) :map)))
              (is (= 2 (count (distinct (vals (bpf/snapshot outer)))))))
            (finally (io/delete-file pin))))))))

(kernel-test many-inner-maps
  (testing "many inner maps need few descriptors"
    (with-directory [dir]
      (let [file (str dir "/many.edn")
            spec {:type :array :value :u32 :max-entries 1}
            pin (fixture/new-pin)
            n 300]
        (with-open [^Closeable outer (bpf/create {:type :array-of-maps :max-entries n
                                                  :inner-map spec})]
          (doseq [ids (partition-all 100 (range n))]
            (let [made (mapv #(bpf/create (assoc spec :contents {0 %})) ids)]
              (bpf/put-all! outer (map vector ids made))
              (run! bpf/close made)))
          (let [before (fixture/settled-descriptors)]
            (is (= n (:entries (exec/save {:ref (id-of outer) :file file}))))
            (is (= n (:entries (exec/restore {:file file :pin pin}))))
            (is (<= (fixture/open-descriptors) before))
            (with-open [^Closeable restored (bpf/open pin)]
              (is (= (contents-of outer) (contents-of restored))))
            (io/delete-file pin)))))))

(kernel-test queues-as-inner-maps
  (testing "does not save a map of maps that could not be restored"
    (with-directory [dir]
      (let [file (str dir "/x.edn")]
        (with-open [^Closeable outer (bpf/create {:name "outer" :type :hash-of-maps :key :u32
                                                  :max-entries 8
                                                  :inner-map {:type :queue :value :u32
                                                              :max-entries 2}})
                    ^Closeable q (bpf/create {:name "jobs" :type :queue :value :u32
                                              :max-entries 2})]
          (is
           (re-find
            #"map \d+ \(outer\), hash-of-maps, cannot be saved: it is empty, so the spec of its inner maps is unknown"
            (second (refused "save" (id-of outer) file))))
          (bpf/put! outer 1 q)
          (is (re-find #"map \d+ \(jobs\), queue, cannot be saved: it has no keys"
                       (second (refused "save" (id-of outer) file))))
          (is (= [] (files dir))))))))

(kernel-test older-map-of-maps
  (testing "rejects a map of maps that an older version saved"
    (with-directory [dir]
      (let [file (str dir "/old.edn")]
        (spit file
              "{:bpfmap/saved 1 :spec {:type :hash-of-maps :key :u32 :max-entries 2} :entries []}")
        (is (re-find #"inner-map" (second (refused "restore" file "--pin" (fixture/new-pin)))))
        (spit file
              "{:bpfmap/saved 2 :spec {:type :hash-of-maps :key :u32 :max-entries 2 :inner-map {:type :array :value :u32 :max-entries 1}} :entries [[1 {:map-id 7}]] :inner {}}")
        (is (re-find #"the entry of 1 is \{map-id 7\}, which inner does not have"
                     (second (refused "restore" file "--pin" (fixture/new-pin)))))
        (spit file "{:bpfmap/saved 2 :spec {:type :hash} :entries []}")
        (is (re-find #"is not a saved map"
                     (second (refused "restore" file "--pin" (fixture/new-pin)))))))))

;; --- names

(kernel-test odd-field-names-restored
  (testing "field names with any character survive"
    (with-directory [dir]
      (let [file (str dir "/odd.edn")
            pin (fixture/new-pin)
            odd (keyword "a b")
            state (keyword "not; \"known\"")
            spec {:name "odd" :type :hash :key :u32 :max-entries 4
                  :value [:struct [odd :u8] [(keyword "pick.turn") :u8]
                          [(keyword "7") [:enum :u8 {state 1 (keyword "") 2}]]]}]
        (with-open [^Closeable m (bpf/create (assoc spec :contents
                                                    {1 {odd 5 (keyword "pick.turn") 6
                                                        (keyword "7") state}}))]
          (exec/save {:ref m :file file})
          (exec/restore {:file file :pin pin})
          (try
            (with-open [^Closeable restored (bpf/open pin {:value (:value spec)})]
              (is (= (bpf/snapshot m) (bpf/snapshot restored))))
            (finally (io/delete-file pin))))))))

(kernel-test types-with-functions
  (testing "does not save types with functions"
    (with-directory [dir]
      (with-open [^Closeable m (bpf/create {:type :hash :key :u32 :value [:via :u32 inc dec]
                                            :max-entries 4})]
        (is (re-find #"its types contain functions \(\[:via …\]\)"
                     (:bpfmap/hint
                      (fixture/error-of (exec/save {:ref m :file (str dir "/f.edn")})))))
        (is (= [] (files dir)))))))

;; --- counts

(kernel-test skip-existing
  (testing "skips existing entries without evicting others"
    (with-directory [dir]
      (let [file (str dir "/lru.edn")
            entries (into {} (map (fn [i] [i (* 10 i)])) (range 240))]
        (with-open [^Closeable m (bpf/create {:name "lru" :type :lru-hash :key :u32 :value :u32
                                              :max-entries 256})]
          (bpf/put-all! m entries)
          (let [before (bpf/snapshot m)
                n (count before)]
            (exec/save {:ref m :file file})
            (is (= {:entries n :changed 0 :missing 0 :skipped n :deleted 0}
                   (dissoc (exec/restore {:file file :into (id-of m)}) :map)))
            (is (= before (bpf/snapshot m)))
            (is (= (str "0 entries written into map " (id-of m) " (lru), " n " already there\n")
                   (:out (bpfmap "restore" file "--into" (id-of m) "--exact"))))))))))

(kernel-test evicted-entries
  (testing "does not count entries that the map evicts"
    (with-directory [dir]
      (let [file (str dir "/lru.edn")
            pin (fixture/new-pin)]
        (spit file
              (pr-str {:bpfmap/saved 1
                       :spec {:name "small" :type :lru-hash :key :u32 :value :u32 :max-entries 64}
                       :entries (mapv #(vector % %) (range 500))}))
        (let [{:keys [exit out err]} (bpfmap "restore" file "--pin" pin)]
          (try
            (with-open [^Closeable m (bpf/open pin)]
              (let [n (count (bpf/snapshot m))]
                (is (< 0 n 500))
                (is (= 1 exit))
                (is (= (str n " of 500 entries are in map " (id-of m) " (small), pinned at " pin
                            "\n") out))
                (is (= (str "bpfmap: " (- 500 n)
                            " entries are missing: the map evicted them, or another user of "
                            "the map deleted them\n") err))
                (is (= {:entries n :missing (- 500 n)}
                       (let [{:keys [entries missing]} (exec/restore {:file file :into (id-of m)})]
                         {:entries (count (filter (bpf/snapshot m) (range 500)))
                          :missing (- 500 (count (bpf/snapshot m)))})))))
            (finally (io/delete-file pin))))))))

(kernel-test duplicate-entries
  (testing "counts a duplicate entry of a file once"
    (with-directory [dir]
      (let [file (str dir "/twice.edn")
            pin (fixture/new-pin)]
        (spit file
              "{:bpfmap/saved 1 :spec {:type :hash :key :u32 :value :u32 :max-entries 4} :entries [[1 1] [1 2] [2 2]]}")
        (is (= {:entries 2 :missing 0 :changed 0}
               (select-keys (exec/restore {:file file :pin pin}) [:entries :missing :changed])))
        (with-open [^Closeable m (bpf/open pin)]
          (is (= {1 2, 2 2} (bpf/snapshot m))))
        (io/delete-file pin)))))

(kernel-test other-cpu-count
  (testing "rejects values for a different number of CPUs"
    (with-directory [dir]
      (let [file (str dir "/cpus.edn")]
        (spit file
              "{:bpfmap/saved 1 :spec {:type :percpu-hash :key :u32 :value :u32 :max-entries 4} :entries [[1 [1 2 3 4 5 6 7]]]}")
        (with-open [^Closeable m (bpf/create {:type :percpu-hash :key :u32 :value :u32
                                              :max-entries 4})]
          (is (re-find #"its values have 7 CPUs, and this host has \d+ possible CPUs"
                       (second (refused "restore" file "--into" (id-of m)))))
          (is (= ["removed"]
                 (map :change (map #(update % :change name) (exec/diff {:old file :new m}))))))))))

(kernel-test replace-other-entries
  (testing "a restore can delete other entries to make room"
    (with-directory [dir]
      (let [file (str dir "/full.edn")]
        (with-open [^Closeable m (bpf/create {:type :hash :key :u32 :value :u32 :max-entries 4
                                              :contents {1 1, 2 2, 3 3, 4 4}})]
          (exec/save {:ref m :file file})
          (bpf/drain! m)
          (bpf/put-all! m {5 5, 6 6, 7 7, 4 4})
          (is (= {:entries 4 :changed 0 :missing 0 :skipped 1 :deleted 3}
                 (dissoc (exec/restore {:file file :into (id-of m) :exact true}) :map)))
          (is (= {1 1, 2 2, 3 3, 4 4} (bpf/snapshot m))))))))

(kernel-test counts-of-changes
  (testing "returns the number of entries that existed"
    (with-open [^Closeable m (bpf/create {:type :hash :key :u32 :value :u32 :max-entries 8
                                          :contents {1 1, 2 2, 3 3}})]
      (is (= 2 (bpf/delete-all! m [1 1 2 9])))
      (is (= 1 (count (bpf/drain! m))))
      (is (= 0 (bpf/delete-all! m [1 2 3])))
      (is (= 1 (bpf/put-all! m [[1 1] [1 2]])) "the keys that the map holds")
      (is (= 1 (bpf/count-entries m)))
      (is (= [false true]
             (map :deleted [(exec/delete {:ref m :key 9}) (exec/delete {:ref m :key 1})]))))))

(defn- restore-error
  "The error of restoring a file, which must come within a minute."
  [file]
  (let [begun (System/nanoTime)
        e (fixture/error-of (exec/restore {:file file :pin "/nonexistent/pin"}))]
    (is (< (/ (- (System/nanoTime) begun) 1e6) fixture/patience) file)
    [(:bpfmap/error e) (:message e)]))

(deftest endless-file-rejected
  (testing "does not restore a file without an end"
    (with-directory [dir]
      (let [fifo (str dir "/fifo")
            sparse (str dir "/sparse.edn")]
        (fixture/run ["mkfifo" fifo])
        (with-open [f (java.io.RandomAccessFile. sparse "rw")] (.setLength f (* 10 1024 1024 1024)))
        (is (= [:io (str "Cannot read the saved map " (pr-str fifo)
                         ": it is a FIFO; pass its contents as /dev/stdin")]
               (restore-error fifo)))
        (is (= [:not-saved (str sparse " is not a saved map: the control character \\u0000")]
               (restore-error sparse)))))))

(deftest growing-file-ends
  (testing "stops reading a file that grows"
    (with-directory [dir]
      (let [file (str dir "/growing.edn")
            line (.getBytes "[1 2]\n")
            stop (promise)]
        (spit file (apply str "{:bpfmap/saved 1 :spec {} :entries [\n" (repeat 200000 "[1 2]\n")))
        (with-open [out (java.io.FileOutputStream. file true)]
          (let [chunk (byte-array (take (* 512 (count line)) (cycle line)))
                writer (future (while (not (realized? stop)) (.write out chunk) (Thread/sleep 1)))]
            (Thread/sleep 50)
            (try
              (is (= [:io (str "Cannot read the saved map " (pr-str file) ": it grew while it was read")]
                     (restore-error file)))
              (finally (deliver stop true)))
            @writer))))))

(deftest nested-or-evaluated-edn
  (testing "does not restore deeply nested or evaluated EDN"
    (with-directory [dir]
      (doseq [[text
               hint] [[(apply str (repeat 100000 "["))
                       "more than 100 collections within one another"]
                      ["#=(java.lang.System/exit 3)" "No dispatch macro for: ="]
                      ["{:bpfmap/saved 1 :spec #java.util.Date [] :entries []}"
                       "the tag #java.util.Date is unknown"]
                      [(apply str (repeat 100000 "x"))
                       "a number or name of more than 65536 characters"]]
              :let [file (str dir "/nasty.edn")]]
        (spit file text)
        (is (= [:not-saved (str file " is not a saved map: " hint)] (restore-error file)))))))

(kernel-test restore-from-given-pipe
  (testing "restores from a pipe that is given explicitly"
    (with-directory [dir]
      (let [file (str dir "/a.edn")
            pin (fixture/new-pin)]
        (with-open [^Closeable m (bpf/create {:type :hash :key :u32 :value :u32 :max-entries 2
                                              :contents {1 2}})]
          (exec/save {:ref (id-of m) :file file}))
        (let [process (.start (ProcessBuilder. ^java.util.List (list "sleep" "100")))]
          (try
            (with-open [in (.getOutputStream process)] (io/copy (io/file file) in))
            (exec/restore {:file (str "/proc/" (.pid process) "/fd/0") :pin pin})
            (with-open [^Closeable m (bpf/open pin)] (is (= {1 2} (bpf/snapshot m))))
            (finally
              (.destroy process)
              (io/delete-file pin true))))))))

;; --- every byte of every entry

(defn- sized-type [most]
  (gen/such-that #(<= 1 (type/size %) most) types/a-type 200))

(defn- spread-bytes
  "Returns the bytes of a per-CPU value, with a stride for each CPU."
  [size cpus xs]
  (mapcat #(concat (take size (drop (* size %) (cycle xs)))
                   (repeat (- (map-types/stride size) size) 0)) (range cpus)))

(def ^:private any-raw-map
  "A type of map, types for its keys and values, raw entries and others that it may have besides.
  Keys differ in few bytes, and many have the same in all that their value shows."
  (gen/let [map-type (gen/elements [:hash :hash :lru-hash :percpu-hash])
            key (sized-type 48)
            value (sized-type 48)
            base (gen/vector (gen/one-of [(gen/return 0) (gen/choose 0 255)]) (type/size key))
            a-key (gen/return (gen/fmap (fn [[i x]]
                                          (bytes/->bytes (assoc base (mod i (count base)) x)))
                                        (gen/tuple gen/nat (gen/choose 0 255))))
            a-value (gen/return (gen/fmap (fn [xs]
                                            (bytes/->bytes (if (= :percpu-hash map-type)
                                                             (spread-bytes
                                                              (type/size value)
                                                              (count (feature/possible-cpus)) xs)
                                                             xs)))
                                          (gen/vector
                                           (gen/frequency
                                            [[1 (gen/return 0)] [2 (gen/choose 0 255)]])
                                           (type/size value))))
            entries (gen/map a-key a-value {:max-elements 16})
            others (gen/map a-key a-value {:max-elements 4})]
    {:spec {:name "any" :type map-type :key key :value value :max-entries 4096}
     :entries entries
     :others (into {} (remove (fn [[k]] (contains? entries k))) others)}))

(defn- raw-entries [m] (into {} (raw-entries/entries m)))

(defn- put-raw! [m entries]
  (with-open [^Closeable twin (raw-entries/open-raw m)]
    (bpf/put-all! twin entries)))

(defn- keeps-every-entry?
  "Whether `save`, `restore`, `diff`, `watch`, `delete` and `take` see and keep each raw entry
  once."
  [dir {:keys [spec entries others]}]
  (let [file (str dir "/any.edn")
        pin (fixture/new-pin)
        n (count entries)
        counts #(select-keys (meta %) [:added :changed :removed :same])]
    (with-open [^Closeable m (bpf/create spec)]
      (put-raw! m entries)
      (try
        (and (= n (:entries (exec/save {:ref (id-of m) :file file}))
                (count (:entries (saved-file/read-file file))))
             (= {:entries n :changed 0 :missing 0 :skipped 0 :deleted 0}
                (dissoc (exec/restore {:file file :pin pin}) :map :path))
             (with-open [^Closeable restored (bpf/open pin)]
               (and (= entries (raw-entries restored))
                    (= {:added 0 :changed 0 :removed 0 :same n}
                       (counts (exec/diff {:old file :new pin}))
                       (counts (exec/diff {:old (id-of m) :new pin})))
                    (do (put-raw! restored others) true)
                    (= {:added (count others) :changed 0 :removed 0 :same n}
                       (counts (exec/diff {:old file :new pin})))
                    (= (+ n (count others))
                       (:entries (first (into [] (take 1) (exec/watch {:ref pin})))))
                    (= {:entries n :changed 0 :missing 0 :skipped n :deleted (count others)}
                       (dissoc (exec/restore {:file file :into pin :exact true :yes true}) :map))
                    (= entries (raw-entries restored))))
             ;; The map that was read is deleted by its own entries.
             (let [[some-keys other-keys] (split-at (quot n 2) (map :key (exec/dump {:ref m})))]
               (and (every? :deleted (mapv #(exec/delete {:ref m :key % :yes true}) some-keys))
                    (every? some? (mapv #(exec/take {:ref m :key % :yes true}) other-keys))
                    (= {} (raw-entries m)))))
        (finally
          (io/delete-file pin true)
          (io/delete-file file true))))))

(kernel-test ^{:needs [[:operation :hash :take!]]} raw-entries-are-kept
  (testing "keeps every raw entry under any types"
    (with-directory [dir]
      (let [result (tc/quick-check (fixture/trials 80)
                                   (prop/for-all [raw-map any-raw-map]
                                                 (keeps-every-entry? dir raw-map)))]
        (is (:pass? result) (pr-str (:shrunk result) (:seed result)))))))

(deftest threads-that-write-one-file-at-once-do-not-meet
  (let [dir (fixture/temporary-directory)
        file (io/file dir "a.edn")
        text (fn [thread i] (str/join "\n" (repeat 2000 (str thread "-" i))))]
    (try
      (fixture/in-threads 8 (fn [thread]
                              (dotimes [i 50]
                                (saved-file/write-whole (str file)
                                                    (fn [^java.io.Writer w]
                                                      (.write w ^String (text thread i)))))))
      (let [lines (str/split-lines (slurp file))]
        (is (= 2000 (count lines)))
        (is (= 1 (count (set lines))) "one of the texts, and all of it")
        (is (str/ends-with? (first lines) "-49")))
      (is (= ["a.edn"] (seq (.list dir))))
      (finally
        (run! io/delete-file (reverse (file-seq dir)))))))
