(ns ^:no-doc bpfmap.exec.program-info
  "Facts about programs and links that several commands show: their fields, maps, targets, holders
  and pins."
  (:require [bpfmap.error :as error]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.listing :as listing]
            [bpfmap.exec.map-info :as map-info]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.host.attachments :as attachments]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.link :as kernel.link]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.kernel.prog :as kernel.prog]
            [bpfmap.impl.link.attach-types :as attach-types]
            [bpfmap.impl.link.targets :as targets]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.io IOException)))

(set! *warn-on-reflection* true)

;; --- fields

(def ^:private number {:kind :number})
(def ^:private text {:kind :text})

(defn- name-in [table]
  {:kind :name :names (update-keys table name)})

(def ^:private program-types (name-in kernel.prog/types))
(def ^:private link-types
  "Types of links, and `tc`, which has none."
  (assoc-in (name-in kernel.link/types) [:names "tc"] nil))

(def ^:private held
  ["held" {:kind :list :of (fields/row [["pid" number] ["command" text]])}])
(def ^:private pinned
  ["pinned" {:kind :list :of text}])

(def program-fields
  "The fields of a row of `prog list`, which are its columns.

  Headings of the table are aliases. See `bpfmap.exec.fields`."
  (fields/row [["id" number]
               ["type" program-types]
               ["name" text]
               ["tag" text]
               ["run-count" number]
               ["run-time-ns" number]
               ["memlock" number]
               ["maps" {:kind :list
                        :of (fields/row [["id" number] ["name" text] ["type" {:kind :name}]])}]
               ["links" {:kind :list
                         :of (fields/row [["id" number] ["type" link-types]
                                          ["attached-to" text]])}]
               held
               pinned
               ["load-time" number]
               ["uid" number]
               ["gpl-compatible" {:kind :boolean}]
               ["xlated-bytes" number]
               ["jited-bytes" number]
               ["verified-insns" number]
               ["recursion-misses" number]
               ["btf-id" number]
               ["attach-btf-id" number]
               ["attach-btf-obj-id" number]
               ["ifindex" number]]
              {"runs" "run-count" "time" "run-time-ns" "memory" "memlock"
               "attached-to" "links" "held-by" "held"}))

(def link-fields
  "The fields of a row of `link list`, which are its columns.

  Headings of the table are aliases. See `bpfmap.exec.fields`."
  (fields/row [["id" number]
               ["type" link-types]
               ["attached-to" text]
               ["program" (fields/row [["id" number] ["name" text] ["type" program-types]])]
               held
               pinned
               ["attach-type" (name-in attach-types/numbers)]
               ["cookie" number]
               ["map-id" number]
               ["ifindex" number]
               ["cgroup-id" number]
               ["netns-ino" number]
               ["event" {:kind :name :names (zipmap ["tracepoint" "kprobe" "uprobe" "perf-event"]
                                                    (repeat nil))}]
               ["tracepoint" text]
               ["function" text]
               ["path" text]
               ["offset" number]
               ["functions" number]
               ["return" {:kind :boolean}]
               ["missed" number]
               ["target" text]
               ["target-btf-id" number]
               ["target-obj-id" number]
               ["family" {:kind :name :names (update-keys kernel.link/families name)}]
               ["hook" {:kind :name :names (update-keys kernel.link/hooks name)}]
               ["priority" number]
               ["device" text]
               ["mode" {:kind :name :names (zipmap ["native" "generic" "offload"] (repeat nil))}]
               ["direction" {:kind :name :names (zipmap ["ingress" "egress"] (repeat nil))}]
               ["parent" number]
               ["handle" number]
               ["filter" text]]
              {"held-by" "held"}))

