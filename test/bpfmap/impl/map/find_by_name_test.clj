(ns ^:volume bpfmap.impl.map.find-by-name-test
  "Maps by their names: what the kernel cut is told apart by whole names, or not at all."
  (:require [bpfmap.cli.calling :refer [bpfmap]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.since :as since]
            [bpfmap.spec :as spec]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [is testing]]
            [clojure.test.check :as tc]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (java.io Closeable File)
           (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

(def ^:private own
  "What the names of this process's maps begin with: others may run the same tests. It has six bytes
  or more, so that a name is cut before what no kernel's name has."
  (str "n" (str/replace (format "%4s" (Long/toString (.pid (ProcessHandle/current)) 36)) " " "0")
       "_"))

(defn- id-of [m] (:id (bpf/info m)))

(defn- opened
  "Opens a map by its name, and returns its id; the kind of the error if that fails."
  [name]
  (try
    (with-open [m ^Closeable (bpf/open {:name name})] (id-of m))
    (catch clojure.lang.ExceptionInfo e (:bpfmap/error (ex-data e)))))

(defn- created ^Closeable [name typed?]
  (bpf/create (merge {:name name :type :hash :max-entries 4}
                     (if typed? {:key :u32 :value :u64} {:key-size 4 :value-size 8}))))

(defn- pin-at [directory name] (str directory "/" name))

(defn- new-directory ^File []
  (doto (io/file (fixture/new-pin)) (.mkdir)))

;; --- observations

(kernel-test shared-15-byte-prefix
  (testing "a name that shares the first 15 bytes is another map"
    (doseq [typed? [true false]
            [there asked] [["calls_per_second_total" "calls_per_second_errors"]
                           ["calls_per_second_total" "calls_per_second_totals"]
                           ["calls_per_second_total" "calls_per_second_tota"]
                           ["calls_per_second_total" "calls_per_seconds"]
                           ["flowsx" "flo-wsx"] ["flo-wsx" "flows-x"] ["my_flows" "my_flows "]
                           ["my_flows" "my_flöws"]]
            :let [there (str own there) asked (str own asked)]]
      (testing [there asked]
        (with-open [m (created there typed?)]
          (let [{:keys [message]
                 :bpfmap/keys [error candidates]} (error-of (bpf/open {:name asked}))]
            (is (= :not-found error))
            (is (str/starts-with? message (str "No map named " (pr-str asked))))
            (when (= (:name (bpf/info m)) (:name (first candidates)))
              (is (str/includes? message
                                 (str (id-of m) " (not pinned and held by java["
                                      (.pid (ProcessHandle/current)) "])")))
              (is (= [{:id (id-of m) :name (:name (bpf/info m)) :type :hash :pinned []
                       :held [{:pid (.pid (ProcessHandle/current)) :command "java"}]}]
                     (map #(update % :held
                                   (partial filterv (comp #{(.pid (ProcessHandle/current))} :pid)))
                          candidates)))))
          (doseq [words [["put" asked "1" "1"] ["delete" asked "1"] ["freeze" asked]
                         ["get" asked "1"] ["take" asked "1"] ["dump" asked]
                         ["show" asked] ["pin" asked (fixture/new-pin)]
                         ["save" asked "/tmp/bpfmap-never"] ["hist" asked]]]
            (let [{:keys [exit out err]} (apply bpfmap words)]
              (is (= [1 ""] [exit out]))
              (is (str/includes? err "No map named"))))
          (is (= [0 false] [(bpf/count-entries m) (:frozen (bpf/info m))])))))))

(kernel-test short-or-full-name
  (testing "opens a map by its kernel name or full name"
    (with-open [m (created (str own "calls_per_second_total") true)]
      (is (= [(id-of m) (id-of m)]
             (map (comp opened (partial str own))
                  ["calls_per_second_total" (subs "calls_per_second" 0 (- 15 (count own)))])))
      (with-open [other (created (str own "calls_per_second_errors") true)]
        (is (= [(id-of m) (id-of other) :ambiguous]
               (map (comp opened (partial str own))
                    ["calls_per_second_total" "calls_per_second_errors"
                     (subs "calls_per_second" 0 (- 15 (count own)))]))
            "both have the same name")))))

(kernel-test pin-file-name
  (testing "the file name of a pin is a full name"
    (let [directory (new-directory)
          pinned (pin-at directory (str own "packets_by_address"))
          shown (pin-at directory (str own "flo-wsx"))]
      (with-open [a (created (str own "packets_by address") false) ; a name that no variable has
                  b (created (str own "packets_by-addresses") false)
                  c (created (str own "flowsx") false)]
        (bpf/pin! a pinned)
        (bpf/pin! c shown)
        (is (= [(id-of a) :not-found (id-of c) (id-of c)]
               (map (comp opened (partial str own))
                    ["packets_by_address" "packets_by_addresses" "flo-wsx" "flowsx"])))
        (testing "which is another one's as well"
          (bpf/pin! b
                    (pin-at (doto (io/file directory "below") (.mkdir))
                            (str own "packets_by_address")))
          (let [{:keys [message]
                 :bpfmap/keys [error
                               candidates]} (error-of
                                              (bpf/open {:name (str own "packets_by_address")}))]
            (is (= :ambiguous error))
            (is (= [[(id-of a) [pinned]]
                    [(id-of b) [(str directory "/below/" own "packets_by_address")]]]
                   (map (juxt :id :pinned) candidates)))
            (is (str/includes? message
                               (str "it is the name of maps " (id-of a) ", " (id-of b)
                                    "; open one by its id: "
                                    (id-of a) " (pinned at " pinned " and held by ")))
            (let [{:keys [err]} (bpfmap "dump" (str own "packets_by_address"))
                  [line & table] (str/split-lines err)]
              (is (= (str "bpfmap: More than one map named \"" own
                          "packets_by_address\": 2 maps have the name; use an id")
                     line))
              (is (every? (fn [[row {:keys [id pinned]}]]
                            (and (str/includes? row (str id)) (str/includes? row (first pinned))))
                          (map vector table candidates)))))
          (bpf/unpin! b))
        (run! bpf/unpin! [a c])
        (run! #(.delete ^File %) (reverse (file-seq directory)))))))

(kernel-test foreign-pin-name
  (testing "a pin with another name does not name the map"
    (let [directory (new-directory)]
      (with-open [m (created (str own "x") false)]
        (bpf/pin! m (pin-at directory (str own "requests_per_second")))
        (is (= :not-found (opened (str own "requests_per_second")))
            "the kernel's name would be another")
        (bpf/unpin! m)
        (.delete directory)))))

;; --- whole names in lists

(defn- listed
  "The name and the kernel's name of a map in `list` and in `show`."
  [id]
  (let [{shown :name shown-kernel-name :kernel-name} (exec/show {:ref id})]
    (is (= [shown shown-kernel-name]
           (let [[{:keys [name kernel-name]}]
                 (exec/list {:where [:= :id id] :columns "id,name,kernel-name"})]
             [name kernel-name])))
    [shown shown-kernel-name]))

(kernel-test lists-show-whole-names
  (let [cut #(spec/kernel-name (str own %))]
    (testing "from the BTF of the map"
      (with-open [m (created (str own "packets_by_source_port") true)]
        (is (= [(str own "packets_by_source_port") (cut "packets_by_source_port")]
               (listed (id-of m))))
        (is (= [(id-of m)] (map :id (exec/list {:where [:= :name (str own "packets_by_source_port")]
                                                :columns "id"}))))))
    (testing "from a pin, unless its name is another or two pins differ"
      (let [directory (new-directory)]
        (with-open [m (created (str own "bytes_by-source_port") false)]
          (is (= [(cut "bytes_by-source_port") nil] (listed (id-of m))) "nothing has it")
          (doseq [[pin expected] [["other_pin" nil]
                                  ["bytes_by-source_port" "bytes_by-source_port"]
                                  ["bytes_by-source_address" nil]]]
            (bpf/pin! m (pin-at directory (str own pin)))
            (is (= (if expected
                     [(str own expected) (cut expected)]
                     [(cut "bytes_by-source_port") nil])
                   (listed (id-of m)))
                pin))
          (bpf/unpin! m))
        (run! #(.delete ^File %) (reverse (file-seq directory)))))
    (testing "a name that the kernel did not cut stays"
      (with-open [short (created (str own "short") true)
                  exact (created (cut "exactly_fifteen") true)]
        (is (= [(str own "short") nil] (listed (id-of short))))
        (is (= [(cut "exactly_fifteen") nil] (listed (id-of exact))))))))

;; --- a model: names that share what the kernel keeps, some pinned, some typed

(def ^:private gen-maps
  (gen/vector (gen/tuple (gen/elements (mapv #(str own %)
                                             ["same_fifteen_by" "same_fifteen_bytes"
                                              "same_fifteen_bytes_2" "same_fifteen_by_"
                                              "same-fifteen_bytes" "same_fifteen_bytesé" "short"
                                              "sh-ort" "sh.ort"]))
                         gen/boolean ; typed
                         gen/boolean) ; pinned under its name
              1 6))

(defn- expected
  "The ids of the maps that a name means, among `[id name typed? pinned?]`."
  [maps asked]
  (let [kernel-name spec/kernel-name]
    (for [[id name _ pinned?] maps
          :when (if (= asked (kernel-name asked))
                  (= asked (kernel-name name))
                  (and (= asked name)
                       (or pinned? (re-matches #"[A-Za-z_]\w{15,}" name))))]
      id)))

(kernel-test any-map-name
  (testing "a name opens the only map of that name or throws an error"
    (let [{:keys [pass? shrunk]}
          (tc/quick-check
           (fixture/trials 60)
           (prop/for-all [specs gen-maps]
                         (let [directory (new-directory)
                               maps (doall
                                     (for [[i [name typed? pinned?]] (map-indexed vector specs)]
                                       (let [m (created name typed?)
                                             below (io/file directory (str i))]
                                         (when (and pinned? (not (str/includes? name ".")))
                                           (.mkdir below)
                                           (bpf/pin! m (str below "/" name)))
                                         [m (id-of m) name typed?
                                          (and pinned? (not (str/includes? name ".")))])))]
                           (try
                             (every? (fn [asked]
                                       (let [ids (expected (map rest maps) asked)]
                                         (= (case (count ids) 0 :not-found 1 (first ids) :ambiguous)
                                            (opened asked))))
                                     (distinct (concat (map first specs)
                                                       (map #(str own %)
                                                            ["same_fifteen_bytes_3"
                                                             "same_fifteen_bytes"
                                                             "sh-ort"]))))
                             (finally
                               (doseq [[m] maps] (bpf/unpin! m) (bpf/close m))
                               (run! #(.delete ^File %) (reverse (file-seq directory))))))))]
      (is pass? (pr-str shrunk)))))

;; --- as libbpf leaves it

(def ^:private object-source
  "#define SEC(n) __attribute__((section(n), used))
   #define __uint(name, val) int (*name)[val]
   #define __type(name, val) typeof(val) *name
   static void *(*lookup)(void *, const void *) = (void *)1;
   static unsigned long (*query)(void *, unsigned long) = (void *)134;
   struct { __uint(type, 27); __uint(max_entries, 4096); } libbpf_per_second_events SEC(\".maps\");
   struct { __uint(type, 1); __uint(max_entries, 4); __type(key, unsigned int); __type(value,
  unsigned long long); }
     libbpf_per_second_errors SEC(\".maps\");
   struct { __uint(type, 1); __uint(max_entries, 4); __type(key, unsigned int); __type(value,
  unsigned int); }
     libbpf_per_second_total SEC(\".maps\");
   struct { __uint(type, 1); __uint(max_entries, 8); __type(key, unsigned int); __type(value,
  unsigned int); }
     libbpf_per_second_sum SEC(\".maps\");
   struct twin { __uint(type, 1); __uint(max_entries, 4); __type(key, unsigned int);
  __type(value, unsigned int); };
   struct twin same_definition_one SEC(\".maps\"), same_definition_two SEC(\".maps\");
   unsigned int a_counter SEC(\".data.statistics-of-all\") = 7;
   char _license[] SEC(\"license\") = \"GPL\";
   SEC(\"socket\") int looks_up(void *ctx) {
     unsigned int k = 0;
     return !!lookup(&libbpf_per_second_errors, &k) + !!lookup(&libbpf_per_second_total,
  &k) + !!lookup(&libbpf_per_second_sum, &k)
       + !!lookup(&same_definition_one, &k) + !!lookup(&same_definition_two, &k) + a_counter
       + query(&libbpf_per_second_events, 0);
   }")

(kernel-test libbpf-variable
  (testing "a map loaded by libbpf has the name of its variable"
    (let [clang (fixture/executable "clang")
          bpftool (fixture/executable "bpftool")]
      (if-not (and clang bpftool)
        (fixture/skip! "there is no clang and bpftool to compile and load an object")
        (let [dir (fixture/temporary-directory)
              source (io/file dir "names.c")
              object (str (io/file dir "names.o"))
              pin (fixture/new-pin)
              ;; A kernel refuses BTF with other names, and bpftool then loads maps without BTF.
              section (if (since/has? [:kernel :names-of-sections])
                        "statistics-of-all"
                        "statistics_of_all")
              run (fn [& command]
                    (let [{:keys [exit err]} (fixture/run command)]
                      (is (= 0 exit) err)))]
          (try
            (spit source (-> object-source
                             (str/replace #"libbpf_per|same_def|statistics" #(str own %))
                             (str/replace "statistics-of-all" section)))
            (run clang "-target" "bpf" "-g" "-O2" "-c" (str source) "-o" object)
            (run bpftool "prog" "load" object pin)
            (let [value-size (fn [name] (with-open [m ^Closeable (bpf/open {:name name})]
                                          [(:value-size (bpf/info m))
                                           (:max-entries (bpf/info m))]))]
              (is (= [8 4] (value-size (str own "libbpf_per_second_errors"))))
              (is (= [4 4] (value-size (str own "libbpf_per_second_total"))))
              (is (= [4 8] (value-size (str own "libbpf_per_second_sum")))
                  "which differs in its size alone")
              (is (= :not-found (opened (str own "libbpf_per_second_totals"))))
              (is (= :ambiguous (opened (subs (str own "libbpf_per_second") 0 15))))
              (is (= [4 1] (value-size (str ".data." own section))) "a data section")
              (is (= :not-found (opened (str ".data." own "statistics.of.all"))))
              (testing "a ring buffer has no BTF of its own, but the program has"
                (let [ring (str own "libbpf_per_second_events")]
                  (is (= [0 4096] (value-size ring)))
                  (is (= [[ring (spec/kernel-name ring)]]
                         (map (juxt :name :kernel-name)
                              (exec/list {:where [:= :name ring]
                                          :columns "id,name,kernel-name"}))))))
              (testing "maps that differ in nothing cannot be told apart"
                (is (= [:not-found :not-found]
                       (map opened
                            [(str own "same_definition_one") (str own "same_definition_two")])))
                (is (= 2
                       (count
                        (:bpfmap/candidates
                         (error-of (bpf/open {:name (str own "same_definition_one")}))))))
                (let [[one
                       two] (sort (map :id
                                       (filter #(= (subs (str own "same_definition") 0 15)
                                                   (:name %)) (host/maps))))
                      pin (str (new-directory) "/" own "same_definition_two")]
                  (with-open [m ^Closeable (bpf/open two)]
                    (bpf/pin! m pin)
                    (is (= [:not-found two]
                           (map opened
                                [(str own "same_definition_one") (str own "same_definition_two")]))
                        (str one " has no pin"))
                    (bpf/unpin! m)
                    (.delete (.getParentFile (io/file pin)))))))
            (finally
              (.delete (io/file pin))
              (run! #(.delete ^File %) (reverse (file-seq dir))))))))))
