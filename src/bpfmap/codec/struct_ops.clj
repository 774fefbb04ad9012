(ns bpfmap.codec.struct-ops
  "Values of STRUCT_OPS maps: structs of the kernel's whose functions are BPF programs.

  The type of a value is what the kernel's BTF says of `struct bpf_struct_ops_…`:
  `:common`, which is the kernel's own (who holds it, and its state), and `:data`,
  the struct that programs implement. A member of `:data` that is a pointer to a
  function, `[:ptr \"function\"]`, holds a program: it reads as `{:program-id n}`,
  or nil. All other members are plain data.

  Such a struct has dozens of members, and what is not given stands for zero,
  the kernel's own word for \"not implemented\". This is the only type whose values are
  written from less than everything:

      (put! m 0 {:data {:name \"mine\" :ssthresh p1 :undo_cwnd p2 :cong_avoid p3}})"
  (:require [bpfmap.type.node :as node])
  (:import (bpfmap.sys Codec)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(defn- bare
  "A node behind its typedefs."
  [{:keys [typedef target] :as node}]
  (if typedef (recur target) node))

(defn- function? [node]
  (let [{:keys [kind target]} (bare node)]
    (and (= :pointer kind) (= "function" target))))

(defn functions
  "The names of those members of a value's `:data` that are functions; empty for a type without.

      (functions [:struct [:common :u64] [:data [:struct [:init [:ptr \"function\"]] [:flags :u32]]]] nil) ;=> [:init]"
  [type types]
  (let [data (some #(when (= :data (:name %)) (bare (:node %))) (:members (bare (node/node type types []))))]
    (into [] (comp (filter #(and (:name %) (function? (:node %)))) (map :name)) (:members data))))

(defn- filled
  "What is given of a struct, and zeros for what is not. A union is given whole, or not at all."
  [node zeros given]
  (let [{:keys [kind members]} (bare node)]
    (if (and (= :struct kind) (map? given))
      (reduce (fn [value {:keys [name node]}]
                (let [names (if name [name] (node/member-names node))
                      missing (select-keys zeros (remove #(contains? value %) names))]
                  (cond
                    (and name (contains? value name)) (update value name #(filled node (get zeros name) %))
                    (and (= :union (:kind node)) (< (count missing) (count names))) value
                    (and (nil? name) (= :struct (:kind node))) (filled node zeros value)
                    :else (into value missing))))
              (into {} given) ; sorted maps may have keys that do not compare with names
              members)
      given)))

(defn codec
  "The codec of a struct_ops value, from that of its type.

      (.encode (codec (bpfmap.codec/codec type) type nil) {:data {:name \"mine\" :ssthresh 7}} memory 0)"
  ^Codec [^Codec of-type type types]
  (let [node (node/node type types [])
        names (functions type types)
        zeros (delay (.decode of-type (MemorySegment/ofArray (byte-array (.size of-type))) 0))
        referring (fn [data name] (update data name #(when-not (= 0 %) {:program-id %})))]
    (reify Codec
      (size [_] (.size of-type))
      (total [_] (.total of-type))
      (encode [_ value memory offset] (.encode of-type (filled node @zeros value) memory offset))
      (decode [_ memory offset]
        (cond-> (.decode of-type memory offset)
          (seq names) (update :data #(reduce referring % names)))))))
