(ns bpfmap.display-test
  "Display hints: every hint, names of this host asked of the host, and hints that do not fit."
  (:require [bpfmap.btf :as btf]
            [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf]
            [bpfmap.display :as display]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.display.hints :as hints]
            [bpfmap.impl.display.symbols :as symbols]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.clock :as clock]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.link :as link]
            [bpfmap.links :as links]
            [bpfmap.prog :as prog]
            [bpfmap.programs :as programs]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (java.lang ProcessHandle)
           (java.nio.file Files LinkOption Path)
           (java.time Instant)))

(set! *warn-on-reflection* true)

(defn- shown
  "Returns a value of a type as a hint shows it."
  [hint type value]
  (display/apply-hints hint value {:type type}))

;; --- hints that read nothing

(deftest v1-numbers-and-addresses
  (testing "a hint shows a value by its type, and by the order of its bytes"
    (are [hint type value text] (= text (shown hint type value))
      :ipv4 :u32 16777226 "10.0.0.1"
      :ipv4 :u32be 0x0a000001 "10.0.0.1"
      :ipv4 :u32le 16777226 "10.0.0.1"
      :ipv4 [:bytes 4] (bytes/->bytes [10 0 0 1]) "10.0.0.1"
      :ipv4 [:array :u8 4] [10 0 0 255] "10.0.0.255"
      :ipv4 :ipv4 "10.0.0.1" "10.0.0.1"
      :ipv4 :s32 -1 "255.255.255.255"
      :ipv4-host :u32 0x0a000001 "10.0.0.1"
      :ipv6 [:bytes 16] (bytes/->bytes (concat [0x20 1 0xd 0xb8] (repeat 11 0) [1])) "2001:db8::1"
      :ipv6 [:array :u32be 4] [0x20010db8 0 0 1] "2001:db8::1"
      :ipv6 :u128be 1 "::1"
      :ip [:array :u8 4] [127 0 0 1] "127.0.0.1"
      :ip [:array :u8 16] (conj (vec (repeat 15 0)) 1) "::1"
      :mac [:array :u8 6] [0 0x1b 0x21 10 11 12] "00:1b:21:0a:0b:0c"
      :mac [:bytes 6] (bytes/->bytes "001b210a0b0c") "00:1b:21:0a:0b:0c"
      :port :u16 443 443
      :port-be :u16 0xbb01 443
      :port-be :u16be 443 443
      :port :u16be 0xbb01 443
      :port-be :u32 0xbb01 443
      :hex :u32 255 "0xff"
      :hex :s32 -1 "0xffffffff"
      :hex :u64 18446744073709551615N "0xffffffffffffffff"
      :hex [:bytes 2] (bytes/->bytes [10 255]) "0x0aff"
      :hex [:array :u8 2] [10 255] ["0xa" "0xff"]
      :octal :u32 0644 "0644"
      :octal :u32 0 "0"
      :size :u64 90000 "87.9K"
      :size :u64 512 "512B"
      :ns :u64 1500000 "1.5ms"
      :ns :s64 -2000 "-2us"
      :us :u64 1500 "1.5ms"
      :ms :u64 61000 "1m1s"
      :s :u32 5400 "1h30m"
      :s :u32 0 "0s"
      :errno :s32 -2 "ENOENT"
      :errno :u32 1 "EPERM"
      :errno :s32 0 "0"
      :errno :s32 -4000 "-4000 (no such errno)"
      :cpus :u64 0x10f "0-3,8"
      :cpus :u64 0 "none"
      :cpus [:array :u64 2] [1 1] "0,64"
      :cpus [:bytes 2] (bytes/->bytes [1 1]) "0,8")))

