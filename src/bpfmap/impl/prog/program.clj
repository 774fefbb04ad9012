(ns ^:no-doc bpfmap.impl.prog.program
  "The open program, which `bpfmap.prog`, `bpfmap.object` and `bpfmap.link` share."
  (:require [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.prog :as prog]
            [bpfmap.impl.open-object :as open-object])
  (:import (bpfmap.sys Fd)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

;; A loaded program owns a descriptor. `type` is the name of its type, `name` the kernel's name, and
;; `definition` what an object says of the program: a map with the keys :name, :section, :target,
;; :attach-type, :flags and, if the object reads arguments of USDT probes, :usdt. One that was
;; loaded for a function of another program has that one as :of-program, `{:program p :id n}`. A
;; program that comes from no object has at most an :attach-type.
(deftype Program [^Fd fd type name definition]
  Closeable
  (close [_] (call/close fd))
  open-object/OpenObject
  (descriptor [_] fd)
  (kind [_] :program)
  (id [_] (:id (prog/info fd {:op :info})))
  Object
  (toString [_] (str "#<bpf-program " type " " (pr-str name) (when (.isClosed fd) " closed") ">")))

(defmethod print-method Program [p ^java.io.Writer w] (.write w (str p)))

(defn program?
  "Returns true for an open program."
  [x]
  (instance? Program x))

(defn type-of
  "Returns the type of a program: a name, or a number without a name."
  [^Program program]
  (.-type program))

(defn descriptor
  "Returns the descriptor of a program."
  ^Fd [^Program program]
  (.-fd program))

(defn definition
  "Returns what its object says of a program; nil if nothing is known.

      (definition p) ;=> {:name \"count\" :section \"tcx/ingress\" :attach-type :tcx-ingress}"
  [^Program program]
  (.-definition program))
