(ns ^:no-doc bpfmap.impl.display.symbols
  "Names addresses of code: of the kernel by /proc/kallsyms, of processes by the ELF files that they
  have mapped.

  The functions return resolvers: see `bpfmap.impl.display.host`. `{:name text}` has the function
  and the distance from its beginning, such as `vfs_read+0x1a`, and for a process the file."
  (:require [bpfmap.impl.display.text :as text]
            [bpfmap.impl.elf.symbols :as elf]
            [bpfmap.impl.kernel.procfs :as procfs]
            [clojure.string :as str])
  (:import (java.io File IOException RandomAccessFile)
           (java.nio.charset StandardCharsets)
           (java.nio.file NoSuchFileException)
           (java.util Arrays HashMap)))

(set! *warn-on-reflection* true)

(defn- with-distance [name distance]
  (cond-> name (pos? (long distance)) (str "+" (text/hex distance nil))))

;; --- the kernel

(def ^:private farthest
  "The largest distance of an address from the symbol before it.

  The kernel reports no sizes, and no function of it is longer than this."
  (* 64 1024))

(defn- line-starts
  "Returns the offsets of the lines in bytes that end with a newline."
  ^ints [^bytes all]
  (let [n (long (areduce all i n 0 (if (= 10 (aget all i)) (inc n) n)))
        starts (int-array n)]
    (loop [i 0 from 0 found 0]
      (when (< found n)
        (if (= 10 (aget all i))
          (do (aset starts found (int from))
              (recur (inc i) (inc i) (inc found)))
          (recur (inc i) from found))))
    starts))

(defn- hex-at
  "Returns the 16 hexadecimal digits at an offset as a number, or 0."
  ^long [^bytes all ^long from]
  (if (< (alength all) (+ from 16))
    0
    (loop [i from n 0]
      (if (= i (+ from 16))
        n
        (let [digit (Character/digit (int (aget all i)) 16)]
          (if (neg? digit) 0 (recur (inc i) (bit-or (bit-shift-left n 4) digit))))))))

