(ns bpfmap.elf-file
  "Writes ELF objects from data, so that tests have objects that no compiler makes."
  (:require [bpfmap.asm :as asm]
            [bpfmap.impl.btf.writer :as writer])
  (:import (java.io ByteArrayOutputStream)
           (java.nio ByteBuffer ByteOrder)))

(set! *warn-on-reflection* true)

(def little ByteOrder/LITTLE_ENDIAN)

(defn packed
  "Bytes of fields, each `[bytes number]`."
  ^bytes [fields]
  (let [buffer (.order (ByteBuffer/allocate (int (reduce + (map first fields)))) little)]
    (doseq [[n x] fields]
      (case (long n)
        1 (.put buffer (unchecked-byte x))
        2 (.putShort buffer (unchecked-short x))
        4 (.putInt buffer (unchecked-int x))
        8 (.putLong buffer (.longValue (biginteger x)))))
    (.array buffer)))

(defn joined
  ^bytes [arrays]
  (let [out (ByteArrayOutputStream.)]
    (doseq [a arrays]
      (.write out ^bytes a 0 (alength ^bytes a)))
    (.toByteArray out)))

(defn words ^bytes [& xs]
  (packed (map (fn [x] [4 x]) xs)))

(defn text ^bytes [s]
  (.getBytes (str s "\u0000") "UTF-8"))

(defn code
  "The bytes of instructions, those that refer to parts of an object as clang leaves them."
  ^bytes [& insns]
  (:bytes (asm/assemble insns {:byte-order little})))

(defn- table
  "Strings with the offset of each: `[bytes {string offset}]`."
  [strings]
  (let [strings (distinct (remove #{""} strings))
        arrays (mapv text strings)]
    [(joined (cons (byte-array 1) arrays))
     (zipmap (cons "" strings) (cons 0 (reductions + 1 (map #(alength ^bytes %) arrays))))]))

(def ^:private symbol-types {:notype 0 :object 1 :func 2 :section 3})
(def ^:private bindings {:local 0 :global 1 :weak 2})

(defn object
  "The bytes of an object.

  `:sections` are `{:name :bytes}` and, if they are not for code or data, `:type` `:flags` `:size`
  `:offset`.
  `:symbols` are `{:name :section :type :binding :value :size}`, with the name of a section, or nil
  for one that is not defined. `:skip` is the number of bytes of the name that do not count. `:relocations` have, by section, `{:offset :type :symbol}`, with the
  name of a symbol or its number."
  ^bytes [{:keys [sections symbols relocations machine file-type]
           :or {machine 247 file-type 1}}]
  (let [sections (vec sections)
        index (into {} (map-indexed (fn [i {:keys [name]}] [name (inc (long i))])) sections)
        symbols (vec (cons {:name ""} symbols))
        [string-bytes strings] (table (map :name symbols))
        symbol-bytes (joined
                      (for [{:keys [name skip section type binding value size visibility]
                             :or {skip 0 type :notype binding :global value 0 size 0
                                  visibility 0}}
                            symbols]
                        (packed [[4 (+ (long (strings name)) (long skip))]
                                 [1 (+ (long (symbol-types type type))
                                       (* 16 (long (bindings (if (= "" name) :local binding)))))]
                                 [1 visibility]
                                 [2 (cond (nil? section) 0
                                          (int? section) section
                                          :else (index section))]
                                 [8 value] [8 size]])))
        number (fn [s] (if (int? s) s (first (keep-indexed #(when (= s (:name %2)) %1) symbols))))
        n (count sections)
        tables (for [[section entries] relocations]
                 {:name (str ".rel" section) :type 9 :flags 0 :link (+ n 1) :info (index section)
                  :bytes (joined (for [{:keys [offset type symbol] :or {type 1}} entries]
                                   (packed [[8 offset]
                                            [8 (+ (long type)
                                                  (bit-shift-left (long (number symbol)) 32))]])))})
        all (vec (concat [{:name "" :type 0 :flags 0 :bytes (byte-array 0)}]
                         sections
                         [{:name ".symtab" :type 2 :flags 0 :link (+ n 2) :bytes symbol-bytes}
                          {:name ".strtab" :type 3 :flags 0 :bytes string-bytes}]
                         tables))
        [name-bytes names] (table (conj (mapv :name all) ".shstrtab"))
        all (conj all {:name ".shstrtab" :type 3 :flags 0 :bytes name-bytes})
        starts (reductions + 64 (map #(alength ^bytes (:bytes %)) all))
        headers (for [[{:keys [name type flags link info size offset ^bytes bytes]
                        :or {type 1 flags 2 link 0 info 0}} start] (map vector all starts)]
                  (packed [[4 (names name)] [4 type] [8 flags] [8 0] [8 (or offset start)]
                           [8 (or size (alength bytes))] [4 link] [4 info] [8 8] [8 0]]))]
    (joined (concat
             [(packed (concat (map (fn [x] [1 x]) [0x7f 0x45 0x4c 0x46 2 1 1 0 0 0 0 0 0 0 0 0])
                              [[2 file-type] [2 machine] [4 1] [8 0] [8 0] [8 (last starts)]
                               [4 0] [2 64] [2 0] [2 0] [2 64] [2 (count all)]
                               [2 (dec (count all))]]))]
             (map :bytes all)
             headers))))

(defn btf
  "The section `.BTF` of records."
  [records]
  {:name ".BTF" :type 1 :flags 0 :bytes (writer/blob records {:byte-order little})})

(defn string-offset
  "Where a string stands among the strings of BTF bytes."
  [^bytes bytes s]
  (let [buffer (.order (ByteBuffer/wrap bytes) little)
        start (+ (.getInt buffer 4) (.getInt buffer 16))
        strings (String. bytes (int start) (int (- (alength bytes) start)) "ISO-8859-1")
        found (.indexOf strings (str "\u0000" s "\u0000"))]
    (assert (<= 0 found) (str "no string " s))
    (inc found)))

(defn extension
  "The section `.BTF.ext` of blocks: `:functions`, `:lines` and `:core`, each the size of a record
  and, by section, rows of words. A string stands for its offset in the BTF."
  [{btf-bytes :bytes} blocks]
  (let [word #(if (string? %) (string-offset btf-bytes %) %)
        block (fn [[size sections]]
                (joined (cons (words size)
                              (for [[section rows] sections]
                                (joined [(words (string-offset btf-bytes section) (count rows))
                                         (apply words (map word (apply concat rows)))])))))
        [functions lines core] (map #(if-let [b (% blocks)] (block b) (byte-array 0))
                                    [:functions :lines :core])
        [f l c] (mapv (fn [^bytes b] (alength b)) [functions lines core])]
    {:name ".BTF.ext" :type 1 :flags 0
     :bytes (joined [(packed [[2 0xeb9f] [1 1] [1 0] [4 32] [4 0] [4 f] [4 f] [4 l]
                              [4 (+ (long f) (long l))] [4 c]])
                     functions lines core])}))

(defn program
  "A section of code with one program, `{:sections :symbols}`."
  [section name & insns]
  (let [bytes (apply code insns)]
    {:sections [{:name section :flags 6 :bytes bytes}]
     :symbols [{:name name :section section :type :func :size (alength ^bytes bytes)}]}))

(defn merged
  "Objects as one."
  [& parts]
  (apply merge-with into parts))

