(ns bpfmap.impl.object.malformed-test
  "Every error of an object that cannot be read: its message and its place."
  (:require [bpfmap.elf-file :as elf :refer [btf code extension merged object program text words]]
            [bpfmap.fixture :as fixture]
            [bpfmap.impl.btf.samples :as samples]
            [bpfmap.impl.object.reader :as reader]
            [bpfmap.object :as object]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (clojure.lang ExceptionInfo)
           (java.io ByteArrayInputStream IOException InputStream)))

(set! *warn-on-reflection* true)

(defn- refusal
  "The message and place of the error that reading bytes throws."
  [bytes]
  (try
    (object/read bytes)
    {:message "nothing was thrown"}
    (catch ExceptionInfo e
      (let [{:bpfmap/keys [error path op]} (ex-data e)]
        (is (= [:malformed-object :read] [error op]))
        {:message (ex-message e) :path path}))))

(defmacro ^:private refused [& rows]
  `(are [message# path# object#]
        (let [found# (refusal (let [x# object#] (if (map? x#) (object x#) x#)))]
          (and (is (str/includes? (:message found#) message#))
               (is (= path# (:path found#)))))
     ~@rows))

(def ^:private pass (program "xdp" "pass" [:mov64 :r0 2] [:exit]))

;; --- the file

(deftest files
  (testing "reports files that are not BPF objects"
    (refused
     "it does not begin as a 64-bit ELF file does" [:elf] (byte-array 100)
     "it does not begin as a 64-bit ELF file does" [:elf] (byte-array 0)
     "its section headers lie outside the file" [:elf] (byte-array (take 100 (object pass)))
     "it is for machine 62, and BPF is 247: compile it with clang -target bpf" [:elf :machine]
     (assoc pass :machine 62)
     "the type of the file must be 1, an object, got 2" [:elf :type] (assoc pass :file-type 2)
     "a section lies outside the file" [:elf]
     (merged pass {:sections [(assoc (btf []) :offset 100000)]})
     "they overlap: together they are longer than the file" [:elf :sections]
     (merged pass {:sections [{:name "x" :bytes (byte-array 0) :size 5000}]})
     "its size is -8" [:section "x"]
     (merged pass {:sections [{:name "x" :bytes (byte-array 0) :size -8}]})
     "the text must end with a NUL" [:section "license"]
     (merged pass {:sections [{:name "license" :bytes (byte-array [65 66])}]})
     "it must have 4 bytes, got 3" [:section "version"]
     (merged pass {:sections [{:name "version" :bytes (byte-array 3)}]})
     "Malformed BTF: the magic of the header must be 9f eb or eb 9f, got 01 02" [:section ".BTF" :header :magic]
     (merged pass {:sections [{:name ".BTF" :flags 0 :bytes (byte-array [1 2 3 4])}]}))))

;; --- code

(defn- calling [& insns]
  (apply program "xdp" "f" insns))

(def ^:private variable {:sections [{:name ".data" :flags 3 :bytes (words 5 6)}]
                         :symbols [{:name "v" :section ".data" :type :object :size 4 :value 4}]})

(defn- relocated
  "A program whose first instruction refers to a symbol."
  [insn symbol & [relocation]]
  (-> (calling insn [:exit])
      (assoc :relocations {"xdp" [(merge {:offset 0 :symbol symbol} relocation)]})))

(def ^:private load-zero [:lddw :r1 0])

(deftest functions
  (testing "reports functions that are not whole instructions of their section"
    (refused
     "function pass has 24 bytes, and ends outside the section" [:section "xdp" :offset 0]
     (assoc-in pass [:symbols 0 :size] 24)
     "function pass has 16 bytes, and ends outside the section" [:section "xdp" :offset 800]
     (assoc-in pass [:symbols 0 :value] 800)
     "function pass does not consist of whole instructions" [:section "xdp" :offset 0]
     (assoc-in pass [:symbols 0 :size] 12)
     "function pass overlaps half" [:section "xdp" :offset 0]
     (merged pass {:symbols [{:name "half" :section "xdp" :type :func :value 8 :size 8}]}))))

(deftest references
  (testing "reports relocations that name nothing"
    (refused
     "a relocation names symbol 99, and there are 2" [:section "xdp" :offset 0]
     (relocated load-zero 99)
     "a relocation lies outside the section, which has 24 bytes" [:section "xdp" :offset 800]
     (relocated load-zero "f" {:offset 800})
     "a relocation names symbol v, which is in section 77 of" [:section "xdp" :offset 0]
     (merged (relocated load-zero "v") {:symbols [{:name "v" :section 77}]})
     "it names offset 8 of section xdp, where no function begins" [:section "xdp" :offset 0]
     (relocated [:lddw :r1 8] "f")
     "it names offset 4 of section maps, where no map begins" [:section "xdp" :offset 0]
     (merged (relocated [:lddw :r1 4] "m")
             {:sections [{:name "maps" :flags 3 :bytes (words 1 4 4 1 0)}]
              :symbols [{:name "m" :section "maps" :type :object :size 20}]})
     "it names offset -4 of section .data" [:section "xdp" :offset 0]
     (merged (relocated [:lddw :r1 -8] "v") variable)
     "it jumps by a table, which cannot be loaded: compile it with -fno-jump-tables"
     [:section "xdp" :offset 0]
     (merged (relocated load-zero "table")
             {:sections [{:name ".jumptables" :flags 2 :bytes (words 1 0 2 0)}]
              :symbols [{:name "table" :section ".jumptables" :type :object :size 16}]})
     "it calls offset 8 of section xdp, where no function begins" [:section "xdp" :offset 0]
     (relocated [:insn {:code 0x85 :src 1}] "f")
     "it calls offset 4 of section .data, where no function begins" [:section "xdp" :offset 0]
     (merged (relocated [:insn {:code 0x85 :src 1 :imm -1}] "v") variable)
     "it calls offset 808 of its section, where no function begins" [:section "xdp" :offset 0]
     (calling [:insn {:code 0x85 :src 1 :imm 100}] [:exit])
     "opcode 0xb7 takes no relocation, of symbol f" [:section "xdp" :offset 0]
     (relocated [:mov64 :r1 0] "f")
     "a relocation of function f is not at the start of an instruction" [:section "xdp" :offset 8]
     (relocated load-zero "f" {:offset 8}))))

;; --- BTF: types of the tests, with their ids

(def ^:private int-type {:kind :int :name "int" :size 4 :bits 32 :signed true})

(defn- datasec [section & vars]
  {:kind :datasec :name section :size 64 :vars (vec vars)})

(defn- with-variable
  "An object with a variable of type int in .data."
  [at bytes]
  (merged pass {:sections [{:name ".data" :flags 3 :bytes (byte-array 64)}
                           (btf [int-type
                                 {:kind :var :name "v" :type 1 :linkage :global}
                                 (datasec ".data" {:type 2 :offset at :size bytes})])]}))

(deftest variables
  (testing "reports variables that are not where they may be"
    (refused
     "it has 4 bytes at offset 62, and the section has 64 bytes" [:section ".data" :variable "v"]
     (with-variable 62 4)
     "it overlaps the variable before it, at offset 2" [:section ".data" :variable "w"]
     (merged pass {:sections [{:name ".data" :flags 3 :bytes (byte-array 64)}
                              (btf [int-type
                                    {:kind :var :name "v" :type 1 :linkage :global}
                                    {:kind :var :name "w" :type 1 :linkage :global}
                                    (datasec ".data" {:type 2 :offset 0 :size 4}
                                             {:type 3 :offset 2 :size 4})])]})
     "it has 4294967296 bytes, and a map has at most 4 GiB" [:section ".bss"]
     (merged pass {:sections [{:name ".bss" :type 8 :flags 3 :bytes (byte-array 0)
                               :size 0x100000000}]})
     "it calls CONFIG, which is a variable" [:section "xdp" :offset 0]
     (merged (relocated [:insn {:code 0x85 :src 1 :imm -1}] "CONFIG")
             {:symbols [{:name "CONFIG"}]
              :sections [(btf [int-type
                               {:kind :var :name "CONFIG" :type 1 :linkage :extern}
                               (datasec ".kconfig" {:type 2 :offset 0 :size 4})])]}))))

;; --- maps

(def ^:private definition-types
  "Types that definitions use: `__uint(name, 3)` is a pointer to an array of three."
  [int-type                                      ; 1
   {:kind :array :element 1 :index 1 :count 2}   ; 2
   {:kind :ptr :type 2}                          ; 3: the number 2
   {:kind :ptr :type 1}                          ; 4: a pointer to an int
   {:kind :enum :name "two" :size 4 :values [["A" 1] ["B" 2]]}  ; 5
   {:kind :fwd :name "later"}                    ; 6
   {:kind :ptr :type 6}                          ; 7
   {:kind :array :element 1 :index 1 :count 5}   ; 8
   {:kind :ptr :type 8}                          ; 9: the number 5
   {:kind :array :element 4 :index 1 :count 0}   ; 10: pointers to an int
   {:kind :struct :name "inner" :size 16
    :members [{:name "type" :type 3 :bit-offset 0} {:name "pinning" :type 12 :bit-offset 64}]} ; 11
   {:kind :ptr :type 13}                         ; 12: the number 1
   {:kind :array :element 1 :index 1 :count 1}   ; 13
   {:kind :ptr :type 11}                         ; 14
   {:kind :array :element 14 :index 1 :count 0}  ; 15: pointers to the inner map
   {:kind :struct :name "nested" :size 16
    :members [{:name "type" :type 3 :bit-offset 0} {:name "values" :type 15 :bit-offset 64}]} ; 16
   {:kind :func-proto :return 1}                 ; 17
   {:kind :ptr :type 17}                         ; 18
   {:kind :array :element 18 :index 1 :count 0}  ; 19: pointers to functions
   {:kind :ptr :type 16}                         ; 20
   {:kind :array :element 20 :index 1 :count 0}]) ; 21

(defn- defined
  "An object with a map of members `[name type]`; its values are pointers of the section."
  [members & {:keys [relocations symbols kind] :or {kind :struct}}]
  (let [n (count definition-types)]
    (merged pass
            {:sections [{:name ".maps" :flags 3 :bytes (byte-array 64)}
                        (btf (conj definition-types
                                   {:kind kind :size 64
                                    :members (vec (map-indexed
                                                   (fn [i [k type]]
                                                     {:name k :type type
                                                      :bit-offset (if (= :union kind)
                                                                    0
                                                                    (* 64 (long i)))})
                                                   members))}
                                   {:kind :var :name "m" :type (+ n 1) :linkage :global}
                                   (datasec ".maps" {:type (+ n 2) :offset 0 :size 64})))]
             :symbols symbols
             :relocations (if relocations {".maps" relocations} {})})))

(defn- at [& more]
  (into [:section ".maps" :map "m"] more))

(deftest maps
  (testing "reports definitions of maps that cannot be understood"
    (refused
     "the map has no type" (at) (defined [["max_entries" 3]])
     "it must be a pointer to an array, whose length is the number, got a pointer to int"
     (at :member "type") (defined [["type" 4]])
     "it must be an enum with one value, got 2" (at :member "type") (defined [["type" 5]])
     "it must be a number made by __uint, got a type of kind int" (at :member "type")
     (defined [["type" 1]])
     "it must be a pointer to the type, got int" (at :member "key")
     (defined [["type" 3] ["key" 1]])
     "the type has no size" (at :member "value") (defined [["type" 3] ["value" 7]])
     "the type has 4 bytes, and :key_size is 5" (at :member "key")
     (defined [["type" 3] ["key" 4] ["key_size" 9]])
     "a map has no such attribute: attributes are type, key, value" (at :member "colour")
     (defined [["type" 3] ["colour" 3]])
     "it must be 0 or 1 (LIBBPF_PIN_BY_NAME), got 2" (at :member "pinning")
     (defined [["type" 3] ["pinning" 3]])
     "two members have the same name" (at) (defined [["type" 3] ["type" 3]])
     "the definition has 40 members" (at) (defined (repeat 40 ["type" 3]))
     "the map must be a struct, got union" (at) (defined [["type" 3]] :kind :union)
     "an inner map cannot be pinned" (at :member "values" :member "pinning")
     (defined [["type" 3] ["values" 15]])
     "an inner map cannot hold maps" (at :member "values" :member "values")
     (defined [["type" 3] ["values" 21]])
     "it must be an array of pointers to a map or a function, got pointers to int"
     (at :member "values") (defined [["type" 3] ["values" 10]])
     "it must be an array of pointers to a map or a function, got a type of kind int"
     (at :member "values") (defined [["type" 3] ["values" 1]])
     "a pointer is at offset 12 of the section, between two values" (at :member "values")
     (defined [["type" 3] ["values" 19]]
              :relocations [{:offset 12 :type 2 :symbol "pass"}])
     "it points to gone, which is neither a map nor a function" (at :member "values")
     (defined [["type" 3] ["values" 19]]
              :symbols [{:name "gone"}]
              :relocations [{:offset 8 :type 2 :symbol "gone"}])
     "the section has something that is not a variable" [:section ".maps" :offset 0]
     (merged pass {:sections [{:name ".maps" :flags 3 :bytes (byte-array 64)}
                              (btf [int-type (datasec ".maps" {:type 1 :offset 0 :size 4})])]})
     "it is at offset 72 of a section of 64 bytes" (at)
     (merged pass {:sections [{:name ".maps" :flags 3 :bytes (byte-array 64)}
                              (btf [int-type {:kind :var :name "m" :type 1 :linkage :global}
                                    (datasec ".maps" {:type 2 :offset 72 :size 4})])]})
     "it must be a variable of a struct of the kernel" [:section ".struct_ops" :map "m"]
     (merged pass {:sections [{:name ".struct_ops" :flags 3 :bytes (byte-array 64)}
                              (btf [int-type {:kind :var :name "m" :type 1 :linkage :global}
                                    (datasec ".struct_ops" {:type 2 :offset 0 :size 4})])]})))
  (testing "numbers of 64 bits are for :map-extra alone"
    (refused
     "it must be a number of 32 bits, got 8589934592" (at :member "max_entries")
     (merged pass {:sections [{:name ".maps" :flags 3 :bytes (byte-array 64)}
                              (btf [int-type
                                    {:kind :array :element 1 :index 1 :count 1}
                                    {:kind :ptr :type 2}
                                    {:kind :enum64 :size 8 :values [["N" 0x200000000]]}
                                    {:kind :struct :size 16
                                     :members [{:name "type" :type 3 :bit-offset 0}
                                               {:name "max_entries" :type 4 :bit-offset 64}]}
                                    {:kind :var :name "m" :type 5 :linkage :global}
                                    (datasec ".maps" {:type 6 :offset 0 :size 16})])]}))))

(defn- old [bytes & {:as symbol}]
  (merged pass {:sections [{:name "maps" :flags 3 :bytes bytes}]
                :symbols [(merge {:name "m" :section "maps" :type :object} symbol)]}))

(deftest old-maps
  (testing "reports definitions without BTF that are too short or too long"
    (refused
     "a definition has at least 16 bytes, got 12" [:section "maps" :map "m"] (old (words 1 4 8))
     "it has attributes that are not known: use a map of the section .maps"
     [:section "maps" :map "m"] (old (words 1 4 8 1 0 0 0 9))
     "it has attributes that are not known" [:section "maps" :map "m"] (old (words 1 4 8 1 0 9))
     "it is at offset 99 of a section of 20 bytes" [:section "maps" :map "m"]
     (old (words 1 4 8 1 0) :value 99))))

(deftest old-pinning
  (testing "reads the pinning of aya and iproute2"
    (is (= {:name "m" :type :hash :key-size 4 :value-size 8 :max-entries 1 :pinning :by-name}
           (get-in (object/read (object (old (words 1 4 8 1 0 7 2)))) [:maps "m"])))))

;; --- .BTF.ext

(def ^:private core-types
  [int-type
   {:kind :struct :name "point" :size 8
    :members [{:name "xdp" :type 1 :bit-offset 0} {:name "0:7" :type 1 :bit-offset 32}]}
   {:kind :enum :name "0:0:0" :size 4 :values [["up" 1] ["1" 2]]}
   {:kind :typedef :name "0:x" :type 1}
   {:kind :typedef :name (apply str (repeat 65 "0:")) :type 1}])

(defn- with-extension [blocks]
  (let [types (btf core-types)]
    (merged pass {:sections [types (extension types blocks)]})))

(defn- with-core [& row]
  (with-extension {:core [16 {"xdp" [row]}]}))

(defn- raw-extension [& fields]
  (merged pass {:sections [(btf core-types)
                           {:name ".BTF.ext" :flags 0 :bytes (elf/packed fields)}]}))

(defn- header [& more]
  (concat [[2 0xeb9f] [1 1] [1 0] [4 24]] more))

(defn- ext-at [offset]
  [:section ".BTF.ext" :offset offset])

(deftest extensions
  (testing "reports a .BTF.ext that is not what its header says"
    (refused
     "its header must have at least 24 bytes" (ext-at 0) (raw-extension [4 0])
     "it must begin with the number 0xeb9f" (ext-at 0)
     (apply raw-extension (repeat 6 [4 0x1234]))
     "the header has 99 bytes, and the section 24" (ext-at 4)
     (apply raw-extension [2 0xeb9f] [1 1] [1 0] [4 99] (repeat 4 [4 0]))
     "the block of functions ends at 124, behind the section" (ext-at 8)
     (apply raw-extension (header [4 0] [4 100] [4 0] [4 0]))
     "the block is too short for its record size" (ext-at 24)
     (apply raw-extension (header [4 0] [4 2] [4 0] [4 0] [2 0]))
     "a record must have at least 8 bytes, got 4" (ext-at 24)
     (apply raw-extension (header [4 0] [4 4] [4 0] [4 0] [4 4]))
     "the block ends inside a section's header" (ext-at 28)
     (apply raw-extension (header [4 0] [4 8] [4 0] [4 0] [4 8] [4 0]))
     "9 records of 8 bytes are longer than the block" (ext-at 28)
     (apply raw-extension (header [4 0] [4 12] [4 0] [4 0] [4 8] [4 0] [4 9]))
     "the string at 99999 is outside the BTF" (ext-at 28)
     (apply raw-extension (header [4 0] [4 12] [4 0] [4 0] [4 8] [4 99999] [4 0]))
     "a record is for offset 800 of a section of 16 bytes" [:section ".BTF.ext" :core "xdp"]
     (with-core 800 2 "0:0:0" 0)
     "a record is for offset 4 of a section of 16 bytes" [:section ".BTF.ext" :core "xdp"]
     (with-core 4 2 "0:0:0" 0))))

(deftest core-relocations
  (testing "reports CO-RE relocations that name nothing"
    (refused
     "it is of type 99, and the last one is 5" [:section "xdp" :offset 0]
     (with-core 0 99 "0:0:0" 0)
     "the access string must be numbers with colons, got \"0:x\"" [:section "xdp" :offset 0]
     (with-core 0 2 "0:x" 0)
     "the access string must be numbers with colons, got \"0:0:0:" [:section "xdp" :offset 0]
     (with-core 0 2 (apply str (repeat 65 "0:")) 0)
     "it names member 7, and the type has 2" [:section "xdp" :offset 0] (with-core 0 2 "0:7" 0)
     "it leads into a type of kind int" [:section "xdp" :offset 0] (with-core 0 2 "0:0:0" 0)
     "it names enumerator 0 of a type of kind struct" [:section "xdp" :offset 0]
     (with-core 0 2 "0:7" 10)))
  (testing "and keeps the number of a kind that is not known"
    (is (= [{:slot 0 :kind 77 :type "struct point" :type-id 2 :access "0:7"}]
           (get-in (object/read (object (with-core 0 2 "0:7" 77))) [:programs "pass" :core])))))

;; --- amplification: small objects that ask for much

(defn- quick
  "What reading bytes leads to, within a second of the processor and 200 MB."
  [bytes]
  (let [{:keys [result ms] allocated :bytes}
        (samples/cost #(try (reader/of-bytes bytes) :read
                            (catch ExceptionInfo e (:bpfmap/error (ex-data e)))))]
    (is (< (double ms) (* fixture/slowness 1000)))
    (is (< (long allocated) 200e6))
    result))

(deftest amplification
  (testing "a small object cannot ask for much time or memory"
    (testing "an array of 4 thousand million empty structs, as a variable"
      (is (= :read (quick (object (merged
                                   pass
                                   {:sections [{:name ".data" :flags 3 :bytes (byte-array 64)}
                                               (btf [{:kind :struct :size 0 :members []}
                                                     int-type
                                                     {:kind :array :element 1 :index 2
                                                      :count 0xffffffff}
                                                     {:kind :var :name "v" :type 3 :linkage :global}
                                                     (datasec ".data" {:type 4 :offset 0
                                                                       :size 64})])]}))))))
    (testing "variables of a type that doubles with every level"
      (let [levels 30
            types (into [int-type]
                        (for [i (range levels)]
                          {:kind :struct :name (str "s" i) :size 0xfffffff
                           :members [{:name "a" :type (inc (long i)) :bit-offset 0}
                                     {:name "b" :type (inc (long i)) :bit-offset 64}]}))
            n (count types)
            vars (for [i (range 2000)]
                   {:kind :var :name (str "v" i) :type n :linkage :global})]
        (is (= :read (quick (object (merged
                                     pass
                                     {:sections [{:name ".bss" :type 8 :flags 3 :size 0xfffffff
                                                  :bytes (byte-array 0)}
                                                 (btf (concat
                                                       types vars
                                                       [{:kind :datasec :name ".bss" :size 0xfffffff
                                                         :vars (for [i (range 2000)]
                                                                 {:type (+ n 1 (long i))
                                                                  :offset (* 1000 (long i))
                                                                  :size 1000})}]))]})))))))
    (testing "a large section of zeros with many variables"
      (is (= :read (quick (object
                           (merged pass
                                   {:sections [{:name ".bss" :type 8 :flags 3 :size 0x80000000
                                                :bytes (byte-array 0)}]
                                    :symbols (for [i (range 3000)]
                                               {:name (str "v" i) :section ".bss" :type :object
                                                :value (* 65536 (long i)) :size 65536})}))))))
    (testing "names that share their bytes"
      (let [long-name (apply str (repeat 60000 "x"))]
        (is (= :malformed-object
               (quick (object (merged
                               pass
                               {:symbols (for [i (range 3000)]
                                           {:name long-name :skip i :section "xdp"})})))))))))

;; --- sources

(deftest sources
  (testing "rejects what is neither a path, a stream nor bytes"
    (doseq [[source error message]
            [[42 :invalid-value "The source must be a path, a stream or bytes, got 42"]
             ["/nowhere/x.o" :io
              "Cannot read the object \"/nowhere/x.o\": there is no such file"]
             [(str (System/getProperty "java.io.tmpdir")) :io "Cannot read the object"]
             [(proxy [InputStream] []
                (read ([] (throw (IOException. "gone")))
                  ([_] (throw (IOException. "gone")))
                  ([_ _ _] (throw (IOException. "gone")))))
              :io "Cannot read the object from the stream: gone"]
             ["/dev/zero" :io "Cannot read the object \"/dev/zero\": it is a device"]]]
      (let [e (try (object/read source) nil (catch ExceptionInfo e e))]
        (is (= error (:bpfmap/error (ex-data e))))
        (is (str/includes? (str (ex-message e)) message)))))
  (testing "reads a stream to its end"
    (is (= ["pass"] (keys (:programs (object/read (ByteArrayInputStream. (object pass))))))))
  (testing "reads text of a license, and code without the type of its symbol"
    (is (= {:license "GPL" :insns [[:mov64 :r0 2] [:exit]]}
           (let [o (object/read (object (-> (merged pass {:sections [{:name "license"
                                                                      :bytes (text "GPL")}]})
                                            (assoc-in [:symbols 0 :type] :notype)
                                            (assoc-in [:symbols 0 :size] 0))))]
             {:license (:license o) :insns (get-in o [:programs "pass" :insns])})))))
