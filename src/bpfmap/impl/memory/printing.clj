(ns bpfmap.impl.memory.printing
  "How `clojure.pprint` prints views and variables: as `pr` does. By itself it would read all that can be read by `@`,
  which may be gigabytes, and pages of an arena that are not there yet."
  (:require [bpfmap.impl.memory.variables]
            [bpfmap.impl.memory.view]
            [clojure.pprint :as pprint])
  (:import (bpfmap.impl.memory.variables Variable)
           (bpfmap.impl.memory.view ArrayView Cell StructView)))

(set! *warn-on-reflection* true)

(doseq [class [ArrayView Cell StructView Variable]]
  (.addMethod ^clojure.lang.MultiFn pprint/simple-dispatch class pr))
