(ns ^:no-doc bpfmap.impl.map.find-by-name
  "Finds the map with a name.

  The kernel keeps 15 characters of a name, and only letters, digits, `_` and `.`. A name that
  fits is compared with the names that the kernel reports. Any other name is compared with whole
  names: the map's variable in its BTF, as libbpf loads it, and the file names of its pins. A map
  without such a name is never opened by a name that was cut."
  (:require [bpfmap.btf :as btf]
            [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.kernel.btf :as kernel.btf]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.spec :as spec]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

;; --- the kernel's name of a whole name

(defn- libbpf-name
  "Returns the kernel's name of a data section, as libbpf makes it.

  Each character except letters, digits, `_` and `.` becomes `_`."
  [whole]
  (let [text (str/replace whole #"[^A-Za-z0-9_.]" "_")]
    (subs text 0 (min 15 (count text)))))

(defn- shortens-to?
  "Returns true if the kernel can have made a name from a whole name."
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

(defn- variable-names
  "Returns the names of the variables of `.maps` that may belong to a map.

  One name if it can be determined."
  [b {:keys [name] :as info}]
  (let [variables (for [section (blob/ids-named b ".maps" :datasec)
                        {:keys [type]} (:vars (blob/record b section))
                        :when (some-> (blob/name-of b type) (shortens-to? name))]
                    type)
        found (of-info info)
        matching (fn [ks] (filter #(agree? ks found (definition b %)) variables))]
    (set (map #(blob/name-of b %)
              (if (next variables)
                ;; Loaders often change the sizes of a map before loading it, and seldom its types.
                (some (fn [ks] (let [those (matching ks)] (when (= 1 (count those)) those)))
                      [[:type :key :value] [:type :key :value :max-entries :flags]])
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

(defn- names-in-btf
  "Returns the whole names of a map in its BTF, as a set."
  [{:keys [name btf-id btf-value-type-id] :as info}]
  (when btf-id
    (try
      (let [b (btf/parse (:bytes (kernel.btf/blob btf-id {:op :open})))
            section (when (and btf-value-type-id (= :datasec (blob/kind b btf-value-type-id)))
                      (blob/name-of b btf-value-type-id))]
        (cond
          (and section (shortens-to? section name)) #{section}
          :else (or (not-empty (variable-names b info))
                    (some-> (annotated-name b info) hash-set))))
      (catch ExceptionInfo e
        (when-not (#{:malformed-btf :permission :not-found} (:bpfmap/error (ex-data e)))
          (throw e))))))

;; --- pins and holders of maps

(defn- pins-by-map
  "Returns the paths of pins by map id; nil if pins cannot be read."
  []
  (try
    (reduce (fn [found {:keys [kind id path]}]
              (if (= :map kind) (update found id (fnil conj []) path) found))
            {} (holders/pins))
    (catch ExceptionInfo _ nil)))

(defn- candidates
  "Returns the maps that may match, with their pins and holders."
  [infos pins]
  (let [held (try (holders/held-maps) (catch ExceptionInfo _ nil))]
    (for [{:keys [id] :as info} infos]
      (assoc (select-keys info [:id :name :type]) :pinned (get pins id []) :held
             (get-in held [id :holders] [])))))

(defn- describe
  "Returns the text of a candidate: its id, its pins and its holders."
  [{:keys [id pinned held]}]
  (str id " ("
       (if (seq pinned)
         (str "pinned at " (str/join ", " (map paths/printable pinned)))
         "not pinned")
       (when (seq held)
         (str " and held by " (str/join ", " (map #(str (:command %) "[" (:pid %) "]") held))))
       ")"))

;; --- the map with a name

(defn- file-name?
  "Returns true if a path's last part is the name, as bytes or as printed."
  [name path]
  (let [file-name (paths/file-name path)]
    (or (= name (paths/printable file-name))
        (some-> (paths/exact-bytes name) (Arrays/equals (paths/bytes-of file-name))))))

(defn id-of
  "Returns the id of the only map with a name.

  Throws if a map cannot be read, since it might have the name too, unless it has gone."
  [given]
  (let [name (str given)
        kernel-name (spec/kernel-name name)
        _ (when (empty? kernel-name)
            (throw (error/error :invalid-value
                                (str "The name of a map must have letters, digits, `_` or `.`, "
                                     "got " (error/printed given))
                                {:bpfmap/op :open :bpfmap/path [:name]})))
        kept? (= name kernel-name)
        alike (filterv #(if kept? (= name (:name %)) (shortens-to? name (:name %)))
                       (holders/map-infos :open (fn [_ e]
                                                    (when-not
                                                     (= :not-found (:bpfmap/error (ex-data e)))
                                                      (throw e)))
                                            {:brief true}))
        pins (delay (pins-by-map))
        found (if kept?
                alike
                (filterv (fn [{:keys [id] :as info}]
                           (or (some #(file-name? name %) (get @pins id))
                               (contains? (names-in-btf info) name)))
                         alike))
        refuse (fn [kind message infos hint]
                 ;; Looking for pins and holders takes long: not if no map is to be named.
                 (let [candidates (when (seq infos) (seq (candidates infos @pins)))]
                   (throw (error/error kind (str message " " (pr-str name))
                                       {:bpfmap/op :open
                                        :bpfmap/candidates candidates
                                        :bpfmap/hint (hint
                                                      (str
                                                       (str/join
                                                        ", " (map describe (take 8 candidates)))
                                                       (when (< 8 (count candidates))
                                                         ", …")))}))))]
    (cond
      (next found)
      (refuse :ambiguous "More than one map named" found
              #(str "it is the name of maps " (str/join ", " (map :id found))
                    "; open one by its id: " %))
      (seq found) (:id (first found))
      (seq alike)
      (refuse :not-found "No map named" alike
              #(str "the kernel keeps only " (pr-str (:name (first alike)))
                    " of it, and no map has the whole name in its BTF or as "
                    "the name of a pin; open one by its id: " %))
      :else (refuse :not-found "No map named" nil
                    (constantly nil)))))
