(ns ^:no-doc bpfmap.impl.object.externs
  "Finds what an object declares and the running kernel defines.

  These are values of the kernel's configuration, addresses of its symbols, and the ids of its
  functions, variables and structs in its BTF."
  (:require [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.host.kernel-btf :as kernel-btf]
            [bpfmap.impl.host.syscalls :as syscalls]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.config :as config]
            [bpfmap.impl.kernel.lacks :as lacks]
            [bpfmap.impl.kernel.probe :as kernel.probe]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.impl.object.load-error :refer [invalid]]
            [bpfmap.impl.type.node :as node]
            [bpfmap.error :as error]
            [clojure.string :as str])
  (:import (java.io BufferedReader IOException InputStreamReader)
           (java.nio ByteBuffer ByteOrder)
           (java.nio.charset StandardCharsets)))

(set! *warn-on-reflection* true)

(defn- not-found ^Throwable [path message hint]
  (error/error :not-found message {:bpfmap/op :load :bpfmap/path path :bpfmap/hint hint}))

;; --- the configuration of the kernel

(defn- read-bytes ^bytes [file]
  (try (procfs/read-bytes file) (catch IOException _ nil)))

(defn- version-number
  "Returns the number of a version, `a << 16 | b << 8 | c`."
  [text]
  (when-let [[_ a b c] (some->> text (re-find #"(\d+)\.(\d+)(?:\.(\d+))?"))]
    (bit-or (bit-shift-left (parse-long a) 16)
            (bit-shift-left (parse-long b) 8)
            (min 255 (parse-long (or c "0"))))))

(defn kernel-version
  "Returns the version of the running kernel as LINUX_KERNEL_VERSION has it.

  Releases of Ubuntu and Debian do not have the last number, which is in other files."
  []
  (let [text (fn [file] (some-> (read-bytes file) (String. StandardCharsets/UTF_8) str/trim))]
    (or (version-number (some-> (text "/proc/version_signature") (str/split #" ") (nth 2 nil)))
        (version-number (second (re-find #"Debian (\S+)"
                                         (or (text "/proc/sys/kernel/version") ""))))
        (version-number (call/kernel-release))
        0)))

(def ^:private with-cookie
  "Instructions that call bpf_get_attach_cookie and return, as bytes."
  (let [buffer (doto (ByteBuffer/allocate 24) (.order (ByteOrder/nativeOrder)))]
    (doseq [[code imm] [[0x85 174] [0xb7 0] [0x95 0]]]
      (.put buffer (unchecked-byte code))
      (.put buffer (byte 0))
      (.putShort buffer (short 0))
      (.putInt buffer (int imm)))
    (.array buffer)))

(def ^:private virtual
  "Values that no configuration has, by name, as delays of numbers."
  {"LINUX_KERNEL_VERSION" (delay (kernel-version))
   ;; Type 5 is a tracepoint.
   "LINUX_HAS_BPF_COOKIE" (delay (if (nat-int? (:outcome (kernel.probe/load-program
                                                          {:type 5 :insns with-cookie}
                                                          {:op :load})))
                                   1 0))
   "LINUX_HAS_SYSCALL_WRAPPER" (delay (if (syscalls/wrapper (System/getProperty "os.arch")
                                                            (call/kernel-release))
                                        1 0))})

(defn has-cookies?
  "Returns true if programs of this kernel can read the cookie of their link."
  []
  (= 1 @(virtual "LINUX_HAS_BPF_COOKIE")))

(def ^:private tristate {"n" 0 "y" 1 "m" 2})

(defn- parsed-number [text]
  (try
    (BigInteger. ^String (str/replace text #"^(-?)0[xX]" "$1")
                 (int (if (re-find #"^-?0[xX]" text) 16 10)))
    (catch NumberFormatException _ nil)))

(defn- number-bytes
  "Returns a number in as many bytes; nil if it does not fit."
  [n size signed?]
  (let [n (biginteger n)
        bits (* 8 (long size))]
    (when (if signed?
            (< (.bitLength n) bits)
            (and (<= 0 (.signum n)) (<= (.bitLength n) bits)))
      (let [little (byte-array size)]
        (dotimes [i size]
          (aset little i (unchecked-byte (.longValue (.shiftRight n (* 8 i))))))
        (if (= ByteOrder/BIG_ENDIAN (ByteOrder/nativeOrder))
          (byte-array (reverse little))
          little)))))

(defn- text-bytes
  "Returns a text with NULs up to a size, cut so that one NUL fits."
  [^String text size]
  (let [all (.getBytes text StandardCharsets/UTF_8)
        kept (min (alength all) (dec (long size)))]
    (java.util.Arrays/copyOf (java.util.Arrays/copyOf all (int kept)) (int size))))

(defn encode-config
  "Returns the bytes of a value of the configuration for a type, or nil.

  `text` is the value as the configuration has it. Returns nil if the type cannot have it.

      (vec (encode-config \"250\" :u32)) ;=> [-6 0 0 0]"
  [text type]
  (let [{:keys [kind size signed element] n :count} (node/node type nil [])
        bytes? (or (= :string kind) (= :bytes kind)
                   (and (= :array kind) (= 1 (:size element)) (pos? (long n))))
        quoted (second (re-matches #"\"(.*)\"" text))]
    (cond
      quoted (when bytes? (text-bytes (str/replace quoted #"\\(.)" "$1") size))
      (tristate text)
      (cond
        (= :bool kind) (when-not (= "m" text) (byte-array [(tristate text)]))
        (= :enum kind) (number-bytes (tristate text) size false)
        (or (= :char kind) (and (= :integer kind) (= 1 (long size))))
        (byte-array [(int (first text))]))
      (#{"0" "1"} text) (when (#{:bool :integer} kind)
                          (number-bytes (parse-long text) size false))
      (= :integer kind) (when-let [n (parsed-number text)] (number-bytes n size signed))
      :else nil)))

(defn- config-value
  "Returns the text of a declared value; nil if this kernel does not define it."
  [name]
  (if-let [found (virtual name)]
    (str @found)
    (get (config/options) name)))

(defn config-bytes
  "Returns the bytes of a declaration of `:kconfig`.

  Zeros if it is weak and this kernel does not define it; throws if it is not weak."
  ^bytes [name {:keys [type weak]}]
  (let [path [:kconfig name]
        text (config-value name)]
    (cond
      text (or (encode-config text type)
               (throw (error/error :incompatible
                                   (str "The value of " name " must be of type "
                                        (error/printed type) ", got " text)
                                   {:bpfmap/op :load :bpfmap/path path
                                    :bpfmap/hint "declare it with another type"})))
      weak (byte-array (:size (node/node type nil path)))
      :else (throw (not-found path (str "This kernel does not define " name)
                              (if (or (config/options) (virtual name))
                                (str "declare it __weak, which makes it zero, or compare with "
                                     (second (config/files)))
                                (str "its configuration must be in "
                                     (error/list-of (config/files)))))))))

(defn config-layout
  "Returns the places of declarations in the map of the configuration.

  The result is `{:size n :offsets {name offset}}`, with the largest alignment first, as libbpf does."
  [kconfig]
  (let [nodes (for [[name {:keys [type]}] kconfig]
                (assoc (node/node type nil [:kconfig name :type]) ::name name))]
    (reduce (fn [{:keys [size] :as found} {bytes :size :keys [align] ::keys [name]}]
              (let [align (long (or align 1))
                    at (* align (quot (+ (long size) (dec align)) align))]
                (-> found
                    (assoc-in [:offsets name] at)
                    (assoc :size (+ at (long bytes))))))
            {:size 0 :offsets {}}
            (sort-by (fn [{:keys [align size] ::keys [name]}] [(- (long (or align 1))) size name])
                     nodes))))

;; --- symbols

(defn- addresses-in [^BufferedReader reader wanted]
  (loop [found {}]
    (let [line (when (< (count found) (count wanted)) (.readLine reader))]
      (if-not line
        found
        (let [end (.indexOf line 32)
              from (+ end 3)
              to (let [tab (.indexOf line 9 (int from))] (if (neg? tab) (.length line) tab))
              name (.substring line from to)]
          (recur (if (wanted name)
                   (assoc found name (Long/parseUnsignedLong (.substring line 0 end) 16))
                   found)))))))

(defn addresses
  "Returns the addresses of symbols of the kernel, by name, from /proc/kallsyms."
  [names]
  (let [file "/proc/kallsyms"]
    (try
      (with-open [reader (BufferedReader. (InputStreamReader. (java.io.FileInputStream. file)
                                                              StandardCharsets/US_ASCII))]
        (addresses-in reader (set names)))
      (catch IOException e
        (throw (procfs/unreadable file e :load))))))

;; --- the BTF of the kernel

(defn- first-id [b name kind]
  (first (blob/ids-named b name kind)))

(defn- similar
  "Returns a hint with names in the BTF that are like a missing one, or nil.

  A kernel has tens of thousands of functions: only those that begin with the same letter and are
  about as long are compared."
  [b wanted kind prefix]
  (let [n (count wanted)
        names (into []
                    (comp (filter #(= kind (blob/kind b %)))
                          (keep #(blob/name-of b %))
                          (filter #(str/starts-with? % prefix))
                          (map #(subs % (count prefix)))
                          (filter #(and (seq %) (= (first %) (first wanted))
                                        (<= (abs (- (count %) n)) 3))))
                    (range 1 (inc (blob/type-count b))))]
    (nearest/did-you-mean wanted names)))

(defn missing
  "Returns the exception for what this kernel does not have."
  ^Throwable [path word name]
  (not-found path (str "This kernel has no " word " " name)
             (or (when-let [kind ({"function" :func "struct" :struct} word)]
                   (similar (kernel-btf/running-kernel) name kind ""))
                 "declare it __weak and test for it, or leave the program out")))

(defn type-id
  "Returns the id of a kind of type of the running kernel by its name, or nil.

      (type-id \"bpf_rcu_read_lock\" :func) ;=> 40123"
  [name kind]
  (first-id (kernel-btf/running-kernel) name kind))

(defn- own-id
  "Returns the id of a type that a module itself has, by its name; or nil."
  [b name kind]
  (first (filter #(= kind (blob/kind b %)) (blob/own-ids-named b name))))

(defn find-type
  "Returns the id of a type of the kernel or of a module: `{:id :module}`, or nil.

  The kernel itself comes first, and then `:module` is missing."
  [name kind]
  (if-let [id (type-id name kind)]
    {:id id}
    (some (fn [[module b]]
            (when-let [id (own-id b name kind)]
              {:id id :module module}))
          (kernel-btf/running-modules))))

(def ^:private targets
  "Kind and prefix of targets in the BTF, and a word for them, by attach type."
  {:trace-raw-tp [:typedef "btf_trace_" "tracepoint"]
   :trace-iter [:func "bpf_iter_" "iterator"]
   :lsm-mac [:func "bpf_lsm_" "LSM hook"]
   :lsm-cgroup [:func "bpf_lsm_" "LSM hook"]
   :trace-fentry [:func "" "function"]
   :trace-fexit [:func "" "function"]
   :modify-return [:func "" "function"]})

(defn- find-target
  "Returns a type by its name, which may begin with a module and a colon."
  [text kind]
  (let [[_ module name] (re-matches #"([^:]+):(.+)" text)]
    (if module
      (some (fn [[found b]]
              (when-let [id (when (= module found) (own-id b name kind))]
                {:id id :module module}))
            (kernel-btf/running-modules))
      (find-type text kind))))

(defn- lacking
  "Returns why this kernel has no target of a kind at all; nil if it has some."
  [attach-type target]
  (let [facts {:release (call/kernel-release) :options (config/options)}
        what (str "programs of attach type " attach-type)]
    (cond
      (not (kernel-btf/present?))
      (or (lacks/explain what lacks/kernel-types facts)
          (lacks/all-options what lacks/kernel-types))

      (= :trace-iter attach-type)
      (lacks/explain (str "iterators over " target) (lacks/iterators target) facts)

      (#{:lsm-mac :lsm-cgroup} attach-type)
      (or (lacks/explain what lacks/hooks facts)
          (when-not (find-target "bpf_lsm_file_open" :func)
            (lacks/all-options what lacks/hooks))))))

(defn attach-target
  "Returns a program's target in the BTF of the kernel: `{:id :module}`.

  The target may be `module:function`. Returns nil for a program whose type has none. Throws
  `:not-found` with similar names, `:not-supported` if this kernel lacks all targets of the kind."
  [name {:keys [attach-type target type]}]
  (when-let [[kind prefix word] (when (#{:tracing :lsm} type) (targets attach-type))]
    (let [path [:programs name :target]]
      (when (str/blank? target)
        (throw (invalid path (str "A program of attach type " attach-type " must have a target")
                        (str "set the name of a " word " as its :target"))))
      (or (when (kernel-btf/present?)
            (find-target (str prefix target) kind))
          (let [what (str "This kernel has no " word " " target)]
            (throw (if-let [hint (lacking attach-type target)]
                     (error/error :not-supported what
                                  {:bpfmap/op :load :bpfmap/path path :bpfmap/hint hint})
                     (not-found path what
                                (or (similar (kernel-btf/running-kernel) target kind prefix)
                                    (str "set another :target, or leave program " name
                                         " out"))))))))))
