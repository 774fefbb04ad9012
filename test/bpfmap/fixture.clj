(ns bpfmap.fixture
  "What the tests share: a BPF file system of their own, skips that are counted, threads without
  privileges."
  (:require [bpfmap.impl.kernel.procfs :as procfs]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.set :as set]
            [clojure.string :as str]
            [clojure.test :as t])
  (:import (bpfmap.sys Fd Native)
           (java.io File)
           (java.lang.ref Cleaner)
           (java.lang.reflect Field)
           (java.nio.file Files)
           (java.nio.file.attribute FileAttribute)
           (java.security SecureRandom)
           (java.util.concurrent CountDownLatch TimeUnit)))

(set! *warn-on-reflection* true)

;; --- slow machines

(def slowness
  "How many times as long things may take here. script/kernel-matrix says so of its machines."
  (parse-long (System/getProperty "bpfmap.slowness" "1")))

(def patience
  "Milliseconds to wait for what must come: one minute, and ten minutes on slow machines."
  (* 60000 (min 10 (long slowness))))

(defn trials
  "How many random trials of n a test makes here: n, or a tenth on slow machines."
  ^long [n]
  (max 5 (quot (long n) (min 10 (long slowness)))))

;; --- skips

(def skips
  "Test var to the reason for which it was skipped; the runner counts them."
  (atom {}))

