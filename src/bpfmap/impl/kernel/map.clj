(ns ^:no-doc bpfmap.impl.kernel.map
  "Commands of bpf(2) on maps, except element operations."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.map-types :as map-types])
  (:import (bpfmap.sys Abi Attr Bytes ErrnoException Fd Info MapScanner Native SimulatedMap)
           (clojure.lang ExceptionInfo PersistentArrayMap)
           (java.lang.foreign MemorySegment)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

(def access-flags
  "Flags that restrict the access of a descriptor, by access."
  {:read-write 0, :read-only Abi/BPF_F_RDONLY, :write-only Abi/BPF_F_WRONLY})

(defn- long-bits
  "Returns the low 64 bits of an unsigned number."
  ^long [n]
  (.longValue (biginteger n)))

(defn- set-descriptor
  "Sets a field to a descriptor, or to a number that is not a descriptor.

  Probes use such a number to find out if the kernel reads the field."
  [^Attr attr offset fd]
  (if (instance? Fd fd)
    (.fd attr (int offset) fd)
    (.int32 attr (int offset) (long fd))))

(defn- create-once
  "Creates a map from a completed spec; returns its descriptor.

  `:name` is a name that the kernel accepts: see `bpfmap.spec/kernel-name`. `:btf` is
  `{:fd :key :value}`, with the ids of types in the BTF object. `:inner-map`, `:token` and
  `:value-type-btf` are descriptors. `:map-extra` is a number of 64 bits. `:value-type` is the
  id of a struct in the BTF of the kernel, or of the module whose BTF is `:value-type-btf`."
  ^Fd [{:keys [type key-size value-size max-entries flags numa-node name btf
               inner-map map-extra value-type value-type-btf token]}
       ctx]
  (call/command "Creating the map" ctx Abi/BPF_MAP_CREATE
                (fn [^Attr attr]
                  (doto attr
                    (.int32 Abi/MAP_CREATE_MAP_TYPE (map-types/type-number type))
                    (.int32 Abi/MAP_CREATE_KEY_SIZE key-size)
                    (.int32 Abi/MAP_CREATE_VALUE_SIZE value-size)
                    (.int32 Abi/MAP_CREATE_MAX_ENTRIES max-entries)
                    (.int32 Abi/MAP_CREATE_MAP_FLAGS
                            (map-types/flag-word (cond-> flags token (conj :token-fd)))))
                  (when numa-node (.int32 attr Abi/MAP_CREATE_NUMA_NODE numa-node))
                  (when (seq name)
                    (.name attr Abi/MAP_CREATE_MAP_NAME name))
                  (when btf
                    (.fd attr Abi/MAP_CREATE_BTF_FD (:fd btf))
                    (.int32 attr Abi/MAP_CREATE_BTF_KEY_TYPE_ID (:key btf))
                    (.int32 attr Abi/MAP_CREATE_BTF_VALUE_TYPE_ID (:value btf)))
                  (when inner-map (set-descriptor attr Abi/MAP_CREATE_INNER_MAP_FD inner-map))
                  (when (and map-extra (not (zero? (long-bits map-extra))))
                    (.int64 attr Abi/MAP_CREATE_MAP_EXTRA (long-bits map-extra)))
                  (when value-type
                    (.int32 attr Abi/MAP_CREATE_BTF_VMLINUX_VALUE_TYPE_ID value-type))
                  (when value-type-btf
                    (set-descriptor attr Abi/MAP_CREATE_VALUE_TYPE_BTF_OBJ_FD value-type-btf))
                  (when token (set-descriptor attr Abi/MAP_CREATE_MAP_TOKEN_FD token)))
                call/own-fd))

(defn create
  "Creates a map from a completed spec; returns its descriptor.

  `spec` and `ctx` are as for [[create-once]]. Before Linux 4.15 maps have no names: after E2BIG
  the map is created without a name."
  ^Fd [{:keys [name] :as spec} ctx]
  (try
    (create-once spec ctx)
    (catch ExceptionInfo e
      (if (and (seq name) (= :E2BIG (:bpfmap/errno (ex-data e))))
        (create-once (dissoc spec :name) ctx)
        (throw e)))))

(defn simulate
  "Creates a simulated map from a completed spec; returns its descriptor.

  `:name` is a name that the kernel accepts, `:inner-map` the descriptor of a simulated map, `cpus`
  the number of CPUs. `whole` is the spec for [[simulated-spec]]."
  ^Fd [{:keys [type key-size value-size max-entries flags name inner-map map-extra]} cpus whole]
  (SimulatedMap/create (int (map-types/type-number type)) (int key-size) (int value-size)
                       (long max-entries) (unchecked-int (map-types/flag-word flags))
                       (long-bits (or map-extra 0)) (or name "") (int cpus)
                       (int (call/page-size)) inner-map whole))

(defn simulated-spec
  "Returns the spec of a descriptor's simulated map; nil for a kernel's map."
  [^Fd fd]
  (when-let [^SimulatedMap simulated (.simulated fd)]
    (.spec simulated)))

(def ^:private info-size 88)

(defn- add
  "Puts a key and a value at index n of an array, unless the value is nil.

  Returns the next index."
  ^long [^objects fields ^long n k v]
  (if (nil? v)
    n
    (do (aset fields n k)
        (aset fields (inc n) v)
        (+ n 2))))

(defn- id-at
  "Returns a number of four bytes; nil if it is zero (the field does not apply)."
  [^MemorySegment memory ^long offset]
  (let [id (Bytes/getU32 memory offset false)]
    (when-not (zero? id) id)))

(defn- from-info
  "Returns the data of a `struct bpf_map_info`, with `:memlock` and `:frozen`.

  A `memlock` or `frozen` of -1 is unknown, and is left out.

  The result is an array map although it has more than eight keys, because making a hash map takes
  as long as a system call. The benchmark is `bench-lifecycle`."
  [^MemorySegment memory ^long memlock ^long frozen]
  (let [fields (object-array 30)
        extra (Bytes/get64 memory Info/MAP_MAP_EXTRA false)
        n (add fields 0 :id (Bytes/getU32 memory Info/MAP_ID false))
        n (add fields n :type (map-types/type-name (Bytes/getU32 memory Info/MAP_TYPE false)))
        n (add fields n :name (call/text memory Info/MAP_NAME (inc Abi/NAME_LENGTH)))
        n (add fields n :key-size (Bytes/getU32 memory Info/MAP_KEY_SIZE false))
        n (add fields n :value-size (Bytes/getU32 memory Info/MAP_VALUE_SIZE false))
        n (add fields n :max-entries (Bytes/getU32 memory Info/MAP_MAX_ENTRIES false))
        n (add fields n :flags (map-types/flag-set (Bytes/getU32 memory Info/MAP_MAP_FLAGS false)))
        n (add fields n :btf-id (id-at memory Info/MAP_BTF_ID))
        n (add fields n :btf-key-type-id (id-at memory Info/MAP_BTF_KEY_TYPE_ID))
        n (add fields n :btf-value-type-id (id-at memory Info/MAP_BTF_VALUE_TYPE_ID))
        n (add fields n :btf-vmlinux-value-type-id
               (id-at memory Info/MAP_BTF_VMLINUX_VALUE_TYPE_ID))
        n (add fields n :ifindex (id-at memory Info/MAP_IFINDEX))
        n (add fields n :map-extra (cond
                                     (zero? extra) nil
                                     (neg? extra) (+ 18446744073709551616N extra)
                                     :else extra))
        n (add fields n :memlock (when-not (neg? memlock) memlock))
        n (add fields n :frozen (when-not (neg? frozen) (= 1 frozen)))]
    (PersistentArrayMap. (Arrays/copyOf fields n))))

(defn- number-in
  "Returns the number in a field of a fdinfo text; -1 if it is missing."
  ^long [fdinfo name]
  (or (some-> (procfs/field fdinfo name) parse-long) -1))

(defn- from-fdinfo
  "Returns the data of the fdinfo of a map; nil for any other fdinfo, and for nil.

  Before Linux 4.13 there is neither id nor name. With `whole?`, also has what [[from-info]] reads
  from fdinfo."
  [fdinfo whole?]
  (when-let [type (some-> (procfs/field fdinfo "map_type") parse-long)]
    (let [number #(or (some-> (procfs/field fdinfo %) Long/decode long) 0)
          memlock (when whole? (some-> (procfs/field fdinfo "memlock") parse-long))
          frozen (when whole? (procfs/field fdinfo "frozen"))]
      (cond-> {:id nil
               :type (map-types/type-name type)
               :name ""
               :key-size (number "key_size")
               :value-size (number "value_size")
               :max-entries (number "max_entries")
               :flags (map-types/flag-set (number "map_flags"))}
        memlock (assoc :memlock memlock)
        frozen (assoc :frozen (= "1" frozen))))))

(defn info
  "Returns the kernel's data about an open map, with names for type and flags.

  Fields that are zero because they do not apply are left out. `:frozen` and `:memlock` (bytes)
  are read from fdinfo, and missing if /proc cannot be read; pass nil for `fdinfo` to skip both.
  Before Linux 4.13 everything is read from fdinfo, and `:id` is nil."
  ([fd ctx]
   (info fd ctx (call/fdinfo-text fd)))
  ([^Fd fd ctx fdinfo]
   (try
     (call/info "Reading the map's info" fd info-size ctx nil
                (fn [memory _]
                  (from-info memory (number-in fdinfo "memlock") (number-in fdinfo "frozen"))))
     (catch ExceptionInfo e
       ;; A kernel without the command.
       (or (when (= :EINVAL (:bpfmap/errno (ex-data e)))
             (from-fdinfo (or fdinfo (call/fdinfo-text fd)) (some? fdinfo)))
           (throw e))))))

(defn id-of
  "Returns the id of an open map; nil before Linux 4.13, which has no ids.

  Reads only the beginning of the info."
  [^Fd fd ctx]
  (try
    (call/info "Reading the map's info" fd 8 ctx nil
               (fn [memory _] (call/u32 memory Info/MAP_ID)))
    (catch ExceptionInfo e
      (when-not (= :EINVAL (:bpfmap/errno (ex-data e)))
        (throw e)))))

(defn open-id
  "Opens a map by its id; returns its descriptor.

  If the kernel cannot be called, a reference to any but a simulated map is `:not-found`."
  ^Fd [id access ctx]
  (or (SimulatedMap/open (long id))
      (when-let [reason (when (:reference ctx) (Native/unavailable))]
        (throw (error/error :not-found (str "There is no simulated map with the id " id)
                            {:bpfmap/op (:op ctx) :bpfmap/map (:map ctx)
                             :bpfmap/hint (str "maps of the kernel cannot be opened: " reason)})))
      (call/open-id :map id (access-flags access) ctx)))

(defn- ids
  "Returns the ids of all maps, ascending, as an array."
  ^ints [^MapScanner scanner ctx]
  (try
    (.ids scanner)
    (catch ErrnoException e
      (throw (call/failure "Listing the maps" (.-outcome e) (assoc ctx :object :map))))))

(defn scan
  "Opens all maps one after the other; returns a vector of `(row scanner info)`.

  By ascending id. `scanner` has the map open during the call. `(skipped id e)` is called for a map
  that cannot be opened. With `brief`, the infos have neither `:memlock` nor `:frozen`."
  [ctx {:keys [skipped brief row]}]
  (try
    (with-open [scanner (MapScanner.)]
      (let [ids (ids scanner ctx)
            info (fn []
                   (if brief
                     (from-info (.-info scanner) -1 -1)
                     (let [text (procfs/fdinfo-text (.number scanner))]
                       (from-info (.-info scanner) (number-in text "memlock")
                                  (number-in text "frozen")))))]
        (loop [i 0 found (transient [])]
          (if (< i (alength ids))
            (let [id (Integer/toUnsignedLong (aget ids i))
                  opened (.open scanner (aget ids i))
                  read (if (neg? opened) 0 (.readInfo scanner))
                  skip (fn [action outcome]
                         (skipped id (call/failure action outcome (assoc ctx :object :map)))
                         found)]
              (recur (inc i)
                     (cond
                       (neg? opened) (skip (str "Opening map " id) opened)
                       (neg? read) (skip "Reading the map's info" read)
                       :else (conj! found (row scanner (info))))))
            (persistent! found)))))
    (catch RuntimeException e
      (throw (call/in-context e ctx)))))

(defn take-scanned
  "Returns the descriptor of the map that a scanner has open.

  From now on, the caller owns it."
  ^Fd [^MapScanner scanner]
  (.take scanner))

(defn count-at-once
  "Returns the number of entries of the map that a scanner has open.

  Returns nil unless the kernel reads all of them with one call."
  [^MapScanner scanner {:keys [type ^long key-size ^long value-size]}]
  (let [{:keys [batch order per-cpu]} (map-types/types type)]
    (when (and (contains? batch :read) (nil? order)) ; others may restart within the call
      (let [n (.count scanner key-size
                      (if per-cpu
                        (* (count (call/possible-cpus)) (long (map-types/stride value-size)))
                        value-size))]
        (when-not (== n MapScanner/UNKNOWN) n)))))

(defn freeze
  "Freezes a map.
  Needs Linux 5.2."
  [^Fd fd ctx]
  (call/command "Freezing the map" (assoc ctx :fd fd) Abi/BPF_MAP_FREEZE
                (fn [^Attr attr] (.fd attr Abi/ELEM_MAP_FD fd))
                (constantly nil)))

(defn open-path
  "Opens a pinned map; returns its descriptor.

  Throws `:not-a-map` for a program or a link."
  ^Fd [path access ctx]
  (call/open-pinned :map path (access-flags access) ctx))
