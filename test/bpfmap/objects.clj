(ns bpfmap.objects
  "Kernel objects for the maps that hold them or are keyed by them: sockets, perf events, cgroups,
  processes, files; and a user namespace with a BPF file system for tokens.

  Each object is a map with the number of its descriptor under `:fd`, and goes when it is closed."
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.linux :as linux :refer [call close constant held or-close pack unpack]]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str])
  (:import (java.io File)
           (java.lang ProcessHandle)
           (java.nio.file Files LinkOption Path)))

(set! *warn-on-reflection* true)

;; --- sockets

(def ^:private sockaddr-in [:struct [:family :u16] [:port :port] [:address :ipv4] [:pad 8]])

(defn- address ^bytes [port]
  (pack sockaddr-in {:family (constant "AF_INET") :port port :address "127.0.0.1"}))

(defn- socket [family type]
  (call "socket" (constant family) (bit-or (constant type) (constant "SOCK_CLOEXEC")) 0))

(defn- port-of
  "The port that a socket is bound to."
  [fd]
  (let [memory (byte-array 16)]
    (call "getsockname" fd memory (pack :u32 16))
    (:port (unpack sockaddr-in memory))))

(defn- bound
  "The number of a socket bound to a free port of the loopback address, listening if it can."
  [type options]
  (let [fd (socket "AF_INET" type)]
    (or-close fd
      (doseq [option options]
        (call "setsockopt" fd (constant "SOL_SOCKET") (constant option) (pack :s32 1) 4))
      (call "bind" fd (address 0) 16)
      (when (= "SOCK_STREAM" type)
        (call "listen" fd 8))
      fd)))

