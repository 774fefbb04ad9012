(ns bpfmap.impl.edn-test
  "EDN from anywhere: read within bounds, never evaluated; whatever it is, an error of bpfmap's
  own is all that comes of it."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.query :as query]
            [bpfmap.exec.saved-file :as saved-file]
            [bpfmap.fixture :as fixture :refer [error-of]]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.edn :as edn]
            [bpfmap.pod.handles :as handles]
            [bpfmap.pod.payload :as payload]
            [bpfmap.spec :as spec]
            [bpfmap.type :as type]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (clojure.lang ExceptionInfo)
           (java.lang.foreign Arena)
           (java.util Random)))

(set! *warn-on-reflection* true)

(deftest readable-edn-forms
  (testing "reads EDN forms, tags and comments"
    (are [text forms] (= forms (edn/read-forms text))
      "" []
      "1 :a \"b\" \\c nil" [1 :a "b" \c nil]
      "#bpfmap/bytes \"0a ff\"" [(bytes/->bytes "0a ff")]
      "#inst \"2026-01-01\"" [#inst "2026-01-01"]
      "; a comment (((\n{:src [1 #{2}]}" [{:src [1 #{2}]}]
      "\\( \\[ \"((([[[\" \"\\\"(\"" [\( \[ "((([[[" "\"("])
    (is (= 1 (edn/read-text " 1 ")))))

(def ^:private opened (str/join (repeat 100 "[")))

(deftest rejected-edn-text
  (testing "rejects text that is not valid EDN and reports why"
    (doseq [[text problem] {"" "it is empty"
                            "1 2" "there is more than one form"
                            "(" "EOF while reading"
                            "{:a 1\n :b\n [2\n" "line 4: EOF while reading, starting at line 3"
                            "{:a 1\n :b}\n" "line 2: Map literal must contain an even number of forms"
                            "[1\n b: 2]" "line 2: Invalid token: b:"
                            "[1\n #a 2]" "the tag #a is unknown"
                            "#=(System/exit 3)" "No dispatch macro for: ="
                            "#java.io.File[\"/etc/passwd\"]" "the tag #java.io.File is unknown"
                            "#inst \"no\"" "Unrecognized date/time syntax: no"
                            "\u0000" "the control character \\u0000"
                            (str opened "[") "more than 100 collections within one another"
                            (str/join (repeat 100000
                                              "{:a ")) "more than 100 collections within one another"
                            (str/join (repeat 50000 "#a ")) "tags or metadata nested too deep"
                            (str/join (repeat 50000 "^:a ")) "tags or metadata nested too deep"
                            (str/join (repeat 70000
                                              "9")) "a number or name of more than 65536 characters"
                            (str/join (repeat 70000
                                              "a")) "a number or name of more than 65536 characters"}]
      (is (= {:bpfmap/error :invalid-edn :bpfmap/problem problem
              :message (str "Not EDN that bpfmap reads: " problem)}
             (dissoc (error-of (edn/read-text text)) :class))
          (subs text 0 (min 20 (count text)))))
    (is (some? (edn/read-text (str opened (str/join (repeat 100 "]"))))) "a hundred are read")
    (is (= 100000 (count (edn/read-text (str "\"" (str/join (repeat 100000 "x")) "\""))))
        "a string is as long as it is")))

(deftest bad-tag-data
  (testing "the data reader of a tag rejects bad data"
    (is (= :invalid-value (:bpfmap/error (error-of (edn/read-text "#bpfmap/bytes \"0g\"")))))
    (is (= :invalid-value (:bpfmap/error (error-of (edn/read-text "#bpfmap/bytes {}")))))))

(deftest only-one-edn-reader
  (testing "no other namespace reads EDN"
    ;; One reader, with one set of bounds. Resources of the class path belong to the library.
    (doseq [file (file-seq (io/file "src")) :when (str/ends-with? (str file) ".clj")
            :let [text (slurp file)]
            :when (not (str/ends-with? (str file) "impl/edn.clj"))]
      (is (or (not (re-find #"\[clojure\.edn|read-string" text))
              (str/includes? text "(edn/read-string (slurp (io/resource"))
          (str file)))))

;; --- mutated input

(def ^:private seeds
  ["{:src \"10.0.0.1\", :port 443}" "[:struct [:a :u8] [:b [:bits :u32 5]]]"
   "#bpfmap/bytes \"0a ff\"" "18446744073709551615"
   "[1.5e300 -0.0 ##NaN ##Inf 1/3 7N 1e400M]" "[:and [:> :bytes 1000] [:matches :comm \"^ssh\"]]"
   "value.packets<=7"
   "{:type :hash :key :u32 :value [:array :u8 4] :max-entries 8}"
   "#inst \"2026-01-01T00:00:00.000-00:00\"" "0a:00:00:00"
   "#uuid \"00000000-0000-0000-0000-000000000000\"" "[#{1 2} (a b) \\c \\u0041 :x/y]" "10.0.0.0/24"
   "0x0a000000" "^{:a 1} [b]"
   "[#bpfmap/map {:handle 1 :id 2} {:cpus :all}]" "[:enum {:A 1 :B 2}]"
   "[:union [:a :u8] [:b :ipv6]]" "fe80::1%eth0" "\"café\""
   "{:bpfmap/saved 1 :spec {:type :hash :key :u32 :value :u32 :max-entries 1} :entries [[1 2]]}"
   "de:ad:be:ef:00:01"])

(def ^:private pieces
  ["(" ")" "[" "]" "{" "}" "#{" "#" "^" "\\" "\"" ":" "/" "-" "+" "." "e9" "N" "M" "1e999999999M"
   "1e-999999999M" "99999999999999999999"
   "#_" "#=" "#\"" "##NaN" "~" "@" "'" "`" "%" "&" "nil" "true" "\u0000" "\u001b[2J" "\n" "\ud800"
   "\u202e" "," ";" "0x" "#inst" "#a"
   "[:array :u8 99999999999]" "[:bits :u64 65]" "{nil nil}" "[:string -1]" ":key" "<" ">=" "~(((("
   "a.b.c" "1/0" "-9223372036854775809"])

(defn- mutated [^Random random ^String text]
  (loop [text text n (inc (.nextInt random 4))]
    (if (zero? n)
      text
      (let [at (.nextInt random (inc (count text)))
            to (min (count text) (+ at (.nextInt random 6)))]
        (recur (case (.nextInt random 4)
                 0 (str (subs text 0 at) (pieces (.nextInt random (count pieces))) (subs text at))
                 1 (str (subs text 0 at) (subs text to))
                 2 (str (subs text 0 at) (seeds (.nextInt random (count seeds))) (subs text to))
                 3 (str (subs text 0 at) (char (.nextInt random 300)) (subs text at)))
               (dec n))))))

(def ^:private row
  {:key {:src "10.0.0.1" :port 443} :value [1 2] :id 7 :name "x" :frozen true :comm \a})

(def ^:private types
  [:u8 :i64 :u64 :f32 :f64 :bool :char :ipv4 :ipv6 :mac [:string 8] [:bytes 4] [:array :u16 2]
   [:struct [:src :ipv4] [:port :u16]]
   [:union [:a :u32] [:b [:bytes 4]]] [:enum {:A 1 :B 2}] [:prefix :ipv4]])

(defn- readings
  "Everything that text from outside goes through, as functions of the text."
  [table]
  (let [nodes (filter #(nil? (type/problem %)) types)]
    (concat
     (for [[kind {:keys [read problem]}] arguments/kinds]
       [kind (fn [text] (let [data (read text)] (when (and problem (some? data)) (problem data))))])
     [[:condition (fn [text] (doall (query/rows {:where [(query/condition text)]} [row row])))]
      [:args (fn [text] (payload/read-args table (str "[" text "]")))]
      [:create (fn [text] (spec/complete (edn/read-text text)))]
      [:saved
       (fn [text] (let [file (doto (java.io.File/createTempFile "mutated" ".edn") (spit text))]
                    (try (saved-file/read-file (str file)) (finally (.delete file)))))]]
     (for [t nodes]
       [[:typed t] (let [compiled (codec/codec t)
                         memory (.allocate (Arena/ofAuto) 64)]
                     (fn [text]
                       (.encode compiled (input/typed {:type :hash :key t} :key text identity)
                                memory 0)))]))))

(defn run-mutations
  "Puts `n` mutated texts through one reading each; returns those that ended in anything but data
  or an error of bpfmap's own."
  [n seed]
  (let [random (Random. seed)
        all (vec (readings (handles/table)))]
    (into []
          (keep (fn [i]
                  (let [text (mutated random (seeds (.nextInt random (count seeds))))
                        [what f] (all (mod i (count all)))
                        begun (System/nanoTime)
                        wrong (try
                                (f text)
                                nil
                                (catch ExceptionInfo e
                                  (when-not (or (:bpfmap/error (ex-data e))
                                                (#{:where :condition :hint} what)) e))
                                (catch Throwable e e))
                        millis (quot (- (System/nanoTime) begun) 1000000)]
                    (when (or wrong (< 20000 millis))
                      {:what what :text text :millis millis :wrong (some-> wrong str)}))))
          (range n))))

(deftest mutated-input-as-data
  (testing "mutated input returns data or throws an error that names it"
    (let [seed (System/nanoTime)]
      (testing (str "seed " seed)
        (is (= [] (take 5 (run-mutations 4000 seed))))))))
