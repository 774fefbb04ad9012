(ns ^:no-doc bpfmap.impl.btf.object-file
  "Reads the BTF of an object file, with the sizes and offsets of its variables.

  Compilers write zeros for the sizes of data sections and the offsets of variables, and relocations
  to the symbols that have them. A loader fills them in. This namespace does the same, from the
  section headers, the relocations and the symbols."
  (:require [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.elf :as elf]
            [bpfmap.impl.btf.image :refer [malformed]]))

(set! *warn-on-reflection* true)

(defn- place
  "Returns the place of a variable, `{:section index :offset bytes}`, or nil.

  `at` is the position of its offset in the BTF. Without a relocation, the BTF itself has the offset
  of a static variable. Returns nil if neither a relocation nor a symbol has it."
  [{:keys [relocations symbols by-name]} {:keys [name linkage]} at offset section]
  (let [{:keys [addend] :as relocation} (relocations at)
        by-relocation (when relocation (get symbols (:symbol relocation)))
        by-name (when-not (or relocation (= :static linkage)) (@by-name [name section]))]
    (cond
      by-relocation {:section (:section by-relocation)
                     :offset (+' (:value by-relocation) (or addend offset))}
      by-name {:section section :offset (:value by-name)}
      (= :static linkage) {:section section :offset offset})))

(defn- with-places
  "Returns the record of a data section with its size and its variables' offsets.

  Variables in another section of the object are omitted: the linker merges unnamed constants of
  equal values."
  [b {:keys [id vars] :as record} {:keys [index] bytes :size} object]
  (let [start (blob/entries-at b id)]
    (when-not (<= 0 (long bytes) 0xffffffff)
      (throw (malformed [:type id :size] (str "must be from 0 to 4294967295, got " bytes))))
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
                                                (str "must be from 0 to 4294967295, got " (:offset found))))))))
                       vars))))

(defn of-elf
  "Reads the BTF of an object whose section headers are parsed; nil if it has none.

  `symbols` is a delay of its symbols.

      (of-elf elf (delay (elf/symbols elf))) ;=> #<btf 91 types, 2214 bytes LITTLE_ENDIAN>"
  [{:keys [sections] :as elf} symbols]
  (when-let [section (elf/section elf ".BTF")]
    (let [b (blob/parse (elf/contents elf section))
          ;; A linker has filled in the others.
          ids (filter #(and (= :datasec (blob/kind b %)) (= 0 (blob/size-of b %)))
                      (range 1 (inc (blob/type-count b))))]
      (if (empty? ids)
        b
        (let [symbols @symbols
              object {:relocations (elf/relocations elf section)
                      :symbols symbols
                      :by-name (delay (into {} (map (juxt (juxt :name :section) identity))
                                          symbols))}
              named (into {} (map (juxt :name identity)) (rseq sections))]
          (blob/with-sections
            b
            (into {}
                  (keep (fn [id]
                          (when-let [section (named (blob/name-of b id))]
                            [id (with-places b (blob/record b id) section object)])))
                  ids)))))))

(defn parse
  "Returns the BTF of an object, from its section `.BTF`; nil if there is none.

  Throws `:malformed-btf` for bytes that are not a 64-bit ELF object."
  [bytes]
  (let [elf (elf/parse bytes)]
    (of-elf elf (delay (elf/symbols elf)))))
