(ns bpfmap.type
  "Types as data: what the bytes of a key or a value mean.

  | type                          | bytes   | reads as                              |
  |-------------------------------|---------|---------------------------------------|
  | `:u8` `:u16` `:u32` `:u64`    | 1 to 8  | an integer, numerically right         |
  | `:s8` `:s16` `:s32` `:s64`    | 1 to 8  | an integer                            |
  | the same with `be` or `le`    | 2 to 8  | the same, in that byte order          |
  | `:f32` `:f64`, `be` or `le`   | 4, 8    | a double                              |
  | `:bool`                       | 1       | true or false                         |
  | `:char`                       | 1       | a character up to \\ÿ                 |
  | `[:bytes n]`                  | n       | a byte view                           |

  Without a suffix the byte order is this machine's, as in C. A `:u64` above
  2^63-1 reads as a BigInt."
  (:require [bpfmap.error :as error]))

(set! *warn-on-reflection* true)

(defn- integer-rows []
  (for [bits [8 16 32 64]
        signed? [false true]
        order (if (= 8 bits) [nil] [nil :be :le])]
    [(keyword (str (if signed? "s" "u") bits (some-> order name)))
     {:kind :integer :size (quot bits 8) :signed? signed? :order order}]))

(defn- float-rows []
  (for [bits [32 64]
        order [nil :be :le]]
    [(keyword (str "f" bits (some-> order name)))
     {:kind :float :size (quot bits 8) :order order}]))

(def scalars
  "Every scalar type: name to `{:kind :size …}`, the size in bytes."
  (into (sorted-map)
        (concat (integer-rows)
                (float-rows)
                [[:bool {:kind :bool :size 1}]
                 [:char {:kind :char :size 1}]])))

(def ^:private largest-size
  "Sizes are 32-bit numbers in the kernel's interface."
  0xffffffff)

(defn problem
  "Says what is wrong with a type, in one sentence; nil for a good one.

      (problem :u33) ;=> \"unknown type :u33; …\"
      (problem :u32) ;=> nil"
  [type]
  (cond
    (keyword? type)
    (when-not (scalars type)
      (str "unknown type " type "; the scalar types are "
           (error/list-of (keys scalars))))

    (and (vector? type) (= :bytes (first type)))
    (let [[_ n & more] type]
      (when (or more (not (int? n)) (not (<= 1 n largest-size)))
        (str "[:bytes n] takes one size from 1 to " largest-size ", not " (pr-str type))))

    :else
    (str "a type is a keyword such as :u32, or [:bytes n], not " (pr-str (error/shown type)))))

(defn check
  "Returns a type that is well formed; throws `:invalid-spec` with the path for any other.

      (check :u32 [:key]) ;=> :u32"
  [type path]
  (if-let [what (problem type)]
    (throw (error/error :invalid-spec (str path ": " what) {:bpfmap/path path}))
    type))

(defn size
  "Bytes that a value of the type takes.

      (size :u32)       ;=> 4
      (size [:bytes 6]) ;=> 6"
  [type]
  (check type [])
  (if (keyword? type) (:size (scalars type)) (second type)))
