(ns bpfmap.tool
  "The functions of `bpfmap.exec` as a tool of the Clojure CLI, which prints nothing by itself:
  these print what they return, as a table unless `:print` says otherwise.

      clojure -Ttools install-latest :lib io.github.bpfmap/bpfmap :as bpfmap
      clojure -Tbpfmap list
      clojure -Tbpfmap dump :ref flows :limit 10 :print :edn"
  (:refer-clojure :exclude [get list take])
  (:require [bpfmap.exec :as exec]))

(set! *warn-on-reflection* true)

(exec/define-commands {:print :table})
