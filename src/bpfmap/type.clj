(ns bpfmap.type
  "Describes the bytes of keys and values with types, which are data.

  | type                            | in C                            | bytes   | reads as                          |
  |---------------------------------|---------------------------------|---------|-----------------------------------|
  | `:u8` … `:u64` `:u128`          | `__u8` … `__u64`                | 1 to 16 | an integer                        |
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
  | `[:enum type {name number}]`    | `enum`                          | type's  | a keyword; else the number        |
  | `[:array type n]`               | `type x[n]`                     | n times | a vector                          |
  | `[:struct member …]`            | `struct`                        | as in C | a map                             |
  | `[:union member …]`             | `union`                         | as in C | a map of every member             |
  | `[:bits type n]`                | `type x : n`, a member          |         | as the type                       |
  | `[:string n]`                   | `char x[n]`                     | n       | a string of up to n bytes         |
  | `[:c-string n]`                 | `char x[n]`, ended by a NUL     | n       | a string of up to n-1 bytes       |
  | `[:bytes n]`                    | `__u8 x[n]`                     | n       | a byte view                       |
  | `[:pad n]`                      | a hole, a member                | n       | nothing                           |
  | `[:typedef \"name\" type]`      | `typedef type name`             | type's  | as the type                       |
  | `[:via type encode decode]`     |                                 | type's  | the result of `decode`            |
  | `:spin-lock` `:timer` …         | `struct bpf_spin_lock` …        | 4 to 32 | nothing: the kernel owns it       |

  A member is `[name type]`, or `[nil type]` for an anonymous struct, union or
  bit-field; a third element holds its options: `:align`, `:offset` in bytes,
  `:bit-offset`. After `:struct` or `:union` a map may hold `:packed`,
  `:align`, `:size`, and `:name`, the tag in C.

  A prefix is the key of an LPM trie: the number of leading bits that count, and the address.
  `\"10.1.2.3\"` without a length is the whole address, `/32`. A trie does not compare the bits
  behind the prefix, and they are written as zero. If another program has set such bits, or a
  length beyond the address, the prefix reads as `{:prefixlen n :data bytes}`, which can be written
  again.

  Writing a value that was read gives the same bytes. Bytes that have no value (such as bytes after
  the NUL of a string, the payload of a NaN, a bool of 7; in keys also -0.0 and every NaN) read as a
  byte view. A struct or union whose unused bits are not all zero has them under `:bpfmap/padding`.
  Every type accepts a byte view of its size.

  Without a suffix the byte order is this machine's, as in C. Integers above 2^63-1 read as BigInt.
  Functions that accept types also accept named types with the option `:types`."
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
  "Returns a well-formed type unchanged; throws `:invalid-spec` for any other.

      (check :u32)                  ;=> :u32
      (check [:struct [:a :u33]])   ; throws: [:a]: unknown type :u33 …"
  ([type] (check type nil []))
  ([type types path]
   (node/node type types path)
   type))

(defn problem
  "Returns the problem of a malformed type as a sentence, or nil.

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
  "Returns the size of the type in bytes.

      (size :u32)                          ;=> 4
      (size [:struct [:a :u8] [:b :u32]])  ;=> 8"
  ([type] (size type nil))
  ([type types] (:size (node/node type types []))))

(defn align
  "Returns the alignment of the type in bytes.

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
  "Returns the offset and size of every field, in the order of the members.

  The result maps paths to `{:offset :size}` in bytes, or to `{:bit-offset :bits}`. The first
  element of an array stands for all elements. Fields of anonymous members have the path of the
  surrounding struct.

      (offsets [:struct [:a :u8] [:b :u32]])
      ;=> {[:a] {:offset 0, :size 1}, [:b] {:offset 4, :size 4}}"
  ([type] (offsets type nil))
  ([type types]
   (apply array-map (mapcat identity (node-offsets (node/node type types []) 0 [])))))

(defn summary
  "Returns a type in a few words, for one line.

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
      :else (let [text (error/printed type)]
              (if (< 40 (count text)) (str (subs text 0 39) "…") text)))))

(defn ->generator
  "Returns a test.check generator of values of the type.

  Loads org.clojure/test.check on demand; it must be on the class path. Throws `:not-supported`
  without it, and for a `[:via …]`, because only its author can generate its values.

      (gen/sample (->generator [:struct [:a :u8] [:b :bool]]))"
  ([type] (->generator type nil))
  ([type types]
   (let [generator (try
                     (requiring-resolve 'bpfmap.impl.type.generator/generator)
                     (catch java.io.FileNotFoundException e
                       (throw (error/error :not-supported "Values cannot be generated"
                                           {:bpfmap/hint "org.clojure/test.check must be on the class path"} e))))]
     (generator (node/node type types [])))))
