(ns ^:no-doc bpfmap.exec.links
  "Implements the commands about links: `link list`, `link show` and `link detach`."
  (:require [bpfmap.error :as error]
            [bpfmap.exec.confirm :as confirm]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.listing :as listing]
            [bpfmap.exec.program-info :as program-info]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.open-object :as open-object]
            [bpfmap.link :as link])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(defn list-links
  "Returns every link on the host with its target, program, holders and pins.

  The last rows, without an `:id`, are programs that are attached without a link. `:skipped` of the
  metadata has the links that could not be read.

      (list-links {}) ;=> [{:id 7, :type :raw-tracepoint, :attached-to \"sys_enter\", … :held []}]"
  [options]
  (let [{:keys [wanted] :as plan} (listing/plan "link list" program-info/link-fields options)
        links (holders/links)
        row (program-info/link-row wanted)]
    (with-meta (listing/rows plan (eduction (map row)
                                            (concat links (program-info/attachments links))))
      (meta links))))

(defn- with-link
  "Calls f with the link of `:ref`.

  It is an open link, an id or the path of a pin."
  [{:keys [ref]} f]
  (if (satisfies? open-object/OpenObject ref)
    (f ref)
    (with-open [^Closeable link (link/open ref)]
      (f link))))

(defn show
  "Returns the kernel's information about a link, and its owners.

      (show {:ref {:id 7}}) ;=> {:id 7, :type :raw-tracepoint, :attached-to \"sys_enter\", …}"
  [options]
  (let [info (with-link options link/info)]
    ((program-info/link-row any?) info)))

;; --- detach

(def ^:private stay-attached
  "Types of links that the kernel does not detach while somebody has them."
  #{:raw-tracepoint :tracing :perf-event :kprobe-multi :uprobe-multi :iter})

(defn- stays-attached
  "Returns the error for a link of a type that cannot be detached."
  [{:keys [id type held pinned] :as link}]
  (error/error :not-supported
               (str "Link " id " of type " (fields/name-of type) " cannot be detached")
               {:bpfmap/op :detach!
                :bpfmap/link (select-keys link [:id :type :attached-to])
                :bpfmap/hint (str "the kernel detaches it when no process and no pin has it any more"
                                  (when-let [owners (confirm/owners held pinned)]
                                    (str "; it is " owners)))}))

(defn detach
  "Detaches a link from its target.

  The link stays without a target until no process and no pin has it. Throws `:not-supported` for a
  type of link that cannot be detached.

      (detach {:ref {:id 7} :yes true}) ;=> {:id 7, :type :xdp, :attached-to \"eth0\", :detached true}"
  [options]
  ;; The processes are read before this one opens the link.
  (let [{:keys [type] :as link} (show options)]
    (when (stay-attached type)
      (throw (stays-attached link)))
    (confirm/check-link link options)
    (with-link options link/detach!)
    (assoc (select-keys link [:id :type :attached-to :program]) :detached true)))
