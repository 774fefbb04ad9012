(ns bpfmap.impl.btf.broken-test
  "Errors for bytes that are not BTF: the header, and the types."
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.samples :as samples :refer [info needs-base raw refused]]
            [bpfmap.impl.btf.writer :as writer]
            [clojure.test :refer [are deftest is testing]]))

(set! *warn-on-reflection* true)

(def ^:private u32-max 0xffffffff)

;; ---------------------------------------------------------------- the header

(deftest malformed-header
  (testing "rejects a malformed header"
    (are [path message bytes]
         (= [path (str "Malformed BTF: " message)] (refused (blob/parse bytes)))
      [:header :magic] "the magic of the header must be 9f eb or eb 9f, got no bytes"
      (byte-array 0)
      [:header :magic] "the magic of the header must be 9f eb or eb 9f, got 9f"
      (byte-array [0x9f])
      [:header :magic]
      (str
       "the magic of the header must be 9f eb or eb 9f, got 7f 45: use bpfmap.btf/parse-object "
       "for an ELF object")
      (byte-array [0x7f 0x45 0x4c 0x46 2])
      [:header] "the header must have at least 24 bytes, got 3"
      (byte-array (map unchecked-byte [0x9f 0xeb 1]))
      [:header :version] "the version of the header must be 1, got 200"
      (raw [] [""] :header {:version 200})
      [:header :flags] "the flags of the header must be 0, got 255"
      (raw [] [""] :header {:flags 255})
      [:header :hdr-len] "the hdr-len of the header must be from 24 to 25, got 23"
      (raw [] [""] :header {:hdr-len 23})
      [:header :hdr-len] "the hdr-len of the header must be from 24 to 25, got 26"
      (raw [] [""] :header {:hdr-len 26})
      [:header :hdr-len] "the hdr-len of the header must be from 24 to 25, got 4294967295"
      (raw [] [""] :header {:hdr-len u32-max})
      [:header]
      "the header must have a zero in byte 26, got 7: use a newer bpfmap, which may know this field"
      (raw [] ["" "" "\7" "" "" ""] :header {:hdr-len 28 :str-off 2 :str-len 1})
      [:header]
      "the header must have a zero in byte 35, got 7: use a newer bpfmap, which may know this field"
      (raw [] ["" "" "" "\7"] :header
           {:layout-len 0 :layout-off 0 :hdr-len 36 :str-off 0 :str-len 1})
      [:header :type-off] "the type-off of the header must be a multiple of 4, got 2"
      (raw [0 (info :ptr) 0] [""] :header {:type-off 2})
      [:header :type-off]
      "the type-off of the header must be at most 1, got 4294967292"
      (raw [] [""] :header {:type-off 0xfffffffc :type-len 4})
      [:header :type-len] "the type-len of the header must be at most 13, got 16"
      (raw [0 (info :ptr) 0] [""] :header {:type-len 16})
      [:header :type-len]
      "the type-len of the header must be at most 13, got 4294967295"
      (raw [0 (info :ptr) 0] [""] :header {:type-len u32-max})
      [:header :str-off] "the str-off of the header must be at most 13, got 4294967295"
      (raw [0 (info :ptr) 0] [""] :header {:str-off u32-max})
      [:header :str-len] "the str-len of the header must be at most 1, got 2"
      (raw [0 (info :ptr) 0] [""] :header {:str-len 2})
      [:header :str-len]
      (str "the str-len of the header must be at least 1, got 0: " needs-base)
      (raw [0 (info :ptr) 0] "")
      [:header :str-off] "the str-off of the header must be outside the section of type-off"
      (raw [0 (info :ptr) 0] [""] :header {:str-off 8})
      [:header :type-off] "the type-off of the header must be outside the section of str-off"
      (raw [0 (info :ptr) 0] [""] :header {:str-off 0 :str-len 13 :type-off 4 :type-len 8})
      [:strings] "the strings must end with a zero"
      (raw [] "\u0000a")
      [:strings] (str "the strings must begin with an empty string: " needs-base)
      (raw [] ["a"])
      [:header :layout-len] "the layout-len of the header must be a multiple of 4, got 6"
      (raw [] ["" "" "" ""] :header {:layout-len 6} :extra (repeat 6 0))
      [:header :layout-off] "the layout-off of the header must be a multiple of 4, got 1"
      (raw [] [""] :header {:layout-len 4} :extra (repeat 4 0))
      [:layout 20] "layout 20 must have sizes that are multiples of 4, got 5 and 0"
      (raw [] ["" "" "" ""] :header {:layout-len 84} :extra (concat (repeat 80 0) [5 0 0 0])))))