(defn skip!
  "Records that the running test is skipped, and why."
  [reason]
  (swap! skips update (first t/*testing-vars*)
         #(if (and % (not (str/includes? % reason))) (str % "; " reason) (or % reason)))
  nil)

(defn kernel-missing
  "Why tests cannot use the kernel's BPF here, or nil when they can."
  []
  (or (Native/unavailable)
      (when-let [missing (seq (procfs/missing-capabilities ["CAP_SYS_ADMIN"]))]
        (str "without " (str/join ", " missing) " (run as root)"))))

(defn- literal-rows
  "Returns the rows of `bpfmap.since` that a form names as literals in needing and has?."
  [form]
  (for [part (tree-seq coll? seq form)
        :when (and (seq? part) (symbol? (first part)) (#{"needing" "has?"} (name (first part))))
        rows (rest part)
        row (if (and (vector? rows) (vector? (first rows))) rows [rows])
        :when (and (vector? row) (seq row) (every? (some-fn keyword? string?) row))]
    row))

(defmacro kernel-test
  "A deftest that needs the kernel; skipped, with the reason, where it cannot be used. Metadata of
  the name, `:needs`, has rows of `bpfmap.since`: without what one of them names it is skipped
  too. `:needs` of the test's var also has the rows that parts of the test need; `:kernel` is true."
  [name & body]
  (let [needs (:needs (meta name))]
    `(t/deftest ~(vary-meta name assoc
                            :kernel true
                            :needs (vec (distinct (concat needs (literal-rows body)))))
       (if-let [missing# (or (kernel-missing)
                             ~@(when needs
                                 [`(apply (requiring-resolve 'bpfmap.since/lacking) ~needs)]))]
         (skip! missing#)
         (do ~@body)))))

;; --- libraries that may be missing

(defn lacking
  "Why a namespace cannot be loaded here, for want of a library that not every machine can get;
  nil when it can."
  [ns-name]
  (when (and (re-find #"^bpfmap\.nrepl([.-].*)?$" (str ns-name))
             (nil? (io/resource "nrepl/core.clj")))
    "nREPL is not to be had: it is on Clojars, and Debian's package of it is libnrepl-clojure"))

;; --- errors

(defn repeated
  "Returns the sentences that an error says more than once: in its message, which ends with the
  hint, or in both its hint and its problems. The log of the verifier, which follows on lines of its
  own, may repeat itself."
  [{:keys [message] :bpfmap/keys [hint problems]}]
  (let [sentences (filter #(<= 12 (count %)) (str/split (re-find #"^.*" (str message)) #"[;:.] "))]
    (into (vec (for [[sentence n] (frequencies sentences) :when (< 1 (long n))] sentence))
          (filter #(str/includes? (str hint) %))
          (map :message problems))))

(defn caught
  "Calls f and returns the data of its exception, with the message under :message; fails the test if
  it does not throw."
  [f]
  (try
    (let [result (f)]
      (t/is false (str "nothing was thrown, but returned " (pr-str result)))
      {})
    (catch Throwable e
      (let [found (assoc (ex-data e) :message (ex-message e) :class (class e))]
        (t/is (= [] (repeated found)) (:message found))
        found))))

(defmacro error-of
  "The data of what body throws, with its message under :message."
  [& body]
  `(caught (fn [] ~@body)))

;; --- processes and files

(defn run
  "Runs a command to its end; returns {:exit :out :err}. Kills it after five minutes, or after ten on
  slow machines, which `:err` then says: an emulated processor starts a JVM in two minutes."
  [command & {:keys [env dir]}]
  (let [out (File/createTempFile "bpfmap" ".out")
        err (File/createTempFile "bpfmap" ".err")
        builder (doto (ProcessBuilder. ^java.util.List (vec command))
                  (.redirectOutput out)
                  (.redirectError err)
                  (.redirectInput (File. "/dev/null")))]
    (when dir (.directory builder (io/file dir)))
    (doseq [[k v] env] (.put (.environment builder) k v))
    (try
      (let [process (.start builder)
            limit (max 300000 (long patience))
            ended? (.waitFor process limit TimeUnit/MILLISECONDS)]
        (when-not ended?
          (.destroyForcibly process))
        {:exit (.waitFor process)
         :out (slurp out)
         :err (cond-> (slurp err)
                (not ended?) (str "\nkilled, since it did not end within " (quot limit 1000) " seconds"))})
      (finally
        (.delete out)
        (.delete err)))))

(defn java
  "Returns the command of a JVM for a short task, with the class path of this one. It uses the
  archive of classes that script/kernel-matrix makes, since an emulated processor takes a minute to
  load them.

      (java \"-e\" \"(prn 1)\") ;=> [\"/usr/lib/jvm/…/bin/java\" … \"clojure.main\" \"-e\" \"(prn 1)\"]"
  [& arguments]
  (let [archive (System/getProperty "bpfmap.archive")]
    (-> [(str (System/getProperty "java.home") "/bin/java")
         "--enable-native-access=ALL-UNNAMED" "-XX:TieredStopAtLevel=1" "-XX:+UseSerialGC"]
        (cond-> archive (conj (str "-XX:SharedArchiveFile=" archive) "-Xlog:disable"))
        (conj "-cp" (System/getProperty "java.class.path") "clojure.main")
        (into arguments))))

(defn executable
  "The path of a command, or nil where it is not installed."
  [name]
  (let [dirs (concat (str/split (or (System/getenv "PATH") "") #":") ["/usr/sbin" "/sbin"])]
    (some (fn [dir]
            (let [file (io/file dir name)]
              (when (and (.canExecute file) (.isFile file)) (str file))))
          dirs)))

(defn temporary-directory
  "A new empty directory, for the test to delete."
  ^File []
  (.toFile (Files/createTempDirectory "bpfmap-test" (make-array FileAttribute 0))))

(def ^:private mounted
  (delay
    (let [dir (temporary-directory)
          {:keys [exit err]} (run ["mount" "-t" "bpf" "bpf" (str dir)])]
      (when-not (zero? exit)
        (throw (ex-info (str "mount -t bpf failed: " err) {})))
      (.addShutdownHook (Runtime/getRuntime)
                        (Thread. ^Runnable (fn []
                                             (run ["umount" "-l" (str dir)])
                                             (.delete dir))))
      (str dir))))

(def ^:private names (atom 0))

(defn bpffs
  "The directory of a BPF file system that only these tests use."
  []
  @mounted)

(defn new-pin
  "A path on the tests' BPF file system at which nothing is pinned."
  []
  (str (bpffs) "/pin" (swap! names inc)))

;; --- the C compiler as an oracle

(defn c-values
  "The values of C expressions as the compiler here sees them, as a map; the expressions that it
  does not know are left out. Nil without a compiler. A header that starts with # is a line of
  its own.

      (c-values [\"linux/bpf.h\"] [\"BPF_ANY\" \"BPF_NEWER_THAN_THE_HEADER\"]) ;=> {\"BPF_ANY\" 0}"
  [headers expressions]
  (when-let [cc (or (executable "cc") (executable "gcc") (executable "clang"))]
    (let [dir (temporary-directory)
          source (io/file dir "values.c")
          program (str (io/file dir "values"))]
      (try
        (loop [expressions (vec expressions) attempt 1]
          (spit source
                (str (apply str
                            (for [h (concat ["stdio.h" "stddef.h" "errno.h"] headers)]
                              (if (str/starts-with? h "#")
                                (str h "\n")
                                (str "#include <" h ">\n"))))
                     "int main(void) {\n#line 1\n"
                     (apply str
                            (for [e expressions]
                              (str "printf(\"%lld\\n\", (long long)(" e "));\n")))
                     "return 0; }\n"))
          (let [{:keys [exit err]} (run [cc "-o" program (str source)])
                unknown (into #{} (map (comp dec parse-long second))
                              (re-seq #"values\.c:(\d+):\d+: error" err))]
            (cond
              (zero? exit) (zipmap expressions
                                   (map parse-long (str/split-lines (:out (run [program])))))
              (or (empty? unknown)
                  (= 5 attempt)) (throw (ex-info (str "the C compiler failed: " err) {}))
              :else (recur (into [] (keep-indexed #(when-not (unknown %1) %2)) expressions)
                           (inc attempt)))))
        (finally
          (run! #(.delete ^File %) (reverse (file-seq dir))))))))

;; --- threads

(defn thread
  "A started thread that runs f with the bindings of this one."
  ^Thread [f]
  (doto (Thread. ^Runnable (bound-fn* f)) (.start)))

(defn join
  "Waits for a thread to end: at most two minutes, or ten on slow machines."
  [^Thread t]
  (let [limit (max 120000 (long patience))]
    (.join t limit)
    (when (.isAlive t)
      (throw (ex-info (str "a thread did not end within " (quot limit 1000) " seconds") {})))))

(defn in-threads
  "Calls (f i) on n threads at once and returns what they return; throws what one of them throws."
  [n f]
  (let [go (promise)
        results (vec (repeatedly n promise))
        threads (mapv (fn [i]
                        (thread (fn []
                                  @go
                                  (deliver (results i)
                                           (try [:value (f i)] (catch Throwable e [:thrown e]))))))
                      (range n))]
    (deliver go true)
    (run! join threads)
    (mapv (fn [result]
            (let [[kind x] @result]
              (if (= :thrown kind) (throw x) x)))
          results)))

;; --- waiting

(defn eventually
  "Calls f until it returns what is true, for at most a minute, or ten on slow machines; returns what
  it returned last. Pauses 10 ms between calls, and up to 100 ms when it takes longer."
  [f]
  (let [end (+ (System/nanoTime) (* 1000000 (long patience)))]
    (loop [pause 10]
      (or (f)
          (when (< (System/nanoTime) end)
            (Thread/sleep pause)
            (recur (min 100 (inc pause))))))))

;; --- the process

(defn open-descriptors
  "How many descriptors this process has open."
  []
  (count (.list (File. "/proc/self/fd"))))

(defn open-statistics
  "How many descriptors this process has open that make the kernel measure programs. Another process
  may have one too: a program that is no longer measured for this one may be measured for that."
  []
  (count (filter #(= "anon_inode:bpf-stats" %)
                 (for [fd (.listFiles (File. "/proc/self/fd"))]
                   (try
                     (str (java.nio.file.Files/readSymbolicLink (.toPath ^File fd)))
                     (catch java.io.IOException _ nil)))))) ; closed meanwhile

(def ^:private fd-cleaner
  "The Cleaner that closes descriptors which nothing refers to any more."
  (delay (.get ^Field (doto (.getDeclaredField Fd "CLEANER") (.setAccessible true)) nil)))

(defn- collect
  "Collects garbage, and waits until the thread that closes descriptors has closed one of these."
  []
  (let [cleaned (CountDownLatch. 1)]
    (.register ^Cleaner @fd-cleaner (Object.) #(.countDown cleaned))
    (loop [tries 0]
      (System/gc)
      (when-not (or (.await cleaned 50 TimeUnit/MILLISECONDS) (= 100 tries))
        (recur (inc tries))))))

(defn settled-descriptors
  "How many descriptors this process has open once what earlier tests dropped is collected, so
  that none of it is collected between this count and a later one. The later one is
  `open-descriptors`: a collection then would hide unclosed descriptors. The JVM keeps two for its
  random numbers, from the first temporary file on: they are opened before.

  Under load, the thread that closes descriptors may have many left when it has run: two equal
  counts in a row were too many in 2 of 60 trials. So four have to be equal."
  []
  (.nextInt (SecureRandom.))
  (loop [before -1, same 0, tries 0]
    (collect)
    (Thread/sleep 20)
    (let [now (long (open-descriptors))
          same (if (= before now) (inc same) 0)]
      (if (or (= 3 same) (= 200 tries))
        now
        (recur now same (inc tries))))))

(defn status
  "A line of /proc/self/status in kilobytes, such as \"VmRSS\"."
  [field]
  (let [text (Files/readString (java.nio.file.Path/of "/proc/self/status" (make-array String 0)))]
    (parse-long (second (re-find (re-pattern (str field ":\\s+(\\d+)")) text)))))

(defn mapped-maps
  "How many mappings of BPF maps this process has."
  []
  (count (re-seq #"anon_inode:bpf-map"
                 (Files/readString
                  (java.nio.file.Path/of "/proc/self/maps" (make-array String 0))))))

(defn kept-by-rounds
  "What a hundred thousand rounds leave behind: before and after in pairs, `:descriptors`,
  `:mappings` of BPF maps, and `:kilobytes` of resident memory.

  `setup` is bindings and `round` the code of a round, as data. They run in a JVM of their own,
  whose heap has one size and is all touched from the beginning, so that it cannot be what grows."
  [setup round]
  (let [code `(do
                (require '[bpfmap.core :as ~'bpf] '[bpfmap.fixture :as ~'fixture])
                (eval '(let [~@setup
                             ~'round (fn [] ~round)
                             ~'memory (fn [] [(fixture/mapped-maps) (fixture/status "VmRSS")])]
                         (dotimes [~'_ 10000] (~'round))
                         (let [~'before (cons (fixture/settled-descriptors) (~'memory))]
                           (dotimes [~'_ 100000] (~'round))
                           (let [~'descriptors (fixture/open-descriptors)]
                             (fixture/settled-descriptors)
                             (prn (zipmap [:descriptors :mappings :kilobytes]
                                          (map vector ~'before
                                               (cons ~'descriptors (~'memory))))))))))
        {:keys [exit out err]} (run [(str (System/getProperty "java.home") "/bin/java")
                                     "--enable-native-access=ALL-UNNAMED"
                                     "-Xms64m" "-Xmx64m" "-XX:+AlwaysPreTouch"
                                     "-cp" (System/getProperty "java.class.path") "clojure.main"
                                     "-e" (pr-str code)])]
    (when-not (zero? exit)
      (throw (ex-info (str "the rounds failed: " err) {})))
    (edn/read-string out)))

(defn x86-64? [] (= "amd64" (System/getProperty "os.arch")))

(def ^:private syscall-numbers
  "The numbers of this processor's system calls, by name."
  (delay (set/map-invert (get (edn/read-string (slurp (io/resource "bpfmap/syscalls.edn")))
                              (System/getProperty "os.arch")))))

(defn syscall-number [name]
  (or (@syscall-numbers name) (throw (ex-info (str "no system call " name " here") {}))))

(def page-size
  "Bytes of a page, which are those of the smallest ring buffer too."
  (long (procfs/page-size)))

(defn syscall
  "A system call on this thread, by name or number: the result, or the negated errno."
  [call & args]
  (let [[a b c d e] (map long (concat args (repeat 0)))]
    (Native/syscall (long (if (string? call) (syscall-number call) call))
                    (long a) (long b) (long c) (long d) (long e))))

(def ^:private capability-bits
  "Source: linux/capability.h."
  {"CAP_DAC_OVERRIDE" 1 "CAP_NET_ADMIN" 12 "CAP_SYS_PTRACE" 19 "CAP_SYS_ADMIN" 21 "CAP_PERFMON" 38
   "CAP_BPF" 39})

(defn- keep-capabilities!
  "Makes the named capabilities, and no others, the effective ones of this thread. It stays
  permitted all that it was."
  [names]
  (let
   [status (Files/readString (java.nio.file.Path/of "/proc/thread-self/status"
                                                    (make-array String 0)))
    permitted (Long/parseUnsignedLong (second (re-find #"CapPrm:\s+([0-9a-f]+)" status)) 16)
    effective (long (reduce #(bit-set (long %1) (long (capability-bits %2))) 0 names))]
    (with-open [arena (java.lang.foreign.Arena/ofConfined)]
      (let [memory (.allocate arena 32 8)
            set-u32! (fn [offset x]
                       (.set memory java.lang.foreign.ValueLayout/JAVA_INT (long offset)
                             (unchecked-int x)))]
        ;; struct __user_cap_header_struct, and two of __user_cap_data_struct: effective,
        ;; permitted, inheritable.
        (set-u32! 0 0x20080522)
        (doseq [[offset shift] {8 0, 20 32}]
          (set-u32! offset (unsigned-bit-shift-right effective shift))
          (set-u32! (+ 4 (long offset)) (unsigned-bit-shift-right permitted shift)))
        (let [address (.address memory)]
          (assert (zero? (long (syscall "capset" address (+ 8 address))))))))))

(defn unprivileged
  "Calls f on a thread whose effective user is nobody, and returns what it returns. The thread has
  the named capabilities only.

  The system calls, unlike the C library's functions, change the calling thread alone."
  ([f] (unprivileged [] f))
  ([capabilities f]
   (let [result (promise)]
     (join (thread (fn []
                     (try
                       (assert (zero? (long (syscall "setresuid" -1 65534 -1))))
                       (when (seq capabilities) (keep-capabilities! capabilities))
                       (deliver result [:value (try (f) (finally (syscall "setresuid" -1 0 -1)))])
                       (catch Throwable e
                         (deliver result [:thrown e]))))))
     (let [[kind x] @result]
       (if (= :thrown kind) (throw x) x)))))
