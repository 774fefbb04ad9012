(ns bpfmap.impl.probe
  "How the kernel's answer to a probe is judged: it has what was asked for, it lacks it, or the answer says neither."
  (:require [bpfmap.errno :as errno]
            [bpfmap.impl.sys :as sys])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(def supported "The answer yes." {:supported? true})

(def unsupported "The answer no." {:supported? false})

(defn inconclusive
  "The answer of a probe that found out nothing, with the reason as a text."
  [why]
  {:supported? nil :why why})

(def lacking
  "How a kernel refuses what it does not know or have. The probes ask with arguments that are right otherwise."
  #{:EINVAL :ENOTSUPP :EOPNOTSUPP})

(def ^:private of-the-process
  "Refusals that are about the process and its limits, whatever was asked."
  #{:EPERM :EACCES :ENOMEM :EMFILE :ENFILE :EINTR :EAGAIN :ENOSYS :EFAULT})

(defn errno-of
  "The name of a negated errno; nil for an outcome that is none."
  [outcome]
  (when (neg? (long outcome))
    (errno/errno-name (- (long outcome)))))

(defn why
  "What a failed outcome means, for people."
  [what outcome facts]
  (inconclusive (ex-message (sys/failure what outcome facts))))

(defn of-creation
  "The answer that `create` gives, a function that returns a descriptor or throws.

  An errno in `known-by` counts as a yes, one in `unknown-by` as a no, besides those that always do."
  [known-by unknown-by create]
  (try
    (sys/close (create))
    supported
    (catch ExceptionInfo e
      (let [errno (:bpfmap/errno (ex-data e))]
        (cond
          (contains? known-by errno) supported
          (or (lacking errno) (contains? unknown-by errno)) unsupported
          :else (inconclusive (ex-message e)))))))

(defn of-operation
  "The answer that the outcome of an operation on an element gives.

  Other than creating, an operation may fail for want of the element: such errors come from behind the place
  where the kernel looks whether the map type has the operation."
  [known-by outcome facts]
  (let [errno (errno-of outcome)]
    (cond
      (or (nil? errno) (contains? known-by errno)) supported
      (lacking errno) unsupported
      (of-the-process errno) (why "The probe" outcome facts)
      :else supported)))
