(ns ^:no-doc bpfmap.impl.btf.object-file
  "Reads the BTF of an object file, with the sizes of data sections and the places of their
  variables.

  A compiler leaves both out of the BTF: it writes zeros, and relocations that say which symbol
  has the place. A loader fills them in. So does this, from the section headers, the relocations
  and the symbols."
  (:require [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.elf :as elf]
            [bpfmap.impl.btf.image :refer [malformed]]))

(set! *warn-on-reflection* true)

(defn- place
  "Where a variable lies: `{:section index :offset bytes}`; nil if neither a relocation nor a
  symbol has it.

  `at` is where its offset stands in the BTF. Without a relocation, a static variable lies where
  the BTF says."
  [{:keys [relocations symbols by-name]} {:keys [name linkage]} at offset section]
  (let [{:keys [addend] :as relocation} (relocations at)
        by-relocation (when relocation (get symbols (:symbol relocation)))
        by-name (when-not (or relocation (= :static linkage)) (by-name [name section]))]
    (cond
      by-relocation {:section (:section by-relocation)
                     :offset (+' (:value by-relocation) (or addend offset))}
      by-name {:section section :offset (:value by-name)}
      (= :static linkage) {:section section :offset offset})))

(defn- with-places
  "The record of a data section without a size with that size and the places of its variables.

  Variables that lie in another section of the object are left out: a constant without a name for
  the linker is merged with others of the same value."
  [b {:keys [id vars] :as record} {:keys [index] bytes :size} object]
  (let [start (blob/entries-at b id)]
    (when-not (<= 0 (long bytes) 0xffffffff)
      (throw (malformed [:type id :size] (str "the section of the object has " bytes " bytes"))))
    (assoc record
           :size bytes
           :vars (into []
                       (keep-indexed
                        (fn [i {:keys [type offset] :as variable}]
                          (let [at (+ start (* 12 (long i)) 4)
                                found (place object (blob/record b type) at offset index)]
                            (cond
                              (nil? found) variable
                              (not= index (:section found)) nil
                              (<= 0 (:offset found) 0xffffffff)
                              (assoc variable :offset (:offset found))
                              :else
                              (throw (malformed [:type id :var i :offset]
                                                (str "its symbol lies at " (:offset found))))))))
                       vars))))

(defn parse
  "Reads the BTF of an object, the section `.BTF`; nil if it has none.

  Throws `:malformed-btf` for bytes that are not a 64-bit ELF object."
  [bytes]
  (let [elf (elf/parse bytes)]
    (when-let [section (elf/section elf ".BTF")]
      (let [b (blob/parse (elf/contents elf section))
            ;; A linker has filled in the others.
            ids (filter #(and (= :datasec (blob/kind b %)) (= 0 (blob/size-of b %)))
                        (range 1 (inc (blob/type-count b))))]
        (if (empty? ids)
          b
          (let [symbols (elf/symbols elf)
                object {:relocations (elf/relocations elf section)
                        :symbols symbols
                        :by-name (into {} (map (juxt (juxt :name :section) identity)) symbols)}]
            (blob/with-sections
              b
              (into {}
                    (keep (fn [id]
                            (when-let [section (elf/section elf (blob/name-of b id))]
                              [id (with-places b (blob/record b id) section object)])))
                    ids))))))))
