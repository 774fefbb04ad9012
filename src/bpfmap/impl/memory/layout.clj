(ns ^:no-doc bpfmap.impl.memory.layout
  "Describes the layout of a type for views: codec, offsets of parts, access by the processor.

  Fields of every layout:
  - `:kind`: `:array`, `:struct` (unions too) or `:cell`
  - `:type` `:size` `:codec`: the type, its bytes, a `bpfmap.sys.TypeCodec`
  - `:private`: true if a part is private to the kernel

  Fields of arrays:
  - `:element` `:count` `:stride`: layout and number of elements, bytes from one to the next
  - `:whole`: true if it is read and printed as one value, such as bytes or a text

  Fields of structs:
  - `:members`: name to `{:offset :layout}`, the layout a delay; with the members of anonymous
    members

  Fields of cells:
  - `:integer`: `{:size :signed :swap}` of an integer of up to 8 bytes
  - `:float`: `{:size :swap}` of a floating-point number
  - `:atomic`: the `bpfmap.sys.AtomicType` of an integer of 4 or 8 bytes in this machine's order;
    else nil
  - `:at-once`: true if the codec checks a value and then writes it with one store"
  (:require [bpfmap.impl.codec :as codec]
            [bpfmap.impl.type.node :as node])
  (:import (bpfmap.sys AtomicType Bytes TypeCodec)))

(set! *warn-on-reflection* true)

;; A record, because views read its fields on every access to a part.
(defrecord Layout
           [kind type size codec private element count stride members integer float atomic
            at-once whole])

(declare of-node of-type)

(defn- swapped? [order]
  (case order
    nil false
    :be (Bytes/swapped true)
    :le (Bytes/swapped false)))

(defn kernel's?
  "Returns true if a node has a part that is private to the kernel.

  A spin lock, for example, or a timer."
  [{:keys [kind members element]}]
  (case kind
    :private true
    (:struct :union) (boolean (some #(kernel's? (:node %)) members))
    :array (recur element)
    false))

(defn- bit-field
  "Returns the layout of a bit-field.
  Its codec takes the offset of the struct."
  [{:keys [node bits] :as member}]
  (map->Layout {:kind :cell :type [:bits (:type node) bits] :size 0 :at-once true
               :private false
               :codec (TypeCodec/of (codec/bit-field member []))}))

(defn- members-of
  "Returns the members of a struct's or union's node, by name."
  [{:keys [members]} base]
  (into {}
        (mapcat (fn [{:keys [name node offset bits] :as member}]
                  (let [at (+ (long base) (long offset))]
                    (cond
                      bits (when name [[name {:offset base :layout (delay (bit-field member))}]])
                      name [[name {:offset at :layout (delay (of-node node))}]]
                      :else (members-of node at)))))
        members))

(defn- numeric
  "Returns the fields of a layout that a number has, by its node."
  [{:keys [kind size signed order]}]
  (case kind
    :integer (when (<= (long size) 8)
               {:integer {:size size :signed (boolean signed) :swap (swapped? order)}
                :atomic (when-not (swapped? order)
                          (AtomicType/of size (boolean signed)))})
    :pointer {:integer {:size 8 :signed false :swap false} :atomic AtomicType/U64}
    :float {:float {:size size :swap (swapped? order)}}
    nil))

(defn- of-node [{:keys [kind type size element count] :as node}]
  (map->Layout
   (merge {:type type :size size :codec (codec/of-node node []) :private (kernel's? node)}
          (case kind
            :array {:kind :array :element (of-node element) :count count
                    :stride (:size element)}
            ;; An array of bytes or characters in C.
            :bytes {:kind :array :element (of-type :u8 nil) :count size :stride 1 :whole true}
            :string {:kind :array :element (of-type :char nil) :count size :stride 1 :whole true}
            (:struct :union) {:kind :struct :members (members-of node 0)}
            (merge {:kind :cell
                    :at-once (contains? #{:integer :pointer :float :bool :char :enum} kind)}
                   (numeric node))))))

(defn of-type
  "Returns the layout of a type; throws `:invalid-spec` for a malformed one.

      (:kind (of-type [:array :u64 8] nil)) ;=> :array"
  [type types]
  (of-node (node/node type types [])))

(defn strided
  "Returns the layout of n elements of a type, `stride` bytes from one to the next.

  The stride may be larger than an element."
  [type types n stride]
  (let [element (of-type type types)]
    (map->Layout {:kind :array :type [:array type n] :size (* (long n) (long stride))
                 :private (:private element)
                 :element element :count n :stride stride})))

(defn size-of
  "Returns the size of a value of a layout in bytes."
  ^long [{:keys [size]}]
  (long size))

(defn codec-of
  "Returns the codec of a layout; nil if its stride is larger than its elements."
  ^TypeCodec [{:keys [codec]}]
  codec)
