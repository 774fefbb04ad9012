(ns bpfmap.impl.memory.variables-test
  "Variables of a program by name: of one that a compiler made, in memory; and by system call
  where there is no mapping."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.btf.writer :as writer]
            [bpfmap.impl.kernel.btf :as btf]
            [bpfmap.impl.kernel.map :as map]
            [bpfmap.memory :as mem]
            [bpfmap.prog :as prog]
            [clojure.java.io :as io]
            [clojure.pprint :as pprint]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (bpfmap.sys Fd)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

;; --- what a compiler makes

(def ^:private source
  "#include <linux/bpf.h>
#define SEC(name) __attribute__((section(name), used))
struct pair { unsigned long a; unsigned int b; };
volatile unsigned long packets;
volatile struct pair last[2];
volatile unsigned int limit = 10;
volatile _Bool enabled = 1;
const volatile unsigned int threshold = 7;
const volatile char greeting[8] = \"hello\";
SEC(\"socket\") int count(struct __sk_buff *skb)
{
\tif (!enabled)
\t\treturn 0;
\t__sync_fetch_and_add(&packets, 1);
\tlast[1].a = packets;
\tlast[1].b = limit;
\treturn threshold;
}
char LICENSE[] SEC(\"license\") = \"GPL\";
")

(defn- compile-and-load
  "Compiles the program and has bpftool load and pin it, as its author would."
  [pin]
  (let [dir (fixture/temporary-directory)
        file #(str (io/file dir %))
        run (fn [& command]
              (let [{:keys [exit err]} (fixture/run command)]
                (when-not (zero? (long exit))
                  (throw (ex-info (str (first command) " failed: " err) {})))))
        headers (str "/usr/include/"
                     ({"amd64" "x86_64"} (System/getProperty "os.arch")
                                         (System/getProperty "os.arch")) "-linux-gnu")]
    (try
      (spit (file "t_vars.c") source)
      (run (fixture/executable "clang") "-target" "bpf" "-g" "-O2" (str "-I" headers) "-c"
           (file "t_vars.c") "-o" (file "t_vars.o"))
      (run (fixture/executable "bpftool") "prog" "load" (file "t_vars.o") pin)
      (finally
        (run! #(.delete ^java.io.File %) (reverse (file-seq dir)))))))

(kernel-test compiled-program-variables
  (testing "reads and writes the variables of a compiled program"
    (if-not (and (fixture/executable "clang") (fixture/executable "bpftool"))
      (fixture/skip! "no clang and bpftool to make a program with")
      (let [pin (fixture/new-pin)]
        (compile-and-load pin)
        (with-open [p ^Closeable (prog/open pin)]
          (let [section (fn [suffix]
                          (some #(let [m (bpf/open %)]
                                   (if (str/ends-with? (:name (bpf/info m)) suffix)
                                     m
                                     (do (bpf/close m) nil)))
                                (:map-ids (prog/info p))))
                run #(:return (prog/test-run p {:data (byte-array 14) :repeat %}))]
            (with-open [bss ^Closeable (section ".bss")
                        data ^Closeable (section ".data")
                        rodata ^Closeable (section ".rodata")]
              (let [{:keys [packets last]} (mem/variables bss)
                    {:keys [limit enabled]} (mem/variables data)
                    {:keys [threshold greeting]} (mem/variables rodata)]
                (is (= [#{:packets :last} #{:limit :enabled} #{:threshold :greeting}]
                       (map #(set (keys (mem/variables %))) [bss data rodata])))
                (testing "are read as the program leaves them"
                  (is (= [0 10 true 7 "hello"]
                         (map deref [packets limit enabled threshold greeting])))
                  (is (= 7 (run 5)))
                  (is (= [5 [{:a 0 :b 0} {:a 5 :b 10}]] [@packets @last]))
                  (is (= [5 {:a 5 :b 10}] [(get-in last [1 :a]) (nth last 1)])))
                (testing "and the program reads written values"
                  (mem/write! limit 20)
                  (mem/write! packets 100)
                  (is (= 7 (run 1)))
                  (is (= {:a 101 :b 20} (last 1)))
                  (is (= 101 (mem/fetch-add! packets -1)))
                  (mem/write! enabled false)
                  (is (= 0 (run 3)))
                  (is (= 100 @packets)))
                (testing "but constants are read-only"
                  (doseq [[v x] {threshold 8, greeting "bye"}]
                    (is (= [:read-only :write!]
                           ((juxt :bpfmap/error :bpfmap/op) (error-of (mem/write! v x))))))
                  (is (= :read-only (:bpfmap/error (error-of (mem/add! threshold 1))))))
                (testing "and values are checked"
                  (is (= :invalid-value (:bpfmap/error (error-of (mem/write! limit -1))))))
                (run! #(mem/close (bpf/memory %)) [bss data rodata])
                (is (= :closed (:bpfmap/error (error-of @packets))))))))
        (io/delete-file pin)))))

;; --- sections made here

(def ^:private records
  "BTF of a section: `int a` at 0, `long b[2]` at 8, `char c[8]` at 24."
  ;; 1
  [{:kind :int :name "int" :size 4 :bits 32 :offset 0 :signed true :char false :bool false}
   ;; 2
   {:kind :int :name "long" :size 8 :bits 64 :offset 0 :signed true :char false :bool false}
   ;; 3
   {:kind :int :name "char" :size 1 :bits 8 :offset 0 :signed true :char false :bool false}
   ;; 4
   {:kind :array :element 2 :index 1 :count 2}
   ;; 5
   {:kind :array :element 3 :index 1 :count 8}
   ;; 6
   {:kind :var :name "a" :type 1 :linkage :global}
   ;; 7
   {:kind :var :name "b" :type 4 :linkage :global}
   ;; 8
   {:kind :var :name "c" :type 5 :linkage :global}
   {:kind :datasec :name ".data" :size 32
    :vars [{:type 6 :offset 0 :size 4} {:type 7 :offset 8 :size 16} {:type 8 :offset 24 :size 8}]}])

(defn- a-section
  "A data section without a program, with these flags."
  ^Closeable [flags]
  (with-open [btf ^Fd (btf/load (writer/blob records) nil {:op :create})
              fd ^Fd (map/create {:type :array :key-size 4 :value-size 32 :max-entries 1
                                  :flags flags :name "t_vars.data"
                                  :btf {:fd btf :key 0 :value 9}}
                                 {:op :create})]
    (let [number (.acquire fd)]
      (try
        (bpf/open {:fd number})
        (finally (.release fd))))))

(kernel-test unmappable-section
  (testing "variables of a section that cannot be mapped use system calls"
    (with-open [m (a-section #{})]
      (let [{:keys [a b c] :as variables} (mem/variables m)]
        (is (= [:a :b :c] (sort (keys variables))))
        (is (= [0 [0 0] ""] (map deref [a b c])))
        (is (identical? a (mem/write! a -7)))
        (mem/write! b [1 -2])
        (mem/write! c "abc")
        (is (= [-7 [1 -2] "abc"] (map deref [a b c])))
        (is (= {:a -7 :b [1 -2] :c "abc"} (m 0)) "each write leaves the others")
        (is (= [-2 :none] [(get b 1) (get b 2 :none)]))
        (testing "values are checked before anything is written"
          (let [{:keys [message] :bpfmap/keys [error op path]} (error-of (mem/write! a 2147483648))]
            (is (= [:invalid-value :write! [:a]] [error op path]))
            (is
             (=
              "[:a]: 2147483648 is not a :s32: it must be an integer from -2147483648 to 2147483647"
              message)))
          (is (= [:b 1] (:bpfmap/path (error-of (mem/write! b [1 :x])))))
          (is (= {:a -7 :b [1 -2] :c "abc"} (m 0))))
        (testing "they print without being read"
          (is (= (pr-str a) (str/trim (with-out-str (pprint/pprint a)))))
          (is (re-matches #"#<bpf-variable :a :s32 of map \d+ \(t_vars.data\)>" (pr-str a))))
        (testing "nothing is done in one step"
          (let [{:keys [message] :bpfmap/keys [error]} (error-of (mem/add! a 1))]
            (is (= :not-supported error))
            (is
             (re-find
              #"^The view must be in memory, got #<bpf-variable :a :s32 of map \d+ \(t_vars.data\)>: use @, get or write!, which make system calls$" message))))
        (testing "once frozen, they are constants"
          (bpf/freeze! m)
          (is (= -7 @a))
          (let [{:keys [message] :bpfmap/keys [error op]} (error-of (mem/write! a 1))]
            (is (= [:read-only :write!] [error op]))
            (is (re-find #"^The variables of map \d+ are constants: the map is frozen" message))))
        (bpf/close m)
        (is (= [:closed :closed]
               (map #(:bpfmap/error (error-of (%))) [#(deref a) #(mem/write! a 1)])))))))

(kernel-test read-only-handle
  (testing "variables of a read-only handle reject writes"
    (doseq [flags [#{} #{:mmapable}]]
      (with-open [m (a-section flags)
                  reader (bpf/open (:id (bpf/info m)) {:access :read-only})]
        (let [{:keys [a]} (mem/variables reader)]
          (is (= 0 @a))
          (is (= :read-only (:bpfmap/error (error-of (mem/write! a 1))))))))))

(kernel-test rdonly-prog-section
  (testing "read-only variables are written by system calls and read in memory"
    (with-open [m (a-section #{:mmapable :rdonly-prog})]
      (let [{:keys [a b]} (mem/variables m)]
        (is (mem/read-only? (bpf/memory m)))
        (mem/write! a 5)
        (mem/write! b [6 7])
        (is (= [5 [6 7]] [@a @b]))
        (is (= 5 @(mem/view (bpf/memory m) :s32)))
        (bpf/freeze! m)
        (is (= :read-only (:bpfmap/error (error-of (mem/write! a 6)))))
        (is (= :read-only (:bpfmap/error (error-of (mem/write! (:a (mem/variables m)) 6)))))
        (is (= 5 @a))))))

(kernel-test not-a-data-section
  (testing "rejects a map that is not a data section"
    (doseq [[spec hint] [[{:type :array :key :u32 :value :u64 :max-entries 1}]
                         [{:type :array :key :u32 :value [:struct [:a :u32]] :max-entries 2}]
                         [{:type :hash :key :u32 :value [:struct [:a :u32]] :max-entries 1}]]]
      (with-open [m (bpf/create spec)]
        (let [{:keys [message] :bpfmap/keys [error op]} (error-of (mem/variables m))]
          (is (= [:not-supported :variables] [error op]))
          (is
           (re-find
            #"^Map \d+ has no variables: they are in a data section, an array with a single value, whose BTF names them$" message)))))
    (testing "but an array of one struct is as good as one"
      (with-open [m (bpf/create {:type :array :key :u32 :value [:struct [:a :u32]] :max-entries 1
                                 :flags #{:mmapable}})]
        (mem/write! (:a (mem/variables m)) 7)
        (is (= {:a 7} (m 0)))
        (mem/close (bpf/memory m))))))

;; --- bytes and texts

(kernel-test byte-elements-written
  (testing "reads and writes variables of bytes by element"
    (with-open [m ^Closeable (bpf/create {:name ".bss" :type :array :key :u32 :max-entries 1
                                          :flags #{:mmapable}
                                          :value [:struct [:a [:bytes 8]] [:n :u32]
                                                  [:name [:string 4]]
                                                  [:two [:array [:bytes 2] 2]]]})
                memory ^Closeable (bpf/memory m)]
      (is memory)
      (let [{:keys [a name two]} (mem/variables m)]
        (is (= (bpf/->bytes (repeat 8 0)) @a))
        (mem/write! a [7] 255)
        (mem/write! a 0 1)
        (is (= (bpf/->bytes [1 0 0 0 0 0 0 255]) @a (:a (m 0))))
        (is (= [255 255 8 :none 256] [(nth a 7) (a 7) (count a) (get a 8 :none) (reduce + a)]))
        (is (= [1 0 0 0 0 0 0 255] (vec a) (vec (mem/->array a))))
        (mem/write! a (bpf/->bytes (range 8)))
        (is (= 7 @(mem/at a 7)))
        (mem/write! two [1 1] 9)
        (is (= [(bpf/->bytes [0 0]) (bpf/->bytes [0 9])] @two))
        (testing "a text is one of characters"
          (mem/write! name "abcd")
          (mem/write! name [0] \X)
          (is (= ["Xbcd" \d] [@name (nth name 3)])))
        (testing "they print as they read"
          (is (str/ends-with? (pr-str a)
                              (str " (.bss): #bpfmap/bytes \"00 01 02 03 04 05 06 07\">")))
          (is (str/includes? (pr-str a) "[:bytes 8] at 0 of ")))
        (testing "what does not fit is refused"
          (is (= "[:a 7]: 256 is not a :u8: it must be an integer from 0 to 255"
                 (:message (error-of (mem/write! a [7] 256)))))
          (is (str/starts-with? (:message (error-of (mem/write! a [8] 1)))
                                "No element 8 of [:bytes 8] in the memory of map "))
          (is (= "[:a]: \"01\" is not a [:bytes 8]: it must have 8 bytes, got 1"
                 (:message (error-of (mem/write! a (bpf/->bytes [1])))))))))))

(kernel-test elements-unmapped
  (testing "writes elements of variables without memory"
    (with-open [m ^Closeable (bpf/create {:name ".bss" :type :array :key :u32 :max-entries 1
                                          :value [:struct [:n :u32] [:a [:bytes 8]]
                                                  [:pair
                                                   [:array [:struct [:x :u8] [:y :u16]] 2]]]})]
      (let [{:keys [n a pair]} (mem/variables m)]
        (mem/write! n 5)
        (is (identical? a (mem/write! a [7] 255)))
        (mem/write! a 0 1)
        (mem/write! pair [1 :y] 9)
        (is (= {:n 5 :a (bpf/->bytes [1 0 0 0 0 0 0 255]) :pair [{:x 0 :y 0} {:x 0 :y 9}]} (m 0)))
        (is (= [255 9] [(get a 7) (get-in pair [1 :y])]))
        (is (= "[:a 7]: 256 is not a :u8: it must be an integer from 0 to 255"
               (:message (error-of (mem/write! a [7] 256)))))
        (is (= "[:pair 1 :x]: -1 is not a :u8: it must be an integer from 0 to 255"
               (:message (error-of (mem/write! pair [1 :x] -1)))))
        (is (str/starts-with? (:message (error-of (mem/write! a [8] 1)))
                              "No element 8 of [:bytes 8] in the memory of map "))
        (is (str/starts-with? (:message (error-of (mem/write! n [0] 1)))
                              "No part 0 of :u32 in the memory of map "))))))
