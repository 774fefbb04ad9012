(ns bpfmap.impl.memory.folding
  "Array views folded in parallel, by `clojure.core.reducers/fold`."
  (:require [bpfmap.impl.memory.view :as view]
            [clojure.core.reducers :as reducers])
  (:import (bpfmap.impl.memory.view ArrayView)
           (java.util.concurrent ForkJoinTask)))

(set! *warn-on-reflection* true)

(defn- fold
  "Folds a range: halves until they have at most n elements, and one half beside the other."
  [v n combine f from to]
  (if (<= (- (long to) (long from)) (long n))
    (view/reduce-range v f (combine) from to)
    (let [middle (quot (+ (long from) (long to)) 2)
          right (.fork (ForkJoinTask/adapt ^Callable (fn [] (fold v n combine f middle to))))
          left (try
                 (fold v n combine f from middle)
                 (catch Throwable e
                   (.cancel right true)
                   (throw e)))]
      (combine left (.join right)))))

(extend-type ArrayView
  reducers/CollFold
  (coll-fold [v n combine f]
    (fold v (max 1 (long n)) combine f 0 (.-n v))))
