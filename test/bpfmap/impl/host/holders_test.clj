(ns bpfmap.impl.host.holders-test
  "Processes that have an object open only while they list all."
  (:require [bpfmap.impl.host.holders :as holders]
            [clojure.test :refer [deftest is testing]]))

(defn- looking
  "A function that returns these processes at one call after another, and then the last of them."
  [& answers]
  (let [left (atom answers)]
    (fn []
      (let [[now & more] @left]
        (when more (reset! left more))
        now))))

(deftest settled-holders
  (let [agent {:pid 1 :command "agent" :fds [5]}
        lister {:pid 2 :command "lister" :fds [7]}]
    (testing "only a process that has the same descriptors at each look is a holder"
      (is (= [] (holders/settled (looking []) :test)))
      (is (= [agent] (holders/settled (looking [agent]) :test)))
      (is (= [agent] (holders/settled (looking [agent lister] [agent]) :test)))
      (is (= [agent] (holders/settled (looking [agent lister] [lister agent] [agent] [lister agent])
                                      :test)))
      (is (= [] (holders/settled (looking [lister] [(assoc lister :fds [8])]) :test)))
      (is (= [agent] (holders/settled (looking [agent] [agent lister]) :test))
          "one that comes later is not"))
    (testing "an interrupt ends it"
      (.interrupt (Thread/currentThread))
      ;; The assertions of clojure.test end an interrupt.
      (let [error (try
                    (holders/settled (looking [agent]) :test)
                    (catch Exception e (:bpfmap/error (ex-data e))))
            interrupted? (Thread/interrupted)]
        (is (= [:interrupted true] [error interrupted?]))))))