(deftest blobs-kernel-accepts
  (testing "accepts every blob that the kernel accepts"
    (testing "a longer header that is zero, types after the strings, a gap, and no types"
      (are [n bytes] (= n (blob/type-count (blob/parse bytes)))
        0 (raw [] [""])
        1 (raw [0 (info :ptr) 0] [""] :header {:layout-len 0 :layout-off 0})
        1 (raw [0 0 (info :ptr) 0] [""] :header {:type-off 4 :type-len 12 :str-off 0 :str-len 1})
        1 (raw [0 (info :ptr) 0] ["" ""] :header {:str-off 13 :str-len 1})
        1 (raw [0 0 (info :ptr) 0] [""] :header {:hdr-len 28 :type-len 12 :str-off 12})))))

;; ---------------------------------------------------------------- the types

(deftest type-exceeds-section
  (testing "rejects a type that exceeds its section"
    (are [path message words]
         (= [path (str "Malformed BTF: " message)] (refused (blob/parse (raw words ["" "a"]))))
      [:type 1] "type 1 must have at least 12 bytes, got 8"
      [0 (info :ptr)]
      [:type 2] "type 2 must have at least 12 bytes, got 4"
      [0 (info :ptr) 0 0]
      [:type 1] "type 1 has 24 bytes, of which only 20 are in the section"
      [0 (info :array) 0 0 0]
      [:type 1] "type 1 has 786432 bytes, of which only 12 are in the section"
      [0 (info :struct 65535) 0]
      [:type 1] "type 1 has 201326592 bytes, of which only 12 are in the section"
      [0 (info :enum64 0xffffff) 0]
      [:type 1 :name] (str "the name of type 1 must be an offset below 3, got 3: " needs-base)
      [3 (info :ptr) 0]
      [:type 1 :name]
      (str "the name of type 1 must be an offset below 3, got 4294967295: " needs-base)
      [u32-max (info :ptr) 0])
    (are [path words] (= path (first (refused (blob/parse (raw words ["" "a"])))))
      [:type 1 :member 1 :name] [0 (info :struct 2) 8, 1 0 0, 3 0 0]
      [:type 1 :member 0 :name] [0 (info :union 2) 8, u32-max 0 0, 0 0 0]
      [:type 1 :value 0 :name] [0 (info :enum 1) 8, 3 0]
      [:type 1 :value 2 :name] [0 (info :enum64 3) 8, 1 0 0, 1 9 9, 9 0 0]
      [:type 2 :param 1 :name] [0 (info :ptr) 0, 0 (info :func-proto 2) 0, 1 0, 3 0])))

(deftest unknown-kind-number
  (testing "an unknown kind is an error with its number"
    (doseq [kind [0 20 31 127]]
      (is (= [[:type 2 :kind]
              (str "Malformed BTF: the kind of type 2 must be from 1 to 19, got " kind
                   ": use a newer bpfmap, which may know this kind")]
             (refused (blob/parse (raw [0 (info :ptr) 0, 0 (info kind) 0] [""]))))))))

(deftest layout-section
  (testing "skips unknown kinds with the layout section"
    (let [layout (concat (repeat 80 0) [4 8 0 0])
          words [1 (info 20 2) 0, 11, 12 13, 14 15, 0 (info :ptr) 1]
          b (blob/parse (raw words ["" "new" "" "" ""] :header {:layout-len 84} :extra layout))]
      (is (= [{:id 1 :kind :unknown :number 20 :name "new"} {:id 2 :kind :ptr :type 1}]
             (samples/all-records b)))
      (is (= [:unknown nil 1] [(blob/kind b 1) (blob/size-of b 1) (blob/resolve b 1)]))
      (is (= [1] (blob/ids-named b "new") (blob/ids-named b "new" :unknown)))
      (testing "a split blob may leave it to its base"
        (is (= 4 (blob/type-count (blob/parse (raw words "") b)))))
      (testing "and it covers only the kinds that it lists"
        (is (= [:type 1 :kind]
               (first (refused (blob/parse (raw [0 (info 21) 0] ["" "" "" ""] :header
                                                {:layout-len 84}
                                                :extra layout))))))))))

