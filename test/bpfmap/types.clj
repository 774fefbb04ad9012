(ns bpfmap.types
  "Types for the tests: a generator of them, and what they are in C."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.fixture :as fixture]
            [bpfmap.type :as type]
            [clojure.string :as str]
            [clojure.test.check.generators :as gen])
  (:import (bpfmap.sys Codec)
           (java.lang.foreign MemorySegment ValueLayout)))

(set! *warn-on-reflection* true)

;; --- a codec and bytes

(defn decoded
  "Returns the value that a codec reads from a byte view."
  [^Codec c view]
  (.decode c (MemorySegment/ofArray (bytes/->array view)) 0))

(defn encoded
  "Returns the bytes that a codec writes for a value, over memory that is full of ones."
  [^Codec c value]
  (let [memory (MemorySegment/ofArray (byte-array (.size c) (byte -1)))]
    (.encode c value memory 0)
    (bytes/wrap (.toArray memory ValueLayout/JAVA_BYTE))))

;; --- a generator

(def ^:private leaf
  (gen/frequency
   [[8 (gen/elements (vec (remove #(= :private (:kind (type/scalars %))) (keys type/scalars))))]
    [1 (gen/fmap #(vector :bytes %) (gen/choose 1 9))]
    [1 (gen/fmap #(vector :string %) (gen/choose 1 9))]
    [1 (gen/fmap #(vector :c-string %) (gen/choose 1 9))]
    [1 (gen/return [:ptr :u32])]
    [1 (gen/elements [[:prefix :ipv4] [:prefix :ipv6]])]
    [1 (gen/let [base (gen/elements [:u8 :s16 :u32 :s32 :u64 :s64])
                 numbers (gen/vector-distinct (gen/choose 0 100) {:min-elements 1 :max-elements 4})]
         [:enum base (into (array-map) (map (fn [n] [(keyword (str "E" n)) n])) numbers)])]]))

(def ^:private bit-field
  (gen/let [base (gen/elements [:u8 :s8 :u16 :s16 :u32 :s32 :u64 :s64 :bool])
            n (gen/choose 1 64)]
    [:bits base (if (= :bool base) 1 (inc (mod (dec n) (* 8 (:size (type/scalars base))))))]))

(defn- compound [inner]
  (gen/let [kind (gen/frequency [[4 (gen/return :struct)] [1 (gen/return :union)]])
            options (gen/frequency [[5 (gen/return nil)]
                                    [1 (gen/return {:packed true})]
                                    [1 (gen/fmap #(hash-map :align %) (gen/elements [2 8 16]))]])
            members (gen/vector (gen/frequency
                                 [[10 (gen/fmap #(vector ::name %) inner)]
                                  [3 (gen/fmap #(vector ::name %) bit-field)]
                                  [1
                                   (gen/let [n (gen/elements [2 4 8 16]) t inner]
                                     [::name t {:align n}])]
                                  [1 (gen/fmap #(vector nil [:bits :u32 %]) (gen/choose 0 9))]
                                  [1 (gen/fmap #(vector :pad %) (gen/choose 1 5))]
                                  [2 (gen/let [k (gen/elements [:struct :union])
                                               ts (gen/vector inner 1 3)]
                                       [nil (into [k] (map #(vector ::name %)) ts)])]])
                                1 5)]
    (-> [kind] (into (when options [options])) (into members))))

(defn- with-names
  "Every placeholder as a name of its own, so that no two members clash."
  [type]
  (let [n (volatile! -1)]
    ((fn walk [x]
       (cond
         (= ::name x) (keyword (str "f" (vswap! n inc)))
         (and (vector? x) (not= :enum (first x))) (mapv walk x)
         :else x))
     type)))

(defn- nested
  "Generates types nested to depth 4 out of leaves."
  [leaf]
  (gen/fmap with-names
            (nth (iterate (fn [inner]
                            (gen/frequency [[3 leaf]
                                            [4 (compound inner)]
                                            [2
                                             (gen/let [t inner n (gen/choose 0 4)] [:array t n])]]))
                          leaf)
                 4)))

(def a-type
  "Generates types nested to depth 4."
  (nested leaf))

(defn- larger
  "A struct or union with so many bytes more than its members need."
  [[kind & more] n]
  (let [[options members] (if (map? (first more)) [(first more) (rest more)] [{} more])
        type (into [kind options] members)
        align (type/align type)]
    (into [kind (assoc options :size (+ (type/size type) (* n align)))] members)))

(def ^:private private-field
  (gen/elements (vec (filter #(= :private (:kind (type/scalars %))) (keys type/scalars)))))

(def any-type
  "Generates types nested to depth 4, with what C has no word for: fields of the kernel's, members
  without any value, sizes and places of their own."
  (let [leaf (gen/frequency [[12 leaf]
                             [1 private-field]
                             [1 (gen/fmap #(vector :typedef "t" %) leaf)]])
        without-values (gen/frequency [[4 private-field]
                                       [1 (gen/return [:array :u8 0])]
                                       [1 (gen/return :u8)]])]
    (gen/one-of [(nested leaf)
                 (nested without-values)
                 (gen/let [t (gen/fmap with-names (compound leaf)) n (gen/choose 0 3)] (larger t n))
                 (gen/let [ts (gen/vector leaf 1 4) gaps (gen/vector (gen/choose 0 9) 4)]
                   (loop [members [] at 0 [t & more] ts [gap & gaps] gaps]
                     (if t
                       (recur (conj members
                                    [(keyword (str "f" (count members))) t
                                     {:offset (+ at (long gap))}])
                              (+ at (long gap) (long (type/size t))) more gaps)
                       (into [:struct {:packed true}] members))))])))

(def a-struct
  "Generates structs and unions nested to depth 4."
  (gen/fmap with-names
            (compound (nth (iterate (fn [inner] (gen/frequency [[3 leaf] [2 (compound inner)]
                                                                [1
                                                                 (gen/let
                                                                  [t inner n (gen/choose 0 3)]
                                                                   [:array t n])]]))
                                    leaf)
                           3))))

;; --- in C

(def ^:private prelude
  (str "#include <stdio.h>\n#include <stddef.h>\n#include <string.h>\n#include <stdbool.h>\n"
       "typedef struct { unsigned int w[4]; } ip6;\ntypedef unsigned char mac[6];\n"
       "typedef struct { unsigned int prefixlen; unsigned char data[4]; } prefix4;\n"
       "typedef struct { unsigned int prefixlen; unsigned char data[16]; } prefix6;\n"
       "static long long first(const void *p, size_t n) {\n"
       "  for (size_t i = 0; i < 8 * n; i++) if (((const unsigned char *)p)[i / 8] >> (i % 8) & 1) "
       "return i;\n  return -1; }\n"
       "static int ones(const void *p, size_t n) { int c = 0;\n"
       "  for (size_t i = 0; i < 8 * n; i++) c += ((const unsigned char *)p)[i / 8] >> (i % 8) & "
       "1; return c; }\n"))

(defn- c-scalar [t]
  (let [{:keys [kind size signed]} (type/scalars t)]
    (case kind
      :integer (str (if signed "signed " "unsigned ")
                    ({1 "char" 2 "short" 4 "int" 8 "long" 16 "__int128"} size))
      :float ({4 "float" 8 "double"} size)
      :bool "bool"
      :char "char"
      :pointer "void *"
      :ipv4 "unsigned int"
      :ipv6 "ip6"
      :mac "mac")))

(declare c-declaration)

(defn- attributes [{:keys [packed align]}]
  (str (when packed " __attribute__((packed))")
       (when align (str " __attribute__((aligned(" align ")))"))))

(defn- c-member [[name t options]]
  (cond
    (and (= :pad name) (int? t)) (str "unsigned char " (gensym "pad") "[" t "];")
    (= :bits (when (vector? t) (first t))) (str (c-scalar (second t)) " "
                                                (some-> name clojure.core/name) " : " (nth t 2)
                                                (attributes options) ";")
    :else (str (c-declaration t (some-> name clojure.core/name)) (attributes options) ";")))

(defn- c-declaration [t name]
  (if (keyword? t)
    (str (c-scalar t) " " name)
    (let [[head a b] t]
      (case head
        (:struct :union) (let [[options members] (if (map? a) [a (drop 2 t)] [nil (rest t)])]
                           (str (clojure.core/name head) " {" (str/join " " (map c-member members))
                                "}"
                                (attributes options) " " name))
        :array (c-declaration a (str name "[" b "]"))
        :bytes (str "unsigned char " name "[" a "]")
        (:string :c-string) (str "char " name "[" a "]")
        :ptr (str "void *" name)
        :prefix (str ({:ipv4 "prefix4" :ipv6 "prefix6"} a) " " name)
        :enum (str (c-scalar a) " " name)))))

(defn- c-path [path]
  (str/replace (str/join (map #(if (int? %) (str "[" % "]") (str "." (name %))) path)) #"^\." ""))

(defn- questions [i t]
  (let [tag (str "T" i)]
    (into [[[i :size] (str "sizeof(" tag ")")] [[i :align] (str "_Alignof(" tag ")")]]
          (mapcat (fn [[path {:keys [bits]}]]
                    (let [at (c-path path)]
                      (if bits
                        [[[i path :bit-offset]
                          (str "({ " tag " x; memset(&x, 0, sizeof x); x." at
                               " = -1; first(&x, sizeof x); })")]
                         [[i path :bits]
                          (str "({ " tag " x; memset(&x, 0, sizeof x); x." at
                               " = -1; ones(&x, sizeof x); })")]]
                        [[[i path :offset] (str "offsetof(" tag ", " at ")")]
                         [[i path :size] (str "sizeof(((" tag " *)0)->" at ")")]]))))
          (type/offsets t))))

(defn c-layouts
  "What the C compiler here says of types: a sequence of `{:type :size :align :offsets}`; nil
  without a compiler."
  [types]
  (when-let [cc (or (fixture/executable "gcc") (fixture/executable "cc"))]
    (let [dir (fixture/temporary-directory)
          source (java.io.File. dir "layouts.c")
          program (str (java.io.File. dir "layouts"))
          asked (mapcat questions (range) types)]
      (try
        (spit source (str prelude
                          (str/join (map-indexed (fn [i t]
                                                   (str "typedef " (c-declaration t (str "T" i))
                                                        ";\n")) types))
                          ;; A function for each type: the compiler is slow on one large function.
                          (str/join (for [[i group] (group-by ffirst asked)]
                                      (str "static void t" i "(void) {\n"
                                           (str/join
                                            (map (fn [[_ e]]
                                                   (str "printf(\"%lld\\n\", (long long)" e ");\n"))
                                                 group))
                                           "}\n")))
                          "int main(void) {\n"
                          (str/join (map (fn [i] (str "t" i "();\n")) (range (count types))))
                          "return 0; }\n"))
        (let [{:keys [exit err]} (fixture/run [cc "-w" "-O0" "-std=gnu11" "-o" program
                                               (str source)])]
          (when-not (zero? exit) (throw (ex-info (str "the C compiler failed: " err) {})))
          (let [answers (map parse-long (str/split-lines (:out (fixture/run [program]))))
                of-type (group-by ffirst (map (fn [[k _] v] [k v]) asked answers))]
            (for [[i t] (map-indexed vector types)]
              (reduce (fn [acc [[_ k field] v]]
                        (if field (assoc-in acc [:offsets k field] v) (assoc acc k v)))
                      {:type t :offsets {}}
                      (of-type i)))))
        (finally
          (run! #(.delete ^java.io.File %) (reverse (file-seq dir))))))))
