(ns bpfmap.impl.nearest-test
  "Suggestions for misspelt names."
  (:require [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.impl.spec :as spec]
            [bpfmap.type :as type]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop]))

(set! *warn-on-reflection* true)

(deftest suggestion-names-place
  (testing "a suggestion says where all names are, with or without a near name"
    (is (= "did you mean :hash? See bpfmap.spec for all map types"
           (nearest/suggestion :hsah (keys map-types/types) "bpfmap.spec for all map types")))
    (is (= "see bpfmap.type for all types"
           (nearest/suggestion :quaternion (keys type/scalars) "bpfmap.type for all types")))))

(def ^:private vocabulary
  (vec (concat (keys map-types/types) (keys map-types/flags) spec/spec-keys)))

(defspec one-slip-is-found 300
  ;; A letter too few, or two neighbours swapped, anywhere in a name of five letters or more.
  (prop/for-all [[name text] (gen/let [name (gen/elements (filter #(< 5 (count (str %)))
                                                                  vocabulary))
                                       at (gen/choose 1 (- (count (str name)) 2))
                                       swap? gen/boolean]
                               (let [text (str name)
                                     [a b] (subs text at (+ 2 at))]
                                 [name (str (subs text 1 at) (when swap? b) a
                                            (subs text (+ 2 at)))]))]
                (let [near (nearest/nearest (keyword text) vocabulary)]
                  (and (<= 1 (count near) 3)
                       (or (some #{name} near)
               ;; Another name is as near.
                           (every? #(<= (nearest/distance text (subs (str %) 1)) 1) near))))))

(deftest short-suggestions
  (testing "no error about a name lists more than three others"
    (doseq [{:keys [message]} (concat (spec/problems {:type :hsh :key :u32 :value :u32
                                                      :max-entries 1 :flag #{} :flags #{:no-pre}})
                                      [{:message (type/problem :u33)}])]
      (is (<= (count (re-seq #":[a-z]" (str/replace message #"^.*;" ""))) 3) message))))
