(ns bpfmap.error-test
  "The table of error kinds has all kinds that the sources throw, and the page about errors has
  the table."
  (:require [bpfmap.core]
            [bpfmap.error :as error]
            [bpfmap.type]
            [clojure.java.io :as io]
            [clojure.main :as main]
            [clojure.set :as set]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io File)))

(set! *warn-on-reflection* true)

(def ^:private page "doc/errors.md")

(defn- thrown
  "Returns the kinds that a source names where it makes an error."
  [text]
  (set (map (comp keyword second)
            (re-seq #"(?:error/error|\(error|\(refuse|:error|:bpfmap/error) :([a-z-]+)" text))))

(def ^:private not-kinds
  "A row of bpfmap.impl.errno with :not-a-pin becomes :not-a-map or :not-a-program. :message is a
  key beside :error in a docstring, :lost beside it in the columns of an event."
  #{:not-a-pin :message :lost})

(deftest kinds-are-complete
  (testing "the table has every error kind that the sources throw"
    (let [found (into #{} (mapcat #(thrown (slurp %)))
                      (filter #(str/ends-with? (.getName ^File %) ".clj")
                              (file-seq (io/file "src"))))
          known (set (keys error/kinds))]
      (is (< 25 (count known)))
      (is (= #{} (set/difference found known not-kinds)))
      (is (= #{:not-a-link :not-a-map :not-a-program} (set/difference known found))
          "made from the name of an object, in impl.sys.objects"))))

(deftest kinds-are-described
  (testing "every error kind has a description"
    (doseq [[kind {:keys [meaning thrown-by]}] error/kinds]
      (is (re-find #"^[A-Z].*\.$" meaning) (str kind))
      (is (seq thrown-by) (str kind)))))

(defn- with-table
  "Returns the page with the table of kinds as it is now."
  [text]
  (str/replace text #"(?s)(<!-- kinds: [^>]*-->\n).*(<!-- end -->)"
               (fn [[_ before after]]
                 (str before "| kind | meaning | thrown by |\n|---|---|---|\n"
                      (str/join (for [[kind {:keys [meaning thrown-by]}] error/kinds]
                                  (str "| `" kind "` | " meaning " | " thrown-by " |\n")))
                      after))))

(deftest page-has-the-table
  (testing "the page contains the generated table of error kinds"
    (is (= (with-table (slurp page)) (slurp page))
        "(spit page (with-table (slurp page))) makes the table again")))

;; --- where the stack trace begins

(defn- thrown-by
  "Returns the exception that a form throws, compiled in a namespace of somebody else."
  ^Throwable [form]
  (let [f (binding [*ns* (create-ns 'user.app)]
            (refer-clojure)
            (eval (list 'fn [] form)))]
    (try
      (f)
      (catch Throwable e e))))

(defn- classes [^Throwable e]
  (mapv #(.getClassName ^StackTraceElement %) (.getStackTrace e)))

(deftest trace-begins-with-called-function
  (testing "the stack trace of an error begins with the public function that was called"
    (doseq [[form place] '{(bpfmap.core/put! 1 2 3) bpfmap.core$put_BANG_
                           (bpfmap.core/create {:type :hash}) bpfmap.core$create
                           (bpfmap.core/create {:typ 1} {:pin 1}) bpfmap.core$create
                           (bpfmap.core/open :nope) bpfmap.core$open
                           (bpfmap.type/check :u65) bpfmap.type$check
                           (run! bpfmap.core/close [1]) bpfmap.core$close
                           (bpfmap.impl.options/check :take! 1) user.app$eval
                           (def m (bpfmap.core/open :nope)) bpfmap.core$open}
            :let [e (thrown-by form)
                  [one :as all] (classes e)]]
      (is (:bpfmap/error (ex-data e)) (str form))
      (is (str/starts-with? one (str place)) (str form))
      (is (some #(str/starts-with? % "user.app$") all) (str form))
      (is (not-any? #(str/starts-with? % "bpfmap.error$") all))
      (is (str/starts-with? (main/err->msg (ex-info "" {:clojure.error/phase :execution} e))
                            (str "Execution error (ExceptionInfo) at "
                                 (str/replace (str/replace (str place) "$" "/") "_BANG_" "!")))))))

(deftest trace-of-top-level-form
  (testing "the trace begins with the called function if no compiled code called it, as at a REPL"
    (let [e (try
              (load-string "(def nothing (bpfmap.core/open :nope))")
              (catch Throwable e (or (ex-cause e) e)))]
      (is (= "bpfmap.core$open" (first (classes e)))))))

(deftest trace-of-faults-is-whole
  (testing "an error that points to a fault of the library shows where it was made"
    (doseq [kind [:bug :kernel]
            :let [all (classes (error/error kind "x" nil))]]
      (is (str/starts-with? (first all) "bpfmap.error_test$")))))

(deftest large-integers-have-no-suffix
  (testing "a message shows a large integer without an N, at any depth"
    (is (= "{:n [18446744073709551615 #{9223372036854775808}], :m 1}"
           (error/printed {:n [18446744073709551615N #{9223372036854775808N}], :m 1N})))
    (testing "and every namespace prints values for messages in this way"
      (doseq [^File file (file-seq (io/file "src"))
              :when (str/ends-with? (.getName file) ".clj")]
        (is (not (re-find #"\(pr-str\s+\((?:error/)?shown " (slurp file))) (str file))))))

(deftest counts-with-nouns
  (testing "one thing has a singular noun, also in messages"
    (is (= ["1 byte" "0 bytes" "2 entries" "1 entry"]
           [(error/plural 1 "byte") (error/plural 0 "byte") (error/plural 2 "entry" "entries")
            (error/plural 1 "entry" "entries")])))
  (testing "no message chooses between a noun and its plural itself"
    (doseq [^File file (file-seq (io/file "src"))
            :when (str/ends-with? (.getName file) ".clj")
            [found] (re-seq #"\(if \(= 1 \S+\)\s+\" (\w+)s?\"\s+\" \1s\"\)" (slurp file))]
      (is (nil? found) (str file)))))
