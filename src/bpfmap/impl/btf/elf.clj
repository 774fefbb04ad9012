(ns ^:no-doc bpfmap.impl.btf.elf
  "Reads ELF objects: sections, symbols and relocations. Compilers put BTF into a section.

      (def e (parse bytes))
      (contents e (section e \".BTF\")) ;=> a byte array

  Sources: the System V ABI, chapter 4; 64-bit objects of either byte order. Whatever the bytes
  are, only `:malformed-btf` is thrown for them."
  (:require [bpfmap.error :as error])
  (:import (java.nio BufferUnderflowException ByteBuffer ByteOrder)
           (java.nio.charset StandardCharsets)
           (java.util Arrays HashMap)))

(set! *warn-on-reflection* true)

(defn- malformed ^Throwable [hint]
  (error/error :malformed-btf "Malformed ELF object"
               {:bpfmap/path [:elf] :bpfmap/hint hint}))

(defmacro ^:private in-bounds
  "Evaluates body; throws `:malformed-btf` for a read beyond the end of the file."
  [& body]
  `(try
     ~@body
     (catch IndexOutOfBoundsException _# (throw (malformed "it ends too early")))
     (catch BufferUnderflowException _# (throw (malformed "it ends too early")))))

(defn- slice
  "Returns a copy of bytes of the object; throws if they are outside of it."
  ^bytes [^bytes object offset size]
  (when-not (and (<= 0 (long size) (alength object))
                 (<= 0 (long offset) (- (alength object) (long size))))
    (throw (malformed "a section lies outside the file")))
  (Arrays/copyOfRange object (int offset) (int (+ (long offset) (long size)))))

(def ^:private longest-name
  "The largest length of a name in bytes.

  The kernel allows names of 511 bytes in BTF."
  1023)

(defn- text-at
  "Returns the NUL-terminated name at an offset of a string table.

  Returns an empty text if the table is nil."
  [^bytes table offset]
  (if (< -1 (long offset) (alength table))
    (let [start (int offset)
          limit (min (alength table) (+ start (long longest-name)))
          end (loop [i start] (if (or (= i limit) (zero? (aget table i))) i (recur (inc i))))]
      (String. table start (int (- end start)) StandardCharsets/UTF_8))
    ""))

(def ^:private spare-room
  "Bytes that the names of an object may have more than twice its table.

  Names may share their bytes. Without a bound a small file could ask for much memory."
  65536)

(defn- name-reader
  "Returns a function of an offset in a string table to the name there.

  A name is made once. All of them together may not be much longer than the table."
  [^bytes table]
  (let [seen (HashMap.)
        room (long-array 1 (+ (long spare-room) (* 2 (alength table))))]
    (fn [offset]
      (or (.get seen offset)
          (let [^String text (text-at table offset)]
            (aset room 0 (- (aget room 0) (.length text)))
            (when (neg? (aget room 0))
              (throw (malformed "its names overlap, and are longer than their table")))
            (.put seen offset text)
            text)))))

(defn- u16 ^long [^ByteBuffer b ^long at]
  (bit-and 0xffff (.getShort b (int at))))

(defn- u32 ^long [^ByteBuffer b ^long at]
  (bit-and 0xffffffff (.getInt b (int at))))

(defn- headers
  "Returns the section headers without names, and the index of the name section."
  [^ByteBuffer b]
  (let [start (.getLong b 0x28)
        each (u16 b 0x3a)
        n (u16 b 0x3c)]
    (when-not (and (<= 64 each) (<= 0 start (- (.capacity b) (* n each))))
      (throw (malformed "its section headers lie outside the file")))
    {:names (u16 b 0x3e)
     :sections (vec (for [i (range n)
                          :let [at (+ start (* (long i) each))]]
                      {:index i
                       :name-offset (u32 b at)
                       :type (u32 b (+ at 0x04))
                       :flags (.getLong b (int (+ at 0x08)))
                       :offset (.getLong b (int (+ at 0x18)))
                       :size (.getLong b (int (+ at 0x20)))
                       :link (u32 b (+ at 0x28))
                       :info (u32 b (+ at 0x2c))}))}))

(defn parse
  "Reads the section headers of a 64-bit ELF object.

  Returns `{:bytes :buffer :machine :file-type :sections}`. A section has `:index :name :type :flags
  :offset :size :link :info`. The bytes are not copied. Throws `:malformed-btf` if they are not such
  an object.

      (map :name (:sections (parse bytes))) ;=> (\"\" \".text\" \".BTF\" …)"
  [^bytes object]
  (when-not (and (<= 64 (alength object))
                 (= [0x7f 0x45 0x4c 0x46 2] (map #(aget object %) (range 5))))
    (throw (malformed "it does not begin as a 64-bit ELF file does")))
  (in-bounds
    (let [order (if (= 2 (aget object 5)) ByteOrder/BIG_ENDIAN ByteOrder/LITTLE_ENDIAN)
          b (.order (ByteBuffer/wrap object) order)
          {:keys [names sections]} (headers b)
          table (if-let [{:keys [offset size]} (get sections names)]
                  (slice object offset size)
                  (byte-array 0))]
      {:bytes object
       :buffer b
       :file-type (u16 b 0x10)
       :machine (u16 b 0x12)
       ;; With at most eight keys, a map is an array, which is quicker to read.
       :sections (let [text (name-reader table)]
                   (mapv #(assoc (dissoc % :name-offset) :name (text (:name-offset %)))
                         sections))})))

(defn section
  "Returns the first section of a name; nil if there is none.

      (:size (section (parse bytes) \".BTF\")) ;=> 612"
  [{:keys [sections]} section-name]
  (first (filter #(= section-name (:name %)) sections)))

(def ^:private no-bits "SHT_NOBITS: a section of zeros, which takes no bytes of the file." 8)

(defn contents
  "Returns the bytes of a section as a new array.

  The array is empty if the file has no bytes for the section.

      (alength (contents e (section e \".BTF\"))) ;=> 612"
  ^bytes [{:keys [bytes]} {:keys [type offset size]}]
  (if (= no-bits type)
    (byte-array 0)
    (slice bytes offset size)))

(defn- places
  "Returns the offsets of the entries of a section, each of `size` bytes."
  [{:keys [bytes]} {:keys [offset] total :size} size]
  (when-not (and (<= 0 (long total) (alength ^bytes bytes))
                 (<= 0 (long offset) (- (alength ^bytes bytes) (long total))))
    (throw (malformed "a section lies outside the file")))
  (map #(+ (long offset) (* (long size) (long %))) (range (quot (long total) (long size)))))

(def ^:private symbol-table "SHT_SYMTAB." 2)

(def ^:private symbol-types {0 :notype 1 :object 2 :func 3 :section 4 :file})

(def ^:private bindings {0 :local 1 :global 2 :weak})

(def ^:private visibilities [:default :internal :hidden :protected])

(defn symbols
  "Returns the symbols of the object, in order.

  A symbol is `{:name :value :size :section :type :binding :visibility}`. `:section` is the index of
  a section, 0 if the symbol is undefined. `:type` and `:binding` are keywords, or the numbers of
  unknown ones.

      (filter #(= \"total\" (:name %)) (symbols e))
      ;=> ({:name \"total\" :value 8 :size 4 :section 7 :type :object …})"
  [{:keys [buffer sections] :as object}]
  (in-bounds
    (if-let [{:keys [link] :as table} (first (filter #(= symbol-table (:type %)) sections))]
      (let [text (name-reader (if-let [strings (get sections link)]
                                (contents object strings)
                                (byte-array 0)))]
        (mapv (fn [at]
                (let [at (long at)
                      info (bit-and 0xff (.get ^ByteBuffer buffer (int (+ at 4))))
                      other (bit-and 3 (.get ^ByteBuffer buffer (int (+ at 5))))
                      type (bit-and 0xf info)
                      binding (bit-shift-right info 4)]
                  {:name (text (u32 buffer at))
                   :type (symbol-types type type)
                   :binding (bindings binding binding)
                   :visibility (visibilities other)
                   :section (u16 buffer (+ at 6))
                   :value (.getLong ^ByteBuffer buffer (int (+ at 8)))
                   :size (.getLong ^ByteBuffer buffer (int (+ at 16)))}))
              (places object table 24)))
      [])))

(def ^:private relocation-tables
  "The section types SHT_RELA and SHT_REL, with the size of an entry in bytes.

  Only entries of the first have addends."
  {4 24, 9 16})

(defn relocation-list
  "Returns the relocations of a section, in the order of the file.

  A relocation is `{:offset :type :symbol :addend}`: an offset in the section, the number of its
  type, an index of [[symbols]], and nil as the addend if the bytes at the offset are the addend.

      (relocation-list e (section e \".BTF\")) ;=> [{:offset 1160 :type 4 :symbol 10 :addend nil} …]"
  [{:keys [sections ^ByteBuffer buffer] :as object} {:keys [index]}]
  (in-bounds
    (vec (for [{:keys [type info] :as table} sections
               :let [size (relocation-tables type)]
               :when (and size (= index info))
               at (places object table size)
               :let [at (long at)
                     word (.getLong buffer (int (+ at 8)))]]
           {:offset (.getLong buffer (int at))
            :type (bit-and 0xffffffff word)
            :symbol (unsigned-bit-shift-right word 32)
            :addend (when (= 4 type) (.getLong buffer (int (+ at 16))))}))))

(defn relocations
  "Returns the relocations of a section: offset in it to `{:symbol :addend}`.

  They are those of [[relocation-list]].

      (relocations e (section e \".BTF\")) ;=> {1160 {:symbol 10 :addend nil} …}"
  [object section]
  (into {}
        (map (juxt :offset #(select-keys % [:symbol :addend])))
        (relocation-list object section)))
