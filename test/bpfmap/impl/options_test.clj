(ns bpfmap.impl.options-test
  (:require [bpfmap.error :as error]
            [bpfmap.fixture :refer [error-of]]
            [bpfmap.impl.options :as options]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]))

(set! *warn-on-reflection* true)

(deftest every-row
  (testing "each operation rejects unknown options, bad values and anything but a map"
    (doseq [[op known] @#'options/options-of]
      (is (nil? (options/check op nil)))
      (is (= {} (options/check op {})))
      (doseq [odd [5 [:lock] "x"]]
        (is (= [:invalid-value op [] (str "Options must be a map, got " (pr-str odd))]
               ((juxt :bpfmap/error :bpfmap/op :bpfmap/path :message)
                (error-of (options/check op odd))))))
      (doseq [k [:no-such "none" nil]]
        (let [{:keys [message] :bpfmap/keys [error hint path]}
              (error-of (options/check op (sorted-map k 1)))]
          (is (= [:invalid-value [k]] [error path]))
          (is (str/starts-with? message (str "Unknown option " (pr-str k) ": ")))
          (is (= (str "use " (error/list-of (sort (keys known)))) hint))))
      (doseq [[k [_ text]] known :when text]
        (is (str/starts-with? (:message (error-of (options/check op {k ::odd})))
                              (str k " must be " text ", got :bpfmap.impl.options-test/odd")))))))

(deftest hints
  (testing "the hint suggests the nearest option, or lists all options"
    (are [op options message] (= message (:message (error-of (options/check op options))))
      :take! {:lok true} "Unknown option :lok: did you mean :lock?"
      :take! {"lock" true} "Unknown option \"lock\": did you mean :lock?"
      :list {:breif true} "Unknown option :breif: did you mean :brief?"
      :put! {:lock 1} ":lock must be true or false, got 1"
      :create {:pin "/x"} "Unknown option :pin: did you mean :pin-path?"
      :create {:path "/x"}
      "Unknown option :path: use :mapped or :pin-path"
      :create {:via :memory} "Unknown option :via: use {:mapped true}"
      :open {:via :memory} "Unknown option :via: use {:mapped true}"
      :take! {:via :memory} "Unknown option :via: use :lock")))

(defn- misspellings
  "Returns the keywords that differ from an option by one letter: missing, changed, added, or two
  swapped."
  [option]
  (let [text (name option)
        n (count text)]
    (set (map keyword
              (concat (for [i (range n)] (str (subs text 0 i) (subs text (inc i))))
                      (for [i (range n)] (str (subs text 0 i) "x" (subs text (inc i))))
                      (for [i (range (inc n))] (str (subs text 0 i) "x" (subs text i)))
                      (for [i (range (dec n))]
                        (str (subs text 0 i) (nth text (inc i)) (nth text i)
                             (subs text (+ 2 i)))))))))

(deftest misspelt-options
  (testing "every option that is misspelt by one letter is suggested"
    (doseq [[op known] @#'options/options-of
            option (keys known)
            misspelt (remove known (misspellings option))]
      (testing (str op " " misspelt)
        (is (re-find (re-pattern (str "did you mean .*" option "\\b"))
                     (str (:bpfmap/hint (error-of (options/check op {misspelt 1}))))))))))