(defn- kernel-table
  "Returns the symbols of the kernel, sorted by address.

  They are the bytes of the file, the addresses, and where their lines start. Lines without an
  address in the kernel are left out: it is zero if the kernel hides it, or an offset into the
  memory of a CPU."
  [^bytes all]
  (let [starts (line-starts all)
        addresses (long-array (alength starts))
        _ (dotimes [i (alength starts)]
            (aset addresses i (hex-at all (aget starts i))))
        kept (object-array (filter #(neg? (aget addresses (int %))) (range (alength starts))))]
    ;; The file is nearly sorted, which makes this quick.
    (Arrays/sort kept (comparator #(< (aget addresses (int %1)) (aget addresses (int %2)))))
    {:bytes all
     :addresses (long-array (map #(aget addresses (int %)) kept))
     :starts (int-array (map #(aget starts (int %)) kept))}))

(defn- symbol-at
  "Returns the name and the module, or nil, of the symbol on a line."
  [{:keys [^bytes bytes ^ints starts]} i]
  (let [from (+ 19 (aget starts (int i))) ; 16 digits, a blank, the type, a blank
        end (loop [end from] (if (= 10 (aget bytes end)) end (recur (inc end))))
        line (String. bytes (int from) (int (- end from)) StandardCharsets/UTF_8)]
    (str/split line #"\t" 2)))

(defn- read-kernel-table []
  (kernel-table (try (procfs/read-bytes "/proc/kallsyms")
                     (catch IOException _ (byte-array 0)))))

(defn kernel-resolver
  "Returns the resolver of kernel addresses.

      ((kernel-resolver) 0xffffffff8142b3ba) ;=> {:name \"vfs_read+0x1a\"}"
  []
  (let [table (delay (read-kernel-table))]
    (fn [address]
      (let [{:keys [^longs addresses] :as table} @table
            n (alength addresses)
            address (.longValue (biginteger address))
            found (Arrays/binarySearch addresses address)
            before (if (neg? found) (- (- found) 2) found)]
        (cond
          (zero? n) {:missing "kernel symbols are hidden"}
          ;; The addresses are unsigned, and the difference of two can overflow a long.
          (or (neg? before)
              (<= 0 (Long/compareUnsigned (unchecked-subtract address (aget addresses before))
                                          (long farthest))))
          {:missing "no kernel symbol"}
          :else
          (let [start (aget addresses before)
                same? #(and (< -1 (long %) n) (= start (aget addresses (long %))))
                lines (map #(symbol-at table %)
                           (concat (take-while same? (iterate dec before))
                                   (take-while same? (iterate inc (inc before)))))
                name (elf/plainest (map first lines))
                module (some (fn [[text module]] (when (= name text) module)) lines)]
            {:name (cond-> (with-distance name (- address start))
                     module (str " " module))}))))))

;; --- files

(def ^:private debug-directory "/usr/lib/debug/.build-id/")

(defn- reader
  "Returns a function that reads bytes of an open file."
  [^RandomAccessFile file]
  (fn [offset size]
    (let [offset (long offset)
          left (- (.length file) offset)
          bytes (byte-array (max 0 (min (long size) (if (neg? offset) 0 left))))]
      (.seek file (max 0 offset))
      (.readFully file bytes)
      bytes)))

(defn- with-elf
  "Calls f with an ELF file, open while f runs; returns nil if it cannot be read."
  [path f]
  (try
    (with-open [file (RandomAccessFile. (str path) "r")]
      (some-> (elf/open (reader file)) f))
    (catch IOException _ nil)))

(defn- functions-of
  "Returns a function from an address in an ELF file to its function.

  If the file has been stripped, and its symbols are in a file of their own, they come from there."
  [e build-id]
  (or (when (and build-id (not (elf/full-table? e)))
        (with-elf (str debug-directory (subs build-id 0 2) "/" (subs build-id 2) ".debug")
                  elf/address->function))
      (elf/address->function e)))

(defn- read-file
  "Returns what resolvers need of an ELF file; nil if it cannot be read."
  [path]
  (with-elf path
            (fn [e]
              (let [build-id (elf/build-id e)]
                {:elf (dissoc e :read-at)
                 :build-id build-id
                 :function-at (functions-of e build-id)}))))

(defn- place-in
  "Returns the text for an offset in a file that was read.

  Without a function, it is the offset with the build id, by which the function can be found
  elsewhere."
  [{:keys [elf build-id function-at]} file-name offset]
  (let [found (when (int? offset) ; the kernel may report one beyond every file
                (some-> (elf/offset->address elf offset) function-at))]
    (if found
      (str (with-distance (:name found) (:offset found)) " (" file-name ")")
      (str file-name "+" (text/hex offset nil) (when build-id (str " (build id " build-id ")"))))))

;; --- processes

(def ^:private mapping-line
  #"([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) (\S+) (\d+) *(.*)")

(defn- mappings
  "Returns the mapped ranges of a process.

  Returns nil if there is no such process, and an empty vector if they cannot be read."
  [pid]
  (try
    (into []
          (keep (fn [line]
                  (when-let [[_ start end access offset device inode path]
                             (re-matches mapping-line line)]
                    {:start (Long/parseUnsignedLong start 16)
                     :end (Long/parseUnsignedLong end 16)
                     :code (str/includes? access "x")
                     :offset (Long/parseUnsignedLong offset 16)
                     :file [device inode]
                     :path path})))
          (str/split-lines (String. (procfs/read-bytes (str "/proc/" pid "/maps"))
                                    StandardCharsets/UTF_8)))
    (catch NoSuchFileException _ nil)
    (catch IOException _ [])))

(defn- readable-path
  "Returns a path by which the file of a mapping can be read, or nil.

  The first is the mapped file itself, also if it was deleted or replaced; the kernel allows it to
  root only. The second is the file of that name now, in the mount namespace of the process. Only a
  regular file is read: opening a pipe would wait, and opening a device can have effects."
  [pid {:keys [path start end]}]
  (first (filter #(.isFile (File. ^String %))
                 [(str "/proc/" pid "/map_files/" (Long/toHexString start) "-"
                       (Long/toHexString end))
                  (str "/proc/" pid "/root" path)])))

(defn- file-name [path]
  (str/replace (subs path (inc (str/last-index-of path "/"))) #" \(deleted\)$" ""))

(def ^:private most-files "The largest number of ELF files that are read." 4096)

(defn user-resolver
  "Returns the resolver of a pid and an address in the process.

      ((user-resolver) 4711 0x7f1200098935) ;=> {:name \"malloc+0x5 (libc.so.6)\"}"
  []
  (let [of-process (memoize mappings)
        files (HashMap.)
        file-of (fn [pid {:keys [file] :as mapping}]
                  (when-not (.containsKey files file)
                    (.put files file (when (< (.size files) (long most-files))
                                       (some-> (readable-path pid mapping) read-file))))
                  (.get files file))]
    (fn [pid address]
      (let [ranges (of-process pid)
            address (.longValue (biginteger address))
            {:keys [path start offset] :as mapping}
            (some #(when (and (<= (long (:start %)) address) (< address (long (:end %)))) %)
                  ranges)]
        (cond
          (nil? ranges) {:missing (str "no process " pid)}
          (empty? ranges) {:missing (str "the memory of process " pid " cannot be read")}
          (nil? mapping) {:missing "not mapped"}
          (not (str/starts-with? path "/"))
          (if (= "" path)
            {:missing "no file"}
            {:name (with-distance path (- address (long start)))})
          :else
          (let [offset (+ (long offset) (- address (long start)))]
            (if-let [file (file-of pid mapping)]
              {:name (place-in file (file-name path) offset)}
              {:name (str (file-name path) "+" (text/hex offset nil))})))))))

;; --- build ids

(defn- mapped-files
  "Returns the files that processes have mapped as code.

  They are `[path name]` by build id."
  []
  (let [seen (HashMap.)]
    (doseq [pid (try (procfs/processes) (catch IOException _ []))
            {:keys [file path] code? :code :as mapping} (mappings pid)
            :when (and code? (str/starts-with? path "/") (not (.containsKey seen file))
                       (< (.size seen) (long most-files)))]
      (let [readable (readable-path pid mapping)]
        (.put seen file (when-let [id (some-> readable (with-elf elf/build-id))]
                          [id [readable (file-name path)]]))))
    (into {} (remove nil?) (vals seen))))

;; --- files that the user names

(def ^:private et-exec "The type of ELF files whose addresses do not move." 2)

(defn files-at
  "Returns the ELF files of a path, which can be a directory, as `[name file]`.

  For processes that have ended, or for files that no process has mapped.

      (files-at \"/usr/bin/ls\") ;=> ([\"ls\" {:build-id \"15dfff3239aa7c3b16a71e6b2e3b6e4009dab998\" …}])"
  [path]
  (let [file (File. (str path))]
    (for [^File f (if (.isDirectory file) (sort (.listFiles file)) [file])
          :when (.isFile f)
          :let [found (read-file (str f))]
          :when found]
      [(.getName f) found])))

(defn file-resolver
  "Returns the resolver of a path with ELF files, a build id or nil, and a number.

  The number is an offset in the file with the build id. Without a build id, it is an address, which
  only tells the functions of files that are not position-independent.

      ((file-resolver) \"/root/app\" \"15dfff…\" 0x11a0) ;=> {:name \"own_static+0x17 (app)\"}"
  []
  (let [files (memoize #(doall (take most-files (files-at %))))]
    (fn [path build-id n]
      (or (some (fn [[file-name {:keys [elf] :as file}]]
                  (let [offset (cond
                                 build-id (when (= build-id (:build-id file)) n)
                                 (= et-exec (:file-type elf))
                                 (elf/address->offset elf (.longValue (biginteger n))))]
                    (when offset {:name (place-in file file-name offset)})))
                (files path))
          {:missing (str "not in " path)}))))

(defn build-id-resolver
  "Returns the resolver of a build id and an offset in the file.

  It finds files that a process has mapped now.

      ((build-id-resolver) \"93ac61…\" 0x98935) ;=> {:name \"malloc+0x5 (libc.so.6)\"}"
  []
  (let [known (delay (mapped-files))
        read-file (memoize read-file)]
    (fn [build-id offset]
      (let [[path file-name] (get @known build-id)
            file (some-> path read-file)]
        (if file
          {:name (place-in file file-name offset)}
          {:missing "no process has the file mapped"})))))
