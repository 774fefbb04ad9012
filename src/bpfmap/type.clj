(ns bpfmap.type
  "Types as data: what the bytes of a key or a value mean.

  | type                            | in C                            | bytes   | reads as                          |
  |---------------------------------|---------------------------------|---------|-----------------------------------|
  | `:u8` … `:u64` `:u128`          | `__u8` … `__u64`                | 1 to 16 | an integer, numerically right     |
  | `:s8` … `:s64` `:s128`          | `__s8` … `__s64`                | 1 to 16 | an integer                        |
  | the same with `be` or `le`      | `__be16`, `__le32` …            | 2 to 16 | the same, in that byte order      |
  | `:f32` `:f64`, `be` or `le`     | `float`, `double`               | 4, 8    | a double                          |
  | `:bool`                         | `bool`                          | 1       | true or false                     |
  | `:char`                         | `char`                          | 1       | a character up to \\ÿ             |
  | `:ptr`, `[:ptr type]`           | `void *`, `type *`              | 8       | the address, an integer           |
  | `:ipv4` `:ipv6`                 | `__be32`, `struct in6_addr`     | 4, 16   | a string, \"10.0.0.1\"            |
  | `[:prefix :ipv4]` or `:ipv6`    | `struct bpf_lpm_trie_key`       | 8, 20   | a string, \"10.0.0.0/8\"          |
  | `:mac`                          | `__u8[6]`                       | 6       | a string, \"00:1b:21:0a:0b:0c\"   |
  | `:port`                         | `__be16`                        | 2       | an integer                        |
  | `:ktime`                        | `__u64`                         | 8       | nanoseconds of the kernel's clock |
  | `[:enum type {name number}]`    | `enum`                          | type's  | a keyword; the number if nameless |
  | `[:array type n]`               | `type x[n]`                     | n times | a vector                          |
  | `[:struct member …]`            | `struct`                        | as in C | a map                             |
  | `[:union member …]`             | `union`                         | as in C | a map of every member             |
  | `[:bits type n]`                | `type x : n`, a member          |         | as the type                       |
  | `[:string n]`                   | `char x[n]`                     | n       | a text of up to n bytes           |
  | `[:c-string n]`                 | `char x[n]`, ended by a NUL     | n       | a text of up to n-1 bytes         |
  | `[:bytes n]`                    | `__u8 x[n]`                     | n       | a byte view                       |
  | `[:pad n]`                      | a hole, a member                | n       | nothing                           |
  | `[:typedef \"name\" type]`      | `typedef type name`             | type's  | as the type                       |
  | `[:via type encode decode]`     |                                 | type's  | what `decode` makes of it         |
  | `:spin-lock` `:timer` …         | `struct bpf_spin_lock` …        | 4 to 32 | nothing: it is the kernel's       |

  A member is `[name type]`, or `[nil type]` for an anonymous struct, union or
  bit-field; a third element holds its options: `:align`, `:offset` in bytes,
  `:bit-offset`. After `:struct` or `:union` a map may hold `:packed`,
  `:align`, `:size`, and `:name`, the tag in C.

  A prefix is the key of an LPM trie: how many leading bits count, and the
  address. `\"10.1.2.3\"` without a length is the whole address, `/32`; bits behind
  the prefix, which a trie does not compare, are written as zero. Such bits that
  another program set, or a length beyond the address, read as
  `{:prefixlen n :data bytes}`, which goes in again.

  Writing what was read gives the same bytes, whatever they are. Bytes that no value
  stands for (something behind a text's NUL, a NaN's payload, a bool of 7; in keys -0.0
  and every NaN) read as a byte view; a struct or union whose unused bits are not all zero
  has them under `:bpfmap/padding`. Every type takes a byte view of its size.

  Without a suffix the byte order is this machine's, as in C. Integers above
  2^63-1 read as BigInt. Where types are taken, `:types` may give names to more."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.type.node :as node]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(def scalars
  "Every type that is a keyword: name to `{:kind :size :align …}`, in bytes.

      (:size (scalars :u32)) ;=> 4"
  node/scalars)

