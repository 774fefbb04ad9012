(ns ^:no-doc bpfmap.metrics.config
  "Checks the config of metrics, and converts it to data for reading maps.

  The tables below have every key, with the function that reads its value. Problems are `{:path
  :message}`, and all of them are found at once."
  (:require [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.query :as query]
            [bpfmap.impl.field-path :as field-path]
            [bpfmap.impl.nearest :as nearest]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.util.regex PatternSyntaxException)))

(set! *warn-on-reflection* true)

;; --- problems

(defn- must
  "Throws the problem of a value.

  `constraint` begins with must, or continues a sentence about the place."
  ([constraint] (must constraint nil))
  ([constraint hint]
   (throw (ex-info constraint {::problem true :hint hint}))))

(defn- path-text
  "Returns a path in the config as text.

  Metrics are named instead of numbered."
  [config path]
  (let [[top i & more] path
        metric-name (when (and (= :metrics top) (int? i) (sequential? (:metrics config)))
                      (:name (nth (:metrics config) i nil)))
        place (if (and (= :metrics top) (int? i))
                (cons (str "metric " (if (or (string? metric-name) (ident? metric-name))
                                       (name metric-name)
                                       (str "number " (inc (long i)))))
                      more)
                path)]
    (str/join " " (map #(if (and (string? %) (not= top %)) % (error/printed %)) place))))

(defn problem
  "Returns a problem at a path, as `{:path :message}`.

      (problem {:metrics [{:name \"hits\"}]} [:metrics 0 :type] \"must be a keyword\" nil)
      ;=> {:path [:metrics 0 :type], :message \"metric hits :type must be a keyword\"}"
  [config path text hint]
  {:path path
   :message (str (if (seq path) (path-text config path) "the config") " " text
                 (when hint (str ": " hint)))})

(defn- reading
  "Calls `(f x)` and returns its result; adds the problem that it throws."
  [{:keys [config found]} path f x]
  (try
    (f x)
    (catch ExceptionInfo e
      (let [{::keys [problem] :keys [hint] :bpfmap/keys [error]} (ex-data e)
            text (ex-message e)]
        (when (and error (not problem)) (throw e))
        (vswap! found conj
                (bpfmap.metrics.config/problem
                 config path
                 (cond-> text (str/starts-with? text "must ") (str ", got " (error/printed x)))
                 hint))
        nil))))

(defn- read-map
  "Returns a map whose values are read by the functions of a table.

  Other keys are problems."
  [{:keys [config found] :as ctx} path table x]
  (if-not (map? x)
    (reading ctx path (fn [_] (must "must be a map")) x)
    (do
      (doseq [k (keys x) :when (not (contains? table k))]
        (vswap! found conj (problem config path (str "has an unknown key " (error/printed k))
                                    (nearest/alternatives k (sort (keys table))))))
      (into {}
            (for [[k f] table
                  :let [value (get x k)]
                  :when (some? value)
                  :let [data (f ctx (conj path k) value)]
                  :when (some? data)]
              [k data])))))

;; --- values

(defn- plain
  "Returns the reader of a table for a function of the value."
  [f]
  (fn [ctx path x] (reading ctx path f x)))

(defn- satisfying [pred constraint]
  (plain #(if (pred %) % (must constraint))))

(defn- of-kind
  "Returns the reader of a kind of options of the command line."
  [kind]
  (let [{:keys [read expects problem]} (arguments/kinds kind)]
    (plain (fn [x]
             (let [data (read x)
                   hint (when problem (problem data))]
               (if (or hint (nil? data)) (must expects hint) data))))))

(defn- many
  "Returns the reader of one value, or of a vector of them."
  [f]
  (fn [ctx path x]
    (if (and (sequential? x) (every? #(or (string? %) (sequential? %) (map? %)) x))
      (vec (keep-indexed (fn [i one] (f ctx (conj path i) one)) x))
      (some-> (f ctx path x) vector))))

(defn- hints
  "Reads the hints of fields, each on its own, as a vector for [[metric-keys]]."
  [ctx path x]
  (let [one (of-kind :hint)
        each (fn [path x]
               (if (and (map? x) (seq x))
                 (keep (fn [[field hint]] (one ctx (conj path field) {field hint})) x)
                 (some-> (one ctx path x) list)))]
    (vec (if (sequential? x)
           (mapcat (fn [i x] (each (conj path i) x)) (range) x)
           (each path x)))))

(defn- one-of [& names]
  (plain #(let [x (cond (string? %) (keyword %) (symbol? %) (keyword %) :else %)]
            (if (some #{x} names)
              x
              (must (str "must be " (error/list-of names))
                    (when (ident? x) (nearest/did-you-mean x names)))))))

(defn- read-pattern [x]
  (try
    (re-pattern (if (string? x) x (must "must be a regular expression, as a string")))
    (catch PatternSyntaxException e
      (must "must be a valid regular expression" (.getDescription e)))))

(def ^:private text (satisfying string? "must be a string"))
(def ^:private flag (satisfying boolean? "must be true or false"))
(def ^:private positive (satisfying #(and (int? %) (pos? (long %))) "must be a positive integer"))
(def ^:private number (satisfying #(and (number? %) (Double/isFinite (double %)))
                                  "must be a number"))
(def ^:private file (of-kind :path))

(def ^:private scalar-text
  "Reads a key of `:names`: the text of a number, a name of an enum, or a string."
  (plain #(cond (string? %) % (ident? %) (name %) (or (number? %) (boolean? %)) (str %)
                :else (must "must have numbers, names or strings as keys"))))

(defn- names
  [{:keys [] :as ctx} path x]
  (if-not (map? x)
    (reading ctx path (fn [_] (must "must be a map of values to texts" "such as {0 \"read\"}")) x)
    (into {} (for [[k v] x
                   :let [k (scalar-text ctx path k)
                         v (reading ctx path
                                    #(if (or (string? %) (ident? %)) (name %)
                                         (must "must have strings as values")) v)]]
               [k v]))))

;; --- labels

(def ^:private label-keys
  {:field (of-kind :field)
   :names names
   :unknown (plain #(if (or (contains? #{:keep :drop} %) (string? %))
                      %
                      (must "must be :keep, :drop or a string" "%s in it stands for the value")))
   :match (many (plain read-pattern))})

(defn- label [{:keys [config found] :as ctx} path x]
  (if-not (map? x)
    (some->> ((of-kind :field) ctx path x) (array-map :field))
    (let [read (read-map ctx path label-keys x)]
      (cond
        (not (contains? x :field))
        (do (vswap! found conj (problem config path "must have :field" "such as {:field :port}")) nil)
        (and (contains? x :unknown) (not (contains? x :names)))
        (do (vswap! found conj (problem config (conj path :unknown) "requires :names" nil)) nil)
        :else (when (:field read) read)))))

(def ^:private label-name #"[a-zA-Z_][a-zA-Z0-9_]*")

(defn- labels [{:keys [] :as ctx} path x]
  (if-not (map? x)
    (reading ctx path (fn [_] (must "must be a map of names to fields" "such as {:port :port}")) x)
    (vec
     (for [[k v] x
           :let [label-text (reading ctx path
                                     #(let [s (when (or (string? %) (ident? %)) (name %))]
                                        (cond
                                          (not (and s (re-matches label-name s)))
                                          (must "must have letters, digits and _ in names of labels")
                                          (str/starts-with? s "__")
                                          (must "must have no name of a label that begins with __")
                                          :else s))
                                     k)
                 read (label ctx (conj path k) v)]
           :when (and label-text read)]
       [label-text read]))))

;; --- metrics

(def ^:private metric-name #"[a-zA-Z_:][a-zA-Z0-9_:]*")

(def ^:private read-metric-name
  (plain
   #(let [s (when (or (string? %) (ident? %)) (name %))]
      (cond
        (not (and s (re-matches metric-name s)))
        (must "must have letters, digits, _ and :")
        (str/starts-with? s "bpfmap_")
        (must "must not begin with bpfmap_, as the metrics of the exporter do")
        :else s))))

(defn- read-ref
  "Reads a reference to a map: as on the command line, or an open map."
  [ctx path x]
  (if (bpf/bpf-map? x)
    x
    (reading ctx path
             #(let [ref (arguments/ref-of %)]
                (cond
                  (int? ref) {:id ref}
                  (and (map? ref) (= 1 (count ref)) (some ref [:id :path :name])) ref
                  :else (must "must be an id, a pin path or a name")))
             x)))

(def ^:private bounds
  (satisfying #(and (sequential? %) (seq %) (every? number? %) (or (nil? (next %)) (apply < %)))
              "must be a vector of numbers in ascending order"))

(def slot-numberings
  "The numberings of buckets, for `:slots`, and what bucket n counts."
  (array-map
   :log2 "from 2^n to 2^(n+1)-1; bucket 0 counts 0 and 1"
   :exp2 "above 2^(n-1), up to 2^n; bucket 0 counts 0 and 1"
   :exp2zero "above 2^(n-2), up to 2^(n-1); bucket 0 counts 0"
   :bcc "from 2^(n-1) to 2^n-1; bucket 0 counts 0"
   :bpftrace "from 2^(n-2) to 2^(n-1)-1; bucket 0 counts negative values, bucket 1 counts 0"
   :limit "up to n, which is one of :bounds, and above the bound before it"))

(def ^:private metric-keys
  (array-map
   :name read-metric-name
   :type (one-of :counter :gauge :histogram)
   :help text
   :map read-ref
   :key-type (of-kind :type)
   :value-type (of-kind :type)
   :where (many (of-kind :where))
   :as hints
   :cpus (plain #(let [which ((:read (arguments/kinds :cpus)) %)]
                   (if (or (contains? #{:each :sum} which) (int? which))
                     which
                     (must "must be each, sum or the number of a CPU"))))
   :labels labels
   :value (of-kind :field)
   :scale (satisfying #(and (number? %) (Double/isFinite (double %)) (pos? (double %)))
                      "must be a positive number")
   :limit positive
   :bucket (of-kind :field)
   :slots (apply one-of (keys slot-numberings))
   :linear (satisfying #(and (number? %) (pos? (double %))) "must be a positive number")
   :bounds bounds
   :first (satisfying #(and (int? %) (<= 0 (long %))) "must be a non-negative integer")
   :last (satisfying #(and (int? %) (<= 0 (long %) 1000)) "must be an integer from 0 to 1000")
   :sum (plain #(if (and (int? %) (<= 0 (long %)))
                  %
                  (or (field-path/path-of %)
                      (must "must be the number of a bucket, or the field that has the sum"))))
   :form (one-of :classic :native :both)))

(def ^:private of-histograms [:bucket :slots :linear :bounds :first :last :sum :form])

(defn- check-metric
  "Returns the problems of keys of a metric that do not go together."
  [{:keys [name type value] :as metric} given]
  (let [given? (fn [k] (contains? given k))]
    (concat
     (for [k [:name :type :map] :when (not (given? k))]
       [[k] "is required" nil])
     (when (and name (= :counter type) (not (str/ends-with? name "_total")))
       [[[:name] (str "must end in _total for a counter, got " (error/printed name))
         (str "write " name "_total, or use :type :gauge for a number that can fall")]])
     (when (and name type (not= :counter type)
                (re-find #"_(total|created|bucket|count|sum|info)$" name))
       [[[:name] (str "must not end in " (re-find #"_[a-z]+$" name) " for a " (clojure.core/name type)
                      ", got " (error/printed name)) nil]])
     (if (= :histogram type)
       (concat
        (when value [[[:value] "must not be given for a histogram" "use :bucket"]])
        (when (and (given? :linear) (not (contains? #{nil :bpftrace} (:slots metric))))
          [[[:linear] (str "cannot be combined with :slots " (:slots metric)) nil]])
        (when (and (given? :bounds) (not (contains? #{nil :limit} (:slots metric))))
          [[[:bounds] (str "cannot be combined with :slots " (:slots metric)) nil]])
        (when (and (given? :bounds) (given? :linear))
          [[[:bounds] "cannot be combined with :linear" nil]])
        (when (and (= :limit (:slots metric)) (not (given? :bounds)))
          [[[:slots] "requires :bounds if it is :limit" nil]])
        (when (and (:last metric) (< (long (:last metric)) (long (:first metric 0))))
          [[[:last] (str "must be at least " (:first metric 0) ", which is :first, got "
                         (:last metric)) nil]]))
       (when type
         (for [k of-histograms :when (given? k)]
           [[k] "is only for a histogram" nil])))
     (for [[label-text] (:labels metric)
           :when (or (and (= "le" label-text) (= :histogram type))
                     (and (= "cpu" label-text) (= :each (:cpus metric))))]
       [[:labels label-text] (if (= "le" label-text)
                               "is the label of the buckets of a histogram"
                               "is the label that :cpus :each adds")
        "use another name"]))))

(defn- read-metric [{:keys [config found] :as ctx} path x]
  (let [metric (read-map ctx path metric-keys x)]
    (when (map? x)
      (doseq [[more text hint] (check-metric metric x)]
        (vswap! found conj (problem config (into path more) text hint))))
    metric))

(defn exposed-names
  "Returns the names of the samples of a metric.

      (exposed-names {:name \"wait\" :type :histogram})
      ;=> [\"wait\" \"wait_bucket\" \"wait_count\" \"wait_sum\"]"
  [{:keys [name type]}]
  (cond-> [name]
    (= :histogram type) (into (map #(str name %)) ["_bucket" "_count" "_sum"])
    (= :counter type) (conj (str/replace name #"_total$" ""))))

(defn- metrics [{:keys [config found] :as ctx} path x]
  (if-not (sequential? x)
    (reading ctx path (fn [_] (must "must be a vector of metrics")) x)
    (let [read (fn [i one] (assoc (read-metric ctx (conj path i) one) :index i))
          all (vec (map-indexed read x))]
      (reduce (fn [taken {:keys [name index] :as metric}]
                (let [names (when name (exposed-names metric))
                      [twice other] (some #(find taken %) names)]
                  (when other
                    (vswap! found conj
                            (if (= name other)
                              (problem config (conj path index :name)
                                       (str "must be given once, got " (error/printed name))
                                       "use labels to tell series apart")
                              (problem config (conj path index :name)
                                       (str "must not have " (error/printed twice)
                                            " among its samples, as metric " other " has, got "
                                            (error/printed name))
                                       "use another name"))))
                  (into (zipmap names (repeat name)) taken)))
              {} all)
      all)))

;; --- the rest

(defn- part-of
  "Reads the map for a part of the config that may be a boolean too."
  [ctx path table x]
  (if (map? x)
    (read-map ctx path table x)
    (reading ctx path (fn [_] (must (str "must be true, false or a map with "
                                         (error/list-of (keys table) "and"))))
             x)))

(defn- checking
  "Returns a reader that also calls f with what another one has read.

  An error that f throws is a problem."
  [f read]
  (fn [ctx path x]
    (when-some [data (read ctx path x)]
      (reading ctx path #(try
                           (f %)
                           (catch ExceptionInfo e
                             (must (str "cannot be used: " (ex-message e)))))
               data))))

(defn- host-part
  "Returns the reader of `:maps` or `:programs` of the host.

  They are true, false or conditions. `row-fields` is the symbol of the fields of a row."
  [row-fields]
  (fn [{:keys [] :as ctx} path x]
    (if (boolean? x)
      (when x {})
      (let [condition (fn [condition]
                        (query/check {:where [condition]
                                      :fields @(requiring-resolve row-fields)})
                        condition)]
        (part-of ctx path {:where (many (checking condition (of-kind :where)))} x)))))

(def ^:private host-keys
  {:maps (host-part 'bpfmap.exec.map-info/list-fields)
   :programs (host-part 'bpfmap.exec.program-info/program-fields)})

(def ^:private tls-forms
  "The alternatives of the keys of `:tls`."
  [[:certificate :key] [:keystore :password-file]])

(defn- read-tls [{:keys [config found] :as ctx} path x]
  (let [read (read-map ctx path (zipmap (flatten tls-forms) (repeat file)) x)
        given (when (map? x) (filter #(some (partial contains? x) %) tls-forms))
        problem #(vswap! found conj (problem config %1 %2 nil))]
    (cond
      (not (map? x)) nil
      (= 1 (count given)) (doseq [k (first given) :when (not (contains? x k))]
                            (problem (conj path k) "is required"))
      :else (problem path (str "must have either :certificate and :key, or :keystore and"
                               " :password-file, got " (if (seq given) "both" "neither"))))
    (when (and (= 1 (count given)) (every? #(contains? read %) (first given)))
      read)))

(defn- read-http [{:keys [config found] :as ctx} path x]
  (let [part (fn [table needs]
               (fn [ctx path x]
                 (let [read (read-map ctx path table x)]
                   (when (map? x)
                     (doseq [k needs :when (not (contains? x k))]
                       (vswap! found conj (problem config (conj path k) "is required" nil))))
                   (when (every? #(contains? read %) needs)
                     read))))]
    (read-map ctx path
              {:host text
               :port (satisfying #(and (int? %) (<= 0 (long %) 65535))
                                 "must be an integer from 0 to 65535")
               :page (satisfying #(or (boolean? %) (= :all %)) "must be true, false or :all")
               :tls read-tls
               :basic-auth (part {:user text :password-file file} [:user :password-file])}
              x)))

(def ^:private config-keys
  {:http read-http
   :host (fn [ctx path x]
           (if (boolean? x)
             (when x {:maps {} :programs {}})
             (part-of ctx path host-keys x)))
   :limit positive
   :metrics metrics})

(def default-limit "The largest number of series of a metric." 10000)

(defn checked
  "Returns a config as `{:config :problems}`: checked data, and all problems.

      (checked {:metrics [{:name \"hits\" :type :gauge}]})
      ;=> {:config {…}, :problems [{:path [:metrics 0 :map], :message \"metric hits :map is required\"}]}"
  [given]
  (let [found (volatile! [])
        ctx {:config given :found found}
        config (read-map ctx [] config-keys given)]
    (when (and (map? given) (not (contains? given :metrics)) (not (contains? given :host)))
      (vswap! found conj (problem given [:metrics] "is required, unless :host is given" nil)))
    {:config (-> config
                 (update :limit #(or % default-limit))
                 (as-> config
                   (assoc config :metrics
                          (mapv #(merge {:limit (:limit config) :form :classic} %)
                                (:metrics config))))
                 (cond-> (not (contains? (if (map? given) given {}) :host))
                   (assoc :host {:maps {} :programs {}})))
     :problems (distinct @found)}))

(defn refusal
  "Returns the `:invalid-value` exception for problems."
  ^Throwable [problems]
  (error/error :invalid-value
               (str "The config of metrics is invalid: " (str/join "; " (map :message problems)))
               {:bpfmap/op :metrics
                :bpfmap/path (:path (first problems))
                :bpfmap/problems (vec problems)}))