(deftest v1-flags-and-enums
  (testing "flags and values of an enum are names"
    (are [hint type value text] (= text (shown hint type value))
      [:flags {:SYN 1 :ACK 2}] :u8 3 "SYN|ACK"
      [:flags {:SYN 1 :ACK 2}] :u8 19 "SYN|ACK|0x10"
      [:flags {:SYN 1 :ACK 2}] :u8 0 "0"
      [:flags {:NONE 0 :SYN 1}] :u8 0 "NONE"
      [:flags {:RW 3 :R 1 :W 2}] :u8 3 "RW"
      [:flags [:enum :u32 {:A 4}]] :u32 5 "A|0x1"
      :flags [:enum :u32 {:A 1 :B 2}] 3 "A|B"
      :flags [:enum :u32 {:A 1 :B 2}] :A "A"
      [:enum {:TCP 6}] :u8 6 "TCP"
      [:enum {:TCP 6}] :u8 7 "7 (no such name)"))
  (testing "an enum is found by its name among given types and in given BTF"
    (let [state [:enum :u32 {:NEW 1 :OLD 2} {:name "state"}]]
      (is (= "OLD" (display/apply-hints [:enum :state] 2 {:types {:state state}})))
      (let [b (btf/parse (:bytes (btf/->btf [state] nil)))]
        (is (= "OLD" (display/apply-hints [:enum "state"] 2 {:btf b})))
        (is (= "NEW|OLD" (display/apply-hints [:flags :NEW] 3 {:btf b}))
            "or by one of its values")))))