(def held-fields
  "The fields of a row of `holds`, which are its columns.

  Headings of the table are aliases. See `bpfmap.exec.fields`."
  (fields/row [["kind" {:kind :name :names (zipmap ["map" "program" "link"] (repeat nil))}]
               ["id" number]
               ["type" {:kind :name}]
               ["name" text]
               ["memlock" number]
               ["ends" {:kind :boolean}]
               held
               ["pinned" {:kind :list :of text}]]
              {"memory" "memlock" "held-by" "held"}))

(def program-order
  "The order of the fields of a program."
  (listing/order [:id :type :name :tag :run-count :run-time-ns :recursion-misses :maps :links
                  :memlock :pinned :held]))

(def link-order
  "The order of the fields of a link."
  (listing/order [:id :type :attached-to :program :pinned :held]))

;; --- the target of a link

(defn- or-nothing
  "Returns the result of f; nil if the kernel refuses to read it."
  [f]
  (try
    (f)
    (catch ExceptionInfo _ nil)))

(defn- function-name
  "Returns the name of the function of a tracing link, from the kernel's BTF.

  The function of another program has no name there: returns the program. Without an attach type
  the link replaces the function. Otherwise it may be one of a module, whose BTF has a large id."
  [btf {:keys [attach-type target-obj-id target-btf-id]}]
  (cond
    (nil? target-btf-id) nil
    (nil? attach-type) (str "function of program " target-obj-id)
    (= 1 (or target-obj-id 1)) (or-nothing #(some-> @btf (blob/name-of target-btf-id)))))

(defn- device-name
  "Returns the name of a network device by its index.

  It is one of the network namespace of the thread. The files of sysfs are not read: they are those of the namespace in which it was mounted."
  [ifindex]
  (when ifindex
    (or (first (filter #(= ifindex (call/interface-index %)) (call/interface-names)))
        (str "interface " ifindex))))

(defn- function-count [n]
  (error/plural n "function"))

(defn- with-offset [text offset]
  (if (and offset (pos? (long offset))) (str text "+0x" (Long/toHexString offset)) text))

(defn attached-to
  "Returns the target of a link as text, or nil if its info does not have it.

  `btf` is a delay of the kernel's BTF.

      (attached-to {:id 7 :type :raw-tracepoint :tracepoint \"sys_enter\"} (delay nil)) ;=> \"sys_enter\""
  [{:keys [type tracepoint target map-id attach-type ifindex cgroup-id netns-ino event event-type
           config function path functions offset return family hook device mode direction priority]
    :as info} btf]
  (let [parts (case type
                :tracing [(some-> attach-type name) (function-name btf info)]
                :cgroup [(some-> attach-type name) (some->> (or path cgroup-id) (str "cgroup "))]
                :iter [target (some->> map-id (str "map "))]
                :netns [(some-> attach-type name) (some->> netns-ino (str "netns "))]
                :xdp [(or device (device-name ifindex)) (some-> mode name)]
                :tc [device (some-> direction name) (str "priority " priority)]
                (:tcx :netkit) [(or device (device-name ifindex)) (some-> attach-type name)]
                (:struct-ops :sockmap) [(some->> map-id (str "map ")) (some-> attach-type name)]
                :perf-event [(case event
                               :tracepoint nil
                               :uprobe (if return "uretprobe" "uprobe")
                               :kprobe (if return "kretprobe" "kprobe")
                               (some-> event name))
                             (or tracepoint
                                 (some-> (or function path) (with-offset offset))
                                 (when event-type (targets/event-text event-type config)))]
                :kprobe-multi [(some->> functions function-count)]
                :uprobe-multi [path (some->> functions function-count)]
                :netfilter [(some-> family name) (some-> hook name)]
                [tracepoint target])]
    (not-empty (str/join " " (remove nil? parts)))))

(defn- with-cgroup-path
  "Returns a function that adds the path of its cgroup to the info of a link.

  The cgroups are read for the first link that needs them. The info stays as it is if no path is
  found."
  []
  (let [cgroups (delay (try (procfs/cgroups) (catch IOException _ nil)))]
    (fn [{:keys [cgroup-id path] :as info}]
      (let [{:keys [root paths]} (when (and cgroup-id (nil? path)) @cgroups)
            below (get paths cgroup-id)]
        (if below
          (assoc info :path (if (= "/" below) root (str root below)))
          info)))))

(defn kernel-btf
  "Returns a delay of the kernel's BTF, which takes some time to read.

  Its code is loaded on demand too, because the lists of maps use this namespace."
  []
  (delay (or-nothing (requiring-resolve 'bpfmap.impl.host.kernel-btf/kernel))))

;; --- owners

(defn- short-rows
  "Returns objects by id, with some of their keys."
  [ks objects]
  (into {} (map (juxt :id #(select-keys % ks))) objects))

(defn attachments
  "Returns the infos of programs that are attached without a link.

  `links` are those of the host, or nil. See `bpfmap.host/attachments`."
  [links]
  (attachments/attachments (or-nothing #(holders/programs {:brief true})) links))

(defn- maps-of
  "Returns a function from the info of a program to its maps."
  []
  (let [maps (short-rows [:id :name :type] (holders/maps {:brief true}))]
    (fn [{:keys [map-ids]}]
      (mapv #(get maps % {:id %}) map-ids))))

(defn- links-of
  "Returns a function from a program's info to its links and other attachments.

  Kernels before Linux 5.8 cannot list links."
  []
  (let [btf (kernel-btf)
        with-path (with-cgroup-path)
        links (or-nothing holders/links)
        by-program (group-by :program-id (concat links (attachments links)))]
    (fn [{:keys [id]}]
      (mapv (fn [{:keys [id type] :as info}]
              (let [target (attached-to (with-path info) btf)]
                (cond-> {:type type}
                  id (assoc :id id)
                  target (assoc :attached-to target))))
            (get by-program id)))))

(defn- program-of
  "Returns a function from the info of a link to its program."
  []
  (let [programs (short-rows [:id :name :type] (holders/programs {:brief true}))]
    (fn [{:keys [program-id]}]
      (when program-id (get programs program-id {:id program-id})))))

(defn- pins-of [kind]
  (let [pins (holders/pins-by-id kind)]
    (fn [{:keys [id]}] (get pins id []))))

(defn- holders-of [kind]
  (let [of-kind (get (holders/held) kind)]
    ;; An attachment without a link may have its holders already.
    (fn [{:keys [id held]}] (when-not held (get of-kind id [])))))

(defn- row-of
  "Returns a function from an info to its row, with the owners that are wanted."
  [order readers replaced wanted]
  (let [owners (into [] (keep (fn [[k reader]] (when (wanted k) [k (reader)]))) readers)]
    (fn [info]
      (listing/ordered order
                       (apply dissoc info replaced)
                       (into {}
                             (keep (fn [[k of]] (when-some [x (of info)] [k x])))
                             owners)))))

(defn program-row
  "Returns a function from the info of a program to its row.

  It has `:maps`, `:links`, `:held` and `:pinned` if these are `wanted`.

      ((program-row any?) (prog/info p)) ;=> {:id 30, :type :xdp, :name \"count\", … :maps [], …}"
  [wanted]
  (row-of program-order
          {:maps maps-of :links links-of
           :held #(holders-of :program) :pinned #(pins-of :program)}
          [:map-ids]
          wanted))

(defn link-row
  "Returns a function from the info of a link to its row.

  It has `:attached-to`, `:program`, `:held` and `:pinned` if these are `wanted`.

      ((link-row any?) info) ;=> {:id 7, :type :raw-tracepoint, :attached-to \"sys_enter\", …}"
  [wanted]
  (let [btf (kernel-btf)
        with-path (with-cgroup-path)]
    (row-of link-order
            {:attached-to (fn [] #(attached-to (with-path %) btf))
             :program program-of
             :held #(holders-of :link) :pinned #(pins-of :link)}
            [:program-id]
            wanted)))
