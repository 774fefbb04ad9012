(ns bpfmap.exec.saving-test
  "What is saved comes back as it was, and a file is the old one or the new one."
  (:require [bpfmap.cli.calling :refer [bpfmap id-of refused]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.saving :as saving]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is]])
  (:import (java.io BufferedWriter Closeable File)
           (java.nio.file Files LinkOption Path)
           (java.nio.file.attribute FileAttribute PosixFilePermissions)))

(set! *warn-on-reflection* true)

(defmacro ^:private with-directory
  "Runs body with a new directory, which is deleted afterwards with what is in it."
  [[dir] & body]
  `(let [dir# (fixture/temporary-directory)
         ~dir (str dir#)]
     (try
       ~@body
       (finally (run! #(.delete ^File %) (reverse (file-seq dir#)))))))

(defn- files [dir] (sort (.list (io/file dir))))

(kernel-test what-is-saved-comes-back
  (with-directory [dir]
    (doseq [spec [{:type :hash :key [:struct {:name "k"} [:src :ipv4] [:port :port]]
                   :value [:struct {:name "v"} [:n :u64] [:s [:enum :u32 {:NEW 0 :OLD 1}]] [:c :char] [:f :f64] [:comm [:string 8]]]
                   :max-entries 8
                   :contents {{:src "10.0.0.1" :port 443} {:n 18446744073709551615N :s :OLD :c \" :f ##Inf :comm "a \"b\" \u001b"}
                              {:src "10.0.0.2" :port 80} {:n 0 :s 7 :c \space :f -0.5 :comm ""}}}
                  {:type :hash :key-size 3 :value-size 2 :max-entries 8 :contents {[1 2 255] [0 9]}}
                  {:type :array :value :u32 :max-entries 3 :contents {1 7}}
                  {:type :lpm-trie :key [:prefix :ipv4] :value :u32 :max-entries 4 :flags #{:no-prealloc} :contents {"10.0.0.0/8" 1}}
                  {:type :percpu-hash :key :u32 :value :u64 :max-entries 4}
                  {:type :array :value :u32 :max-entries 1 :contents {0 5} :freeze true}]
            :let [file (str dir "/saved.edn")
                  path (fixture/new-pin)]]
      (with-open [^Closeable m (bpf/create (assoc spec :name "saving"))]
        (when (= :percpu-hash (:type spec)) (bpf/put! m 1 5 {:cpus :all}))
        (is (= {:file file :map {:id (id-of m) :name "saving" :type (:type spec)} :entries (count (bpf/snapshot m))}
               (exec/save {:ref (id-of m) :file file})))
        (is (= (bpf/snapshot m) (into {} (:entries (saving/read-file file)))))
        (exec/restore {:file file :pin path})
        (try
          (with-open [^Closeable restored (bpf/open path {:access :read-only})]
            (is (= (bpf/snapshot m) (bpf/snapshot restored)))
            (is (= (bpf/spec m) (dissoc (bpf/spec restored) :untyped)))
            (is (= (:frozen? (bpf/info m)) (:frozen? (bpf/info restored)))))
          (is (= [] (exec/diff {:old file :new path})))
          (finally (io/delete-file path)))))
    (is (= ["saved.edn"] (files dir)))))

(kernel-test a-file-is-its-owner's-alone
  (with-directory [dir]
    (with-open [^Closeable m (bpf/create {:type :hash :key :u32 :value :u32 :max-entries 1})]
      (exec/save {:ref (id-of m) :file (str dir "/a.edn")})
      (is (= "rw-------" (PosixFilePermissions/toString
                          (Files/getPosixFilePermissions (Path/of dir (into-array ["a.edn"])) (make-array LinkOption 0))))))))

(kernel-test what-was-saved-goes-into-a-map-that-is-there
  (with-directory [dir]
    (let [file (str dir "/a.edn")]
      (with-open [^Closeable m (bpf/create {:name "into" :type :hash :key :u32 :value :u64 :max-entries 8 :contents {1 10, 2 20}})
                  ^Closeable larger (bpf/create {:name "into2" :type :hash :key :u32 :value :u64 :max-entries 99 :contents {2 0, 3 0}})
                  ^Closeable other (bpf/create {:name "into3" :type :hash :key :u64 :value :u64 :max-entries 8})]
        (exec/save {:ref (id-of m) :file file})
        (is (= {:entries 2 :deleted 0} (select-keys (exec/restore {:file file :into (id-of larger)}) [:entries :deleted])))
        (is (= {1 10, 2 20, 3 0} (bpf/snapshot larger)))
        (is (= {:entries 2 :deleted 1} (select-keys (exec/restore {:file file :into (id-of larger) :exact true}) [:entries :deleted])))
        (is (= {1 10, 2 20} (bpf/snapshot larger)))
        (let [[exit line] (refused "restore" file "--into" (id-of other))]
          (is (= 1 exit))
          (is (str/includes? line "they differ: {:key-size {:spec 4, :map 8}}"))
          (is (= {} (bpf/snapshot other))))))))

(deftest a-file-that-cannot-be-written-stays-as-it-was
  (with-directory [dir]
    (let [file (str dir "/a.edn")]
      (spit file "old")
      (is (= "broken" (:message (fixture/error-of (saving/write-whole file (fn [^BufferedWriter w]
                                                                           (.write w (.repeat "x" 100000))
                                                                           (throw (ex-info "broken" {}))))))))
      (is (= "old" (slurp file)))
      (saving/write-whole file (fn [^BufferedWriter w] (.write w "new")))
      (is (= "new" (slurp file)))
      (is (= ["a.edn"] (files dir))))))

(deftest a-link-leads-to-the-file-that-is-written
  (with-directory [dir]
    (let [path #(Path/of dir (into-array [%]))]
      (spit (str dir "/real") "old")
      (Files/createSymbolicLink (path "link") (path "real") (make-array FileAttribute 0))
      (saving/write-whole (str dir "/link") (fn [^BufferedWriter w] (.write w "new")))
      (is (= "new" (slurp (str dir "/real"))))
      (is (Files/isSymbolicLink (path "link"))))))

(kernel-test a-full-disk-is-an-error-and-leaves-the-old-file
  (with-directory [dir]
    (let [small (str dir "/small")]
      (.mkdir (io/file small))
      (is (zero? (:exit (fixture/run ["mount" "-t" "tmpfs" "-o" "size=16k" "tmpfs" small]))))
      (try
        (let [file (str small "/flows.edn")]
          (spit file "old")
          (with-open [^Closeable m (bpf/create {:type :array :value :u64 :max-entries 100000})]
            (is (= [1 (str "bpfmap: " file " cannot be written: No space left on device")] (refused "save" (id-of m) file))))
          (is (= "old" (slurp file)))
          (is (= ["flows.edn"] (files small)) "and nothing half-written"))
        (finally (fixture/run ["umount" small]))))))

(kernel-test what-is-no-plain-file-is-not-replaced
  (with-open [^Closeable m (bpf/create {:type :array :value :u64 :max-entries 1})]
    (doseq [file ["/dev/full" "/dev/null" "/tmp"]]
      (is (= [1 (str "bpfmap: " file " cannot be written: it is no plain file, and would be replaced")]
             (refused "save" (id-of m) file)))
      (is (.exists (io/file file))))))

(deftest what-was-not-saved-by-bpfmap-is-refused
  (with-directory [dir]
    (let [file (str dir "/x.edn")
          hint (fn [text] (spit file text) (:bpfmap/hint (fixture/error-of (saving/read-file file))))]
      (are [text pattern] (re-find pattern (hint text))
        "" #"writes a map with :bpfmap/saved 1"
        "{}" #"writes a map with :bpfmap/saved 1"
        "{:bpfmap/saved 2 :spec {} :entries []}" #"writes a map with :bpfmap/saved 1"
        "{:bpfmap/saved 1 :spec {} :entries [[1]]}" #"writes a map with :bpfmap/saved 1"
        "{:bpfmap/saved 1 :spec {} :entries [" #"EOF"
        "{:bpfmap/saved 1 :spec {} :entries []} 7" #"there is more in it than one form"
        "{:a #foo 1}" #"No reader function for tag foo"
        "#=(+ 1 2)" #"No dispatch macro for: ="))
    (with-open [out (io/output-stream (str dir "/bin"))] (.write out (byte-array [-1 -2 -3])))
    (is (= "it is no text" (:bpfmap/hint (fixture/error-of (saving/read-file (str dir "/bin"))))))
    (is (= "there is no such file or directory" (:bpfmap/hint (fixture/error-of (saving/read-file (str dir "/none"))))))))

(kernel-test a-restore-that-fails-creates-nothing
  (with-directory [dir]
    (let [file (str dir "/x.edn")
          path (fixture/new-pin)]
      (spit file "{:bpfmap/saved 1 :spec {:type :hash :key :u32 :value :u32 :max-entries 1} :entries [[1 1] [2 :x]]}")
      (let [[exit line] (refused "restore" file "--pin" path)]
        (is (= 1 exit))
        (is (str/includes? line "In :contents, the entry of 2: [:value]: :x is not a :u32")))
      (is (not (.exists (io/file path)))))))

(kernel-test a-map-that-cannot-be-listed-is-not-saved
  (with-directory [dir]
    (with-open [^Closeable q (bpf/create {:type :queue :value :u32 :max-entries 1 :contents [1]})]
      (let [{:keys [exit err]} (bpfmap "save" (id-of q) (str dir "/q.edn"))]
        (is (= 1 exit))
        (is (str/includes? err "cannot be saved: it has no keys"))
        (is (= [] (files dir)))))))
