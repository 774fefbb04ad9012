(ns ^:no-doc bpfmap.impl.map.whole-names
  "Finds the whole names of maps, of which the kernel keeps 15 characters.

  The sources, best first:

  1. the BTF of the map: its variable in `.maps`, a data section, or a struct `____btf_map_NAME`
  2. the BTF of the programs that use the map: its variable in `.maps`. Maps of some types, such as
     ring buffers, have no BTF of their own.
  3. the pins of the map: their file names

  Variables are as libbpf loads them. A name counts only if the kernel makes its own name from it,
  and if no other variable or pin could be the map as well."
  (:require [bpfmap.btf :as btf]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.kernel.btf :as kernel.btf]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.spec :as spec]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.util.regex Pattern)))

(set! *warn-on-reflection* true)

;; --- the kernel's name of a whole name

(defn- libbpf-name
  "Returns the kernel's name of a data section, as libbpf makes it.

  Each character except letters, digits, `_` and `.` becomes `_`."
  [whole]
  (let [text (str/replace whole #"[^A-Za-z0-9_.]" "_")]
    (subs text 0 (min 15 (count text)))))

(defn shortens-to?
  "Returns true if the kernel can have made a name from a whole name.

      (shortens-to? \"flows_by_source_port\" \"flows_by_source\") ;=> true"
  [whole kernel-name]
  (and (seq kernel-name)
       (or (= kernel-name (spec/kernel-name whole))
           (= kernel-name (libbpf-name whole)))))

;; --- whole names in BTF

(defn- pointed-at
  "Returns the type id that a member of a map's definition points to, or nil."
  [b member]
  (let [{:keys [kind type]} (blob/record b (:type member))]
    (when (= :ptr kind) type)))

(defn- number-in
  "Returns the number of a member that was written as `__uint(name, number)`.

  Its type is a pointer to an array of that many elements."
  [b member]
  (when-let [id (pointed-at b member)]
    (let [{:keys [kind count]} (blob/record b id)]
      (when (= :array kind) count))))

(defn- definition
  "Returns the map definition of a variable of `.maps`, with numbers and type ids.

  As `{:type :max-entries :flags :key :value}`."
  [b var-id]
  (let [{:keys [kind members]} (blob/record b (blob/resolve b (:type (blob/record b var-id))))
        member (when (#{:struct :union} kind) (into {} (map (juxt :name identity)) members))
        of (fn [f name] (some->> (get member name) (f b)))]
    {:type (of number-in "type") :max-entries (of number-in "max_entries")
     :flags (of number-in "map_flags")
     :key (of pointed-at "key") :value (of pointed-at "value")}))

(defn- of-info
  "Returns the info of a map in the form of a [[definition]]."
  [{:keys [type max-entries flags btf-key-type-id btf-value-type-id]}]
  {:type (map-types/type-number type) :max-entries max-entries :flags (map-types/flag-word flags)
   :key btf-key-type-id :value btf-value-type-id})

(defn- agree? [ks info definition]
  (every? #(= (get info % 0) (or (get definition %) 0)) ks))

(def ^:private own-types
  "The parts of a definition that tell variables of a map's own BTF apart.

  In two attempts: loaders often change the sizes of a map before loading it, and seldom its types."
  [[:type :key :value] [:type :key :value :max-entries :flags]])

(def ^:private other-types
  "The same for the BTF of a program, which numbers its types differently."
  [[:type] [:type :max-entries :flags]])

(defn- variable-names
  "Returns the set of the names of variables of `.maps` that may be a map.

  One name if it can be determined."
  [b {:keys [name] :as info} attempts]
  (let [variables (for [section (blob/ids-named b ".maps" :datasec)
                        {:keys [type]} (:vars (blob/record b section))
                        :when (some-> (blob/name-of b type) (shortens-to? name))]
                    type)
        found (of-info info)
        matching (fn [ks] (filter #(agree? ks found (definition b %)) variables))]
    (set (map #(blob/name-of b %)
              (if (next variables)
                (some (fn [ks] (let [those (matching ks)] (when (= 1 (count those)) those)))
                      attempts)
                variables)))))

(defn- annotated-name
  "Returns the whole name in a struct `____btf_map_NAME`, or nil.

  Older programs declare the types of a map with such a struct."
  [b {:keys [name btf-key-type-id btf-value-type-id]}]
  (first
   (for [id (range 1 (inc (blob/type-count b)))
         :when (= :struct (blob/kind b id))
         :let [whole (some->> (blob/name-of b id) (re-matches #"____btf_map_(.+)") second)]
         :when (and whole (shortens-to? whole name))
         :let [types (into {} (map (juxt :name :type)) (:members (blob/record b id)))]
         :when (= [(types "key") (types "value")] [btf-key-type-id btf-value-type-id])]
     whole)))

(defn- read-btf
  "Returns the BTF object of an id; nil if it cannot be read."
  [btf-id]
  (try
    (btf/parse (:bytes (kernel.btf/blob btf-id {:op :open})))
    (catch ExceptionInfo e
      (when-not (#{:malformed-btf :permission :not-found} (:bpfmap/error (ex-data e)))
        (throw e)))))

(defn- or-nil
  "Returns the result of f; nil if it finds the BTF malformed."
  [f]
  (try
    (f)
    (catch ExceptionInfo e
      (when-not (= :malformed-btf (:bpfmap/error (ex-data e)))
        (throw e)))))

(defn- names-in-own-btf
  "Returns the whole names of a map in its BTF, as a set."
  [btf-of {:keys [name btf-id btf-value-type-id] :as info}]
  (when-let [b (some-> btf-id btf-of)]
    (or-nil
     #(let [section (when (and btf-value-type-id (= :datasec (blob/kind b btf-value-type-id)))
                      (blob/name-of b btf-value-type-id))]
        (cond
          (and section (shortens-to? section name)) #{section}
          :else (or (not-empty (variable-names b info own-types))
                    (some-> (annotated-name b info) hash-set)))))))

(defn- btf-by-map
  "Returns the ids of the BTF objects of the programs that use each map, by map id."
  [programs]
  (reduce (fn [found [id btf-id]] (update found id (fnil conj #{}) btf-id))
          {}
          (for [{:keys [btf-id map-ids]} programs :when btf-id, id map-ids] [id btf-id])))

(defn- if-readable
  "Returns the value of a delay; nil if it throws an error as data."
  [d]
  (try
    @d
    (catch ExceptionInfo _ nil)))

(defn names-in-btf
  "Returns a function from the info of a map to the set of its names in BTF.

  The result is nil if there are none. `programs` is a delay of the infos of all programs. Each BTF
  object is read once.

      ((names-in-btf (delay (holders/programs))) info) ;=> #{\"flows_by_source_port\"}"
  [programs]
  (let [btf-of (memoize read-btf)
        by-map (delay (btf-by-map (if-readable programs)))]
    (fn [{:keys [id] :as info}]
      (or (names-in-own-btf btf-of info)
          (not-empty
           (into #{}
                 (comp (keep btf-of)
                       (mapcat (fn [b] (or-nil #(variable-names b info other-types)))))
                 (get @by-map id)))))))

;; --- certain names

(def ^:private ^:const longest "Characters of the longest name that the kernel keeps." 15)

(def ^:private reading-time "Milliseconds for reading the BTF of all maps of a host." 1000)

(defn- long-file-names
  "Returns the set of file names of pins that the kernel shortens to a map's name."
  [pins {:keys [id name]}]
  (into #{}
        (comp (map paths/file-name)
              (filter #(and (< (long longest) (count %)) (shortens-to? % name))))
        (get pins id)))

(defn namer
  "Returns a function from the info of a map to its whole name, or to nil.

  The result is nil if the kernel cannot have cut the name, or if the whole name is not certain.
  `programs` is a delay of the infos of all programs, `pins` one of the paths of pins by map id.
  BTF is read for a second altogether, and not any more after that.

      ((namer (delay []) (delay {12 [\"/sys/fs/bpf/flows_by_source_port\"]}))
       {:id 12 :name \"flows_by_source\"}) ;=> \"flows_by_source_port\""
  [programs pins]
  (let [in-btf (names-in-btf programs)
        spent (volatile! 0)
        timed (fn [info]
                (let [begun (System/nanoTime)
                      found (in-btf info)]
                  (vswap! spent + (- (System/nanoTime) begun))
                  found))
        only (fn [names] (when (= 1 (count names)) (first names)))]
    (fn [{:keys [name] :as info}]
      (when (= (long longest) (count name))
        (let [named (when (< (long @spent) (* 1000000 (long reading-time))) (timed info))
              whole (if (seq named) (only named) (only (long-file-names (if-readable pins) info)))]
          (when-not (= name whole) whole))))))

(defn with-whole-name
  "Returns the info of a map with its whole name as `:name`, if the kernel cut it.

  The kernel's name is `:kernel-name` then. See [[namer]].

      (with-whole-name {:name \"flows_by_source\"} (constantly \"flows_by_source_port\"))
      ;=> {:name \"flows_by_source_port\", :kernel-name \"flows_by_source\"}"
  [{:keys [name] :as info} namer]
  (if-let [whole (namer info)]
    (assoc info :name whole :kernel-name name)
    info))

;; --- patterns of names

(defn- regex
  "Returns the regular expression of a pattern with `*` and `?`."
  ^Pattern [text]
  (re-pattern (str/join (map #(case % "*" ".*" "?" "." (Pattern/quote %))
                             (re-seq #"[*?]|[^*?]+" text)))))

(defn matcher
  "Returns a predicate for texts that match a pattern as a whole.

  In a pattern, `*` and `?` stand for any characters.

      ((matcher \"flow_*\") \"flow_errors\") ;=> true"
  [text]
  (let [pattern (regex text)]
    (fn [x] (boolean (and x (re-matches pattern x))))))

(defn for-name
  "Returns the pairs of a map by names and patterns that are for a map's info.

  A long name is for the map whose name the kernel shortened from it. The pair with the map's own
  name is first. `whole-name` is a function from the info to the whole name, or to nil if that is
  not certain.

      (for-name {\"fl*\" 1 \"flows\" 2} {:name \"flows\"} (constantly nil)) ;=> ([\"flows\" 2] [\"fl*\" 1])"
  [by-name {:keys [name] :as info} whole-name]
  (let [text #(if (string? %) % (clojure.core/name %))
        names (map text (keys by-name))
        pattern? #(re-find #"[*?]" %)
        long? #(and (not= % name) (shortens-to? % name))
        whole (when (some (some-fn pattern? long?) names) (whole-name info))
        own? #(or (= % name) (if whole (= % whole) (long? %)))
        match? #(and (pattern? %) (some (matcher %) (remove nil? [name whole])))]
    (concat (filter (comp own? text key) by-name)
            (filter (comp match? text key) by-name))))