(deftest reference-checked-on-use
  (testing "checks a reference when it is followed"
    (is (= {:id 1 :kind :ptr :type 1} (blob/record (blob/parse (raw [0 (info :ptr) 1] [""])) 1)))
    (is (= [[:type 1 :type] "Malformed BTF: the type of type 1 must be an id up to 1, got 2"]
           (refused (blob/record (blob/parse (raw [0 (info :ptr) 2] [""])) 1))))
    (are [path place words]
         (= [path (str "Malformed BTF: " place " must be an id up to 1, got 9")]
            (refused (blob/record (blob/parse (raw words ["" "a"])) 1)))
      [:type 1 :type] "the type of type 1" [0 (info :ptr) 9]
      [:type 1 :type] "the type of type 1" [0 (info :decl-tag) 9 0]
      [:type 1 :return] "the return of type 1" [0 (info :func-proto) 9]
      [:type 1 :element] "the element of type 1" [0 (info :array) 0 9 1 1]
      [:type 1 :index] "the index of type 1" [0 (info :array) 0 1 9 1]
      [:type 1 :member 1 :type] "the type of member 1 of type 1" [0 (info :struct 2) 8, 0 1 0, 0 9 0]
      [:type 1 :param 0 :type] "the type of param 0 of type 1" [0 (info :func-proto 1) 0, 0 9]
      [:type 1 :var 0 :type] "the type of var 0 of type 1" [0 (info :datasec 1) 0, 9 0 0])
    (let [b (blob/parse (raw [0 (info :typedef) u32-max, 0 (info :array) 0 4 0 1, 0 (info :const) 1]
                             [""]))]
      (is (= [[:type 1 :type]
              "Malformed BTF: the type of type 1 must be an id up to 3, got 4294967295"]
             (refused (blob/resolve b 1)) (refused (blob/resolve b 3))
             (refused (blob/size-of b 3))))
      (is (= [[:type 2 :element]
              "Malformed BTF: the element of type 2 must be an id up to 3, got 4"]
             (refused (blob/size-of b 2)))))))

(deftest missing-type-id
  (testing "an id out of range is an error that names it"
    (let [b (blob/parse (writer/blob [{:kind :ptr :type 0}]))]
      (doseq [f [blob/record blob/kind blob/resolve blob/size-of] id [2 -1 Long/MAX_VALUE]]
        (is (= [[:type id]
                (str "Malformed BTF: type " id " must be an id up to 1, got " id)]
               (refused (f b id))))))))

(deftest missing-string-offset
  (testing "a string offset out of range is an error that names it"
    (let [b (blob/parse (raw [] ["" "a"]))]
      (is (= [[:string 3] (str "Malformed BTF: string 3 must be an offset below 3: " needs-base)]
             (refused (blob/string b 3))))
      (is (= [:string -1] (first (refused (blob/string b -1))))))))

(deftest string-of-65535-bytes
  (testing "a string has at most 65535 bytes"
    (let [text (apply str (repeat 65535 "x"))
          b (blob/parse (raw [1 (info :fwd) 0, 65537 (info :fwd) 0] ["" text (str text "y")]))]
      (is (= text (blob/string b 1) (:name (blob/record b 1))))
      (is (= [[:string 65537] "Malformed BTF: string 65537 must have at most 65535 bytes"]
             (refused (blob/string b 65537))
             (refused (blob/record b 2))))
      (is (= [1] (blob/ids-named b text))))))

(deftest overlapping-names
  (testing "overlapping names do not multiply the memory"
    (let [n 65535
          text (apply str (repeat n "x"))
          b (blob/parse (raw (concat [0 (info :enum n) 4] (interleave (range 1 (inc n)) (repeat 0)))
                             ["" text]))
          {:keys [result bytes]} (samples/cost #(refused (blob/record b 1)))]
      (is (= [[:type 1]
              "Malformed BTF: type 1 must have names that do not overlap; together they are longer than all strings"]
             result))
      (is (< bytes 10e6) "and not 2 GiB")
      (testing "a name that occurs twice is not an overlap"
        (let [b (blob/parse (raw (concat [0 (info :enum 60000) 4] (flatten (repeat 60000 [1 0])))
                                 ["" "abc"]))]
          (is (= 60000 (count (:values (blob/record b 1))))))))))

(deftest index-of-shared-names
  (testing "the index reads shared bytes of names only once"
    (let [n 200000
          text (apply str (repeat n "x"))
          b (blob/parse (raw (mapcat (fn [i] [(inc i) (info :fwd) 0]) (range n)) ["" text]))
          {:keys [result ms]} (samples/cost #(blob/ids-named b "xxx"))]
      (is (= [(- n 2)] result))
      (is (< ms (* fixture/slowness 2000))))))
