(ns ^:no-doc bpfmap.impl.kernel.link
  "The commands of bpf(2) on links: what holds a program to the place where it runs."
  (:require [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.prog :as prog]
            [clojure.set :as set])
  (:import (bpfmap.sys Attr Bytes Fd Info)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(def types
  "Link types by name: the kernel's `enum bpf_link_type`, source linux/bpf.h."
  (zipmap [:raw-tracepoint :tracing :cgroup :iter :netns :xdp :perf-event :kprobe-multi :struct-ops
           :netfilter :tcx
           :uprobe-multi :netkit :sockmap]
          (rest (range))))

(def ^:private number->type (set/map-invert types))

(def ^:private info-size 48)

(def ^:private device-and-attach-type
  "struct bpf_link_info has these where network namespaces have theirs."
  {:ifindex [:u32 Info/LINK_XDP_IFINDEX]
   :attach-type [:attach-type Info/LINK_NETNS_ATTACH_TYPE]})

(def ^:private details
  "By link type: what its part of the union holds, as `[kind offset]`. Links of many functions and
  of perf events are not unfolded."
  {:tracing {:attach-type [:attach-type Info/LINK_TRACING_ATTACH_TYPE]
             :target-obj-id [:u32 Info/LINK_TRACING_TARGET_OBJ_ID]
             :target-btf-id [:u32 Info/LINK_TRACING_TARGET_BTF_ID]}
   :cgroup {:cgroup-id [:u64 Info/LINK_CGROUP_CGROUP_ID]
            :attach-type [:attach-type Info/LINK_CGROUP_ATTACH_TYPE]}
   :iter {:map-id [:u32 Info/LINK_ITER_MAP_MAP_ID]}
   :netns {:netns-ino [:u32 Info/LINK_NETNS_NETNS_INO]
           :attach-type [:attach-type Info/LINK_NETNS_ATTACH_TYPE]}
   :xdp {:ifindex [:u32 Info/LINK_XDP_IFINDEX]}
   ;; From here on the fields lie as those above do; older headers do not have them.
   :struct-ops {:map-id [:u32 Info/LINK_XDP_IFINDEX]}
   :tcx device-and-attach-type
   :netkit device-and-attach-type
   :sockmap {:map-id [:u32 Info/LINK_XDP_IFINDEX]
             :attach-type [:attach-type Info/LINK_NETNS_ATTACH_TYPE]}})

(def ^:private texts
  "By link type: the text that it has, as `[key offset offset-of-its-length]`."
  {:raw-tracepoint [:tracepoint Info/LINK_RAW_TRACEPOINT_TP_NAME
                    Info/LINK_RAW_TRACEPOINT_TP_NAME_LEN]
   :iter [:target Info/LINK_ITER_TARGET_NAME Info/LINK_ITER_TARGET_NAME_LEN]})

(def ^:private longest-text "Bytes, those of the longest symbol in the kernel, with its NUL." 512)

(defn- value
  "A field of the info; nil where it is zero because it does not apply."
  [memory [kind offset]]
  (let [n (if (= :u64 kind) (Bytes/get64 memory offset false) (call/u32 memory offset))]
    (cond
      (= :attach-type kind) (prog/attach-type-name n)
      (zero? (long n)) nil
      :else n)))

(defn- read-fields
  "All of the info but its text."
  [^Fd fd ctx]
  (call/info
   "Reading the link's info" fd info-size ctx
   (fn [_ _])
   (fn [memory _]
     (let [number (call/u32 memory Info/LINK_TYPE)
           type (number->type number number)
           optional (update-vals (assoc (details type) :program-id [:u32 Info/LINK_PROG_ID])
                                 #(value memory %))]
       (into {:id (call/u32 memory Info/LINK_ID) :type type}
             (remove (comp nil? val))
             optional)))))

(defn- read-text
  "The text of the info. A link that has none would take the address of the buffer for something
  else."
  [^Fd fd [_ offset length-offset] ctx]
  (call/info
   "Reading the link's info" fd info-size ctx
   (fn [^Attr attr memory]
     (let [buffer (.spare attr longest-text)]
       (Bytes/put64 memory offset (.address ^MemorySegment buffer) false)
       (Bytes/put32 memory length-offset longest-text false)
       buffer))
   (fn [_ buffer]
     (call/text buffer 0 longest-text))))

(defn info
  "What the kernel says of an open link: `:id`, `:type`, `:program-id`, and what its type has.
  Needs Linux 5.8.

  What is zero where it does not apply is left out."
  [^Fd fd ctx]
  (let [{:keys [type] :as info} (read-fields fd ctx)]
    (if-let [[k :as row] (texts type)]
      (assoc info k (read-text fd row ctx))
      info)))
