(ns bpfmap.tool
  "Runs the commands of `bpfmap.exec` as a tool of the Clojure CLI. Each function prints its result,
  as a table unless `:print` selects another format.

      clojure -Ttools install-latest :lib io.github.bpfmap/bpfmap :as bpfmap
      clojure -Tbpfmap list
      clojure -Tbpfmap dump :ref flows :limit 10 :print :edn"
  (:refer-clojure :exclude [get list take])
  (:require [bpfmap.exec :as exec]))

(set! *warn-on-reflection* true)

(exec/define-commands {:print :table})
