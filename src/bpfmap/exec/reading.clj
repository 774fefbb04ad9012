(ns bpfmap.exec.reading
  "The commands that read: `list`, `show` and `dump`. Maps are opened read-only."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec.reference :as reference]
            [bpfmap.host :as host]))

(set! *warn-on-reflection* true)

(def ^:private first-fields
  "What comes first of what the kernel says; the rest follows by name."
  [:id :type :name :key :key-size :value :value-size :max-entries :flags :frozen? :memlock])

(defn- ordered
  "The same map, with its keys in the order in which people look for them."
  [info]
  (apply array-map (mapcat #(find info %)
                           (concat (filter #(contains? info %) first-fields)
                                   (sort (remove (set first-fields) (keys info)))))))

(defn list-maps
  "What the kernel says of every map on the host; `:skipped` of the metadata says what was left out, and why.

      (list-maps {}) ;=> [{:id 12, :type :hash, …}]"
  [_options]
  (let [maps (host/maps)]
    (with-meta (mapv ordered maps) (meta maps))))

(defn show
  "What the kernel says of one map.

      (show {:ref {:name \"counts\"}}) ;=> {:id 12, :type :hash, …}"
  [options]
  (with-open [m (reference/open options :read-only)]
    (ordered (bpf/info m))))

(defn dump
  "The entries of a map, in the kernel's order.

      (dump {:ref {:name \"counts\"} :key-type :u32 :value-type :u64}) ;=> [{:key 7, :value 42}]"
  [options]
  (with-open [m (reference/open options :read-only)]
    (reduce-kv (fn [entries k v] (conj entries {:key k :value v})) [] m)))
