(ns ^:no-doc bpfmap.impl.object.maps
  "Reads the maps that an object defines, as specs.

  There are three ways to define them: structs in the section `.maps`, whose types are in the BTF;
  variables of kernel structs in the section `.struct_ops`; and, in old objects, numbers in the
  section `maps`."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.object.context :as context]
            [bpfmap.impl.object.data :as data]
            [bpfmap.impl.object.malformed :refer [malformed]]
            [clojure.string :as str])
  (:import (java.nio ByteBuffer)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

(defn- at-map [section-name map-name & more]
  (into [:section section-name :map map-name] more))

(defn- behind
  "Returns the record of a type without its names and qualifiers."
  [{:keys [btf] :as ctx} id]
  (context/record ctx (blob/resolve btf id)))

;; --- .maps: members

(defn- number
  "Returns the number that a member of a definition stands for.

  `__uint` makes it a pointer to an array of so many elements, and `__ulong` an enumerator."
  [ctx path {:keys [type]}]
  (let [{:keys [kind values] target :type} (behind ctx type)]
    (case kind
      :ptr (let [{:keys [kind] n :count} (behind ctx target)]
             (if (= :array kind)
               n
               (throw (malformed path (str "it must be a pointer to an array, whose length is the "
                                           "number, got a pointer to " (name kind))))))
      (:enum :enum64) (if (= 1 (count values))
                        (second (first values))
                        (throw (malformed path (str "it must be an enum with one value, got "
                                                    (count values)))))
      (throw (malformed path (str "it must be a number made by __uint, got a type of kind "
                                  (name kind)))))))

(defn- side
  "Returns the type of a key or value as a part of a spec.

  `size` is the size in bytes, if it is defined too."
  [{:keys [btf] :as ctx} path k {:keys [type]} size]
  (let [{:keys [kind] target :type} (behind ctx type)
        _ (when-not (= :ptr kind)
            (throw (malformed path (str "it must be a pointer to the type, got " (name kind)))))
        bytes (blob/size-of btf target)
        [of-type] (when bytes (context/type-of ctx target))]
    (cond
      (nil? bytes) (throw (malformed path "the type has no size"))
      (and size (not= size bytes)) (throw (malformed path (str "the type has " bytes
                                                               " bytes, and " k "_size is " size)))
      :else {k of-type})))

(defn- without-records
  "Returns a spec whose value type is the type of records if it cannot be a value.

  Programs give a ring buffer or a perf event array the type of its records as the type of its
  values, which the kernel rejects, as it does keys of a map without keys."
  [{:keys [type value] :as spec} value-bytes]
  (let [{:keys [key-size value-size values]} (map-types/types type)
        rejected? (or (= [0 0] value-size)
                      (and (= :perf-event-array type) value-bytes (not (values value-bytes))))]
    (cond-> spec
      (= [0 0] key-size) (dissoc :key :key-size)
      rejected? (dissoc :value :value-size)
      (and rejected? value) (assoc :record-type value))))

(def ^:private most-members
  "The largest number of members of a definition."
  32)

(defn- numbers-of
  "Returns the numbers of a definition by the names of its members."
  [ctx path members]
  (into {}
        (for [{:keys [name] :as member} members
              :when (#{"type" "max_entries" "map_flags" "numa_node" "key_size" "value_size"
                       "pinning" "map_extra"} name)]
          [name (number ctx (conj path :member name) member)])))

(def ^:private known-members
  #{"type" "max_entries" "map_flags" "numa_node" "key_size" "value_size" "pinning" "map_extra" "key"
    "value" "values"})

