(ns bpfmap.impl.btf.object-file-test
  "Data sections of object files, held against the same sections as libbpf places them in the
  kernel."
  (:require [bpfmap.btf :as btf]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.elf :as elf]
            [bpfmap.impl.btf.writer :as writer]
            [bpfmap.memory :as mem]
            [bpfmap.prog :as prog]
            [bpfmap.type :as type]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io Closeable File)
           (java.nio.file Files)))

(set! *warn-on-reflection* true)

(def ^:private objects "test/bpfmap/btf/objects/")

(defn- bytes-of ^bytes [file]
  (Files/readAllBytes (.toPath (io/file file))))

(defn- places
  "The variables of a section's type, with offset and size."
  [t]
  (into {} (for [[path {:keys [offset size]}] (type/offsets t) :when (= 1 (count path))]
             [(first path) [offset size]])))

(def ^:private expected
  "Section to its size and the places of its variables, as llvm-nm and the ELF headers have them."
  {".data" [36 {:total [0 4] :text [4 16] :seen [24 8] :pick.turn [32 4]}]
   ".bss" [16 {:quiet [0 4] :zeroed [8 8]}]
   ".rodata" [8 {:limit [0 4] :pick.shape [4 4]}]
   ".data.mine" [4 {:mine [0 4]}]
   ".maps" [104 {:in [0 32] :outer [32 24] :flows [72 32]}]
   ".kconfig" [21 {:CONFIG_HZ [0 8] :LINUX_KERNEL_VERSION [8 4] :CONFIG_BPF [12 1]
                   :CONFIG_CC_VERSION_TEXT [13 8]}]
   ".ksyms" [4 {:bpf_prog_active [0 4] :bpf_link_fops [4 0] :bpf_rcu_read_lock [4 0]
                :bpf_rcu_read_unlock [4 0]}]
   "license" [4 {:_license [0 4]}]})

