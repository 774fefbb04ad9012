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

(defprotocol Lease
  "A thing that a link holds besides its descriptors."
  (release! [lease] "Gives it back, when the link is closed.
  Idempotent.")
  (keep! [lease] "Keeps it for good, when the link is pinned."))

;; A link owns descriptors, and ends when it is closed: `fds` are links of the kernel, one for each
;; CPU of a perf event or each place of a probe. `events` are perf events with a program but without
;; a link, as before Linux 5.15; then `fds` is empty. `target` is data: as it was attached, or what
;; is known of an opened link. `lease` may be nil.
(deftype Link [fds events target lease]
  Closeable
  (close [_]
    (run! call/close fds)
    (run! call/close events)
    (when lease (release! lease)))
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
  "Returns a link that owns descriptors of links, and a lease or nil."
  (^Link [fds target] (of fds target nil))
  (^Link [fds target lease] (Link. (vec fds) [] target lease)))

(defn of-events
  "Returns a link that owns perf events with a program but without a link."
  ^Link [events target lease]
  (Link. [] (vec events) target lease))

(defn pinned!
  "Keeps the lease of a link that was pinned."
  [^Link link]
  (some-> (.-lease link) keep!))

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

  Throws `:not-supported` for a link of several CPUs, or of several places of a probe."
  ^Fd [link op]
  (let [[fd & more] (descriptors link op)
        [each hint] (if (contains? (target link) :usdt)
                      ["place of the probe" (str "attach with :offset and :counter of "
                                                 "bpfmap.link/probes as :uprobe to have one link "
                                                 "for each place")]
                      ["CPU" "attach with :cpu to have one link for each CPU"])]
    (when more
      (throw (error/error :not-supported
                          (str "The link has " (inc (count more)) " links of the kernel, one for "
                               "each " each)
                          {:bpfmap/op op :bpfmap/hint hint})))
    fd))

(defn info
  "Returns the kernel's data about a link.

  With `:ids` if there is a link of the kernel for each CPU or place."
  ([link] (info link {:op :info :object :link}))
  ([link ctx]
   (let [fds (descriptors link (:op ctx))
         infos (mapv #(kernel.link/info % ctx) fds)]
     (cond-> (first infos)
       (next infos) (assoc :ids (mapv :id infos))))))