(deftest v1-fields-of-values
  (testing "fields are named as everywhere, and the original does not change"
    (let [value {:src 16777226 :ports [443 53] :in {:a.b 255}}
          shown {:src "10.0.0.1" :ports ["0x1bb" "0x35"] :in {:a.b "0xff"}}]
      (doseq [hints [{:src :ipv4 :ports :hex :in.a.b :hex}
                     {"src" "ipv4" "ports" 'hex "in.\"a.b\"" :hex}
                     {[:src] :ipv4 [:ports] [:hex] [:in :a.b] :hex}]]
        (is (= shown (display/apply-hints hints value)))
        (is (= shown (display/apply-hints hints value
                                          {:type [:struct [:src :u32] [:ports [:array :u16 2]]
                                                  [:in [:struct [:a.b :u8]]]]}))))
      (is (= 16777226 (:src value)))))
  (testing "an element of an array can have a hint of its own"
    (is (= {:a [1 "0x2"]} (display/apply-hints {:a.1 :hex} {:a [1 2]}
                                               {:type [:struct [:a [:array :u8 2]]]}))))
  (testing "values that are not what their type says stay as they are"
    (let [odd (bytes/->bytes [1 2 3])]
      (is (= odd (shown :ipv4 :u32 odd)))
      (is (nil? (shown :ipv4 :u32 nil)))
      (is (= 70000 (shown :port-be :u32 70000))))))

(deftest v1-entries-of-a-spec
  (testing "a formatter of a spec shows entries, as pairs and as rows"
    (let [show (display/formatter {:src :ipv4 "value" :size}
                                  {:spec {:key [:struct [:src :u32be] [:port :u16]] :value :u64}})]
      (is (= [{:src "10.0.0.1" :port 1} "87.9K"] (show [{:src 0x0a000001 :port 1} 90000])))
      (is (= {:key {:src "10.0.0.1" :port 1} :value ["1B" "2B"] :change :added}
             (show {:key {:src 0x0a000001 :port 1} :value [1 2] :change :added}))
          "the values of several CPUs too")
      (is (= {:key {:src "10.0.0.1" :port 1}} (show {:key {:src 0x0a000001 :port 1}}))))))

;; --- names of this host

(def ^:private pid (delay (.pid (ProcessHandle/current))))

(defn- proc [path]
  (String. (procfs/read-bytes (str "/proc/" path))))

(kernel-test v2-names-of-this-host
  (testing "lo, this process, its user and its cgroup are named as the host names them"
    (let [lo (parse-long (str/trim (String. (procfs/read-bytes "/sys/class/net/lo/ifindex"))))
          uid (parse-long (second (re-find #"(?m)^Uid:\s+(\d+)" (proc "self/status"))))
          user (some #(let [[name _ id] (str/split % #":")] (when (= (str uid) id) name))
                     (str/split-lines (slurp "/etc/passwd")))
          command (str/trim-newline (proc "self/comm"))]
      (is (= "lo" (shown :ifname :u32 lo)))
      (is (= user (shown :user :u32 uid)))
      (is (= (str command "[" @pid "]") (shown :pid :u32 @pid)))
      (is (= (str command "[" @pid "]") (shown :pid-tgid :u64 (+ @pid (* 0x100000000 @pid)))))
      (is (= (str command "[" @pid "] thread 1")
             (shown :pid-tgid :u64 (inc (* 0x100000000 (long @pid))))))
      (is (= "idle[0]" (shown :pid :u32 0)))
      (is (= "root" (shown :group :u32 0)))
      (is (= "bpf" (shown :syscall :u32 (fixture/syscall-number "bpf"))))))
  (testing "a cgroup is named by its path, as in /proc/self/cgroup"
    (let [mount (some #(when (= "cgroup2" (:type %)) (:path %)) (procfs/mounts))
          own (some #(second (re-find #"^0::(.*)" %)) (str/split-lines (proc "self/cgroup")))]
      (if-not (and mount own)
        (fixture/skip! "no cgroup2 file system is mounted")
        (let [path (Path/of (str mount own) (make-array String 0))
              id (Files/getAttribute path "unix:ino" (make-array LinkOption 0))]
          (is (= own (shown :cgroup :u64 id)))))))
  (testing "numbers that refer to nothing are numbers, with the reason"
    (are [hint type n text] (= text (shown hint type n))
      :ifname :u32 987654 "987654 (no such interface)"
      :user :u32 4294967294 "4294967294 (no such user)"
      :group :u32 4294967294 "4294967294 (no such group)"
      :pid :u32 4294967294 "4294967294 (no such process)"
      :cgroup :u64 18446744073709551615N "18446744073709551615 (no such cgroup)"
      :syscall :u32 99999 "99999 (no such system call)"
      :ksym :u64 4096 "0x1000 (no kernel symbol)"
      :ksym :u64 9223372036854775807 "0x7fffffffffffffff (no kernel symbol)"
      :ksym :u64 18446744073709551615N "0xffffffffffffffff (no kernel symbol)"
      :usym :u64 4096 "0x1000 (no process given)"
      [:usym 4294967294] :u64 4096 "0x1000 (no process 4294967294)"))
  (testing "an address that is not mapped says so"
    (is (= "0x10 (not mapped)" (shown [:usym @pid] :u64 16)))))

(kernel-test v2-time-of-day
  (testing "times of the kernel's clocks are wall-clock times, within a second"
    (doseq [[hint clock] {:ktime :monotonic :ktime-boot :boottime}]
      (let [text (shown hint :u64 (clock/nanoseconds clock))
            millis (- (.toEpochMilli (Instant/parse text)) (System/currentTimeMillis))]
        (is (re-matches #"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z" text))
        (is (< -1000 millis 1000) text)))))

(kernel-test v2-kernel-symbols
  (testing "an address in a function of the kernel is its name and the distance"
    (let [[_ address name] (re-find #"(?m)^(f[0-9a-f]{15}) [tT] (vfs_read)$" (proc "kallsyms"))
          n (bigint (BigInteger. ^String address 16))]
      (is (= name (shown :ksym :u64 n)))
      (is (= [(str name "+0x1a") name] (shown :ksym [:array :u64 2] [(+ 26 n) n]))))))

(kernel-test v2-without-privileges
  (testing "what an unprivileged user cannot read is shown as the number, with the reason"
    (when (= "0" (str/trim (String. (procfs/read-bytes "/proc/sys/kernel/kptr_restrict"))))
      (is (= "0xffffffff81000010 (kernel symbols are hidden)"
             (fixture/unprivileged #(shown :ksym :u64 0xffffffff81000010)))))
    (is (= "0x480e (the memory of process 1 cannot be read)"
           (fixture/unprivileged #(shown [:usym 1] :u64 0x480e))))))

;; --- programs of processes

(defn- mapping-of
  "Returns the first address of the code of a file in a process."
  [pid file-name]
  (some #(when-let [[_ start] (re-find #"^([0-9a-f]+)-\S+ r-xp \S+ \S+ \S+ +(\S+)" %)]
           (when (str/includes? % file-name) (Long/parseUnsignedLong start 16)))
        (str/split-lines (proc (str pid "/maps")))))

(defn- with-process
  "Calls f with a pid while the command runs, as soon as it has mapped its libraries."
  [command f]
  (let [process (.start (ProcessBuilder. ^java.util.List command))]
    (try
      (fixture/eventually #(str/includes? (proc (str (.pid process) "/maps")) "libc"))
      (f (.pid process))
      (finally
        (.destroyForcibly process)
        (.waitFor process)))))

(kernel-test v2-files-by-name
  (testing "a user without privileges reads the files of own processes by their names"
    (let [address (mapping-of @pid "libc.so")
          name (shown [:usym @pid] :u64 address)]
      (is (str/includes? name "libc.so"))
      (is (= name (fixture/unprivileged #(shown [:usym @pid] :u64 address)))))))

(kernel-test v2-files-of-devices
  (testing "a mapped device is not opened"
    (is (nil? (#'symbols/readable-path @pid {:path "/dev/zero" :start 0 :end 4096})))
    (is (= (str "/proc/" @pid "/root/etc/passwd")
           (#'symbols/readable-path @pid {:path "/etc/passwd" :start 0 :end 4096})))))

(kernel-test v2-deleted-file
  (testing "a program whose file was deleted is still read"
    (let [dir (fixture/temporary-directory)
          file (io/file dir "sleeper")]
      (try
        (io/copy (io/file (fixture/executable "sleep")) file)
        (.setExecutable file true)
        (with-process [(str file) "30"]
          (fn [pid]
            (let [address (mapping-of pid "sleeper")
                  before (shown [:usym pid] :u64 address)]
              (.delete file)
              (is (str/includes? (proc (str pid "/maps")) "sleeper (deleted)"))
              (is (= before (shown [:usym pid] :u64 address)))
              (is (re-find #"sleeper" before)))))
        (finally
          (.delete file)
          (.delete dir))))))

(kernel-test v2-symbols-of-a-program
  (testing "a local function is named if the file has its symbols, and by build id if it is stripped"
    (if-not (and (fixture/executable "gcc") (fixture/executable "strip"))
      (fixture/skip! "gcc is not installed")
      (let [dir (fixture/temporary-directory)
            source (io/file dir "waits.c")
            file (str (io/file dir "waits"))
            run-it #(is (= 0 (:exit (fixture/run %))))
            address-of (fn [pid]
                         ;; The program prints the address of its function.
                         (loop []
                           (let [text (slurp (io/file dir "out"))]
                             (if (str/ends-with? text "\n")
                               (Long/decode (str/trim text))
                               (recur)))))
            shown-in (fn [pattern]
                       (spit (io/file dir "out") "")
                       (with-process ["sh" "-c" (str "exec " file " > " (io/file dir "out"))]
                         (fn [pid]
                           (is (re-matches pattern
                                           (shown [:usym pid] :u64
                                                  (+ 1 (long (address-of pid)))))))))]
        (try
          (spit source (str "#include <stdio.h>\n#include <unistd.h>\n"
                            "static __attribute__((noinline)) int waits(void) "
                            "{ return pause() + 1; }\n"
                            "int main(void) { printf(\"%p\\n\", (void *) waits); fflush(stdout); "
                            "return waits(); }\n"))
          (run-it ["gcc" "-O1" "-Wl,--build-id" "-o" file (str source)])
          (shown-in #"waits\+0x1 \(waits\)")
          (run-it ["strip" file])
          (shown-in #"waits\+0x[0-9a-f]+ \(build id [0-9a-f]{40}\)")
          (finally
            (run! #(.delete ^java.io.File %) (reverse (file-seq dir)))))))))

(defn- user-stack
  "Calls f with a map of stacks and a stack of this process in it."
  [spec f]
  (with-open [m ^java.io.Closeable (bpf/create (merge {:type :stack-trace :max-entries 64} spec))]
    (f m (bpf/lookup m (first (programs/record-stacks m :user))))))

(deftest any-value-is-shown
  (testing "every hint shows the smallest and the largest values of the types that it fits"
    (let [bytes-of #(bytes/->bytes (repeat % -1))
          extremes {:u8 [0 255] :s8 [-128 127] :u16 [0 65535] :u32 [0 4294967295]
                    :s32 [-2147483648 2147483647]
                    :u64 [0 9223372036854775807 9223372036854775808N 18446744073709551615N]
                    :s64 [-9223372036854775808 9223372036854775807]
                    :f64 [0.0 ##NaN ##Inf ##-Inf 1e300] :bool [true false] [:string 16] ["" "%s"]
                    [:bytes 4] [(bytes-of 4)] [:bytes 8] [(bytes-of 8)] [:bytes 16] [(bytes-of 16)]
                    [:array :u64 3] [[0 9223372036854775807 18446744073709551615N]]
                    [:array :u8 6] [(vec (repeat 6 255))] [:array :u8 16] [(vec (repeat 16 255))]
                    [:enum :u32 {:a 0}] [:a 77]}]
      (doseq [hint (concat (keys hints/table) [[:flags {:A 1}] [:enum {:A 1}] [:usym @pid]])
              [type values] extremes
              x values]
        (is (try
              (some? (shown hint type x))
              (catch clojure.lang.ExceptionInfo e ; the hint does not fit the type
                (= :invalid-value (:bpfmap/error (ex-data e)))))
            (pr-str hint type x))))))

(kernel-test v2-stacks-of-this-process
  (testing "the innermost frame of a stack of this process is a function of the C library"
    (user-stack {}
      (fn [m stack]
        (let [show (display/formatter {:value [:usym @pid]} {:spec (bpf/spec m)})
              [_ frames] (show [1 stack])]
          (is (= (count stack) (count frames)))
          (is (re-find #"^syscall\+0x[0-9a-f]+ \(libc\.so" (first frames)))))))
  (testing "frames with build ids name the same function"
    (user-stack {:flags #{:stack-build-id} :value-size 320}
      (fn [m stack]
        (let [show (display/formatter {:value :usym} {:spec (bpf/spec m)})
              [_ frames] (show [1 stack])]
          (is (= :valid (:status (first stack))))
          (is (re-find #"^syscall\+0x[0-9a-f]+ \(libc\.so" (first frames)))
          (is (= (str "build id 0101010101010101010101010101010101010101+0x20 "
                      "(no process has the file mapped)")
                 (first (second (show [1 [{:status :valid :offset 32
                                           :build-id (bytes/->bytes (repeat 20 1))}]])))))
          (testing "an offset beyond every file names no function"
            (is (re-find #"^libc\.so\S*\+0xffffffffffffffff \(build id [0-9a-f]{40}\)$"
                         (first (second (show [1 [(assoc (first stack) :offset
                                                         18446744073709551615N)]])))))))))
    (testing "and the kernel's frames are functions of the kernel"
      (with-open [m ^java.io.Closeable (bpf/create {:type :stack-trace :max-entries 64})]
        (let [stack (bpf/lookup m (first (programs/record-stacks m)))
              [_ frames] ((display/formatter {:value :ksym} {:spec (bpf/spec m)}) [1 stack])
              ;; Frames of programs have no names without net.core.bpf_jit_kallsyms.
              frames (drop-while #(str/includes? % "(no kernel symbol)") frames)]
          (is (seq frames))
          (is (every? #(re-find #"^[a-zA-Z_][\w.]*(\+0x[0-9a-f]+)?( \[\w+\])?$" %) (rest frames))
              frames)))))
  (testing "the process can be a field, also as the result of bpf_get_current_pid_tgid"
    (user-stack {}
      (fn [_ [address]]
        (doseq [process [@pid (+ 7 (* 0x100000000 (long @pid)))]]
          (is (re-find #"^syscall" (:ip (display/apply-hints {:ip [:usym :pid]}
                                                             {:pid process :ip address})))))))))

(def ^:private library-source
  "static int __attribute__((noinline)) lib_static(int n) {
     volatile int s = 0; for (int i = 0; i < n; i++) s += i; return s; }
   int __attribute__((noinline)) lib_work(int n) { return lib_static(n) + 1; }\n")

(def ^:private program-source
  "int lib_work(int);
   static int __attribute__((noinline)) own_static(int n) {
     volatile int s = 0; for (int i = 0; i < n; i++) s += i; return s; }
   int __attribute__((noinline)) own_global(int n) { return own_static(n) + 1; }
   int main(void) { int s = 0; for (;;) s += own_global(20000) + lib_work(20000); return s; }\n")

(defn- frames
  "Returns all frames of stacks as a hint shows them."
  [hint spec stacks]
  (let [show (display/formatter {:value hint} {:spec spec})]
    (mapcat #(second (show [1 %])) stacks)))

(def ^:private function-of "Returns the function in the text of a frame." #(first (str/split % #"[+ ]")))

(defn- sampled-stacks
  "Calls f with the spec of a map of stacks, and stacks of a process in all functions."
  [pid hint spec f]
  (with-open [m ^java.io.Closeable (bpf/create (merge {:type :stack-trace :max-entries 1024} spec))
              p ^java.io.Closeable (prog/load {:type :perf-event
                                               :insns [[:lddw :r2 m]
                                                       [:mov64 :r3 256] ; BPF_F_USER_STACK
                                                       [:call :get-stackid]
                                                       [:mov64 :r0 0]
                                                       [:exit]]})
              _ ^java.io.Closeable (link/attach p {:perf-event {:type :software :event :cpu-clock
                                                                :frequency 999}
                                                   :pid pid})]
    (let [spec (bpf/spec m)
          all? (fn [stacks]
                 (every? (set (map function-of (frames hint spec stacks)))
                         #{"own_static" "own_global" "lib_static" "lib_work" "main"}))]
      (f spec (fixture/eventually #(let [found (vals (into {} m))] (when (all? found) found)))))))

(defn- address->function
  "Asks addr2line for the function at an address in a file."
  [file address]
  (first (str/split-lines (:out (fixture/run ["addr2line" "-f" "-e" (str file)
                                              (format "0x%x" address)])))))

(defn- mapping-at [pid address]
  (some (fn [{:keys [start end] :as mapping}]
          (when (<= (long start) (long address) (dec (long end))) mapping))
        (#'symbols/mappings pid)))

(kernel-test ^:volume v2-stacks-against-addr2line
  (testing "all frames of a program and its library have the functions that addr2line finds"
    (if-not (and (fixture/executable "gcc") (fixture/executable "addr2line"))
      (fixture/skip! "gcc or addr2line is not installed")
      (let [dir (io/file (str (fixture/temporary-directory)))
            in-dir #(str (io/file dir %))
            gcc (fn [& args]
                  (is (= 0 (:exit (fixture/run (into ["gcc" "-g" "-O1" "-fno-omit-frame-pointer"
                                                      "-fno-optimize-sibling-calls"
                                                      "-Wl,--build-id"]
                                                     args))))))
            of (fn [& names] #(some (fn [n] (str/ends-with? % (str " (" n ")"))) names))]
        (try
          (spit (in-dir "lib.c") library-source)
          (spit (in-dir "main.c") program-source)
          (gcc "-fPIC" "-shared" "-o" (in-dir "libw.so") (in-dir "lib.c"))
          (doseq [[program flags] {"moves" ["-pie" "-fPIE"] "stays" ["-no-pie"]}]
            (apply gcc (concat flags ["-o" (in-dir program) (in-dir "main.c") (str "-L" dir) "-lw"
                                      (str "-Wl,-rpath," dir)]))
            (with-process [(in-dir program)]
              (fn [pid]
                (testing (str program ", by addresses")
                  (sampled-stacks pid [:usym pid] {}
                    (fn [spec stacks]
                      (let [texts (frames [:usym pid] spec stacks)]
                        (doseq [[address text] (zipmap (apply concat stacks) texts)
                                :let [{:keys [path start offset]} (mapping-at pid address)]
                                :when (str/starts-with? (str path) (str dir))]
                          (is (= (function-of text)
                                 (address->function path (if (= path (in-dir "stays"))
                                                           address
                                                           (+ offset (- address start)))))
                              text))
                        (when (= "stays" program)
                          (testing "addresses of a program that does not move need no process"
                            (is (= (filter (of "stays") texts)
                                   (filter (of "stays")
                                           (frames [:usym (in-dir "stays")] spec stacks))))))))))
                (testing (str program ", by build ids, also of files that no process has mapped")
                  (sampled-stacks pid :usym {:flags #{:stack-build-id} :value-size 640}
                    (fn [spec stacks]
                      (let [before (frames :usym spec stacks)]
                        (.ifPresent (ProcessHandle/of pid)
                                    (fn [^ProcessHandle p] (.destroyForcibly p)))
                        (is (fixture/eventually
                             #(some (fn [text] (str/includes? text "no process has the file"))
                                    (frames :usym spec stacks))))
                        (is (= (filter (of program "libw.so") before)
                               (filter (of program "libw.so")
                                       (frames [:usym (str dir)] spec stacks))))
                        (is (= (filter (of program) before)
                               (filter (of program "libw.so")
                                       (frames [:usym (in-dir program)] spec stacks)))))))))))
          (finally
            (run! #(.delete ^java.io.File %) (reverse (file-seq dir)))))))))

(kernel-test v2-enums-of-the-kernel
  (testing "enums of the kernel are found by name, or by one of their values"
    (is (= "BPF_MAP_TYPE_HASH" (shown [:enum :bpf_map_type] :u32 1)))
    (is (= "BPF_F_NO_PREALLOC" (shown [:flags "BPF_F_NO_PREALLOC"] :u32 1)))))

;; --- hints that are wrong

(defn- refusal [hints options]
  (let [{:keys [message] :bpfmap/keys [error]}
        (fixture/caught #(display/formatter hints options))]
    [error message]))

(deftest v3-wrong-hints
  (testing "a wrong hint is an error before a value is seen"
    (are [hints type message] (= [:invalid-value message] (refusal hints {:type type}))
      {:a :ipv5} [:struct [:a :u32]] "Unknown hint \"ipv5\": did you mean ipv4 or ipv6?"
      {:b :hex} [:struct [:a :u32]] "Unknown field b: the fields are a"
      {:byte :hex} [:struct [:bytes :u32]] "Unknown field byte: did you mean bytes?"
      {:a :ipv4} [:struct [:a :u64]]
      "The field a must be 4 bytes in network byte order for the hint ipv4, got u64"
      :mac :u32 "The value must be 6 bytes for the hint mac, got u32"
      {:a :hex} [:struct [:a [:struct [:b :u8] [:c :u8]]]]
      "The field a must be an integer or bytes for the hint hex, got a struct: name one of its fields, such as a.b or a.c"
      {:a :ktime} [:struct [:a [:string 8]]]
      "The field a must be an integer of 8 bytes for the hint ktime, got [string 8]"
      {:a :flags} [:struct [:a :u32]]
      "The field a must be an enum for the hint flags without a parameter, got u32: name an enum, such as [flags BPF_F_NO_PREALLOC], or give {SYN 1 ACK 2}"
      {:a [:flags 7]} [:struct [:a :u32]]
      "The hint flags must have an enum, got [:flags 7]: such as [flags {SYN 1 ACK 2}] or [flags BPF_F_NO_PREALLOC]"
      {:a [:flags :no_such_enum]} [:struct [:a :u32]]
      "Unknown enum \"no_such_enum\": the types of the map and of the kernel have no enum of this name, and none with such a value"
      {:a :enum} [:struct [:a :u32]]
      "The hint enum must have one parameter, an enum, got :enum: such as [flags {SYN 1 ACK 2}] or [flags BPF_F_NO_PREALLOC]"
      {:a [:hex 2]} [:struct [:a :u32]] "The hint hex must have no parameter, got [:hex 2]"
      {:a [:usym -1]} [:struct [:a :u64]]
      "The hint usym must have the process: a pid, the field that has it, or a file, got [:usym -1]: such as [usym 4711], [usym key.pid] or [usym \"/usr/bin/app\"]"
      {:a [:usym "/no/such/file"]} [:struct [:a :u64]]
      "The file of the hint usym must be an ELF file, or a directory with ELF files, got \"/no/such/file\""
      {:a :hex "a" :octal} [:struct [:a :u32]] "The field a must have one hint, got 2"
      {:a 7} [:struct [:a :u32]]
      (str "Unknown hint 7: the hints are " (str/join ", " (map name (keys display/hints))))
      {7 :hex} [:struct [:a :u32]]
      "A field must be a name or a path, got 7: such as :src, \"value.src\" or [:value :src]")
    (is (= [:invalid-value "Hints must be a map of fields to hints, got 7: such as {:src :ipv4}"]
           (refusal 7 {:spec {:key :u32 :value :u32}})))))

(deftest v3-references
  (testing "values that are read as references have a field"
    (let [spec {:type :hash-of-maps :key :u32 :value :u32}]
      (is (= [1 {:map-id "0x7"}]
             ((display/formatter {:map-id :hex} {:spec spec}) [1 {:map-id 7}])))
      (is (= [:invalid-value
              "The field value must be an integer or bytes for the hint hex, got a struct: name one of its fields, such as value.map-id"]
             (refusal {:value :hex} {:spec spec}))))))

(deftest v3-values-without-type
  (testing "a value without a type must have the fields"
    (let [show (display/formatter {:a.b :hex})]
      (is (= {:a {:b "0x1"}} (show {:a {:b 1}})))
      (is (= {:a nil} (show {:a nil})))
      (is (= [:invalid-value "Unknown field a.b: the value has no such field"]
             (let [{:keys [message] :bpfmap/keys [error]} (fixture/caught #(show {:a {:c 1}}))]
               [error message]))))
    (is (= [:invalid-value "Unknown option :typ: did you mean :type or :types?"]
           (refusal {:a :hex} {:typ :u32})))))

(deftest table-of-hints
  (testing "every hint says what it is and what it fits"
    (is (< 25 (count display/hints)))
    (doseq [[name {:keys [meaning of]}] display/hints]
      (is (re-matches #"(a|an) .*[^.]" meaning) name)
      (is (re-matches #".*[^.]" of) name))))

(kernel-test interfaces-of-the-namespace
  (testing "interfaces are those of the thread's network namespace, also if sysfs shows others"
    (if-not (fixture/executable "ip")
      (fixture/skip! "ip is not installed")
      (links/in-network-namespace
       (fn []
         (doseq [name ["v0" "v1"]]
           (is (= name (shown :ifname :u32 (call/interface-index name)))))
         (is (= "987654 (no such interface)" (shown :ifname :u32 987654))))))))
