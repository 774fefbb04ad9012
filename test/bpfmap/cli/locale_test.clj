(ns ^:volume bpfmap.cli.locale-test
  "Arguments, paths and output are bytes, whatever the locale. The command line runs as a process,
  as a shell starts it."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.cli.calling :as calling]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.escape :as escape]
            [bpfmap.impl.kernel.paths :as paths]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing use-fixtures]]
            [clojure.test.check :as tc]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (java.io Closeable)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

(def ^:private script (str (.getAbsolutePath (io/file "bin/bpfmap"))))

(use-fixtures :once (fn [tests] (fixture/run [script "--version"]) (tests)))

;; --- text and bytes of paths

(def ^:private gen-name
  "Bytes without a NUL and a slash, many of them such as escapes have."
  (gen/fmap byte-array
            (gen/vector (gen/one-of [(gen/fmap #(byte (int %)) (gen/elements "\\\\xu0d8cafF\n"))
                                     (gen/fmap unchecked-byte
                                               (gen/such-that
                                                (complement #{0 47}) (gen/choose 1 255)))])
                        1 8)))

(deftest path-text-round-trip
  (testing "the text of a path converts back to its bytes"
    (let [{:keys [pass? shrunk]}
          (tc/quick-check
           3000
           (prop/for-all [a gen-name, b gen-name]
                         (let [text (paths/text a)
                               printed (paths/printable text)]
                           (and (Arrays/equals ^bytes a (paths/bytes-of text))
                                (Arrays/equals ^bytes a (paths/bytes-of printed))
                                (= printed (escape/escape printed) (escape/escape-text text))
                                (or (Arrays/equals ^bytes a ^bytes b)
                                    (not= printed (paths/printable (paths/text b))))
                                (Arrays/equals ^bytes a (paths/exact-bytes (paths/argument a)))
                                (= (cons 47 a)
                                   (seq (paths/of-java (paths/->java (str "/" text))))))))
           :seed 1)]
      (is pass? (pr-str (some-> shrunk :smallest (->> (map vec))))))
    (testing "what can be printed is its UTF-8"
      (is (= ["/a/café" "/a/a\\b" "/two\nlines" "/\\xff" "/\\\\xff" "/\\\\\\\\"]
             (map (comp paths/text byte-array)
                  [(.getBytes "/a/café") (.getBytes "/a/a\\b") (.getBytes "/two\nlines") [47 -1]
                   (.getBytes "/\\xff") (.getBytes "/\\\\")]))))))

;; --- the command line

(def ^:private names
  "Names as bash has them, and as they are printed."
  {"plain" "plain"
   "caf\\xc3\\xa9" "café"
   "caf\\xe9_\\xff" "caf\\xe9_\\xff"
   "two\\nlines" "two\\u000alines"
   "bell\\a\\x1b[31m" "bell\\u0007\\u001b[31m"
   "back\\\\xffslash" "back\\\\xffslash"})

(defn- sh
  "Runs a line of bash, written in ASCII; {:exit :out :err}."
  [line]
  (assert (re-matches #"(?s)\p{ASCII}*" line))
  (fixture/run ["bash" "-c" line]))

(defn- raw-names
  "The names in a directory in hexadecimal, as find and od have them."
  [directory]
  (set (for [line (str/split-lines (:out (sh (str "find " directory
                                                  " -type f -printf '%f\\0' | od -An -v -tx1 -w1 | "
                                                  "tr -d ' \\n' | sed 's/00/\\n/g'"))))
             :when (seq line)]
         line)))

(defn- hex-of
  "A name of [[names]] in hexadecimal."
  [bash-name]
  (str/replace (:out (sh (str "printf %s $'" bash-name "' | od -An -v -tx1"))) #"\s" ""))

(defn- walk
  "Pins, writes, reads, lists, saves and unpins a map under a name, in an environment."
  [environment bash-name printed-name]
  (let [directory (doto (io/file (fixture/new-pin)) (.mkdir))
        files (fixture/temporary-directory)
        path (str directory "/$'" bash-name "'")
        printed-path (str directory "/" printed-name)
        done (fn [& words]
               (let [{:keys [exit out err]} (sh (str environment " " script " "
                                                     (str/join " " words)))]
                 (is (= [0 ""] [exit (str/replace err #"^1 pin\n$" "")]) (str words))
                 out))]
    (try
      (with-open [m ^Closeable (bpf/create {:name "locale" :type :hash :key :u32 :value [:string 8]
                                            :max-entries 4})
                  raw ^Closeable (bpf/open (:id (bpf/info m)) {:value [:bytes 8]})]
        (let [id (:id (bpf/info m))]
          (is (= (str "map " id " (locale) is pinned at " printed-path "\n") (done "pin" id path)))
          (is (= #{(hex-of bash-name)} (raw-names directory)))
          (is (= "1  café  (new)\n" (done "put" path 1 "$'caf\\xc3\\xa9'" "--yes")))
          (is (= (bytes/->bytes "63 61 66 c3 a9 00 00 00") (raw 1)))
          (is (= "café\n" (done "get" path 1)))
          (let [[{shown :path}] (calling/read-edn (done "tree" directory "--edn"))]
            (is (= printed-path (paths/printable shown)))
            (is (str/includes? (done "tree" directory) (str "─ " printed-name " ")))
            (is (= [shown]
                   (:pinned (first (filter #(= id (:id %))
                                           (calling/read-edn (done "list" "--edn")))))))
            (doseq [what-was-printed [shown printed-path]]
              (with-open [again ^Closeable (bpf/open what-was-printed)]
                (is (= id (:id (bpf/info again))))))
            (when (re-matches #"\p{ASCII}*" printed-name)
              (is (= "café\n" (done "get" (str "'" printed-path "'") 1)))))
          (is (str/includes? (done "save" path (str files "/$'" bash-name "'.edn"))
                             (str files "/" printed-name ".edn")))
          (is (= #{(str (hex-of bash-name) "2e65646e")} (raw-names files)) "and nothing beside it")
          (is (str/includes? (done "diff" (str files "/$'" bash-name "'.edn") path "--edn") "[]")
              "it is read again")
          (is (str/includes? (done "unpin" path "--yes")
                             (str "is no longer pinned at " printed-path)))
          (is (= #{} (raw-names directory)))))
      (finally
        (sh (str "rm -rf " directory "/* " files "; rmdir " directory))))))

(kernel-test names-in-c-locale
  (testing "handles every kind of file name in the C locale"
    (doseq [[bash-name printed-name] names]
      (testing printed-name
        (walk "env LC_ALL=C" bash-name printed-name)))))

(kernel-test names-in-other-locales
  (testing "handles file names the same in other locales"
    (doseq [environment ["env -i" "env LC_ALL=C.UTF-8"]]
      (testing environment
        (walk environment "caf\\xc3\\xa9" "café")
        (walk environment "caf\\xe9_\\xff" "caf\\xe9_\\xff")))))

(kernel-test non-utf8-text-kept
  (testing "stores text that is not UTF-8 as it was typed"
    (with-open [m ^Closeable (bpf/create {:name "locale" :type :hash :key :u32 :value [:string 8]
                                          :max-entries 4})
                n ^Closeable (bpf/create {:name "locale" :type :hash :key :u32
                                          :value [:struct [:name [:string 8]]] :max-entries 4})
                raw ^Closeable (bpf/open (:id (bpf/info m)) {:value [:bytes 8]})]
      (let [put (fn [m value]
                  (sh (str "LC_ALL=C " script " put " (:id (bpf/info m)) " 1 $'" value "' --yes")))]
        (is (= [0 ""] ((juxt :exit :err) (put m "caf\\xe9"))))
        (is (= (bytes/->bytes "63 61 66 e9 00 00 00 00") (raw 1)))
        (is (= {:exit 2 :out ""
                :err "bpfmap: VALUE must be UTF-8, got \"{name caf\\\\xe9}\": give all bytes in hexadecimal; see `bpfmap help put`\n"}
               (put n "{name caf\\xe9}"))
            "within data there are no such texts")
        (is (= 0 (bpf/count-entries n)))))))

(kernel-test errors-in-utf8
  (testing "error messages are UTF-8 in every locale"
    (doseq [environment ["env LC_ALL=C" "env -i"]
            :let [{:keys [exit err]}
                  (sh (str environment " " script " show /sys/fs/bpf/$'no_caf\\xc3\\xa9'"))]]
      (is (= [1
              "bpfmap: Opening /sys/fs/bpf/no_café failed with ENOENT: the file /sys/fs/bpf/no_café does not exist\n"] [exit err])))))

;; --- two files that one text may mean

(kernel-test ambiguous-path-text
  (testing "rejects text that names two different files"
    (let [directory (doto (io/file (fixture/new-pin)) (.mkdir))
          exact (str directory "/a\\x62") ; this name, and the one that it stands for when printed
          stood-for (str directory "/ab")]
      (with-open [one ^Closeable (bpf/create {:type :array :value :u32 :max-entries 1})
                  two ^Closeable (bpf/create {:type :array :value :u32 :max-entries 1})]
        (bpf/pin! one exact)
        (is (= #{"615c783632"} (raw-names directory)) "a path is taken as it is")
        (is (= (str directory "/a\\\\x62") (bpf/pinned-path one)))
        (with-open [m ^Closeable (bpf/open exact)] (is (= (:id (bpf/info one)) (:id (bpf/info m)))))
        (bpf/pin! two stood-for)
        (let [{:keys [message] :bpfmap/keys [error]} (fixture/error-of (bpf/open exact))]
          (is (= :ambiguous error))
          (is (str/includes? message
                             (str "both exist; " directory
                                  "/a\\\\x62 is the file of exactly this name, and "
                                  "\\x61\\x62 in " directory " the other"))))
        (doseq [[path m] {(str directory "/a\\\\x62") one, (str directory "/\\x61\\x62") two}]
          (with-open [found ^Closeable (bpf/open path)]
            (is (= (:id (bpf/info m)) (:id (bpf/info found))))))
        (is (= #{(str directory "/a\\\\x62") stood-for} (set (map :path (host/pins directory)))))
        (bpf/unpin! one)
        (with-open [m ^Closeable (bpf/open exact)]
          (is (= (:id (bpf/info two)) (:id (bpf/info m))) "as it would be printed"))
        (bpf/unpin! two)
        (.delete directory)))))