(deftest checked-in-objects
  (testing "reads the data sections of the checked-in objects"
    (doseq [object ["sections-el.o" "sections-eb.o"]
            :let [b (btf/parse-object (bytes-of (str objects object)))]
            [section [size variables]] expected
            :let [t (btf/type-named b section)]]
      (testing (str object " " section)
        (is (= t (type/check t)))
        (is (= variables (places t)))
        (is (= size (type/size t)))
        (when-not (#{".ksyms" ".kconfig"} section)
          (is (= size (blob/size-of b (first (blob/ids-named b section))))))))))

(deftest section-without-object
  (testing "a section without the addresses of its object is an error"
    (let [bytes (bytes-of (str objects "sections-el.o"))
          e (elf/parse bytes)
          b (btf/parse (elf/contents e (elf/section e ".BTF")))]
      (testing "places that are not known are not made up"
        (doseq [section [".data" ".bss" ".rodata" ".maps"]]
          (let [{:keys [message] :bpfmap/keys [error hint]} (error-of (btf/type-named b section))]
            (is (= :malformed-btf error))
            (is (str/includes? message
                               (str "the section " section " must have a size, got 0")))
            (is (str/includes? (str hint) "use bpfmap.btf/parse-object")))))
      (testing "sections of declarations have none in the object either"
        (doseq [section [".ksyms" ".kconfig"]]
          (is (= (second (expected section)) (places (btf/type-named b section)))))))))

(deftest broken-object-sections
  (testing "broken objects return data or throw an error as data"
    (let [random (java.util.Random. 11)
          bytes (bytes-of (str objects "sections-el.o"))
          n (alength bytes)
          sections (keys expected)
          ;; Where it matters: the section headers, .BTF, its relocations, the symbols.
          e (elf/parse bytes)
          ranges (conj (for [s [".BTF" ".rel.BTF" ".symtab"]
                             :let [{:keys [offset size]} (elf/section e s)]]
                         [offset size])
                       [0 64]
                       (let [start (.getLong ^java.nio.ByteBuffer (:buffer e) 0x28)]
                         [start (- n start)]))
          outcomes (frequencies
                    (for [_ (range 5000)]
                      (let [broken (aclone bytes)]
                        (dotimes [_ (inc (.nextInt random 3))]
                          (let [[from size] (nth ranges (.nextInt random (count ranges)))]
                            (aset broken (+ (int from) (.nextInt random (int size)))
                                  (unchecked-byte (.nextInt random)))))
                        (try
                          (when-let [b (btf/parse-object broken)]
                            (run! #(some-> (btf/type-named b %) type/size) sections))
                          :read
                          (catch clojure.lang.ExceptionInfo e (or (:bpfmap/error (ex-data e)) e))
                          (catch Throwable e e)))))]
      (is (= #{:read :malformed-btf} (set (keys outcomes))) (pr-str outcomes))
      (is (every? #(< 500 (long (val %))) outcomes) (pr-str outcomes)))))

;; --- compilers and the kernel as oracles

(defn- run [& command]
  (let [{:keys [exit err]} (fixture/run command)]
    (when-not (zero? (long exit))
      (throw (ex-info (str (first command) " failed: " err) {})))))

(defn- in-directory [f]
  (let [dir (fixture/temporary-directory)]
    (try
      (f (fn [name] (str (io/file dir name))))
      (finally
        (run! #(.delete ^File %) (reverse (file-seq dir)))))))

(defn- compile-c [source object & options]
  (apply run (fixture/executable "clang") "-target" "bpf" "-g" "-c" source "-o" object options))

(deftest linked-sections
  (testing "reads data sections as a linker places them"
    (if-not (and (fixture/executable "clang") (fixture/executable "bpftool"))
      (fixture/skip! "no clang and bpftool to make objects with")
      (in-directory
        (fn [file]
          (doseq [level ["-O1" "-O2" "-O3"]
                  [i source] (map-indexed
                              vector
                              ["int a; long b = 1; static char c[3] = \"ab\"; const volatile short d = 2;
                             int f(void) { return a + b + c[a & 1]++ + d; }"
                               "static int x, y; static long z = 4; struct { char a; long b; } s[3]
                             = {{1, 2}}; int f(void) { return x++ + y-- + z++ + s[x & 1].b++; }"
                               "int in_section __attribute__((section(\".data.own\"))) = 1; _Bool
                             flags[5]; double unused; int f(void) { static int calls; return
                             ++calls + in_section + flags[calls & 3]; }"])]
            (spit (file "s.c") source)
            (compile-c (file "s.c") (file "s.o") level)
            (run (fixture/executable "bpftool") "gen" "object" (file "l.o") (file "s.o"))
            (let [[compiled linked] (map #(btf/parse-object (bytes-of (file %))) ["s.o" "l.o"])
                  sections (filter #(= :datasec (blob/kind linked %))
                                   (range 1 (inc (blob/type-count linked))))]
              (is (seq sections))
              (doseq [id sections :let [section (blob/name-of linked id)]]
                (is (= (btf/type-of linked id) (btf/type-named compiled section))
                    (str i level " " section))))))))))

(def ^:private part
  "One of two files of a program, each with a `seen` of its own, and one in a function."
  "#define SEC(name) __attribute__((section(name), used))
static volatile unsigned long seen = %1$d;
static volatile int quiet;
volatile int total%1$d = %1$d0;
const volatile char greeting%1$d[8] = \"hello\";
extern int LINUX_KERNEL_VERSION SEC(\".kconfig\");
extern _Bool CONFIG_BPF SEC(\".kconfig\") __attribute__((weak));
extern unsigned long CONFIG_HZ SEC(\".kconfig\") __attribute__((weak));
SEC(\"socket\") int count%1$d(void *ctx)
{
\tstatic volatile int turn = %1$d;
\tseen++; quiet++; turn++;
\treturn total%1$d + greeting%1$d[0] + turn + LINUX_KERNEL_VERSION + CONFIG_BPF + CONFIG_HZ;
}
%2$s
")

(defn- loaded
  "Has a program of two files compiled, linked and loaded; calls f with its object and its maps by
  section."
  [f]
  (in-directory
    (fn [file]
      (doseq [i [1 2]]
        (spit (file (str i ".c"))
              (format part i (if (= 1 i) "char LICENSE[] SEC(\"license\") = \"GPL\";" "")))
        (compile-c (file (str i ".c")) (file (str i ".o")) "-O2" "-Wno-ignored-attributes"))
      (run (fixture/executable "bpftool") "gen" "object" (file "t_two.o") (file "1.o") (file "2.o"))
      (let [pins (str (fixture/new-pin) "-dir")
            object (btf/parse-object (bytes-of (file "t_two.o")))]
        (run (fixture/executable "bpftool") "prog" "loadall" (file "t_two.o") pins)
        (try
          (with-open [one ^Closeable (prog/open (str pins "/count1"))
                      two ^Closeable (prog/open (str pins "/count2"))]
            (let [ids (distinct (mapcat #(:map-ids (prog/info %)) [one two]))
                  maps (into {} (for [id ids :let [m (bpf/open id)]]
                                  [(re-find #"\..*" (:name (bpf/info m))) m]))]
              (try
                (f object maps)
                (finally (run! bpf/close (vals maps))))))
          (finally
            (run! io/delete-file (.listFiles (io/file pins)))
            (.delete (io/file pins))))))))

(kernel-test variables-sharing-a-name
  (testing "variables that share a name are read and written separately"
    (if-not (and (fixture/executable "clang") (fixture/executable "bpftool"))
      (fixture/skip! "no clang and bpftool to make a program with")
      (loaded
       (fn [object {data ".data" bss ".bss" rodata ".rodata" kconfig ".kconfig" :as maps}]
         (testing "open typed, as the object says"
           (doseq [[section m] maps :let [t (btf/type-named object section)]]
             (is (= (places t) (places (:value (bpf/spec m)))) section)))
         (testing "and are told apart by their offsets"
           (is (= #{:quiet :quiet#4} (set (keys (mem/variables bss)))))
           (let [{:keys [seen total1 total2] turn1 :count1.turn turn2 :count2.turn
                  :as variables} (mem/variables data)
                 other (first (keep (fn [[k v]] (when (re-matches #":seen#\d+" (str k)) v))
                                    variables))]
             (is (= 6 (count variables)))
             (is (= [1 2 10 20 1 2] (map deref [seen other total1 total2 turn1 turn2])))
             (testing "and written separately"
               (mem/write! other 77)
               (mem/write! turn2 8)
               (is (= [1 77 10 20 1 8] (map deref [seen other total1 total2 turn1 turn2])))
               (is (= [1 77]
                      [((data 0) :seen)
                       (some (fn [[k v]] (when (str/starts-with? (str k) ":seen#") v))
                             (data 0))])))))
         (testing "constants of the kernel's configuration lie where the loader put them"
           (is (= {:CONFIG_HZ [0 8] :LINUX_KERNEL_VERSION [8 4] :CONFIG_BPF [12 1]}
                  (places (:value (bpf/spec kconfig)))))
           (is (pos? (long (:LINUX_KERNEL_VERSION (kconfig 0))))))
         (is (= #{:greeting1 :greeting2} (set (keys (mem/variables rodata))))))))))

(deftest names-of-shared-variables
  (testing "variables that share a name are named by their offsets"
    (let [integer {:kind :int :name "int" :size 4 :bits 32 :offset 0 :signed true :char false
                   :bool false}
          variable {:kind :var :name "seen" :type 1 :linkage 0}
          section (fn [& offsets]
                    (btf/type-of (btf/parse (writer/blob [integer variable
                                                          {:kind :datasec :name ".data" :size 12
                                                           :vars (for [o offsets]
                                                                   {:type 2 :offset o :size 4})}]))
                                 3))]
      (is (= [:struct {:name ".data"} [:seen :s32] [:seen#4 :s32] [:seen#8 :s32]] (section 0 4 8)))
      (testing "in the order of their places"
        (is (= (section 0 4 8) (section 8 0 4))))
      (testing "read as EDN"
        (is (= (section 0 4 8) (edn/read-string (pr-str (section 0 4 8)))))))))
