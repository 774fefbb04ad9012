(ns ^:no-doc bpfmap.impl.link.link
  "The open link, which `bpfmap.link` and `bpfmap.prog` share."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.link :as kernel.link]
            [bpfmap.impl.open-object :as open-object]
            [clojure.core.protocols :as p])
  (:import (bpfmap.sys Fd)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(declare info)

(defn target-text
  "Returns a target as text for people.
  Open objects in it print as they do alone.

      (target-text {:struct-ops m}) ;=> \"{:struct-ops #<bpf-map 12 …>}\""
  [target]
  (error/printed (update-vals target #(if (satisfies? open-object/OpenObject %)
                                        (symbol (str %))
                                        %))))

;; A link owns descriptors, and ends when it is closed: `fds` are links of the kernel, one for each
;; CPU of a perf event. `events` are perf events with a program but without a link, as before Linux
;; 5.15; then `fds` is empty. `target` is data: as it was attached, or what is known of an opened
;; link.
(deftype Link [fds events target]
  Closeable
  (close [_] (run! call/close fds) (run! call/close events))
  open-object/OpenObject
  (descriptor [_] (first fds))
  (kind [_] :link)
  (id [link] (:id (info link)))
  p/Datafiable
  (datafy [link] (info link))
  Object
  (toString [_] (str "#<bpf-link " (target-text target)
                     (when (.isClosed ^Fd (first (concat fds events))) " closed")
                     ">")))

(defmethod print-method Link [link ^java.io.Writer w] (.write w (str link)))

(defn link?
  "Returns true for an open link."
  [x]
  (instance? Link x))

(defn of
  "Returns a link that owns descriptors of links."
  ^Link [fds target]
  (Link. (vec fds) [] target))

(defn of-events
  "Returns a link that owns perf events whose programs have no link."
  ^Link [events target]
  (Link. [] (vec events) target))

(defn target
  "Returns the target of a link as data."
  [^Link link]
  (.-target link))

(defn descriptors
  "Returns the descriptors of a link, one for each link of the kernel.

  Throws `:not-supported` for a link that the kernel does not know as one."
  [^Link link op]
  (or (seq (.-fds link))
      (throw (error/error :not-supported "The kernel has no link for this attachment"
                          {:bpfmap/op op
                           :bpfmap/hint (str "links of perf events need Linux 5.15; this one ends "
                                             "when it is closed")}))))

(defn descriptor
  "Returns the only descriptor of a link.

  Throws `:not-supported` for a link of several CPUs."
  ^Fd [link op]
  (let [[fd & more] (descriptors link op)]
    (when more
      (throw (error/error :not-supported
                          (str "The link has " (inc (count more)) " links of the kernel, one for "
                               "each CPU")
                          {:bpfmap/op op
                           :bpfmap/hint "attach with :cpu to have one link for each CPU"})))
    fd))

(defn info
  "Returns the kernel's data about a link.

  With `:ids` if there is a link of the kernel for each CPU."
  ([link] (info link {:op :info :object :link}))
  ([link ctx]
   (let [fds (descriptors link (:op ctx))
         infos (mapv #(kernel.link/info % ctx) fds)]
     (cond-> (first infos)
       (next infos) (assoc :ids (mapv :id infos))))))
