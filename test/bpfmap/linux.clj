(ns bpfmap.linux
  "System calls by name, for tests that need what the library has no use for: sockets, perf
  events, pidfds.

  The constants are data, which `bpfmap.objects-test` compares with the C headers."
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.errno :as errno])
  (:import (bpfmap.sys Abi Bytes Codec)
           (java.io Closeable)
           (java.lang.foreign Arena FunctionDescriptor Linker Linker$Option MemoryLayout
                              MemorySegment ValueLayout)
           (java.lang.invoke MethodHandle)))

(set! *warn-on-reflection* true)

(def constants
  "Expressions of C to their values, the same on all these processors."
  {"AF_INET" 2, "AF_UNIX" 1, "AF_PACKET" 17, "CLONE_NEWNET" 0x40000000, "AF_XDP" 44, "SOCK_STREAM" 1, "SOCK_DGRAM" 2, "SOCK_RAW" 3
   "SOCK_CLOEXEC" 02000000
   "SOL_SOCKET" 1, "SO_REUSEPORT" 15, "SOL_XDP" 283, "XDP_RX_RING" 2, "XDP_TX_RING" 3
   "PROT_READ" 1, "MAP_SHARED" 1
   "AT_FDCWD" -100, "O_RDONLY" 0, "O_CLOEXEC" 02000000
   "PERF_TYPE_SOFTWARE" 1, "PERF_COUNT_SW_BPF_OUTPUT" 10, "PERF_SAMPLE_RAW" 1024
   "PERF_FLAG_FD_CLOEXEC" 8
   "PERF_ATTR_SIZE_VER0" 64
   "BPF_PROG_ATTACH" 8, "BPF_PROG_DETACH" 9, "BPF_CGROUP_INET_EGRESS" 1, "BPF_F_ALLOW_MULTI" 2
   "BPF_F_USER_STACK" 256
   "PR_SET_NO_NEW_PRIVS" 38, "SECCOMP_SET_MODE_FILTER" 1, "SECCOMP_RET_ALLOW" 0x7fff0000
   "SECCOMP_RET_ERRNO" 0x50000
   "offsetof(struct seccomp_data, nr)" 0, "offsetof(struct seccomp_data, args)" 16
   "offsetof(union bpf_attr, target_fd)" 0, "offsetof(union bpf_attr, attach_bpf_fd)" 4
   "offsetof(union bpf_attr, attach_type)" 8, "offsetof(union bpf_attr, attach_flags)" 12
   "offsetof(union bpf_attr, expected_attach_type)" 68
   "offsetof(union bpf_attr, attach_btf_id)" 108
   "offsetof(union bpf_attr, btf_vmlinux_value_type_id)" 60})

(defn constant
  "The value of a C expression that is in [[constants]]."
  [expression]
  (or (constants expression) (throw (ex-info (str "add it to the constants: " expression) {}))))

(defn attr-field
  "Where a field of `union bpf_attr` lies."
  [field]
  (constant (str "offsetof(union bpf_attr, " field ")")))

;; --- memory

(defn pack
  "A value as the bytes of its type."
  ^bytes [type value]
  (let [^Codec c (codec/codec type)]
    (with-open [arena (Arena/ofConfined)]
      (let [memory (.allocate arena (.size c) 8)]
        (.encode c value memory 0)
        (Bytes/copyOut memory 0 (int (.size c)))))))

(defn unpack
  "The value that bytes are of a type."
  [type ^bytes bytes]
  (.decode ^Codec (codec/codec type) (MemorySegment/ofArray bytes) 0))

(defn- in-memory
  "What stands for an argument in the system call: a number itself, the address of a copy of
  anything else."
  [^Arena arena x]
  (cond
    (bytes? x) (let [memory (.allocate arena (max 1 (alength ^bytes x)) 8)]
                 (Bytes/copyIn x memory 0)
                 {:bytes x :memory memory :word (.address memory)})
    (string? x) (recur arena (.getBytes (str x "\u0000") "UTF-8"))
    :else {:word x}))

