;; The protocol stands apart from the references that use it, so that links and programs need not
;; load the codecs of maps.
(ns ^:no-doc bpfmap.impl.open-object
  "The protocol of open maps, programs and links.")

(set! *warn-on-reflection* true)

(defprotocol OpenObject
  "An open object of this library that has a descriptor."
  (descriptor ^bpfmap.sys.Fd [x] "Returns its descriptor.")
  (kind [x] "Returns its kind: `:map`, `:program` or `:link`.")
  (id [x] "Returns its id."))