(defn- of-number [fd & {:as more}]
  (held (assoc more :fd fd) #(close fd)))

(defn tcp-listener
  "A listening TCP socket on the loopback address: `{:fd :port}`."
  ^java.io.Closeable []
  (let [fd (bound "SOCK_STREAM" [])]
    (of-number fd :port (port-of fd))))

(defn udp-socket
  "A UDP socket bound to the loopback address: `{:fd :port}`."
  ^java.io.Closeable []
  (let [fd (bound "SOCK_DGRAM" [])]
    (of-number fd :port (port-of fd))))

(defn unbound-socket
  "A TCP socket that is neither bound nor connected: `{:fd}`. Maps of sockets refuse it."
  ^java.io.Closeable []
  (of-number (socket "AF_INET" "SOCK_STREAM")))

(defn tcp-connection
  "An established TCP connection over loopback: `{:fd :server}`, the client's end and the server's."
  ^java.io.Closeable []
  (with-open [listener (tcp-listener)]
    (let [client (socket "AF_INET" "SOCK_STREAM")]
      (or-close client
        (call "connect" client (address (:port listener)) 16)
        (let [server (call "accept4" (:fd listener) 0 0 (constant "SOCK_CLOEXEC"))]
          (held {:fd client :server server} #(close client server)))))))

(defn unix-pair
  "Two connected UNIX stream sockets: `{:fd :peer}`."
  ^java.io.Closeable []
  (let [pair (byte-array 8)]
    (call "socketpair" (constant "AF_UNIX")
          (bit-or (constant "SOCK_STREAM") (constant "SOCK_CLOEXEC")) 0 pair)
    (let [[fd peer] (unpack [:array :s32 2] pair)]
      (held {:fd fd :peer peer} #(close fd peer)))))

(defn reuseport-socket
  "A socket that a REUSEPORT_SOCKARRAY takes, `:tcp` or `:udp`: `{:fd :port}`.

  The kernel wants SO_REUSEPORT set before bind(2), and a TCP socket to be
  listening; else EINVAL. The same socket is in one such map at a time: EBUSY."
  ^java.io.Closeable [protocol]
  (let [fd (bound ({:tcp "SOCK_STREAM" :udp "SOCK_DGRAM"} protocol) ["SO_REUSEPORT"])]
    (of-number fd :port (port-of fd))))

(defn xdp-socket
  "An AF_XDP socket with a receive ring, or with the rings given: `{:fd}`. An XSKMAP takes it
  without memory and without an interface."
  (^java.io.Closeable [] (xdp-socket ["XDP_RX_RING"]))
  (^java.io.Closeable [rings]
   (let [fd (socket "AF_XDP" "SOCK_RAW")]
     (linux/or-close fd
       (doseq [ring rings]
         (call "setsockopt" fd (constant "SOL_XDP") (constant ring) (pack :u32 64) 4))
       (of-number fd)))))

;; --- perf events

(def ^:private perf-event-attr
  "The first version of `struct perf_event_attr`."
  [:struct [:type :u32] [:size :u32] [:config :u64] [:period :u64] [:sample :u64] [:pad 32]])

(defn perf-event
  "A software event of a CPU into which programs write, as PERF_EVENT_ARRAY holds them: `{:fd
  :cpu}`."
  ^java.io.Closeable [cpu]
  (let [attr (pack perf-event-attr {:type (constant "PERF_TYPE_SOFTWARE")
                                    :size (constant "PERF_ATTR_SIZE_VER0")
                                    :config (constant "PERF_COUNT_SW_BPF_OUTPUT")
                                    :period 1
                                    :sample (constant "PERF_SAMPLE_RAW")})]
    (of-number (call "perf_event_open" attr -1 cpu -1 (constant "PERF_FLAG_FD_CLOEXEC")) :cpu cpu)))

;; --- files and processes

(defn- open-file [path]
  (call "openat" (constant "AT_FDCWD") (str path)
        (bit-or (constant "O_RDONLY") (constant "O_CLOEXEC"))))

(defn file
  "A temporary file, open for reading: `{:path :fd}`."
  ^java.io.Closeable []
  (let [file (File/createTempFile "bpfmap" ".file")
        fd (open-file file)]
    (held {:path (str file) :fd fd}
          #(do (close fd) (.delete file)))))

(defn- pidfd-of [pid]
  (call "pidfd_open" pid 0))

(defn this-process
  "This process by a pidfd: `{:pid :fd}`."
  ^java.io.Closeable []
  (let [pid (.pid (ProcessHandle/current))]
    (of-number (pidfd-of pid) :pid pid)))

(defn child-process
  "A child process that sleeps, started by words in front of that: by a pidfd, `{:pid :fd
  :process}`. Closing it ends the child."
  ^java.io.Closeable [& words]
  (let [nothing (File. "/dev/null")
        ;; Without pipes, which the JVM closes when it likes
        process (.start (doto (ProcessBuilder. ^java.util.List (concat words ["sleep" "600"]))
                          (.redirectInput nothing)
                          (.redirectOutput nothing)
                          (.redirectError nothing)))
        end #(do (.destroyForcibly process) (.waitFor process))]
    (try
      (let [fd (pidfd-of (.pid process))]
        (held {:pid (.pid process) :fd fd :process process}
              #(do (close fd) (end))))
      (catch Throwable e
        (end)
        (throw e)))))

(defn others-process
  "A child process of another user, as [[child-process]]: who is neither that user nor privileged
  may not trace it."
  ^java.io.Closeable []
  (let [{:keys [pid] :as child} (child-process "setpriv" "--reuid=65533" "--clear-groups")]
    (when-not (fixture/eventually
               #(re-find #"Uid:\s+65533\s"
                         (:out (fixture/run ["cat" (str "/proc/" pid "/status")]))))
      (throw (ex-info "the process did not change its user" {:pid pid})))
    child))

;; --- cgroups

(defn- mount-of-cgroup2
  "Where a cgroup2 hierarchy is mounted, or nil."
  []
  (some (fn [line]
          ;; Six fields or more, a dash, the type; the fifth is the place, its blanks as \040.
          (let [[fields [_ type]] (split-with #(not= "-" %) (str/split line #" "))]
            (when (= "cgroup2" type) (nth fields 4))))
        (Files/readAllLines (Path/of "/proc/self/mountinfo" (make-array String 0)))))

(def ^:private cgroup2
  (delay
    (or (mount-of-cgroup2)
        (let [dir (fixture/temporary-directory)
              {:keys [exit err]} (fixture/run ["mount" "-t" "cgroup2" "none" (str dir)])]
          (when-not (zero? exit)
            (throw (ex-info (str "mount -t cgroup2 failed: " err) {})))
          (.addShutdownHook (Runtime/getRuntime)
                            (Thread. ^Runnable (fn []
                                                 (fixture/run ["umount" "-l" (str dir)])
                                                 (.delete dir))))
          (str dir)))))

(def ^:private names (atom 0))

(defn- remove-directory
  "Removes a cgroup. Its processes have ended, but the kernel may still be about to take them out."
  [^File dir]
  (when-not (fixture/eventually #(.delete dir))
    (throw (ex-info (str "the cgroup is still in use: " dir)
                    {:processes (slurp (io/file dir "cgroup.procs"))}))))

(defn cgroup
  "A new cgroup without processes: `{:path :fd :id}`, the id that programs see. Closing it removes
  it."
  ^java.io.Closeable []
  (let [dir (io/file @cgroup2
                     (str "bpfmap-test-" (.pid (ProcessHandle/current)) "-" (swap! names inc)))]
    (when-not (.mkdir dir)
      (throw (ex-info (str "cannot make the cgroup " dir) {})))
    (try
      (let [fd (open-file dir)]
        (held {:path (str dir)
               :fd fd
               :id (Files/getAttribute (.toPath dir) "unix:ino" (make-array LinkOption 0))}
              #(do (close fd) (remove-directory dir))))
      (catch Throwable e
        (.delete dir)
        (throw e)))))

;; --- tokens

(def ^:private delegated
  "Returns the path of delegated.c compiled; nil without a compiler."
  (delay
    (when-let [cc (some fixture/executable ["cc" "gcc" "clang"])]
      (let [dir (fixture/temporary-directory)
            program (io/file dir "delegated")
            {:keys [exit err]} (fixture/run [cc "-O1" "-Wall" "-Wextra" "-o" (str program)
                                             (str (io/file (io/resource "bpfmap/delegated.c")))])]
        (.addShutdownHook (Runtime/getRuntime)
                          (Thread. ^Runnable (fn [] (.delete program) (.delete dir))))
        (when-not (zero? exit)
          (throw (ex-info (str "the C compiler failed: " err) {})))
        (str program)))))

(defn run-delegated
  "Runs a command as root of a new user namespace, in which a directory is a BPF file system that
  delegates everything.

  Outside the command has no capability at all: what it makes of BPF it makes with a token of that
  file system, which nobody else sees. Files belong to whom they do outside. Returns `{:exit :out
  :err}`, an exit of 125 when the command was not begun, as on Linux before 6.9; nil where there
  is no C compiler.

      (run-delegated \"/tmp/bpffs\" [\"ls\" \"/tmp/bpffs\"])"
  [dir command]
  (when-let [program @delegated]
    (fixture/run (into [program (str dir)] command))))

(defn try-token
  "What the kernel answers in there, 0 or a negated errno: `{:without n :token n :with n :uid 0}`.

  They are for creating a map without a token, for creating the token, and for creating the map
  with it. Nil without a C compiler; throws errors of earlier steps."
  [dir]
  (when-let [program @delegated]
    (let [{:keys [exit out err]} (run-delegated dir [program "--try-token" (str dir)])]
      (if (zero? exit)
        (edn/read-string out)
        (throw (ex-info err {:exit exit}))))))
