(ns ^:no-doc bpfmap.impl.map.find-by-name
  "Finds the map with a name.

  The kernel keeps 15 characters of a name, and only letters, digits, `_` and `.`. A name that
  fits is compared with the names that the kernel reports. Any other name is compared with whole
  names, see `bpfmap.impl.map.whole-names`, and the file names of pins. A map without such a name is
  never opened by a name that was cut."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.map.whole-names :as whole-names]
            [bpfmap.spec :as spec]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

;; --- pins and holders of maps

(defn- pins-by-map
  "Returns the paths of pins by map id; nil if pins cannot be read."
  []
  (try
    (holders/pins-by-id :map)
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
        alike (filterv #(if kept? (= name (:name %)) (whole-names/shortens-to? name (:name %)))
                       (holders/map-infos :open (fn [_ e]
                                                    (when-not
                                                     (= :not-found (:bpfmap/error (ex-data e)))
                                                      (throw e)))
                                            {:brief true}))
        pins (delay (pins-by-map))
        in-btf (whole-names/names-in-btf (delay (holders/programs {:brief true})))
        found (if kept?
                alike
                (filterv (fn [{:keys [id] :as info}]
                           (or (some #(file-name? name %) (get @pins id))
                               (contains? (in-btf info) name)))
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
