(ns ^:no-doc bpfmap.impl.link.usdt
  "Finds the USDT probes of files, and describes their arguments to programs.

  A program that includes libbpf's usdt.bpf.h finds the description of a probe's arguments in the
  array `__bpf_usdt_specs`. The cookie of its link is the index. On kernels without cookies, before
  Linux 5.15, the hash `__bpf_usdt_ip_to_spec_id` has the index by the address of the instruction."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.elf.symbols :as symbols]
            [bpfmap.impl.elf.usdt :as elf.usdt]
            [bpfmap.impl.errno :as errno]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.element :as kernel.element]
            [bpfmap.impl.kernel.link :as kernel.link]
            [bpfmap.impl.kernel.map :as kernel.map]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.kernel.probe :as kernel.probe]
            [bpfmap.impl.kernel.prog :as kernel.prog]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.link.attach-types :as attach-types]
            [bpfmap.impl.link.functions :as functions]
            [bpfmap.impl.link.link :as link]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.impl.open-object :as open-object]
            [clojure.string :as str])
  (:import (bpfmap.sys Fd)
           (java.io IOException)
           (java.lang.ref WeakReference)
           (java.nio ByteBuffer ByteOrder)))

(set! *warn-on-reflection* true)

;; --- probes of a file

(defn probes
  "Returns the places of all probes of a file.

  The keys of `bpfmap.impl.elf.usdt/probes`, with the `:machine` and the `:file-type` of
  the file."
  [path ctx]
  (functions/with-elf path ctx
    (fn [elf]
      (mapv #(merge % (select-keys elf [:machine :file-type])) (elf.usdt/probes elf)))))

(defn- unknown ^Throwable [path text found {:keys [op]}]
  (let [names (distinct (map #(str (:provider %) ":" (:name %)) found))]
    (error/error :not-found (str (paths/printable path) " has no probe " (error/printed text))
                 {:bpfmap/op op
                  :bpfmap/file path
                  :bpfmap/hint (if (empty? names)
                                 "it was built without USDT probes"
                                 (nearest/suggestion text (functions/similar text names)
                                                     "bpfmap.link/probes for all"))})))

(defn places
  "Returns the places of the probe of a target, in the order of the file."
  [path {:keys [provider name]} {:keys [op] :as ctx}]
  (let [all (probes path ctx)
        found (filterv #(= [provider name] [(:provider %) (:name %)]) all)]
    (when (empty? found)
      (throw (unknown path (str provider ":" name) all ctx)))
    (doseq [{:keys [offset semaphore-address semaphore]} found]
      (when (or (nil? offset) (and semaphore-address (nil? semaphore)))
        (throw (error/error :invalid-value
                            (str "The " (if offset "semaphore" "place") " of the probe "
                                 provider ":" name " must lie in the file " (paths/printable path))
                            {:bpfmap/op op :bpfmap/file path}))))
    found))

;; --- the kernel

(def ^:private nothing
  "Instructions that return 0, as bytes."
  (let [b (.order (ByteBuffer/allocate 16) (ByteOrder/nativeOrder))]
    (doseq [code [0xb7 0x95]]
      (.put b (unchecked-byte code))
      (.put b (byte 0))
      (.putShort b (short 0))
      (.putInt b 0))
    (.array b)))

(defn- probe-multi
  "Returns the name of the errno of a link to the directory /, for a process."
  [program pid ctx]
  (let [outcome (kernel.link/create {:program program
                                     :form :uprobe-multi
                                     :attach-type (attach-types/numbers :trace-uprobe-multi)
                                     :values {:path (paths/c-string "/") :offsets [0] :count 1
                                              :pid pid}}
                                    ctx)]
    (if (instance? Fd outcome)
      (call/close outcome)
      (errno/errno-name (- (long outcome))))))

(def one-link-for-all-places
  "A delay of true if the kernel has links of many uprobes.

  The first releases, up to 6.9, took the number of a process for the number of a thread. They are
  treated like kernels without such links, because a :pid is unknown when the program is loaded.
  Later releases check the number before the path."
  (delay
    (let [ctx {:op :load :object :link}]
      (try
        (let [{:keys [fd]} (kernel.prog/load {:type (kernel.prog/types :kprobe)
                                              :name "" :title "" :license "GPL"
                                              :insns nothing
                                              :expected-attach-type
                                              (attach-types/numbers :trace-uprobe-multi)}
                                             ctx)]
          (try
            (and (= :EBADF (probe-multi fd nil ctx))
                 (= :EINVAL (probe-multi fd -1 ctx)))
            (finally (call/close fd))))
        (catch clojure.lang.ExceptionInfo _ false)))))

;; --- which descriptions are in use

(def ^:private leases
  "The indices in use: `{map-id [{:owner :ids} …]}`.

  The map has the descriptions. The owner is a weak reference to a lease, so that the indices of
  links that were collected are free again, or the lease itself if the link is pinned."
  (atom {}))

(defn- owner-of [{:keys [owner]}]
  (if (instance? WeakReference owner) (.get ^WeakReference owner) owner))

(defn- take-ids!
  "Takes n free indices below `room` for an owner; returns nil if there are fewer."
  [map-id room n owner]
  (let [row {:owner (WeakReference. owner)}
        after (swap! leases update map-id
                     (fn [known]
                       (let [known (filterv owner-of known)
                             used (into #{} (mapcat :ids) known)
                             free (into [] (comp (remove used) (take n)) (range room))]
                         (conj known (assoc row :ids (when (= n (count free)) free))))))]
    (:ids (peek (get after map-id)))))

(defn- update-rows! [map-id f]
  (swap! leases (fn [all]
                  (let [rows (f (get all map-id))]
                    (if (seq rows) (assoc all map-id rows) (dissoc all map-id))))))

;; `forget` deletes the addresses of the probe from the hash of addresses.
(deftype Descriptions [map-id forget]
  link/Lease
  (release! [lease]
    (when (some #(and (identical? lease (owner-of %)) (instance? WeakReference (:owner %)))
                (get @leases map-id))
      (update-rows! map-id (fn [rows] (filterv #(not (identical? lease (owner-of %))) rows)))
      (forget)))
  (keep! [lease]
    (update-rows! map-id (fn [rows]
                           (mapv #(cond-> % (identical? lease (owner-of %)) (assoc :owner lease))
                                 rows)))))

;; --- descriptions

(defn- bytes-of ^bytes [size number]
  (let [b (.order (ByteBuffer/allocate (int size)) (ByteOrder/nativeOrder))]
    (if (= 4 size) (.putInt b (int number)) (.putLong b (long number)))
    (.array b)))

(defn- put! [m key value flags what ctx]
  (let [outcome (long (kernel.probe/operate :update (open-object/descriptor m)
                                            {:key key :value value :flags flags} ctx))]
    (when (neg? outcome)
      (throw (if (= :EEXIST (errno/errno-name (- outcome)))
               (error/error :exists (str "The address of the probe is in use by another one")
                            {:bpfmap/op (:op ctx)
                             :bpfmap/hint (str "without cookies, before Linux 5.15, an object "
                                               "cannot tell probes at the same address apart")})
               (call/failure (str "Describing " what) outcome (assoc ctx :object :map)))))))

(defn- mapped-at
  "Returns the address of an offset of a file in a process, or nil."
  [pid path offset]
  (let [inode (java.nio.file.Files/getAttribute
               (java.nio.file.Path/of (str path) (make-array String 0)) "unix:ino"
               (make-array java.nio.file.LinkOption 0))
        hex #(Long/parseUnsignedLong % 16)]
    (some (fn [line]
            (when-let [[_ from to start number]
                       (re-find #"^([0-9a-f]+)-([0-9a-f]+) ..x. ([0-9a-f]+) \S+ (\d+)" line)]
              (let [into-it (- (long offset) (long (hex start)))]
                (when (and (= (str inode) number)
                           (< -1 into-it (- (long (hex to)) (long (hex from)))))
                  (+ (long (hex from)) into-it)))))
          (try
            (str/split-lines (String. (procfs/read-bytes (str "/proc/" pid "/maps"))))
            (catch IOException _ nil)))))

(def ^:private et-exec "ET_EXEC: a program with the addresses that its file has." 2)

(defn- address-in-process
  "Returns the address at which a probe is hit, for kernels without cookies."
  [path {:keys [file-type address offset]} {:keys [pid]} {:keys [op]}]
  (cond
    (= et-exec file-type) address
    (nil? pid) (throw (error/error :not-supported
                                   (str "Without :pid, the addresses of the probes of "
                                        (paths/printable path) " are unknown")
                                   {:bpfmap/op op
                                    :bpfmap/hint (str "this kernel has no cookies, which came with "
                                                      "Linux 5.15; give the :pid of a process")}))
    :else (or (mapped-at pid path offset)
              (throw (error/error :not-found (str "Process " pid " has not mapped the probe in "
                                                  (paths/printable path))
                                  {:bpfmap/op op})))))

(defn- forget!
  "Deletes addresses from the hash of addresses, unless the object was closed."
  [addresses stored ctx]
  (when-let [^Fd fd (some-> addresses open-object/descriptor)]
    (when-not (.isClosed fd)
      (doseq [address stored]
        (kernel.probe/operate :delete fd {:key (bytes-of 8 address)} ctx)))))

(defn- map-name
  "Returns the name of the map with an id; nil if it cannot be read."
  [id ctx]
  (try
    (let [fd (call/open-id :map id ctx)]
      (try
        (:name (kernel.map/info fd ctx nil))
        (finally (call/close fd))))
    (catch clojure.lang.ExceptionInfo _ nil)))

(def ^:private specs-name
  "The name of the map of descriptions, of which the kernel keeps 15 characters."
  "__bpf_usdt_spec")

(defn check-describable
  "Throws `:not-supported` for a program whose arguments cannot be described here.

  It was loaded elsewhere: whoever loaded it decides which of the descriptions
  in its map are in use, and a new one would replace one of those."
  [^Fd program {:keys [op] :as ctx}]
  (let [{:keys [map-ids name]} (kernel.prog/brief-info program ctx)]
    (when (some #(= specs-name (map-name % ctx)) map-ids)
      (throw (error/error :not-supported
                          (str "The program " name " reads arguments of probes, and was not loaded "
                               "as a part of an object here")
                          {:bpfmap/op op
                           :bpfmap/hint (str "the process that loaded it keeps the descriptions of "
                                             "the arguments; attach it there, or load the object "
                                             "with bpfmap.object/load")})))))

(defn describe!
  "Writes the descriptions of a probe's arguments for the programs of an object.

  Returns the places with the cookies of their links, and a lease. `descriptions` has the maps of the
  object: `:specs` and `:addresses`; the fields of the values of the first, as
  `bpfmap.type/offsets` returns them, as `:offsets`; and true as `:cookies` if its programs read the
  cookie."
  [{:keys [specs offsets addresses cookies]} path places target {:keys [cookie]}
   {:keys [op] :as ctx}]
  (let [{:keys [id max-entries value-size]} (kernel.map/info (open-object/descriptor specs) ctx nil)
        texts (vec (distinct (map :arguments places)))
        encoded (mapv (fn [text]
                        (elf.usdt/description {:size value-size :offsets offsets}
                                              (elf.usdt/arguments (:machine (first places)) text)
                                              (or cookie 0)))
                      texts)
        addresses-of (when-not cookies
                       (mapv #(address-in-process path % target ctx) places))
        stored (atom [])
        lease (Descriptions. id #(forget! addresses @stored ctx))
        ids (take-ids! id max-entries (count texts) lease)]
    (try
      (when-not ids
        (throw (error/error :map-full (str "The map of descriptions has room for " max-entries)
                            {:bpfmap/op op
                             :bpfmap/hint (str "close links to other probes, or compile the object "
                                               "with a larger BPF_USDT_MAX_SPEC_CNT")})))
      (let [id-of (zipmap texts ids)]
        (doseq [[i description] (map vector ids encoded)]
          (put! specs (bytes-of 4 i) description kernel.element/any "the probe's arguments" ctx))
        (doseq [[address {:keys [arguments]}] (map vector addresses-of places)]
          (put! addresses (bytes-of 8 address) (bytes-of 4 (id-of arguments))
                kernel.element/no-exist "the probe's address" ctx)
          (swap! stored conj address))
        [(mapv #(cond-> % cookies (assoc :cookie (id-of (:arguments %)))) places) lease])
      (catch Throwable e
        (link/release! lease)
        (throw e)))))
