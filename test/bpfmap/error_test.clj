(ns bpfmap.error-test
  "The table of error kinds has all kinds that the sources throw, and the page about errors has
  the table."
  (:require [bpfmap.error :as error]
            [clojure.java.io :as io]
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
  key beside :error in a docstring."
  #{:not-a-pin :message})

(deftest kinds-are-complete
  (testing "the table has every error kind that the sources throw"
    (let [found (into #{} (mapcat #(thrown (slurp %)))
                      (filter #(str/ends-with? (.getName ^File %) ".clj")
                              (file-seq (io/file "src"))))
          known (set (keys error/kinds))]
      (is (< 25 (count known)))
      (is (= #{} (set/difference found known not-kinds)))
      (is (= #{:not-a-map :not-a-program} (set/difference known found))
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