(defn answer
  "Makes a system call; returns what the kernel answers, a negated errno included.

  A byte array is passed by its address and holds afterwards what the kernel wrote there; a text
  is passed with a NUL."
  [name & args]
  (with-open [arena (Arena/ofConfined)]
    (let [args (mapv #(in-memory arena %) args)
          result (apply fixture/syscall name (map :word args))]
      (doseq [{:keys [bytes memory]} args :when bytes]
        (Bytes/fill memory 0 bytes))
      result)))

(defn said
  "What the kernel returned by name: `:ok` for 0, else the name of the errno, or its number where
  it has none here."
  [answer]
  (if (zero? (long answer)) :ok (errno/errno-name (- (long answer)))))

(defn failed
  "The exception for a negated errno."
  [what result]
  (let [errno (said result)]
    (ex-info (str what " answered " errno) {:what what :errno errno})))

(defn call
  "Does the same as [[answer]], but throws an error, with its name under `:errno`."
  [name & args]
  (let [result (apply answer name args)]
    (if (neg? (long result))
      (throw (failed name result))
      result)))

;; --- kernels that lack something

(defn- refusing
  "The code of a seccomp filter, as `[code jt jf k]`, that answers system calls as `rules` say."
  [rules]
  (let [load 0x20, jump-if-equal 0x15, jump-if-greater 0x25, return 0x06
        word #(vector load 0 0 %)
        argument #(word (+ (long (constant "offsetof(struct seccomp_data, args)")) (* 8 (long %))))
        of-rule (fn [{:keys [call arguments longer-than errno]}]
                  (let [tests (concat [[(word (constant "offsetof(struct seccomp_data, nr)"))
                                        jump-if-equal (or call Abi/SYS_BPF)]]
                                      (for [[i x] arguments] [(argument i) jump-if-equal x])
                                      (when longer-than
                                        [[(argument 2) jump-if-greater longer-than]]))
                        end (* 2 (count tests))]
                    (concat (mapcat (fn [i [load test k]]
                                      [load [test 0 (- end (* 2 (long i)) 1) k]]) (range) tests)
                            [[return 0 0
                              (bit-or (long (constant "SECCOMP_RET_ERRNO")) (long errno))]])))]
    (concat (mapcat of-rule rules) [[return 0 0 (constant "SECCOMP_RET_ALLOW")]])))

(defn on-a-kernel-that-refuses
  "Calls f on a thread of its own on which the kernel refuses system calls, and returns what it
  returns.

  `rules` are maps of the number of an `:errno` and what it is the answer to: `:arguments`, the
  lower halves of arguments by their index, of the `:call` with a number, bpf(2) unless that is
  given; and `:longer-than`, where only a longer `union bpf_attr` is refused, as one with a field
  is that the kernel does not know. A seccomp filter answers in the kernel's place."
  [rules f]
  (let [code (refusing rules)
        result (promise)]
    (fixture/join
     (fixture/thread
       (fn []
         (deliver result
                  (try
                    (with-open [arena (Arena/ofConfined)]
                      (let [filter (.allocate arena (* 8 (count code)) 8)
                            program (.allocate arena 16 8)]
                        (doseq [[i [op jt jf k]] (map-indexed vector code)]
                          (Bytes/copyIn (pack [:struct [:code :u16] [:jt :u8] [:jf :u8] [:k :u32]]
                                              {:code op :jt jt :jf jf :k k})
                                        filter (* 8 (long i))))
                        (Bytes/copyIn (pack [:struct [:length :u64] [:filter :u64]]
                                            {:length (count code) :filter (.address filter)})
                                      program 0)
                        (call "prctl" (constant "PR_SET_NO_NEW_PRIVS") 1 0 0 0)
                        (call "seccomp" (constant "SECCOMP_SET_MODE_FILTER") 0 (.address program))))
                    [:value (f)]
                    (catch Throwable e [:thrown e]))))))
    (let [[kind x] @result]
      (if (= :thrown kind) (throw x) x))))

;; --- memory of files

(def ^:private mmap
  "The C library's function: a system call of six arguments, one more than the library makes."
  (delay
    (let [linker (Linker/nativeLinker)
          word ValueLayout/JAVA_LONG
          number ValueLayout/JAVA_INT]
      (.downcallHandle linker
                       ^MemorySegment (.get (.find (.defaultLookup linker) "mmap"))
                       (FunctionDescriptor/of word
                                              (into-array
                                               MemoryLayout [word word number number number word]))
                       (make-array Linker$Option 0)))))

(defn maps-page?
  "Whether the kernel maps the first `size` bytes of a descriptor's file for reading, shared. They
  are unmapped at once."
  [fd size]
  (let [address (.invokeWithArguments ^MethodHandle @mmap
                                      ^java.util.List (list 0 (long size)
                                                            (int (constant "PROT_READ"))
                                                            (int (constant "MAP_SHARED")) (int fd)
                                                            0))]
    (when-not (= -1 address)
      (call "munmap" address size))
    (not= -1 address)))

;; --- owned objects

;; Whatever a test made, with the number of its descriptor under :fd; closing it undoes the
;; making, once.
(defrecord Held [fd undo]
  Closeable
  (close [_] @undo))

(defn held
  "Returns a closeable map of created objects; closing it runs f, the first time."
  ^java.io.Closeable [what f]
  (map->Held (assoc what :undo (delay (f)))))

(defn close
  "Closes descriptors by their numbers."
  [& numbers]
  (run! #(call "close" %) numbers))

(defmacro or-close
  "Runs body; closes the descriptor if it throws."
  [number & body]
  `(try
     ~@body
     (catch Throwable e#
       (close ~number)
       (throw e#))))