(defn- spec-of-numbers
  "Returns the part of a spec that consists of numbers; zeros say nothing."
  [path {:strs [type max_entries map_flags numa_node pinning map_extra]}]
  (let [given (fn [n] (when-not (contains? #{nil 0} n) n))]
    (when-not (contains? #{nil 0 1} pinning)
      (throw (malformed (conj path :member "pinning")
                        (str "it must be 0 or 1 (LIBBPF_PIN_BY_NAME), got " pinning))))
    (when-not (and type (<= 0 type 0xffffffff))
      (throw (malformed path "the map has no type")))
    (doseq [[k n] {"max_entries" max_entries "map_flags" map_flags "numa_node" numa_node}]
      (when-not (or (nil? n) (<= 0 n 0xffffffff))
        (throw (malformed (conj path :member k)
                          (str "it must be a number of 32 bits, got " n)))))
    (cond-> {:type (map-types/type-name type)}
      (given max_entries) (assoc :max-entries max_entries)
      (given map_flags) (assoc :flags (map-types/flag-set map_flags))
      numa_node (assoc :numa-node numa_node)
      (given map_extra) (assoc :map-extra map_extra)
      (= 1 pinning) (assoc :pinning :by-name))))

(declare definition)

(defn- values
  "Returns the part of a spec that the member `values` defines.

  It is `{:inner-map spec}`, or empty for a map of programs."
  [ctx path {:keys [type]} inner?]
  (let [{:keys [kind element]} (behind ctx type)
        pointer (when (= :array kind) (behind ctx element))
        target (when (= :ptr (:kind pointer)) (behind ctx (:type pointer)))]
    (case (:kind target)
      :struct (if inner?
                (throw (malformed path "an inner map cannot hold maps"))
                {:inner-map (definition ctx path target true)})
      (:func-proto :func) {}
      (throw (malformed path (str "it must be an array of pointers to a map or a function, got "
                                  (if target
                                    (str "pointers to " (name (:kind target)))
                                    (str "a type of kind " (name kind)))))))))

(defn- definition
  "Returns the spec that a struct of members defines."
  [ctx path {:keys [members kind]} inner?]
  (when-not (= :struct kind)
    (throw (malformed path (str "the map must be a struct, got " (name kind)))))
  (when (< (long most-members) (count members))
    (throw (malformed path (str "the definition has " (count members) " members"))))
  (let [by-name (into {} (map (juxt :name identity)) members)]
    (when (< (count by-name) (count members))
      (throw (malformed path "two members have the same name")))
    (when-let [unknown (first (remove #(known-members (:name %)) members))]
      (throw (malformed (conj path :member (:name unknown))
                        "a map has no such attribute"
                        "attributes are type, key, value, max_entries, map_flags and others of libbpf")))
    (let [{:strs [key_size value_size pinning] :as numbers} (numbers-of ctx path members)
          member (fn [text f] (when-let [m (by-name text)] (f (conj path :member text) m)))]
      (when (and inner? (= 1 pinning))
        (throw (malformed (conj path :member "pinning") "an inner map cannot be pinned")))
      (without-records
       (merge (spec-of-numbers path numbers)
              (or (member "key" (fn [path m] (side ctx path :key m key_size)))
                  (when key_size {:key-size key_size}))
              (or (member "value" (fn [path m] (side ctx path :value m value_size)))
                  (when value_size {:value-size value_size}))
              (member "values" (fn [path m] (values ctx path m inner?))))
       (or value_size
           (member "value" (fn [_ m] (blob/size-of (:btf ctx) (:type (behind ctx (:type m)))))))))))

;; --- .maps: contents

(defn- addend
  "Returns the addend of a relocation of data, which may stand in the data."
  [{:keys [order]} ^bytes contents offset {:keys [addend]}]
  (or addend
      (if (<= (+ (long offset) 8) (alength contents))
        (.getLong (.order (ByteBuffer/wrap contents) order) (int offset))
        0)))

(defn- pointed
  "Returns a reference to the map or the program that a pointer in data points to."
  [{:keys [map-names function-names]} path {:keys [symbol]} addend]
  (let [place [(:section symbol) (+' (long (:value symbol)) (long addend))]]
    (cond
      (map-names place) {:map (map-names place)}
      (function-names place) {:program (function-names place)}
      :else (throw (malformed path (str "it points to " (:name symbol)
                                        ", which is neither a map nor a function"))))))

(defn- contents-of
  "Returns the contents of a map from the pointers in its member `values`."
  [ctx contents relocations path from to]
  (not-empty
   (into (sorted-map)
         (for [[offset relocation] (subseq relocations >= from < to)]
           (do (when-not (zero? (rem (- (long offset) (long from)) 8))
                 (throw (malformed path (str "a pointer is at offset " offset
                                             " of the section, between two values"))))
               [(quot (- (long offset) (long from)) 8)
                (pointed ctx path relocation (addend ctx contents offset relocation))])))))

;; --- sections

(defn- definitions-in-btf
  "Returns the variables of `.maps`: `{:name :offset :size :id :type}`."
  [ctx section]
  (for [{:keys [type offset size]} (:vars (get (context/data-sections ctx) (:name section)))
        :let [{:keys [kind name] target :type} (context/record ctx type)]]
    (do (when-not (and (= :var kind) name)
          (throw (malformed [:section (:name section) :offset offset]
                            "the section has something that is not a variable")))
        (when-not (<= 0 (long offset) (long (:size section)))
          (throw (malformed (at-map (:name section) name)
                            (str "it is at offset " offset " of a section of "
                                 (error/plural (:size section) "byte")))))
        {:name name :offset offset :size size :id type :type target})))

(defn- section-definitions [ctx section-name]
  (when-let [section (context/section-named ctx section-name)]
    (map #(assoc % :section section) (definitions-in-btf ctx section))))

(defn- as-spec [ctx map-name spec id]
  (let [tags (when id (context/tags ctx id))]
    (cond-> (assoc spec :name map-name)
      tags (assoc :tags tags))))

(defn- btf-maps
  "Returns the maps of `.maps`, as specs by name."
  [ctx definitions]
  (let [relocations (delay (into (sorted-map)
                                 (context/relocations ctx (:section (first definitions)))))
        contents (delay (context/contents ctx (:section (first definitions))))
        known (volatile! {})]
    (for [{:keys [section name offset size id type] :as found} definitions
          :let [path (at-map (:name section) name)
                {type-id :id :keys [members] :as record} (behind ctx type)
                spec (or (@known type-id)
                         (let [spec (definition ctx path record false)]
                           (vswap! known assoc type-id spec)
                           spec))
                values (first (filter #(= "values" (:name %)) members))
                from (+ (long offset) (quot (long (:bit-offset values 0)) 8))
                filled (when values
                         (contents-of ctx @contents @relocations
                                      (conj path :member "values")
                                      from (max from (+ (long offset) (long size)))))]]
      (assoc found :spec (as-spec ctx name
                                  (cond-> spec
                                    filled (assoc :contents (into {} filled)))
                                  id)))))

;; --- struct_ops

(defn- members-of
  "Returns the members of a variable of a kernel struct that are not zero, by name."
  [{:keys [btf] :as ctx} path ^bytes contents relocations offset record]
  (into {}
        (for [{:keys [name type bit-offset bits]} (:members record)
              :let [size (blob/size-of btf type)
                    at (+ (long offset) (quot (long bit-offset) 8))
                    relocation (relocations at)]
              :when (and name size (zero? (long bits)) (<= (+ at (long size)) (alength contents)))
              :let [array (Arrays/copyOfRange contents (int at) (int (+ at (long size))))]
              :when (or relocation (not-every? zero? array))]
          [(keyword name)
           (if relocation
             (pointed ctx (conj path :member name) relocation (addend ctx contents at relocation))
             (data/value-of ctx type array))])))

(defn- struct-ops-maps [ctx section-name]
  (let [optional? (str/starts-with? section-name "?")
        link? (str/ends-with? section-name ".link")]
    (when-let [section (context/section-named ctx section-name)]
      (let [contents (context/contents ctx section)
            relocations (context/relocations ctx section)]
        (for [{:keys [name offset id type] :as found} (section-definitions ctx section-name)
              :let [path (at-map section-name name)
                    {:keys [kind] struct-name :name :as record} (behind ctx type)]]
          (do (when-not (and (= :struct kind) struct-name)
                (throw (malformed path "it must be a variable of a struct of the kernel")))
              (assoc found :spec
                     (as-spec ctx name
                              (cond-> {:type :struct-ops
                                       :struct-ops struct-name
                                       :contents {0 (members-of ctx path contents relocations
                                                                offset record)}}
                                link? (assoc :flags #{:link})
                                optional? (assoc :autoload false))
                              id))))))))

;; --- maps without BTF

(def ^:private old-fields
  "The numbers of `struct bpf_map_def`, in order.

  Objects of aya and iproute2 have an id and the pinning too."
  ["type" "key_size" "value_size" "max_entries" "map_flags" "id" "pinning"])

(defn- old-map
  "Returns the spec of a definition of 32-bit numbers."
  [{:keys [order]} path ^bytes contents offset end]
  (let [n (quot (- (long end) (long offset)) 4)
        buffer (.order (ByteBuffer/wrap contents) order)
        word (fn [i] (bit-and 0xffffffff (.getInt buffer (int (+ (long offset) (* 4 (long i)))))))]
    (when (< n 4)
      (throw (malformed path (str "a definition has at least 16 bytes, got "
                                  (- (long end) (long offset))))))
    (when-not (every? zero? (map word (range (if (< n 7) 5 7) n)))
      (throw (malformed path "it has attributes that are not known"
                        "use a map of the section .maps")))
    (let [{:strs [key_size value_size pinning] :as numbers}
          (zipmap old-fields (map word (range (min n 7))))]
      (merge (spec-of-numbers path (cond-> (dissoc numbers "id")
                                     ;; iproute2 pins in a namespace of the object, or for all.
                                     (= 2 pinning) (assoc "pinning" 1)))
             {:key-size key_size :value-size value_size}))))

(defn- old-maps
  "Returns the maps of a section of definitions without BTF."
  [{:keys [symbols] :as ctx} {:keys [index name size] :as section}]
  (let [contents (context/contents ctx section)
        ids (when (:btf ctx)
              (into {} (map (juxt #(:name (context/record ctx (:type %))) :type))
                    (:vars (get (context/data-sections ctx) name))))
        found (sort-by :value
                       (filter #(and (= index (:section %)) (seq (:name %))
                                     ;; Labels of assembly have no type, and are local.
                                     (or (= :object (:type %))
                                         (and (= :notype (:type %)) (not= :local (:binding %)))))
                               symbols))]
    (for [[{:keys [value] bytes :size map-name :name} following] (map vector found
                                                                      (concat (rest found) [nil]))
          :let [path (at-map name map-name)
                end (if (pos? (long bytes))
                      (+' (long value) (long bytes))
                      (or (:value following) size))]]
      (do (when-not (and (<= 0 (long value)) (< (long value) end) (<= end (long size)))
            (throw (malformed path (str "it is at offset " value " of a section of "
                                        (error/plural size "byte")))))
          {:name map-name :offset value :section section
           :spec (as-spec ctx map-name (old-map ctx path contents value end)
                          (get ids map-name))}))))

;; --- all

(def ^:private struct-ops-sections
  [".struct_ops" ".struct_ops.link" "?.struct_ops" "?.struct_ops.link"])

(defn- old-section? [{:keys [name size type]}]
  (and (= 1 type) (pos? (long size))
       (or (= "maps" name) (str/starts-with? name "maps/"))))

(defn maps
  "Reads the maps of an object.

  Returns `{:maps {name spec} :map-names {place name} :map-sections #{index}}`. A place is the index of a section and an offset in it. `function-names` has the names of functions
  by their places."
  [{:keys [sections] :as ctx} function-names]
  (let [unique (context/distinct-names)
        defined (vec (section-definitions ctx ".maps"))
        old (vec (mapcat #(old-maps ctx %) (filter old-section? sections)))
        names (into {} (for [{:keys [section offset name]} (concat defined old)]
                         [[(:index section) offset] (unique name offset)]))
        ctx (data/decoder (assoc ctx :map-names names :function-names function-names))
        struct-ops (vec (mapcat #(struct-ops-maps ctx %) struct-ops-sections))
        names (into names (for [{:keys [section offset name]} struct-ops]
                            [[(:index section) offset] (unique name offset)]))
        all (concat (btf-maps ctx defined) old struct-ops)]
    {:maps (into {} (for [{:keys [section offset spec]} all
                          :let [map-name (names [(:index section) offset])]]
                      [map-name (merge {:name map-name} (assoc spec :name map-name))]))
     :map-names names
     :map-sections (into #{} (map (comp :index :section)) (concat defined old))}))
