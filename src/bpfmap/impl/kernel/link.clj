(ns ^:no-doc bpfmap.impl.kernel.link
  "Commands of bpf(2) on links, which attach a program to its hook."
  (:require [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.prog :as kernel.prog]
            [clojure.set :as set])
  (:import (bpfmap.sys Abi Attr Bytes Fd Info)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(def types
  "Numbers of link types by name: `enum bpf_link_type` in linux/bpf.h."
  (zipmap [:raw-tracepoint :tracing :cgroup :iter :netns :xdp :perf-event :kprobe-multi :struct-ops
           :netfilter :tcx
           :uprobe-multi :netkit :sockmap]
          (rest (range))))

(def ^:private number->type (set/map-invert types))

(def ^:private info-size 48)

(def ^:private device-and-attach-type
  "Fields at the offsets that links of network namespaces use for theirs."
  {:ifindex [:u32 Info/LINK_XDP_IFINDEX]
   :attach-type [:attach-type Info/LINK_NETNS_ATTACH_TYPE]})

(def ^:private details
  "Fields in the union of struct bpf_link_info, as `[kind offset]`, by link type.

  Links of many functions and of perf events are not decoded."
  {:tracing {:attach-type [:attach-type Info/LINK_TRACING_ATTACH_TYPE]
             :target-obj-id [:u32 Info/LINK_TRACING_TARGET_OBJ_ID]
             :target-btf-id [:u32 Info/LINK_TRACING_TARGET_BTF_ID]}
   :cgroup {:cgroup-id [:u64 Info/LINK_CGROUP_CGROUP_ID]
            :attach-type [:attach-type Info/LINK_CGROUP_ATTACH_TYPE]}
   :iter {:map-id [:u32 Info/LINK_ITER_MAP_MAP_ID]}
   :netns {:netns-ino [:u32 Info/LINK_NETNS_NETNS_INO]
           :attach-type [:attach-type Info/LINK_NETNS_ATTACH_TYPE]}
   :xdp {:ifindex [:u32 Info/LINK_XDP_IFINDEX]}
   ;; The fields below have the offsets of fields above; older headers do not define them.
   :struct-ops {:map-id [:u32 Info/LINK_XDP_IFINDEX]}
   :tcx device-and-attach-type
   :netkit device-and-attach-type
   :sockmap {:map-id [:u32 Info/LINK_XDP_IFINDEX]
             :attach-type [:attach-type Info/LINK_NETNS_ATTACH_TYPE]}})

(def ^:private texts
  "The text in the info, as `[key offset offset-of-its-length]`, by link type."
  {:raw-tracepoint [:tracepoint Info/LINK_RAW_TRACEPOINT_TP_NAME
                    Info/LINK_RAW_TRACEPOINT_TP_NAME_LEN]
   :iter [:target Info/LINK_ITER_TARGET_NAME Info/LINK_ITER_TARGET_NAME_LEN]})

(def ^:private text-room "Bytes of the longest symbol in the kernel, with its NUL." 512)

(defn- field-value
  "Returns a field of the info; nil if it is zero because it does not apply."
  [memory [kind offset]]
  (let [n (if (= :u64 kind) (Bytes/get64 memory offset false) (call/u32 memory offset))]
    (cond
      (= :attach-type kind) (kernel.prog/attach-type-name n)
      (zero? (long n)) nil
      :else n)))

(defn- read-fields
  "Returns all of the info except its text."
  [^Fd fd ctx]
  (call/info
   "Reading the link's info" fd info-size ctx
   (fn [_ _])
   (fn [memory _]
     (let [number (call/u32 memory Info/LINK_TYPE)
           type (number->type number number)
           optional (update-vals (assoc (details type) :program-id [:u32 Info/LINK_PROG_ID])
                                 #(field-value memory %))]
       (into {:id (call/u32 memory Info/LINK_ID) :type type}
             (remove (comp nil? val))
             optional)))))

(defn- read-text
  "Returns the text of the info.

  Must not be called for a link without a text: the kernel would store other data in place of the
  buffer's address."
  [^Fd fd [_ offset length-offset] ctx]
  (call/info
   "Reading the link's info" fd info-size ctx
   (fn [^Attr attr memory]
     (let [buffer (.spare attr text-room)]
       (Bytes/put64 memory offset (.address ^MemorySegment buffer) false)
       (Bytes/put32 memory length-offset text-room false)
       buffer))
   (fn [_ buffer]
     (call/text buffer 0 text-room))))

(defn info
  "Returns the kernel's data about an open link.
  Needs Linux 5.8.

  `:id`, `:type`, `:program-id`, and the fields of its type. Fields that are zero because they do
  not apply are left out."
  [^Fd fd ctx]
  (let [{:keys [type] :as info} (read-fields fd ctx)]
    (if-let [[k :as row] (texts type)]
      (assoc info k (read-text fd row ctx))
      info)))

(defn detach
  "Detaches a link from its target, also for all other processes that have it.

  The link stays until it is closed and not pinned. Needs Linux 5.9."
  [^Fd fd ctx]
  (call/command "Detaching the link" ctx Abi/BPF_LINK_DETACH
                (fn [^Attr attr] (.fd attr Abi/LINK_DETACH_LINK_FD fd))
                (constantly nil)))
