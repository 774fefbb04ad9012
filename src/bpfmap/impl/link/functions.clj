(ns ^:no-doc bpfmap.impl.link.functions
  "Finds functions to attach to: in the kernel, and in programs and shared libraries."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.elf.symbols :as symbols]
            [bpfmap.impl.host.syscalls :as syscalls]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.kernel.tracefs :as tracefs]
            [bpfmap.impl.link.targets :as targets]
            [bpfmap.impl.nearest :as nearest]
            [clojure.string :as str])
  (:import (bpfmap.sys Fd)
           (java.io IOException)
           (java.nio ByteBuffer)
           (java.nio.channels FileChannel)
           (java.nio.file OpenOption Path StandardOpenOption)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

;; --- names that are near

(def ^:private most-compared
  "Names that are compared letter by letter.

  That takes a tenth of a millisecond for each."
  400)

(defn- pairs [s]
  (into #{} (map (fn [i] (subs s i (+ 2 (long i))))) (range (max 0 (dec (count s))))))

(defn similar
  "Returns the names that share the most pairs of letters with a word, at most 400.

  A kernel has more names than can be compared letter by letter."
  [^String word names]
  (let [wanted (vec (pairs word))
        score (fn [^String candidate]
                (reduce (fn [^long n ^String pair] (if (.contains candidate pair) (inc n) n))
                        0 wanted))
        n (count word)
        least (max 1 (quot (count wanted) 2))]
    (->> names
         (filter #(<= (- n 8) (count %) (+ n 8)))
         (keep (fn [candidate]
                 (let [s (long (score candidate))]
                   (when (<= least s) [(- s) (abs (- n (count candidate))) candidate]))))
         sort
         (map peek)
         (take most-compared))))

;; --- functions of the kernel

(defn- kernel-functions
  "Returns the names of the functions in /proc/kallsyms; nil if it cannot be read."
  []
  (try
    (into []
          (keep (fn [^String line]
                  ;; address, type, name and perhaps [module]
                  (let [at (.indexOf line 32)]
                    (when (and (pos? at) (contains? #{\t \T \w \W} (.charAt line (inc at))))
                      (let [end (.indexOf line 9 (+ at 3))]
                        (.substring line (+ at 3) (if (neg? end) (.length line) end)))))))
          (str/split-lines (String. (procfs/read-bytes "/proc/kallsyms"))))
    (catch IOException _ nil)))

(defn missing
  "Returns the hint for a function that the kernel does not have."
  [function]
  (let [all (kernel-functions)]
    (if (some #{function} all)
      (str "the kernel has the function " function ", but it cannot be traced")
      (str "this kernel has no function " function
           "; functions differ between releases, and some are inlined"
           (when-let [near (nearest/did-you-mean function (similar function all))]
             (str "; " near))))))

(defn first-missing
  "Returns the first name that is not a function of the kernel; nil if all are."
  [names]
  (let [all (set (kernel-functions))]
    (first (remove all names))))

(defn matching
  "Returns the names of the kernel functions that names or a pattern stand for."
  [x ctx]
  (cond
    (not (string? x)) (vec x)
    (not (targets/pattern? x)) [x]
    :else
    (let [fits? (targets/glob x)
          traceable (tracefs/with-root tracefs/traceable-functions ctx)
          found (into [] (comp (filter fits?)
                               (filter #(or (nil? traceable) (traceable %)))
                               (distinct))
                      (kernel-functions))]
      (when (empty? found)
        (throw (error/error :not-found (str "No kernel function fits " (error/printed x))
                            {:bpfmap/op (:op ctx)
                             :bpfmap/hint "/proc/kallsyms has the names of all functions"})))
      found)))

(defn of-system-call
  "Returns the name of the kernel's function of a system call, on this processor."
  [system-call]
  (syscalls/syscall-function system-call (System/getProperty "os.arch") (call/kernel-release)))

;; --- files

(defn- lines-of [path]
  (try
    (str/split-lines (String. (procfs/read-bytes (str path))))
    (catch IOException _ nil)))

(defn- library-directories
  "Returns the directories in which the dynamic loader searches."
  []
  (distinct
   (concat (for [name (try (sort (procfs/list-names "/etc/ld.so.conf.d")) (catch IOException _ nil))
                 line (lines-of (str "/etc/ld.so.conf.d/" name))
                 :when (str/starts-with? line "/")]
             (str/trim line))
           ["/lib64" "/usr/lib64" "/lib" "/usr/lib"])))

(defn- file? [path]
  (= :file (paths/type-of path true)))

(defn executable
  "Returns the path of a program or shared library, given by path or name.

  A name without a slash is searched for: a shared library where the dynamic loader does, such as
  libc.so.6 or libc, a program in PATH. Throws `:not-found`."
  [file {:keys [op] :as ctx}]
  (if (str/includes? file "/")
    (let [path (call/path-text file op)
          file-type (paths/type-of path true)]
      (when-not (= :file file-type)
        (throw (error/error (if (keyword? file-type) :invalid-value :not-found)
                            (str "The program or library " (paths/printable path)
                                 (if (keyword? file-type) " is not a file" " does not exist"))
                            {:bpfmap/op op :bpfmap/file path})))
      path)
    (let [file (call/path-text file op)
          library? (or (str/includes? file ".so") (str/starts-with? file "lib"))
          ;; The name without a version is often a script for the linker.
          names (if (and library? (not (str/includes? file ".so")))
                  (let [fits? (targets/glob (str file ".so.*"))]
                    #(concat (sort (filter fits? (try (procfs/list-names %)
                                                      (catch IOException _ nil))))
                             [(str file ".so")]))
                  (constantly [file]))
          directories (if library?
                        (library-directories)
                        (str/split (or (System/getenv "PATH") "") #":"))]
      (or (first (for [directory directories
                       name (names directory)
                       :let [path (str directory "/" name)]
                       :when (file? path)]
                   path))
          (throw (error/error :not-found (str "No " (if library? "shared library " "program ")
                                              (error/printed file))
                              {:bpfmap/op op
                               :bpfmap/hint (if library?
                                              (str "it is in none of the directories of "
                                                   "/etc/ld.so.conf; give its path")
                                              "it is in no directory of PATH; give its path")}))))))

(defn- reader
  "Returns the function of an offset and a size that reads a channel."
  [^FileChannel channel]
  (fn [offset n]
    (let [left (max 0 (- (.size channel) (long offset)))
          buffer (ByteBuffer/allocate (int (min (long n) left)))]
      (loop [at (long offset)]
        (when (.hasRemaining buffer)
          (let [got (.read channel buffer at)]
            (when (pos? got) (recur (+ at got))))))
      (Arrays/copyOf (.array buffer) (.position buffer)))))

(defn- unreadable ^Throwable [path ctx]
  (error/error :invalid-value (str (paths/printable path) " is not a 64-bit ELF file")
               {:bpfmap/op (:op ctx)
                :bpfmap/file path
                :bpfmap/hint (str "a program or shared library has functions; in any other file, "
                                  "give :offset in place of :symbol")}))

(defn- with-file
  "Calls f with an open ELF file, which has its symbols.

  Returns nil if it is not a 64-bit ELF file."
  [path ctx f]
  (let [^Fd fd (call/open-file path true ctx)]
    (try
      (with-open [channel (FileChannel/open
                           (Path/of (str "/proc/self/fd/" (.acquire fd)) (make-array String 0))
                           (into-array OpenOption [StandardOpenOption/READ]))]
        (f (symbols/open (reader channel))))
      (finally
        (.release fd)
        (call/close fd)))))

(defn with-elf
  "Calls f with the symbols of a file, as `bpfmap.impl.elf.symbols` opens them."
  [path ctx f]
  (with-file path ctx #(f (or % (throw (unreadable path ctx))))))

(defn- not-there ^Throwable [path symbol elf {:keys [op]}]
  (let [all (map :name (symbols/functions-named elf (constantly true)))]
    (error/error :not-found (str (paths/printable path) " has no function " (error/printed symbol))
                 {:bpfmap/op op
                  :bpfmap/file path
                  :bpfmap/hint (or (nearest/did-you-mean symbol (similar symbol all))
                                   (if (empty? all)
                                     "its symbols are stripped; give :offset, an offset in the file"
                                     (str "it has " (count (set all))
                                        " functions with a name")))})))

(defn- symbol-offset [path symbol elf ctx]
  (let [[{:keys [offset]} & more] (symbols/preferred (symbols/functions-named elf #{symbol}))]
    (cond
      (nil? offset) (throw (not-there path symbol elf ctx))
      more (throw (error/error :ambiguous (str (paths/printable path) " has several functions "
                                               (error/printed symbol))
                               {:bpfmap/op (:op ctx)
                                :bpfmap/hint (str "give one of their offsets as :offset: "
                                                  (error/list-of
                                                   (cons offset (map :offset more))))}))
      :else offset)))

(defn- check-code
  "Throws for an offset that is not in the code of a file.

  The kernel puts a breakpoint there in every process that maps the file, and would change its data."
  [path elf offsets {:keys [op]}]
  (let [ranges (symbols/code-ranges elf)]
    (doseq [offset offsets
            :when (not-any? (fn [[from to]] (<= (long from) (long offset) (dec (long to)))) ranges)]
      (throw (error/error :invalid-value
                          (str "An offset in " (paths/printable path) " must be in its code, got "
                               offset)
                          {:bpfmap/op op
                           :bpfmap/file path
                           :bpfmap/hint (str "its code is at "
                                             (error/list-of (map (fn [[from to]]
                                                                   (str from " to " (dec (long to))))
                                                                 ranges))
                                             "; elsewhere a probe changes data of all processes "
                                             "that use the file")})))))

(defn- offsets-of-functions
  "Returns the offsets of functions of a file, given by names or a pattern."
  [path functions elf ctx]
  (if (targets/pattern? functions)
    (let [found (symbols/functions-named elf (targets/glob functions))]
      (when (empty? found)
        (throw (error/error :not-found (str "No function of " (paths/printable path)
                                            " fits " (error/printed functions))
                            {:bpfmap/op (:op ctx) :bpfmap/file path})))
      (distinct (map :offset (mapcat symbols/preferred (vals (group-by :name found))))))
    (map #(symbol-offset path % elf ctx)
         (if (string? functions) [functions] functions))))

(defn offsets
  "Returns the offsets of functions in a file: of names, offsets, or a pattern.

  `plus` is added to each. Throws `:invalid-value` for an offset that is not in the code of an ELF
  file; other files may be code that a process has made."
  [path functions plus ctx]
  (let [numbers? (and (sequential? functions) (every? int? functions))
        at (fn [offset]
             (let [sum (+' offset plus)]
               (when (< Long/MAX_VALUE sum)
                 (throw (targets/invalid [:offset]
                                         (str "The end of an offset must be at most "
                                              Long/MAX_VALUE ", got " sum)
                                         nil)))
               sum))]
    (cond
      (and (sequential? functions) (= [nil] (vec functions)))
      (throw (targets/invalid [] "A target :uprobe must have :symbol or :offset" nil))

      (nil? functions)
      (throw (targets/invalid [] "A target :uprobe-multi must have :symbols or :offsets" nil))

      :else
      (with-file path ctx
        (fn [elf]
          (when-not (or elf numbers?)
            (throw (unreadable path ctx)))
          (let [offsets (mapv at (if numbers?
                                   functions
                                   (offsets-of-functions path functions elf ctx)))]
            (when elf
              (check-code path elf offsets ctx))
            offsets))))))