(defn check
  "Returns a type that is well formed; throws `:invalid-spec` that says where and why for any other.

      (check :u32)                  ;=> :u32
      (check [:struct [:a :u33]])   ; throws: [:a]: unknown type :u33 …"
  ([type] (check type nil []))
  ([type types path]
   (node/node type types path)
   type))

(defn problem
  "Says what is wrong with a type, in one sentence; nil for a good one.

      (problem :u33) ;=> \"[]: unknown type :u33; …\"
      (problem :u32) ;=> nil"
  ([type] (problem type nil []))
  ([type types path]
   (try
     (node/node type types path)
     nil
     (catch ExceptionInfo e
       (if (:bpfmap/error (ex-data e)) (ex-message e) (throw e))))))

(defn size
  "Bytes that a value of the type takes.

      (size :u32)                          ;=> 4
      (size [:struct [:a :u8] [:b :u32]])  ;=> 8"
  ([type] (size type nil))
  ([type types] (:size (node/node type types []))))

(defn align
  "The alignment of the type in bytes.

      (align [:struct [:a :u8] [:b :u32]]) ;=> 4"
  ([type] (align type nil))
  ([type types] (:align (node/node type types []))))

(defn- node-offsets [{:keys [kind members element count]} base path]
  (case kind
    (:struct :union)
    (mapcat (fn [{:keys [name node offset bits bit-offset]}]
              (let [path (if name (conj path name) path)
                    at (+ (long base) (long offset))]
                (cond->> (node-offsets node at path)
                  name (cons [path (if bits
                                     {:bit-offset (+ (* 8 (long base)) (long bit-offset))
                                      :bits bits}
                                     {:offset at :size (:size node)})]))))
            members)
    :array (when (pos? (long count)) (node-offsets element base (conj path 0)))
    nil))

(defn offsets
  "Where every field lies: path to `{:offset :size}` in bytes, or `{:bit-offset :bits}`.

  An array's first element stands for all of them. Fields of anonymous members
  have the path of their surroundings. In the order of the members.

      (offsets [:struct [:a :u8] [:b :u32]])
      ;=> {[:a] {:offset 0, :size 1}, [:b] {:offset 4, :size 4}}"
  ([type] (offsets type nil))
  ([type types]
   (apply array-map (mapcat identity (node-offsets (node/node type types []) 0 [])))))

(defn summary
  "A type in a few words, for one line.

      (summary [:struct {:name \"flow\"} [:a :u8]]) ;=> \"struct flow\"
      (summary [:struct [:a :u8] [:b :u8]])        ;=> \"{:a :b}\"
      (summary [:bytes 4])                         ;=> \"[:bytes 4]\""
  [type]
  (let [[head options & members] (when (vector? type) type)
        c-name (when (map? options) (:name options))]
    (cond
      (and c-name (#{:struct :union} head)) (str (name head) " " c-name)
      (#{:struct :union} head)
      (let [names (map first (if (map? options) members (cons options members)))]
        (str "{" (str/join " " (take 6 names)) (when (< 6 (count names)) " …") "}"))
      :else (let [text (pr-str (error/shown type))]
              (if (< 40 (count text)) (str (subs text 0 39) "…") text)))))

(defn ->generator
  "A test.check generator of values of the type.

  Needs org.clojure/test.check on the class path, and loads it only when it is
  called. Throws `:not-supported` without it, and for a `[:via …]`, whose
  values only its author knows.

      (gen/sample (->generator [:struct [:a :u8] [:b :bool]]))"
  ([type] (->generator type nil))
  ([type types]
   (let [generator (try
                     (requiring-resolve 'bpfmap.impl.type.generator/generator)
                     (catch java.io.FileNotFoundException e
                       (throw (error/error :not-supported "Values cannot be generated"
                                           {:bpfmap/hint "org.clojure/test.check is not on the class path"} e))))]
     (generator (node/node type types [])))))
