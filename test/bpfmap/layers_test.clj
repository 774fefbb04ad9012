(ns bpfmap.layers-test
  "The rules of the house, read from the sources: layers, docstrings, reflection, loading, what
  the jar needs."
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.since :as since]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io File)))

(set! *warn-on-reflection* true)

(def ^:private layers
  "Layers from the bottom up: a namespace is in the first that it matches."
  [[1 #"bpfmap\.(asm|btf|bytes|error|plot|spec|type)"]
   [1
    #"bpfmap\.impl\.(cache|disassembler|edn|edn-text|errno|escape|field-path|isa|map-types|link\.(attach-types|targets)|nearest|options|spec|host\.syscalls|display\.(amount|hints|text)|(btf|codec|elf|type)(\..*)?|object\.(code|context|core|core-relocation|data|extension|link|load-error|loadable-btf|malformed|maps|reader|section-name))"]
   [2 #"bpfmap\.(impl\..*|display|events|feature|link|object|prog|memory)"]
   [3 #"bpfmap\.(core|host|sim)"]
   [4 #"bpfmap\.(cli|exec|tool|pod|nrepl|metrics)(\..*)?"]])

(defn- layer [ns-name]
  (some (fn [[n pattern]] (when (re-matches pattern (str ns-name)) n)) layers))

(defn- sources [dir suffix]
  (for [^File file (file-seq (io/file dir))
        :when (str/ends-with? (.getName file) suffix)]
    file))

(defn- ns-form [file]
  (with-open [reader (java.io.PushbackReader. (io/reader file))]
    (binding [*read-eval* false]
      (read reader))))

(def ^:private namespaces
  "Every namespace of src: {:ns :requires :imports :file}."
  (delay
    (vec
     (for [file (sources "src/bpfmap" ".clj")
           :let [[_ ns-name & clauses] (ns-form file)
                 clause (fn [k] (mapcat rest (filter #(and (seq? %) (= k (first %))) clauses)))]]
       {:ns ns-name
        :file file
        :requires (map #(if (sequential? %) (first %) %) (clause :require))
        :imports (mapcat (fn [x]
                           (if (sequential? x) (map #(str (first x) "." %) (rest x)) [(str x)]))
                         (clause :import))}))))

(deftest downward-dependencies
  (testing "every namespace has a layer and requires only its layer or below"
    (is (< 15 (count @namespaces)))
    (doseq [{:keys [ns requires]} @namespaces]
      (is (layer ns) (str ns " stands in no layer"))
      (doseq [required requires :when (str/starts-with? (str required) "bpfmap.")]
        (is (<= (layer required) (layer ns)) (str ns " requires " required))))))

(defn- resolved-later
  "Returns the namespaces of the project that a source names in quoted symbols, such as for
  requiring-resolve."
  [file known]
  (let [text (slurp file)
        code (str/replace text #"\"(?:[^\"\\]++|\\[\s\S])*+\"|\\.|;[^\n]*" "")]
    (into (into #{} (comp (map second) (map symbol) (filter known))
                (re-seq #"'(bpfmap\.[a-z0-9.-]+)" code))
          (comp (map second) (map symbol) (filter known))
          (re-seq #"\(symbol \"(bpfmap\.[a-z0-9.-]+)\"" text))))

(def ^:private dependencies
  "Each namespace with all that it requires or resolves later."
  (delay
    (let [known (set (map :ns @namespaces))]
      (into {} (for [{:keys [ns requires file]} @namespaces]
                 [ns (disj (into (resolved-later file known) (filter known) requires) ns)])))))

(defn- cycle-from
  "Returns a path of dependencies from a namespace back to itself, or nil."
  [start]
  (loop [paths [[start]] seen #{}]
    (when-let [path (peek paths)]
      (let [next-ones (@dependencies (peek path))]
        (if (next-ones start)
          (conj path start)
          (let [new-ones (remove seen next-ones)]
            (recur (into (pop paths) (map #(conj path %)) new-ones) (into seen new-ones))))))))

(deftest no-cycles
  (testing "dependencies have no cycle, including those by requiring-resolve"
    (is (contains? (@dependencies 'bpfmap.core) 'bpfmap.impl.host.explore)
        "which is resolved later")
    (doseq [ns (keys @dependencies)]
      (is (nil? (cycle-from ns)) (str ns)))))

(defn- longest-chain
  "Returns the longest path of dependencies from each namespace, by namespace."
  [dependencies]
  (let [chain (atom {})]
    (letfn [(from [ns]
              (or (@chain ns)
                  (let [rest (reduce #(if (< (count %1) (count %2)) %2 %1) []
                                     (map from (dependencies ns)))]
                    (get (swap! chain assoc ns (into [ns] rest)) ns))))]
      (run! from (keys dependencies)))
    (apply max-key count (vals @chain))))

(deftest short-chains
  (testing "a chain of requires has at most 15 namespaces, and 19 with those resolved later"
    (let [known (set (map :ns @namespaces))
          required (into {} (for [{:keys [ns requires]} @namespaces]
                              [ns (filter known requires)]))
          chain (longest-chain required)
          chain-with-later (longest-chain @dependencies)]
      (is (<= (count chain) 15) (pr-str chain))
      (is (<= (count chain-with-later) 19) (pr-str chain-with-later)))))

(deftest resolving-goes-down
  (testing "a namespace resolves on demand only names of its layer or below"
    (doseq [[ns needed] @dependencies, other needed]
      (is (<= (layer other) (layer ns)) (str ns " resolves " other)))))

(deftest public-namespaces
  (testing "the top level of src/bpfmap is public and in doc/api.md, all else is marked :no-doc"
    (let [listed (set (map (comp symbol second)
                           (re-seq #"(?m)^\| `(bpfmap\.[a-z.]+)`" (slurp "doc/api.md"))))
          public? #(re-matches #"bpfmap\.[a-z]+" (str %))]
      (is (= listed (set (filter public? (map :ns @namespaces)))))
      (doseq [{:keys [ns file]} @namespaces :let [[_ ns-name] (ns-form file)]]
        (is (= (boolean (:no-doc (meta ns-name))) (not (public? ns))) (str ns))))))

(deftest line-length
  (testing "code has at most 100 columns a line, without the text of strings and regexes"
    (doseq [[dir suffix] {"src" ".clj" "test" ".clj" "bench" ".clj" "dev" ".clj" "java" ".java"}
            ^File file (sources dir suffix)
            :let [text
                  (str/replace (slurp file) #"\"(?:[^\"\\]++|\\[\s\S])*+\""
                               #(str/replace % #"[^\n]" ""))]
            [n line] (map-indexed vector (str/split-lines text))]
      (is (<= (count line) 100) (str file ":" (inc n))))))

(def ^:private limited-wait
  "A wait that ends after a fixed time or number of looks, which a slow machine does not meet."
  (re-pattern (str "\\(loop \\[[a-z]+ [1-9]\\d*\\](?=(?:(?!\n\n)[\\s\\S]){0,400}Thread/sleep)"
                   "|\\(\\.(?:waitFor|await) [^()]*? \\d+ TimeUnit/"
                   "|\\(\\+ \\(System/nanoTime\\) \\d{10,}\\)"
                   "|\\(deref [^() ]+ [1-9]\\d{3,4} ")))

(def ^:private waits-of-their-own
  "Files with waits whose limit is not that of the tests, with the reason."
  {"fixture.clj" "it has the limit"
   "headers_test.clj" "each look is longer than the one before"
   "layers_test.clj" "it has examples"})

(deftest waits-as-long-as-others
  (testing "tests wait for a condition as long as fixture/patience, not for a time of their own"
    (is (= 2 (count (re-seq limited-wait
                            (str "(loop [tries 5] (or (f) (Thread/sleep 9)))"
                                 "(.waitFor p 60 TimeUnit/SECONDS) (loop [x 0] x)")))))
    (is (= {}
           (into {}
                 (for [^File file (sources "test/bpfmap" ".clj")
                       :when (not (waits-of-their-own (.getName file)))
                       :let [waits (re-seq limited-wait (slurp file))]
                       :when (seq waits)]
                   [(str file) waits]))))))

(deftest rows-of-tests
  (testing "a row that a test asks for is one of bpfmap.since"
    (let [rows (for [^File file (sources "test/bpfmap" ".clj")
                     [row] (re-seq #"\[:(kernel|target|cookie|order) :[\w-]+\]" (slurp file))]
                 [(str file) (edn/read-string row)])]
      (is (< 50 (count rows)))
      (doseq [[file row] rows]
        (is (any? (since/since row)) file)))
    (is (thrown-with-msg? Exception #"no such row" (since/since [:kernel (keyword "none-such")])))))

(deftest edges-not-required
  (testing "no namespace below the edges requires an edge"
    (doseq [{:keys [ns requires]} @namespaces :when (< (layer ns) 4)
            required requires]
      (is (not= 4 (layer required)) (str ns " requires " required)))))

(def ^:private on-demand
  "Namespaces that are loaded only when what needs them is called, by requiring-resolve."
  '#{bpfmap.impl.type.generator})

(deftest on-demand-namespaces
  (testing "no namespace requires one that is loaded on demand"
    (doseq [{:keys [ns requires]} @namespaces]
      (is (not-any? on-demand requires) (str ns)))))

(deftest clojure-below-the-edges
  (testing "namespaces below the edges need only Clojure"
    (let [of-clojure #{'clojure.string 'clojure.set 'clojure.edn 'clojure.java.io
                       'clojure.core.protocols 'clojure.core.reducers
                       'clojure.pprint}]
      (doseq [{:keys [ns requires]} @namespaces
              :when (and (< (layer ns) 4) (not (on-demand ns)))
              required requires :when (not (str/starts-with? (str required) "bpfmap."))]
        (is (of-clojure required) (str ns " requires " required))))))

(deftest single-kernel-caller
  (testing "only bpfmap.impl.kernel uses the classes that call the kernel"
    (let [harmless #{"bpfmap.sys.Bytes" "bpfmap.sys.Codec" "bpfmap.sys.Errno" "bpfmap.sys.Fd"
                     "bpfmap.sys.Fdinfo" "bpfmap.sys.Padding" "bpfmap.sys.StructWords"
                     "bpfmap.sys.StructWords$Maker" "bpfmap.sys.TypeCodec"}
          ;; A mapped range and what reads and writes memory: they call the kernel to unmap, and for
          ;; nothing else.
          of-memory #{"bpfmap.sys.MappedMemory" "bpfmap.sys.AtomicType"
                      "bpfmap.sys.AtomicType$Change" "bpfmap.sys.Blocks" "bpfmap.sys.Streams"
                      "bpfmap.sys.Streams$Failures"}
          ;; What uses mapped rings; impl.kernel.events and perf make them.
          of-events #{"bpfmap.sys.EventSource" "bpfmap.sys.EventSource$Handler"
                      "bpfmap.sys.RawEvent" "bpfmap.sys.Waiter"
                      "bpfmap.sys.CorruptEventsException" "bpfmap.sys.ClosedFdException"
                      "bpfmap.sys.PerfBuffer" "bpfmap.sys.UserRingBuffer"
                      "bpfmap.sys.UserRingBuffer$Reservation"}]
      (doseq [{:keys [ns imports]} @namespaces
              :when (not (re-matches #"bpfmap\.impl\.kernel\..*" (str ns)))
              class imports :when (str/starts-with? class "bpfmap.sys.")]
        (is (or (harmless class)
                (and (of-memory class) (re-matches #"bpfmap\.(impl\.)?memory(\..*)?" (str ns)))
                (and (of-events class) (re-matches #"bpfmap\.(impl\.)?events(\..*)?" (str ns))))
            (str ns " imports " class))
        (when (= 1 (layer ns))
          (is (not= "bpfmap.sys.Fd" class) (str ns " imports " class)))))))

(deftest pure-namespaces
  (testing "pure namespaces open no file"
    (doseq [{:keys [ns file]} @namespaces :when (= 1 (layer ns))
            ;; A resource of the class path is data of the library itself.
            :let [text (str/replace (slurp file) "(slurp (io/resource" "(resource")]
            word [#"java\.nio\.file" #"\(slurp" #"java\.io\.File\b" #"\(spit" #"sh/sh"
                  #"ProcessBuilder"]]
      (is (not (re-find word text)) (str ns " has " word)))))

(deftest java-core-without-clojure
  (testing "the Java core does not use Clojure and one class uses the linker"
    (let [files (sources "java" ".java")]
      (is (< 8 (count files)))
      (doseq [^File file files :let [text (slurp file)]]
        (is (not (str/includes? text "clojure.")) (str file))
        (is (= (str/includes? (.getPath file) "/maps/")
               (boolean (re-find #"(?m)^package bpfmap.maps;" text)))
            (str file))
        (is (= (= "Native.java" (.getName file)) (boolean (re-find #"\bLinker\b" text)))
            (str file))))))

(deftest documented-vars
  (testing "every public var has a docstring"
    (doseq [{:keys [ns]} @namespaces :when (not (fixture/lacking ns))]
      (require ns)
      (is (:doc (meta (the-ns ns))) (str ns))
      (doseq [[sym v] (ns-publics ns)
              ;; What deftype and proxy make
              :when (not (re-find #"^(->|map->)[A-Z]|\.proxy\$" (str sym)))]
        (is (:doc (meta v)) (str v))))))

(deftest facade-examples
  (testing "every function of the facade has an example"
    (doseq [ns '[bpfmap.core bpfmap.events bpfmap.host bpfmap.link bpfmap.memory
                 bpfmap.object bpfmap.prog]
            [_ v] (do (require ns) (ns-publics ns))
            :when (and (fn? @v) (not (re-find #"^->[A-Z]" (name (symbol v)))))]
      (is (re-find (re-pattern (str "\\(" (java.util.regex.Pattern/quote (name (symbol v))) "[ )]"))
                   (:doc (meta v)))
          (str v " shows no call of itself")))))

(def ^:private function-keywords
  "Keywords ending in ? that are not keys of the project: operations, which are named as their
  function, and options of test.check."
  #{":might-contain?" ":has-key?" ":pinned-at?" ":read-only?" ":closed?" ":NaN?" ":infinite?"})

(deftest keys-without-question-mark
  (testing "a key of data does not end in ?, which is for predicates"
    (is (= []
           (for [{:keys [file]} @namespaces
                 :let [code (str/replace (slurp file)
                                         #"\"(?:[^\"\\]++|\\[\s\S])*+\"|\\.|;[^\n]*" "")]
                 found (concat
                        (re-seq #"(?<![^\s(\[{#'`~])::?[^\s()\[\]{}]*\?(?![^\s()\[\]{}])" code)
                        (re-seq #":(?:[\w.]+/)?keys\s+\[[^\]]*\?[^\]]*\]" code))
                 :when (not (function-keywords found))]
             [(str file) found])))))

(deftest reflection-warnings
  (testing "every namespace enables warnings for reflection"
    (doseq [{:keys [ns file]} @namespaces]
      (is (str/includes? (slurp file) "(set! *warn-on-reflection* true)") (str ns)))))

(defn- java [& args]
  (fixture/run (concat [(str (System/getProperty "java.home") "/bin/java")] args)))

(def ^:private library-classpath
  "What a program sees that depends on the library: Clojure, and nothing of the edges."
  (delay
    (->> (str/split (System/getProperty "java.class.path") #":")
         (filter
          #(re-find
            #"/clojure-\d|spec\.alpha|core\.specs\.alpha|^src$|^resources$|target/classes$|/src$|/resources$" %))
         (str/join ":"))))

(deftest loading-is-quiet
  (testing "loading the library calls no kernel and prints no warning"
    ;; In a JVM of its own, which says which classes it initialises.
    (let [nss (sort (remove on-demand (map :ns (filter #(< (layer (:ns %)) 4) @namespaces))))
          {:keys [exit out err]} (java "-Xlog:class+init=info" "-cp" @library-classpath
                                       "clojure.main"
                                       "-e"
                                       (str "(set! *warn-on-reflection* true)"
                                            (str/join (map #(str "(require '" % ")") nss))
                                            "(println \"loaded\" (count (filter #(re-find "
                                            "#\"^bpfmap\" (str %)) (all-ns))))"))]
      (is (= 0 exit) err)
      (is (= "" err) "no reflection warning, no warning of native access")
      (is (str/includes? out (str "loaded " (count nss))))
      (is (str/includes? out "Initializing 'clojure/core__init'")
          "the log lists initialised classes")
      (is (not (re-find #"Initializing 'bpfmap/sys/Native'" out)))
      (is (not (re-find #"Initializing 'bpfmap/sys/Fd'" out))))))

(deftest loaded-namespaces
  (testing "a namespace loads only the namespaces that it needs"
    ;; With everything on the class path, loaded namespaces were requested. Each line has the
    ;; namespaces that a require added.
    (let [nss '[bpfmap.core bpfmap.host bpfmap.feature bpfmap.prog bpfmap.btf bpfmap.type
                bpfmap.cli.main]
          {:keys [exit out err]} (java "-cp" (System/getProperty "java.class.path") "clojure.main"
                                       "-e"
                                       (str "(doseq [n '" (pr-str nss) "]"
                                            " (let [before (set (map ns-name (all-ns)))]"
                                            "  (require n)"
                                            "  (println (pr-str (vec (remove before (map ns-name "
                                            "(all-ns))))))))"))
          [of-core :as loaded] (map (comp set edn/read-string) (str/split-lines out))]
      (is (= [0 ""] [exit err]))
      (is (contains? of-core 'bpfmap.impl.map.bpf-map))
      (is (not-any? of-core
                    '[bpfmap.asm bpfmap.impl.isa bpfmap.prog bpfmap.feature
                      bpfmap.impl.feature.probe
                      bpfmap.host])
          "maps need no assembler, unless a kernel has to be tried")
      (doseq [[n added] (map vector nss loaded), unneeded added]
        (is
         (not
          (re-find
           #"^(clojure\.test|clojure\.data\.|nrepl|org\.jline|bpfmap\.impl\.type\.generator)"
           (str unneeded)))
         (str n " loads " unneeded))))))

(deftest call-without-linux
  (testing "a call without Linux reports it"
    (let [{:keys [out exit err]} (java "-Dos.name=Plan 9" "-cp" @library-classpath "clojure.main"
                                       "-e"
                                       (str "(require '[bpfmap.core :as bpf])"
                                            "(try (bpf/create {:type :hash :key :u32 :value :u32 "
                                            ":max-entries 1})"
                                            " (catch Exception e (prn (:bpfmap/error (ex-data e))) "
                                            "(println (ex-message e))))"
                                            "(require '[bpfmap.sim :as sim])"
                                            "(with-open [m (sim/create {:type :percpu-hash :key :u32 "
                                            ":value :u32 :max-entries 2 :contents {1 [2 3]}})]"
                                            " (try (bpf/put-all! m {1 [4 5] 2 [6 7] 3 [8 9]})"
                                            "  (catch Exception e (prn (:bpfmap/error (ex-data e)))))"
                                            " (prn (bpf/count-entries m) (m 1)))"
                                            "(with-open [m (sim/create {:type :array-of-maps "
                                            ":max-entries 2 :inner-map {:type :array :value :u32 "
                                            ":max-entries 1}})]"
                                            " (try (bpf/put! m 0 {:map-id 77777})"
                                            "  (catch Exception e (prn (:bpfmap/error (ex-data e)))"
                                            "   (println (ex-message e)))))"))]
      (is (= 0 exit) err)
      (is (= [":not-supported"
              "The kernel cannot be called: BPF maps live in the Linux kernel; this is Plan 9"
              ":map-full"
              "2 [4 5]"
              ":not-found"
              (str "There is no simulated map with the id 77777: maps of the kernel cannot be "
                   "opened: BPF maps live in the Linux kernel; this is Plan 9")]
             (str/split-lines out))
          "a simulated map works"))))

(deftest native-access-flag
  (testing "a call without native access names the flag"
    (let [{:keys [out exit err]} (java "--illegal-native-access=deny" "-cp" @library-classpath
                                       "clojure.main" "-e"
                                       (str "(require '[bpfmap.core :as bpf])"
                                            "(dotimes [_ 2]"
                                            " (try (bpf/create {:type :hash :key :u32 :value :u32 "
                                            ":max-entries 1})"
                                            "  (catch Exception e (println (ex-message e)))))"))]
      (if (and (not= 0 exit) (str/includes? err "Unrecognized option"))
        (fixture/skip! "this JDK is older than --illegal-native-access (JDK 24)")
        (is (= (repeat 2
                       "The kernel cannot be called: this JVM denies native access: start it with --enable-native-access=ALL-UNNAMED")
               (str/split-lines out)))))))

(deftest library-dependencies
  (testing "the published library depends only on Clojure"
    (let [{:keys [deps aliases]} (edn/read-string (slurp "deps.edn"))]
      (is (= '#{org.clojure/clojure} (set (keys deps))))
      (is (= "1.12.6" (get-in deps '[org.clojure/clojure :mvn/version])))
      (is (every? aliases [:build :test :cli :nrepl :bench])))))
