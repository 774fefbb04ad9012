(ns ^:no-doc bpfmap.impl.memory.layout
  "What a view needs to know of a type: its codec, where its parts lie, and whether it is a number
  that the processor reads and writes in one piece.

  | field        | of                | what it holds                                                                |
  |-------------|-------------------|------------------------------------------------------------------------------|
  | `:kind`     | every             | `:array`, `:struct` (unions too) or `:cell`                                  |
  | `:type` `:size` `:codec` | every | the type, its bytes, a `bpfmap.sys.Codec`                                     |
  | `:element` `:count` `:stride` | array | the element's shape, how many, how far apart in bytes                   |
  | `:members`  | struct            | name to `{:offset :shape}`, the shape a delay; those of anonymous members too |
  | `:integer`  | integers up to 8 bytes | `{:size :signed :swap}`                                                |
  | `:atomic`   | cells             | the bits of an integer of 4 or 8 bytes in this machine's order, negative for a signed one; else 0 |
  | `:float`    | floating-point    | `{:size :swap}`                                                             |
  | `:at-once?` | cells             | whether the codec checks a value, then writes it with one store               |
  | `:whole?`    | arrays            | whether it is read and printed as one value all the same: bytes, a text       |
  | `:kernel's?` | every            | whether the kernel keeps something for itself in it                          |"
  (:require [bpfmap.impl.codec :as codec]
            [bpfmap.impl.type.node :as node])
  (:import (bpfmap.sys Bytes Codec)))

(set! *warn-on-reflection* true)

;; A record, since views ask it for its fields with every part that is looked at.
(defrecord Shape
  [kind type size codec kernel's? element count stride members integer float atomic at-once?
   whole?])

(declare of-node shape)

(defn- swapped? [order]
  (case order
    nil false
    :be (Bytes/swapped true)
    :le (Bytes/swapped false)))

(defn kernel's?
  "Whether the kernel keeps something for itself in values of a node: a spin lock, a timer."
  [{:keys [kind members element]}]
  (case kind
    :private true
    (:struct :union) (boolean (some #(kernel's? (:node %)) members))
    :array (recur element)
    false))

(defn- bit-field
  "The shape of a bit-field, whose codec is given the offset of its struct."
  [{:keys [node bits] :as member}]
  (map->Shape {:kind :cell :type [:bits (:type node) bits] :size 0 :atomic 0 :at-once? true
               :kernel's? false
               :codec (codec/bit-field member [])}))

(defn- members-of
  "The members of a struct's or union's node by name."
  [{:keys [members]} base]
  (into {}
        (mapcat (fn [{:keys [name node offset bits] :as member}]
                  (let [at (+ (long base) (long offset))]
                    (cond
                      bits (when name [[name {:offset base :shape (delay (bit-field member))}]])
                      name [[name {:offset at :shape (delay (of-node node))}]]
                      :else (members-of node at)))))
        members))

(defn- numeric
  "What is known of a node that is a number."
  [{:keys [kind size signed order]}]
  (case kind
    :integer (when (<= (long size) 8)
               {:integer {:size size :signed (boolean signed) :swap (swapped? order)}
                :atomic (if (and (contains? #{4 8} size) (not (swapped? order)))
                          (* 8 (long size) (if signed -1 1))
                          0)})
    :pointer {:integer {:size 8 :signed false :swap false} :atomic 64}
    :float {:float {:size size :swap (swapped? order)}}
    nil))

(defn- of-node [{:keys [kind type size element count] :as node}]
  (map->Shape
   (merge {:type type :size size :codec (codec/of-node node []) :kernel's? (kernel's? node)}
          (case kind
            :array {:kind :array :element (of-node element) :count count
                    :stride (:size element)}
            ;; An array of bytes or characters in C.
            :bytes {:kind :array :element (shape :u8 nil) :count size :stride 1 :whole? true}
            :string {:kind :array :element (shape :char nil) :count size :stride 1 :whole? true}
            (:struct :union) {:kind :struct :members (members-of node 0)}
            (merge {:kind :cell
                    :atomic 0
                    :at-once? (contains? #{:integer :pointer :float :bool :char :enum} kind)}
                   (numeric node))))))

(defn shape
  "The shape of a type; throws `:invalid-spec` for a malformed one.

      (:kind (shape [:array :u64 8] nil)) ;=> :array"
  [type types]
  (of-node (node/node type types [])))

(defn strided
  "The shape of n elements of a type that lie `stride` bytes apart, which may be more than they
  have."
  [type types n stride]
  (let [element (shape type types)]
    (map->Shape {:kind :array :type [:array type n] :size (* (long n) (long stride))
                 :kernel's? (:kernel's? element)
                 :element element :count n :stride stride})))

(defn size-of
  "Bytes of a value of a shape."
  ^long [{:keys [size]}]
  (long size))

(defn codec-of
  "The codec of a shape; nil where elements lie further apart than in C."
  ^Codec [{:keys [codec]}]
  codec)
