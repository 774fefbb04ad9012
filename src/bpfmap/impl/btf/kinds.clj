(ns ^:no-doc bpfmap.impl.btf.kinds
  "The kinds of BTF types as data: the fields after the common twelve bytes.

  Every type begins with three words of four bytes: the offset of its name in the strings, the info,
  and a size or reference. The info has the number of entries in bits 0 to 23, the kind in bits 24
  to 30, and a flag of the kind in bit 31. Some kinds have a tail of fixed size, and some have
  entries.

  Source: <linux/btf.h>. Before 2026 the number of entries had only bits 0 to 15, the kind only bits
  24 to 28, and the other bits had to be zero.")

(set! *warn-on-reflection* true)

(def field-bytes
  "The size in bytes of a field of each form.

  | form         | meaning                                                       |
  |--------------|---------------------------------------------------------------|
  | `:name`      | the offset of a name                                          |
  | `:reference` | the id of a type                                              |
  | `:u32`       | a number, 0 to 2^32-1                                         |
  | `:s32`       | a number, -2^31 to 2^31-1                                     |
  | `:linkage`   | an index of `linkages`                                        |
  | `:encoding`  | an integer's `:bits`, `:offset` and flags in one word         |
  | `:place`     | a member's `:bit-offset`, and its `:bits` if the flag is set  |
  | `:value32`   | the value of an enumerator, signed if the flag is set         |
  | `:value64`   | the same in two words, the low one first                      |"
  {:name 4 :reference 4 :u32 4 :s32 4 :linkage 4 :encoding 4 :place 4 :value32 4 :value64 8})

(def rows
  "Rows of all kinds of types, indexed by number.

  - `:third` is the key and form of the third word.
  - `:flag` is the key of a flag that every record has, `:mark` of a flag that a record has only if
    it is set.
  - `:tail` and `:fields` are keys and forms, in order, of the tail and of each entry.
  - `:entries` is the key of the entries, and `:entry` the word for one.
  - `:vlen` is the key of the number of entries of a kind without entries.

  The flag of a struct or union has its meaning since Linux 5.0, the flag of a tag since 6.15, and
  the flag of an enum since 6.0. Before that, every enum was read as unsigned."
  [{:kind :void}
   {:kind :int :third [:size :u32] :tail [[:bits :encoding]]}
   {:kind :ptr :third [:type :reference]}
   {:kind :array :tail [[:element :reference] [:index :reference] [:count :u32]]}
   {:kind :struct :third [:size :u32] :entries :members :entry :member
    :fields [[:name :name] [:type :reference] [:bit-offset :place]]}
   {:kind :union :third [:size :u32] :entries :members :entry :member
    :fields [[:name :name] [:type :reference] [:bit-offset :place]]}
   {:kind :enum :third [:size :u32] :flag :signed :entries :values :entry :value
    :fields [[:name :name] [:value :value32]]}
   {:kind :fwd :flag :union}
   {:kind :typedef :third [:type :reference]}
   {:kind :volatile :third [:type :reference]}
   {:kind :const :third [:type :reference]}
   {:kind :restrict :third [:type :reference]}
   {:kind :func :third [:type :reference] :vlen :linkage}
   {:kind :func-proto :third [:return :reference] :entries :params :entry :param
    :fields [[:name :name] [:type :reference]]}
   {:kind :var :third [:type :reference] :tail [[:linkage :linkage]]}
   {:kind :datasec :third [:size :u32] :entries :vars :entry :var
    :fields [[:type :reference] [:offset :u32] [:size :u32]]}
   {:kind :float :third [:size :u32]}
   {:kind :decl-tag :third [:type :reference] :mark :attribute :tail [[:component :s32]]}
   {:kind :type-tag :third [:type :reference] :mark :attribute}
   {:kind :enum64 :third [:size :u32] :flag :signed :entries :values :entry :value
    :fields [[:name :name] [:value :value64]]}])

(def kinds
  "The kinds that a type can have, in the order of their numbers, from 1."
  (mapv :kind (rest rows)))

(def numbers
  "Kind to number.

      (numbers :struct) ;=> 4"
  (zipmap kinds (iterate inc 1)))

(def modifiers
  "The kinds that only add a name or a qualifier to another type."
  #{:typedef :volatile :const :restrict :type-tag})

(def linkages
  "The linkages of functions and variables, by number."
  [:static :global :extern])

(defn- bytes-of [fields]
  (transduce (map (comp field-bytes second)) + fields))

(defn tail-bytes
  "Returns the number of bytes between the first twelve of a kind and its entries.

      (tail-bytes :array) ;=> 12"
  [kind]
  (bytes-of (:tail (rows (numbers kind 0)))))

(defn entry-bytes
  "Returns the number of bytes of one entry of a kind, 0 if it has none.

      (entry-bytes :enum64) ;=> 12"
  [kind]
  (bytes-of (:fields (rows (numbers kind 0)))))
