(ns ^:no-doc bpfmap.impl.object.code
  "Reads the programs and functions of an object as instructions that refer to its parts by name."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.disassembler :as disassembler]
            [bpfmap.impl.object.context :as context]
            [bpfmap.impl.object.core-relocation :as core-relocation]
            [bpfmap.impl.object.data :as data]
            [bpfmap.impl.object.malformed :refer [in-section malformed]]
            [bpfmap.impl.object.section-name :as section-name])
  (:import (java.nio ByteBuffer)
           (java.util Collections HashSet List Map$Entry TreeMap)))

(set! *warn-on-reflection* true)

;; --- functions and their places

(defn- symbols-of
  "Returns the symbols of the functions of a section, in the order of their places.

  Assemblers may leave out the type of a symbol. Then the global ones count."
  [by-section {:keys [index]}]
  (let [here (by-section index)
        functions (filter #(= :func (:type %)) here)]
    (sort-by :value (if (seq functions)
                      functions
                      (filter #(and (= :notype (:type %)) (not= :local (:binding %))) here)))))

(defn- with-ends
  "Returns the symbols with their ends.

  Throws unless they consist of whole instructions and do not overlap."
  [{:keys [size] :as section} symbols]
  (map (fn [{:keys [name value] bytes :size :as symbol} following]
         (let [limit (long (or (:value following) size))
               end (if (zero? (long bytes)) limit (+' (long value) (long bytes)))]
           (when-not (and (<= 0 (long value)) (< (long value) (long size)) (<= end size))
             (throw (malformed (in-section section value)
                               (str "function " name " has " bytes
                                    " bytes, and ends outside the section"))))
           (when-not (and (zero? (rem (long value) 8)) (zero? (rem (long end) 8)))
             (throw (malformed (in-section section value)
                               (str "function " name " does not consist of whole instructions"))))
           (when-not (and (< (long value) (long end)) (<= (long end) limit))
             (throw (malformed (in-section section value)
                               (str "function " name " overlaps " (:name following)))))
           (assoc symbol :end end)))
       symbols
       (concat (rest symbols) [nil])))

(defn functions
  "Returns all functions of an object, in the order of their places.

  Each is its symbol with `:section`, `:end`, `:unique`, its name in the object, and `:program`."
  [{:keys [sections symbols]}]
  (let [by-section (group-by :section symbols)
        all (for [section sections :when (context/code? section)
                  function (with-ends section (symbols-of by-section section))]
              (assoc function :section section
                     :program (and (not (context/text? section))
                                    (not= :local (:binding function)))))
        unique (context/distinct-names)
        ;; A name that two have belongs to the program, or to the global function.
        order {:global 0 :weak 1 :local 2}
        names (into {} (for [{:keys [name value section] :as function}
                             (sort-by (juxt (complement :program) #(order (:binding %) 3)) all)]
                         [[(:index section) value]
                          (unique name value (str (:name section) "+" value))]))]
    (mapv #(assoc % :unique (names [(:index (:section %)) (:value %)])) all)))

;; --- references

(defn- place-of
  "Returns the section and offset that a relocation with an addend names."
  [{:keys [sections]} path {:keys [section value name]} addend]
  (let [found (get sections section)]
    (when-not found
      (throw (malformed path (str "a relocation names symbol " name ", which is in section " section
                                  " of " (count sections)))))
    [found (+' (long value) (long addend))]))

(defn- function-at [{:keys [function-names]} {:keys [index]} offset]
  (function-names [index offset]))

(def ^:private jump-tables
  "The section of the targets of indirect jumps, which clang 22 makes."
  ".jumptables")

(defn- of-load
  "Returns the instruction that loads the address of what a relocation names."
  [{:keys [map-names map-sections places externs] :as ctx} path register
   {:keys [symbol] address :addend} fields]
  (let [{:keys [name section]} symbol
        addend (or address
                   (bit-or (bit-and 0xffffffff (long (:imm fields)))
                           (bit-shift-left (long (:next fields)) 32)))]
    (if (= 0 section)
      (case (externs name)
        :kconfig [:ld-map-value register {:kconfig name} addend]
        :function [:lddw register {:kfunc name}]
        [:lddw register {:ksym name}])
      (let [[target offset] (place-of ctx path symbol addend)
            map-name (map-names [(:index target) offset])]
        (cond
          map-name [:lddw register {:map map-name}]
          (map-sections (:index target))
          (throw (malformed path (str "it names offset " offset " of section " (:name target)
                                      ", where no map begins")))
          (context/code? target)
          (if-let [function (function-at ctx target offset)]
            [:lddw register {:function function}]
            (throw (malformed path (str "it names offset " offset " of section " (:name target)
                                        ", where no function begins"))))
          (= jump-tables (:name target))
          (throw (malformed path "it jumps by a table, which cannot be loaded"
                            "compile it with -fno-jump-tables"))
          (<= 0 offset 0xffffffff)
          (let [[reference offset] (if (<= offset (long (:size target)))
                                     (data/reference places target offset)
                                     [{:section (:name target)} offset])]
            [:ld-map-value register reference offset])
          :else
          (throw (malformed path (str "it names offset " offset " of section "
                                      (:name target)))))))))

(defn- of-call
  "Returns the call of what a relocation names."
  [{:keys [externs] :as ctx} path {:keys [symbol addend]} {:keys [imm]}]
  (let [{:keys [name section]} symbol]
    (if (= 0 section)
      (if (= :kconfig (externs name))
        (throw (malformed path (str "it calls " name ", which is a variable")))
        [:call {:kfunc name}])
      (let [[target offset] (place-of ctx path symbol (or addend (* 8 (inc (long imm)))))]
        (if-let [function (and (context/code? target) (function-at ctx target offset))]
          [:call {:function function}]
          (throw (malformed path (str "it calls offset " offset " of section " (:name target)
                                      ", where no function begins"))))))))

(def ^:private call-code 0x85)

(defn- in-same-section
  "Returns a call of another function of the same section, or nil.

  The compiler leaves no relocation for it."
  [ctx path {:keys [section value end]} slot {:keys [code src imm]}]
  (when (and (= call-code code) (= 1 src))
    (let [offset (+ (long value) (* 8 (+ (long slot) 1 (long imm))))]
      (if-let [function (function-at ctx section offset)]
        [:call {:function function}]
        (when-not (<= (long value) offset (dec (long end)))
          (throw (malformed path (str "it calls offset " offset
                                      " of its section, where no function begins"))))))))

(def ^:private registers (mapv #(keyword (str "r" %)) (range 10)))

(defn- substitute
  "Returns the function that gives instructions their references.

  It is passed to `disassembler/instructions`."
  [ctx {:keys [section value] :as function} relocations used]
  (fn [slot {:keys [code] :as fields}]
    (let [offset (+ (long value) (* 8 (long slot)))
          relocation (relocations offset)]
      (cond
        relocation
        (let [path (in-section section offset)
              register (get registers (:dst fields))]
          (.add ^HashSet used offset)
          (cond
            (and (= disassembler/wide-code code) (:next fields) register)
            (of-load ctx path register relocation fields)
            (and (= call-code code) (= 1 (:src fields))) (of-call ctx path relocation fields)
            :else
            (throw (malformed path
                              (format "opcode 0x%02x takes no relocation, of symbol %s" code
                                      (:name (:symbol relocation)))))))

        (= call-code code)
        (in-same-section ctx (in-section section offset) function slot fields)))))

;; --- what belongs to the instructions

(defn- within
  "Returns the records of a section that are for a function."
  [{:keys [records offsets]} {:keys [value end]}]
  (let [place (fn [offset]
                (let [i (Collections/binarySearch ^List offsets offset)]
                  (if (neg? i) (- -1 i) i)))
        ;; Several records may be for one offset.
        place (fn [offset]
                (loop [i (long (place offset))]
                  (if (and (pos? i) (= offset (offsets (dec i)))) (recur (dec i)) i)))
        start (long (place value))]
    (subvec records start (max start (long (place end))))))

(defn- slot-of
  "Returns the slot in a function of an offset in its section."
  ^long [{:keys [value]} offset]
  (quot (- (long offset) (long value)) 8))

(defn- check-offsets
  "Throws unless the records are for whole instructions of the section.

  Returns `{:records rs :offsets os}`, in the order of their places."
  [{:keys [size] :as section} kind records]
  (doseq [{:keys [offset]} records]
    (when-not (and (< (long offset) (long size)) (zero? (rem (long offset) 8)))
      (throw (malformed [:section ".BTF.ext" kind (:name section)]
                        (str "a record is for offset " offset " of a section of "
                             (error/plural size "byte"))))))
  (let [records (vec (sort-by :offset records))]
    {:records records :offsets (mapv :offset records)}))

(defn- core-relocations [ctx cache {:keys [section] :as function} records]
  (into []
        (map (fn [{:keys [offset type access kind]}]
               (let [k [type access kind]
                     decoded (or (@cache k)
                                 (let [found (core-relocation/decoded
                                              ctx (in-section section offset)
                                              {:type type :access access :kind kind})]
                                   (vswap! cache assoc k found)
                                   found))]
                 (assoc decoded :slot (slot-of function offset)))))
        records))

(defn- lines [function records]
  (mapv (fn [{:keys [offset file line column text]}]
          {:slot (slot-of function offset) :file file :line line :column column :text text})
        records))

(defn- instructions [ctx contents {:keys [value end] :as function} relocations used]
  (let [buffer (-> (ByteBuffer/wrap contents (int value) (int (- (long end) (long value))))
                   (.slice)
                   (.order (:order ctx)))]
    (disassembler/instructions buffer (substitute ctx function relocations used))))

(defn- check-used
  "Throws if a relocation of a function is not at the start of an instruction."
  [section functions relocations ^HashSet used]
  (let [places (TreeMap.)]
    (doseq [{:keys [value end unique]} functions]
      (.put places value [end unique]))
    (doseq [offset (keys relocations) :when (not (.contains used offset))]
      (let [^Map$Entry entry (.floorEntry places offset)
            [end unique] (when entry (.getValue entry))]
        ;; What lies outside of functions is not read.
        (when (and end (< (long offset) (long end)))
          (throw (malformed (in-section section offset)
                            (str "a relocation of function " unique
                                 " is not at the start of an instruction"))))))))

(defn- described
  "Returns a function or program as a user sees it."
  [ctx {:keys [section unique name binding visibility] program? :program :as function} insns
   {:keys [btf-id lines core]}]
  (let [tags (when btf-id (context/tags ctx btf-id))]
    (cond-> (merge {:name unique :section (:name section)}
                   (when program? (section-name/described (:name section)))
                   {:insns insns})
      (not= name unique) (assoc :symbol name)
      (not program?) (assoc :linkage (if (= :local binding) :static :global))
      (= :weak binding) (assoc :weak true)
      (#{:hidden :internal} visibility) (assoc :visibility visibility)
      btf-id (assoc :btf-id btf-id)
      tags (assoc :tags tags)
      (seq lines) (assoc :lines lines)
      (seq core) (assoc :core core))))

(defn read-code
  "Reads programs and functions, as `{:programs {name p} :functions {name f}}`.

  `functions` is the result of [[functions]]. The context has the names of maps by their places
  under `:map-names`, the indices of the sections with maps under `:map-sections`, the places of
  variables under `:places`, and the kinds of symbols of the kernel under `:externs`."
  [ctx functions extension]
  (let [ctx (assoc ctx :function-names
                   (into {} (map (fn [{:keys [section value unique]}]
                                   [[(:index section) value] unique])) functions))
        cache (volatile! {})]
    (reduce
     (fn [found functions]
       (let [section (:section (first functions))
             contents (context/contents ctx section)
             relocations (context/relocations ctx section)
             of-kind (fn [kind] (check-offsets section kind
                                               (get-in extension [kind (:name section)])))
             ids (into {} (map (juxt :offset :type)) (:records (of-kind :functions)))
             line-records (of-kind :lines)
             core-records (of-kind :core)
             used (HashSet.)
             found (reduce
                    (fn [found {:keys [value unique] program? :program :as function}]
                      (assoc-in found [(if program? :programs :functions) unique]
                                (described ctx function
                                           (instructions ctx contents function relocations used)
                                           {:btf-id (ids value)
                                            :lines (lines function (within line-records function))
                                            :core (core-relocations
                                                   ctx cache function
                                                   (within core-records function))})))
                    found functions)]
         (check-used section functions relocations used)
         found))
     {:programs {} :functions {}}
     (partition-by #(:index (:section %)) functions))))
