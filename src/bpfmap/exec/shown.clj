(ns ^:no-doc bpfmap.exec.shown
  "Shows rows by the hints of options, if there are any.

  The code of hints is loaded only then, because it would slow the start of every command."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec.selection :as selection])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(defn given?
  "Returns true if options have hints.

      (given? {:as [[[[\"src\"] :ipv4]]]}) ;=> true"
  [{:keys [as hints]}]
  (boolean (or as hints)))

(defn shower
  "Returns what shows rows of a map by the hints of options; nil if it has none.

  See `bpfmap.exec.hints/shower`. `m` is the open map, or nil.

      (shower {} (bpf/spec m) m) ;=> nil"
  [options spec m]
  (when (given? options)
    (let [{:keys [btf-id] :as info} (if m (bpf/info m) spec)
          btf (delay (try
                       (when btf-id ((requiring-resolve 'bpfmap.host/btf-by-id) btf-id))
                       (catch ExceptionInfo _ nil)))]
      ((requiring-resolve 'bpfmap.exec.hints/shower)
       options spec info {:btf btf :whole-name selection/whole-name}))))

(defn showing
  "Returns a transducer that shows rows; see [[shower]], which may be nil.

      (into [] (showing nil) [{:key 7}]) ;=> [{:key 7}]"
  [shower]
  (if shower (map (:row shower)) (map identity)))
