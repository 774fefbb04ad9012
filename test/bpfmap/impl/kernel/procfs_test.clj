(ns bpfmap.impl.kernel.procfs-test
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (bpfmap.sys Fdinfo FileSyscalls)
           (java.nio.file Files NoSuchFileException OpenOption Path)
           (java.nio.file.attribute FileAttribute)
           (java.util.function BiConsumer)))

(set! *warn-on-reflection* true)

(defn- mountinfo [& lines] (str (str/join "\n" lines) "\n"))

(deftest mountinfo-escapes
  (testing "decodes escaped characters in mount points"
    (is (= [{:id 27 :parent 1 :path "/" :type "ext4"}
            {:id 43 :parent 42 :path "/sys/fs/bpf" :type "bpf"}
            {:id 44 :parent 27 :path "/a b\nc\\040\td - e" :type "bpf"}]
           (procfs/parse-mounts
            (mountinfo "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard"
                       "43 42 0:39 / /sys/fs/bpf rw,relatime shared:7 master:3 - bpf bpf rw,mode=700"
                       "44 27 0:40 / /a\\040b\\012c\\134040\\011d\\040-\\040e rw propagate_from:2 - bpf none rw"))))))

(deftest mount-of-a-path
  (testing "finds the mount of a path as the kernel does"
    (let [located (fn [path & lines]
                    (:id
                     ((procfs/mount-locator (procfs/parse-mounts (apply mountinfo lines))) path)))
          root "27 1 0:1 / / rw - ext4 x rw"
          bpf "43 27 0:39 / /bpf rw - bpf bpf rw"]
      (are [id path more] (= id (apply located path root bpf more))
        27 "/" []
        27 "/bp" []
        43 "/bpf" []
        43 "/bpf/a/b" []
        27 "/bpfx" [])
      (testing "the last of several on top of each other"
        (are [path id]
             (= id
                (located path root bpf "50 43 0:50 / /bpf rw - tmpfs t rw"
                         "51 50 0:51 / /bpf rw - bpf t rw"))
          "/bpf" 51
          "/bpf/a" 51
          "/" 27))
      (testing "not one below a directory that another mount hides"
        (are [path id]
             (= id
                (located path root bpf "50 43 0:50 / /bpf/sub rw - bpf t rw"
                         "51 43 0:51 / /bpf rw - bpf t rw"))
          "/bpf/sub" 51
          "/bpf/sub/a" 51))
      (testing "with another root on top of the first"
        (are [path id]
             (= id
                (located path root bpf "50 27 0:50 / / rw - overlay o rw"
                         "51 50 0:51 / /bpf rw - bpf t rw"))
          "/" 50
          "/bpf" 51))
      (testing "in a root directory that is not a mount itself"
        (are [path id]
             (= id
                (located path "60 59 0:60 / /bpf rw - bpf b rw"
                         "61 60 0:61 / /bpf/p rw - proc p rw"))
          "/" nil
          "/bpf" 60
          "/bpf/p/1" 61))
      (testing "a first root that is its own parent"
        (is (= 2
               (located "/bpf" "1 1 0:1 / / rw - rootfs r rw" "2 1 0:2 / /bpf rw - bpf b rw")))))))

