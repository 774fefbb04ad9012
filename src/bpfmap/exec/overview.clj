(ns ^:no-doc bpfmap.exec.overview
  "Implements the command `overview`: the maps of this host in a few lines."
  (:require [bpfmap.exec.query :as query]
            [bpfmap.exec.top :as top]
            [bpfmap.impl.host.holders :as holders])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(def ^:private interval "Seconds between the two readings that rates are made of." 0.3)

(def ^:private most "Maps that are listed as the largest, the fullest and the fastest." 3)

(defn- count-of
  "Returns the number of objects that f lists; nil if this kernel cannot list them."
  [f]
  (try
    (count (f))
    (catch ExceptionInfo _ nil)))

(defn- largest
  "Returns the maps with the most memory, named as in rows of `top`."
  [infos rows]
  (let [rows (into {} (map (juxt :id identity)) rows)]
    (into []
          (comp (filter #(pos? (long (:memlock % 0)))) (take most)
                (map (fn [{:keys [id type name memlock]}]
                       (merge {:id id :type type :name name}
                              (select-keys (rows id) [:name :held])
                              {:memlock memlock}))))
          (sort-by (comp - (fnil long 0) :memlock) infos))))

(defn- first-rows
  "Returns the first rows in the descending order of a column, without zeros."
  [column rows]
  (let [k (keyword column)]
    (into []
          (comp (filter #(pos? (double (k % 0.0)))) (take most))
          (top/arranged {:sort (query/column (str "-" column))} rows))))

(defn- readable
  "Returns the overview for a user who may list maps."
  [kernel]
  (let [{:keys [maps rows]} (first (into [] (top/top {:interval interval :once true})))
        infos (holders/maps)]
    (array-map :kernel kernel
               :maps maps
               :memory (transduce (keep :memlock) + 0 infos)
               :programs (count-of #(holders/programs {:brief true}))
               :links (count-of holders/links)
               :largest (largest infos rows)
               :fullest (first-rows "full" rows)
               :fastest (first-rows "changes-per-second" rows))))

(defn- unreadable
  "Returns the overview for a user who must not list maps, with the reason."
  [kernel e]
  (array-map :kernel kernel :maps nil :reason (ex-message e) :pins (count-of holders/pins)))

(defn overview
  "Returns the number of maps and their memory, and the first ones of them.

  `:largest`, `:fullest` and `:fastest` are at most three maps each. For a user who must not list
  maps, `:maps` is nil, `:reason` the error, and `:pins` the number of visible pins.

      (overview {}) ;=> {:kernel \"6.18.44\", :maps 37, :memory 15834112, :programs 12, :links 9, :largest [], :fullest [], :fastest []}"
  [_options]
  (let [kernel (System/getProperty "os.version")]
    (try
      (readable kernel)
      (catch ExceptionInfo e
        (if (= :permission (:bpfmap/error (ex-data e)))
          (unreadable kernel e)
          (throw e))))))
