(ns ^:no-doc bpfmap.impl.map.naming
  "Finds the map of a name.

  The kernel keeps 15 characters of a name, and only letters, digits, `_` and `.`. A name that it
  keeps as it is is compared with what the kernel reports. Any other is compared with whole names:
  that of the map's variable in its BTF, as libbpf loads it, and the file names of its pins.
  Without such a name a map is never opened by a name that was cut."
  (:require [bpfmap.btf :as btf]
            [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.host.inventory :as inventory]
            [bpfmap.impl.kernel.btf :as sys.btf]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.rules :as rules]
            [bpfmap.spec :as spec]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

;; --- the kernel's name of a whole name

(defn- replaced
  "Returns the kernel's name of a data section as libbpf makes it: what is not a letter, digit,
  `_` or `.` becomes `_`."
  [whole]
  (let [text (str/replace whole #"[^A-Za-z0-9_.]" "_")]
    (subs text 0 (min 15 (count text)))))

(defn- shortens-to?
  "Returns true if the kernel's name of a map can be what is left of a whole name."
  [whole kernel-name]
  (and (seq kernel-name)
       (or (= kernel-name (spec/kernel-name whole))
           (= kernel-name (replaced whole)))))

;; --- whole names in BTF

(defn- pointed-at
  "Returns the id that a member of a map's definition points at, or nil."
  [b member]
  (let [{:keys [kind type]} (blob/record b (:type member))]
    (when (= :ptr kind) type)))

(defn- number-in
  "Returns the number of a member that was written as `__uint(name, number)`: a pointer to an
  array of that many."
  [b member]
  (when-let [id (pointed-at b member)]
    (let [{:keys [kind count]} (blob/record b id)]
      (when (= :array kind) count))))

(defn- definition
  "Returns what a variable of `.maps` says of its map: `{:type :max-entries :flags :key :value}`,
  numbers and ids of types."
  [b var-id]
  (let [{:keys [kind members]} (blob/record b (blob/resolve b (:type (blob/record b var-id))))
        member (when (#{:struct :union} kind) (into {} (map (juxt :name identity)) members))
        of (fn [f name] (some->> (get member name) (f b)))]
    {:type (of number-in "type") :max-entries (of number-in "max_entries")
     :flags (of number-in "map_flags")
     :key (of pointed-at "key") :value (of pointed-at "value")}))

(defn- of-info
  "Returns what the kernel says of a map, as a [[definition]]."
  [{:keys [type max-entries flags btf-key-type-id btf-value-type-id]}]
  {:type (rules/type-number type) :max-entries max-entries :flags (rules/flag-word flags)
   :key btf-key-type-id :value btf-value-type-id})

(defn- agree? [ks info definition]
  (every? #(= (get info % 0) (or (get definition %) 0)) ks))

(defn- variable-names
  "Returns the names of the variables of `.maps` that may be those of a map: one name if that can
  be told."
  [b {:keys [name] :as info}]
  (let [variables (for [section (blob/ids-named b ".maps" :datasec)
                        {:keys [type]} (:vars (blob/record b section))
                        :when (some-> (blob/name-of b type) (shortens-to? name))]
                    type)
        found (of-info info)
        matching (fn [ks] (filter #(agree? ks found (definition b %)) variables))]
    (set (map #(blob/name-of b %)
              (if (next variables)
                ;; The sizes of a map may be changed before it is loaded, its types seldom are.
                (some (fn [ks] (let [those (matching ks)] (when (= 1 (count those)) those)))
                      [[:type :key :value] [:type :key :value :max-entries :flags]])
                variables)))))

(defn- annotated-name
  "Returns the name in a struct `____btf_map_NAME`, by which older programs say which types a map
  has, or nil."
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
  "Returns the whole names that the BTF of a map has for it, as a set."
  [{:keys [name btf-id btf-value-type-id] :as info}]
  (when btf-id
    (try
      (let [b (btf/parse (:bytes (sys.btf/blob btf-id {:op :open})))
            section (when (and btf-value-type-id (= :datasec (blob/kind b btf-value-type-id)))
                      (blob/name-of b btf-value-type-id))]
        (cond
          (and section (shortens-to? section name)) #{section}
          :else (or (not-empty (variable-names b info))
                    (some-> (annotated-name b info) hash-set))))
      (catch ExceptionInfo e
        (when-not (#{:malformed-btf :permission :not-found} (:bpfmap/error (ex-data e)))
          (throw e))))))

;; --- who a map belongs to

(defn- pins-by-map
  "Returns the id of each pinned map with the paths of its pins; nil if pins cannot be read."
  []
  (try
    (reduce (fn [found {:keys [kind id path]}]
              (if (= :map kind) (update found id (fnil conj []) path) found))
            {} (inventory/pins))
    (catch ExceptionInfo _ nil)))

(defn- holders-by-map
  "Returns the id of each map that is open with the processes that have it open; nil if that
  cannot be read."
  []
  (try
    (reduce (fn [found {:keys [holds] :as process}]
              (reduce (fn [found {:keys [kind id]}]
                        (if (= :map kind)
                          (update found id (fnil conj []) (select-keys process [:pid :command]))
                          found))
                      found holds))
            {} (inventory/all-holders))
    (catch ExceptionInfo _ nil)))

(defn- candidates
  "Returns the maps that may have been meant, with their pins and holders."
  [infos pins]
  (let [held (holders-by-map)]
    (for [{:keys [id] :as info} infos]
      (assoc (select-keys info [:id :name :type]) :pinned (get pins id []) :held
             (get held id [])))))

(defn- described
  "Returns the text of a candidate: its id, its pins and its holders."
  [{:keys [id pinned held]}]
  (str id " ("
       (if (seq pinned) (str "pinned at " (str/join ", " (map paths/printed pinned))) "not pinned")
       (when (seq held)
         (str "; held by " (str/join ", " (map #(str (:command %) "[" (:pid %) "]") held)))) ")"))

;; --- a name's map

(defn- file-name?
  "Returns true if the last part of a pin's path is the name, as bytes or as printed."
  [name path]
  (let [file-name (paths/file-name path)]
    (or (= name (paths/printed file-name))
        (some-> (paths/exact-bytes name) (Arrays/equals (paths/bytes-of file-name))))))

(defn id-of
  "Returns the id of the one map of a name. A map that cannot be looked at might be another one,
  unless it is gone."
  [given]
  (let [name (str given)
        kernel-name (spec/kernel-name name)
        _ (when (empty? kernel-name)
            (throw (error/error :invalid-value
                                (str "Not the name of a map: " (pr-str (error/shown given)))
                                {:bpfmap/op :open :bpfmap/path [:name]
                                 :bpfmap/hint "the kernel keeps letters, digits, `_` and `.` of a name, and here it keeps nothing"})))
        kept? (= name kernel-name)
        alike (filterv #(if kept? (= name (:name %)) (shortens-to? name (:name %)))
                       (inventory/map-infos :open (fn [_ e]
                                                (when-not (= :not-found (:bpfmap/error (ex-data e)))
                                                  (throw e)))
                                       true))
        pins (delay (pins-by-map))
        found (if kept?
                alike
                (filterv (fn [{:keys [id] :as info}]
                           (or (some #(file-name? name %) (get @pins id))
                               (contains? (names-in-btf info) name)))
                         alike))
        refuse (fn [kind message infos hint]
                 (let [candidates (seq (candidates infos @pins))]
                   (throw (error/error kind (str message " " (pr-str name))
                                       {:bpfmap/op :open
                                        :bpfmap/candidates candidates
                                        :bpfmap/hint (hint
                                                      (str
                                                       (str/join
                                                        ", " (map described (take 8 candidates)))
                                                           (when (< 8 (count candidates))
                                                             ", …")))}))))]
    (cond
      (next found)
      (refuse :ambiguous "There is more than one map named" found
              #(str "it is the name of maps " (str/join ", " (map :id found))
                    "; open one by its id: " %))
      (seq found) (:id (first found))
      (seq alike)
      (refuse :not-found "There is no map named" alike
              #(str "the kernel keeps only " (pr-str (:name (first alike)))
                    " of it, and no map has the whole name in its BTF or as "
                    "that of a pin; open one by its id: " %))
      :else (refuse :not-found "There is no map named" nil
                    (constantly "no map on this host has the name")))))