(deftest mounts-of-this-process
  (testing "reads the mounts of this process"
    (let [mounts (procfs/mounts)]
      (is (some #(= "proc" (:type %)) mounts))
      (is (= "proc" (:type ((procfs/mount-locator mounts) "/proc/1")))))))

(deftest small-file-read-whole
  (testing "reads a small file completely"
    (let [file (Files/createTempFile "bpfmap" "ü" (make-array FileAttribute 0))
          read #(FileSyscalls/readFile (paths/bytes-of (str %)))]
      (try
        (doseq [size [0 1 4031 4032 4033 8064 100001]
                :let [bytes (byte-array (map unchecked-byte (range size)))]]
          (Files/write ^Path file ^bytes bytes
                       ^"[Ljava.nio.file.OpenOption;" (make-array OpenOption 0))
          (is (= (seq bytes) (seq (read file))) size))
        (testing "or not at all"
          (is (nil? (read (.getParent file))) "a directory")
          (is (nil? (read (str file "x"))) "no such file"))
        (testing "and leaves no descriptor"
          (let [before (fixture/settled-descriptors)]
            (dotimes [_ 20] (read file) (read (.getParent file)) (read (str file "x")))
            (is (= before (fixture/open-descriptors)))))
        (finally (Files/delete file)))
      (testing "as other ways read it"
        (is (= (slurp "/proc/self/cmdline") (String. ^bytes (read "/proc/self/cmdline"))))))))

(defn- parsed
  "The kind, id, memory and frozenness in a fdinfo file with these fields."
  [fields]
  (let [file (apply str "pos:\t0\n" (for [[k v] (partition 2 fields)] (str k ":\t" v "\n")))]
    (when-let [object (Fdinfo/parse 5 (.getBytes ^String file))]
      (is (= 5 (.-number object)))
      [(.-kind object) (.-id object) (.-memlock object) (.-frozen object)])))

(deftest object-from-fdinfo
  (testing "fdinfo gives the kind and id of an object"
    (are [object fields] (= object (parsed fields))
      ["map" 12 -1 -1] ["flags" "02" "map_type" "1" "map_id" "12"]
      ["map" 4294967295 6160 1] ["memlock" "6160" "map_id" "4294967295" "frozen" "1"]
      ["map" 1 0 0] ["map_id" "1" "frozen" "0" "memlock" "0" "extra" "memlock: 7"]
      ["program" 7 -1 -1] ["prog_id" "7" "prog_type" "1" "memlock" "4096"]
      ["link" 3 -1 -1] ["link_id" "3" "prog_id" "7"]
      ;; The fdinfo of an iterator over a map's elements.
      ["link" 3 -1 -1] ["link_type" "iter" "link_id" "3" "prog_id" "7" "map_id" "12"]
      nil ["map_id" "x"]
      nil ["map_idx" "1" "a:map_id" "1"]
      nil ["flags" "02" "mnt_id" "7"]
      nil [])))

(deftest fields-of-fdinfo
  (let [text "pos:\t0\nflags:\t02\nmemlock:\t4096\nfrozen:\t1"]
    (are [value name] (= value (procfs/field text name))
      "02" "flags"
      "4096" "memlock"
      "1" "frozen" ; at the end, without a newline
      nil "lock"
      nil "mem"
      nil "map_id"))
  (is (nil? (procfs/field nil "frozen")))
  (testing "as the kernel writes them"
    (with-open [m (bpf/create {:type :hash :key :u32 :value :u32 :max-entries 8})]
      (let [number (.acquire ^bpfmap.sys.Fd (bpf-map/descriptor m))]
        (try
          (let [text (procfs/fdinfo-text number)
                fields (procfs/fdinfo number)]
            (is (contains? fields "map_id"))
            (doseq [[k v] (dissoc fields "pos")]
              (is (= v (procfs/field text k)) k)))
          (finally (.release ^bpfmap.sys.Fd (bpf-map/descriptor m))))))))

(deftest a-directory-of-small-files-is-read-whole
  (let [directory (Files/createTempDirectory "bpfmap" (make-array FileAttribute 0))
        each (fn [directory]
               (let [found (atom {})
                     outcome (FileSyscalls/readEach
                              (paths/bytes-of (str directory))
                              (reify BiConsumer
                                (accept [_ name bytes]
                                  (swap! found assoc (String. ^bytes name "UTF-8") (seq bytes)))))]
                 [outcome @found]))
        files (into {} (for [i (range 600)]
                         [(str "ü" i (apply str (repeat (mod (* 7 i) 240) "x")))
                          (seq (map unchecked-byte (range (* 13 i))))]))]
    (try
      (is (= [0 {}] (each directory)))
      (doseq [[name bytes] files]
        (Files/write (.resolve directory ^String name) (byte-array bytes)
                     ^"[Ljava.nio.file.OpenOption;" (make-array OpenOption 0)))
      (is (= [0 files] (each directory)))
      (testing "one that cannot be read is an error, one that is gone is not"
        (Files/createSymbolicLink (.resolve directory "gone") (.resolve directory "nowhere")
                                  (make-array FileAttribute 0))
        (is (= [0 files] (each directory)))
        (Files/createDirectory (.resolve directory "inner") (make-array FileAttribute 0))
        (is (neg? (long (first (each directory)))))
        (Files/delete (.resolve directory "inner"))
        (is (= -2 (first (each (str directory "x"))))))
      (testing "and leaves no descriptor"
        (let [before (fixture/settled-descriptors)]
          (dotimes [_ 3] (each directory) (each (str directory "x")))
          (is (= before (fixture/open-descriptors)))))
      (finally
        (run! #(.delete ^java.io.File %) (reverse (file-seq (.toFile directory))))))))

(deftest process-ids-and-names
  (testing "lists processes and their names"
    (let [me (.pid (java.lang.ProcessHandle/current))
          all (procfs/processes)]
      (is (some #{me} all))
      (is (= all (sort all)))
      (is (= (str/trim (Files/readString (Path/of "/proc/self/comm" (make-array String 0))))
             (procfs/command me)))
      (is (thrown? NoSuchFileException (procfs/command 0)))
      (is (thrown? NoSuchFileException (procfs/objects 0))))))

(deftest unreadable-files
  (testing "a file that exists and cannot be read is an error with the reason"
    (let [e (procfs/unreadable "/sys/x" (java.io.IOException. "Too many open files") :load)]
      (is (= "Cannot read /sys/x: Too many open files" (ex-message e)))
      (is (= [:io :load "/sys/x"]
             ((juxt :bpfmap/error :bpfmap/op :bpfmap/file) (ex-data e)))))))
