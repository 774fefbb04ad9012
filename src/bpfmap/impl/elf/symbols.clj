(ns ^:no-doc bpfmap.impl.elf.symbols
  "Finds the symbols of executables and shared libraries: an address to its name, and a name to its
  offset in the file.

  The file is given as a function `(read-at offset size)`, which returns a byte array, shorter at
  the end of the file. So only the tables of a large file are read. [[open]] returns nil for a file
  that is not a 64-bit ELF file, and tables outside of the file count as empty.

  Three kinds of numbers:

  - an *offset* is a place in the file, as uprobes and the lines of /proc/PID/maps have it
  - an *address* is the virtual address that the file gives to it, as symbols have it
  - the address in a process differs from both: see `bpfmap.impl.display.symbols`

  Sources: the System V ABI, chapters 4 and 5; the note of build ids: binutils, NT_GNU_BUILD_ID."
  (:import (java.nio ByteBuffer ByteOrder)
           (java.nio.charset StandardCharsets)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

(def ^:private largest-table
  "The largest table that is read, in bytes.

  The symbols of a browser or of a JVM take less than a tenth of it."
  (* 256 1024 1024))

(defn- buffer ^ByteBuffer [read-at order offset size]
  (.order (ByteBuffer/wrap
           (if (and (<= 0 (long offset)) (<= 0 (long size) (long largest-table)))
             (read-at offset size)
             (byte-array 0)))
          order))

(defn- u16 ^long [^ByteBuffer b ^long at] (bit-and 0xffff (.getShort b (int at))))
(defn- u32 ^long [^ByteBuffer b ^long at] (bit-and 0xffffffff (.getInt b (int at))))
(defn- u64 ^long [^ByteBuffer b ^long at] (.getLong b (int at)))

(defn- rows
  "Returns `(f buffer at)` for each whole entry of a table."
  [^ByteBuffer b each f]
  (let [each (long each)]
    (if (pos? each)
      (mapv #(f b (* each (long %))) (range (quot (.capacity b) each)))
      [])))

(defn- segment [b ^long at]
  {:type (u32 b at)
   :executable (odd? (u32 b (+ at 4))) ; PF_X
   :offset (u64 b (+ at 8))
   :address (u64 b (+ at 16))
   :size (u64 b (+ at 32))})

(defn- section [b ^long at]
  {:name-offset (u32 b at)
   :type (u32 b (+ at 4))
   :address (u64 b (+ at 16))
   :offset (u64 b (+ at 24))
   :size (u64 b (+ at 32))
   :link (u32 b (+ at 40))})

(defn open
  "Reads the headers of a file; nil if it is not a 64-bit ELF file.

  The result is for the other functions.

      (open (fn [offset size] …)) ;=> {:segments […] :sections […] …}"
  [read-at]
  (let [^bytes head (read-at 0 64)]
    (when (and (= 64 (alength head)) (= [0x7f 0x45 0x4c 0x46 2] (map #(aget head %) (range 5))))
      (let [order (if (= 2 (aget head 5)) ByteOrder/BIG_ENDIAN ByteOrder/LITTLE_ENDIAN)
            b (.order (ByteBuffer/wrap head) order)
            table (fn [start each n least f]
                    (if (<= (long least) (long each))
                      (rows (buffer read-at order start (* (long each) (long n))) each f)
                      []))]
        {:read-at read-at
         :order order
         :file-type (u16 b 0x10)
         :machine (u16 b 0x12)
         :names (u16 b 0x3e)
         :segments (table (u64 b 0x20) (u16 b 0x36) (u16 b 0x38) 56 segment)
         :sections (table (u64 b 0x28) (u16 b 0x3a) (u16 b 0x3c) 64 section)}))))

;; --- sections

(defn contents
  "Returns the bytes of a section as a buffer in the byte order of the file."
  ^ByteBuffer [{:keys [read-at order]} {:keys [offset size]}]
  (buffer read-at order offset size))

(defn text-at
  "Returns the text at an offset of bytes, up to a NUL or the end."
  [^bytes bytes ^long offset]
  (if (< -1 offset (alength bytes))
    (let [end (loop [i offset]
                (if (or (= i (alength bytes)) (zero? (aget bytes i))) i (recur (inc i))))]
      (String. bytes (int offset) (int (- end offset)) StandardCharsets/UTF_8))
    ""))

(defn sections-named
  "Returns the sections of a name.

      (sections-named elf \".note.stapsdt\") ;=> ({:type 7 :offset 0x1d2f0 …})"
  [{:keys [sections names] :as elf} wanted]
  (when-let [table (get sections names)]
    (let [bytes (.array (contents elf table))]
      (filter #(= wanted (text-at bytes (:name-offset %))) sections))))

;; --- offsets and addresses

(def ^:private pt-load 1)
(def ^:private pt-note 4)

(defn- loaded [{:keys [segments]}] (filter #(= pt-load (:type %)) segments))

(defn- translated
  "Converts a number from one space of its segment to the other, or returns nil."
  [elf x from to]
  (some (fn [{:keys [size] :as segment}]
          ;; Any numbers can be in a file.
          (let [into-it (unchecked-subtract (long x) (long (from segment)))]
            (when (and (<= 0 into-it) (< into-it (long size)))
              (unchecked-add (long (to segment)) into-it))))
        (loaded elf)))

(defn offset->address
  "Returns the address of an offset in the file; nil if it is not loaded.

      (offset->address elf 0x28320) ;=> 0x28320"
  [elf offset]
  (translated elf offset :offset :address))

(defn address->offset
  "Returns the offset in the file of an address; nil if it has none.

      (address->offset elf 0x401136) ;=> 0x1136"
  [elf address]
  (translated elf address :address :offset))

(defn code-ranges
  "Returns the ranges of offsets in the file that are code, `[from to]`, ascending.

      (code-ranges elf) ;=> [[0x4000 0x16bb9]]"
  [elf]
  (sort (for [{:keys [executable offset size]} (loaded elf) :when executable]
          [offset (+ (long offset) (long size))])))

;; --- build ids

(def ^:private sht-note 7)
(def ^:private nt-gnu-build-id 3)

(defn- build-id-in
  "Returns the build id in the bytes of a section or segment of notes, or nil."
  [^ByteBuffer b]
  (let [padded (fn [n] (bit-and (+ (long n) 3) -4))]
    (loop [at 0]
      (when (<= (+ at 12) (.capacity b))
        (let [name-size (u32 b at)
              size (u32 b (+ at 4))
              start (+ at 12 (long (padded name-size)))
              next-one (+ start (long (padded size)))]
          (cond
            (or (< (.capacity b) (+ start size)) (< 64 name-size)) nil
            (and (= nt-gnu-build-id (u32 b (+ at 8)))
                 (= 4 name-size)
                 (= (map int "GNU") (map #(.get b (int (+ at 12 (long %)))) (range 3))))
            (apply str (map #(format "%02x" (.get b (int %))) (range start (+ start size))))
            (<= next-one at) nil
            :else (recur next-one)))))))

(defn build-id
  "Returns the build id of the file in hexadecimal; nil if it has none.

      (build-id elf) ;=> \"58b27edaadb9a56c2b0b8f46cbc3b0b2b9e7d8c4\""
  [{:keys [read-at order segments sections]}]
  (some (fn [{:keys [offset size]}]
          (when (< (long size) 0x100000)
            (build-id-in (buffer read-at order offset size))))
        (concat (filter #(= pt-note (:type %)) segments)
                (filter #(= sht-note (:type %)) sections))))

;; --- symbols

(def ^:private symbol-tables "SHT_SYMTAB and SHT_DYNSYM." #{2 11})

(def ^:private functions "STT_FUNC and STT_GNU_IFUNC." #{2 10})

(def ^:private ^:const entry "The size of a symbol in bytes." 24)

(defn- tables
  "Returns the symbol tables of a file as `[symbols names]`, the largest first."
  [{:keys [read-at order sections]}]
  (for [{:keys [offset size link]} (sort-by (comp - :size)
                                            (filter #(symbol-tables (:type %)) sections))
        :let [names (get sections link)]
        :when names]
    [(buffer read-at order offset size)
     (.array (buffer read-at order (:offset names) (:size names)))]))

(defn- function?
  "Returns true if the entry at a place is a function that the file defines."
  [^ByteBuffer b ^long at]
  (and (contains? functions (bit-and 0xf (.get b (int (+ at 4)))))
       (not (zero? (u16 b (+ at 6))))))

(defn- sorted-functions
  "Returns the places of the functions of a table, sorted by address.

  The second array has their addresses."
  [^ByteBuffer b]
  (let [places (into [] (filter #(function? b %)) (range 0 (- (.capacity b) (dec entry)) entry))
        sorted (object-array (sort-by #(u64 b (+ (long %) 8)) places))]
    [(long-array (map long sorted)) (long-array (map #(u64 b (+ (long %) 8)) sorted))]))

(defn plainest
  "Returns the name that people use, of several names of one address.

  The C library has `malloc` also as `__libc_malloc`.

      (plainest [\"__libc_malloc\" \"malloc\"]) ;=> \"malloc\""
  [names]
  (first (sort-by (juxt #(count (re-find #"^_*" %)) count identity) names)))

(defn- namer
  "Returns a function from an address to its function in one table, or nil."
  [[^ByteBuffer b names]]
  (let [[^longs places ^longs addresses] (sorted-functions b)
        n (alength addresses)]
    (fn [address]
      (let [address (long address)
            found (Arrays/binarySearch addresses address)
            before (if (neg? found) (- (- found) 2) found)]
        (when-not (neg? before)
          (let [start (aget addresses before)
                same? #(and (< -1 (long %) n) (= start (aget addresses (long %))))
                of-start (concat (take-while same? (iterate dec before))
                                 (take-while same? (iterate inc (inc before))))
                around (for [i of-start
                             :let [at (aget places (long i))]
                             :when (< (- address start) (max 1 (u64 b (+ at 16))))
                             :let [text (text-at names (u32 b at))]
                             :when (not= "" text)]
                         text)]
            (when (seq around)
              {:name (plainest around) :offset (- address start)})))))))

(defn address->function
  "Returns a function from an address to the function of the file there, or nil.

  The function returns `{:name :offset}`; the offset is the distance from the beginning of the
  function. The tables are read once, when this is called.

      ((address->function elf) 0x28330) ;=> {:name \"system\" :offset 16}"
  [elf]
  (let [namers (mapv namer (tables elf))]
    (fn [address] (some #(% address) namers))))

(defn function->address
  "Returns the address of the function of a name; nil if the file defines none.

  A version such as `malloc@GLIBC_2.2.5` is not part of a name. If the file has several versions of
  a function, returns the first.

      (address->offset elf (function->address elf \"malloc\")) ;=> 0xa27f0, for a uprobe"
  [elf name]
  (some (fn [[^ByteBuffer b names]]
          (some (fn [at]
                  (when (and (function? b at) (= name (text-at names (u32 b at))))
                    (u64 b (+ (long at) 8))))
                (range 0 (- (.capacity b) (dec entry)) entry)))
        (tables elf)))

(def ^:private sht-gnu-versym 0x6fffffff)
(def ^:private sht-dynsym 11)

(defn- named-functions
  "Returns the functions of a symbol table whose name fulfils a predicate."
  [{:keys [read-at order sections] :as elf} {:keys [type offset size link]} wanted?]
  (let [b (buffer read-at order offset size)
        strings (get sections link)
        names (if strings
                (.array (buffer read-at order (:offset strings) (:size strings)))
                (byte-array 0))
        versym (when (= sht-dynsym type) (first (filter #(= sht-gnu-versym (:type %)) sections)))
        versions (when versym (buffer read-at order (:offset versym) (:size versym)))
        old? (fn [^long i]
               (boolean (and versions
                             (<= (* 2 (inc i)) (.capacity ^ByteBuffer versions))
                             ;; The version is hidden: only older programs ask for it.
                             (bit-test (u16 versions (* 2 i)) 15))))]
    (into []
          (keep (fn [at]
                  (let [at (long at)]
                    (when (function? b at)
                      (let [text (text-at names (u32 b at))]
                        (when (wanted? text)
                          (when-let [offset (address->offset elf (u64 b (+ at 8)))]
                            {:name text
                             :offset offset
                             :local (zero? (bit-and 0xf0 (.get b (int (+ at 4)))))
                             :old (old? (quot at entry))})))))))
          (range 0 (- (.capacity b) (dec entry)) entry))))

(defn functions-named
  "Returns the functions whose name fulfils a predicate, from all symbol tables.

  A function is `{:name :offset :local :old}`: its offset in the file, and `:old` for a version that
  a new program does not use.

      (functions-named elf #{\"malloc\"}) ;=> [{:name \"malloc\" :offset 665584 :local false :old false}]"
  [{:keys [sections] :as elf} wanted?]
  (into [] (comp (filter #(symbol-tables (:type %)))
                 (mapcat #(named-functions elf % wanted?)))
        sections))

(defn preferred
  "Returns the functions that a program would call by their name.

  One for each offset in the file. Global functions go before local ones, and the default version
  before older ones."
  [functions]
  (let [better (fn [found test] (or (seq (remove test found)) found))
        found (-> functions (better :local) (better :old))]
    (vals (into (sorted-map) (map (juxt :offset identity)) found))))

(defn full-table?
  "Returns true if a file has all its symbols, not only those that it exports.

      (full-table? elf) ;=> false"
  [{:keys [sections]}]
  (boolean (some #(= 2 (:type %)) sections)))
