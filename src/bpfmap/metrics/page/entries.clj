(ns ^:no-doc bpfmap.metrics.page.entries
  "The page of one map: its owners, rates, histograms and entries."
  (:require [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.output :as output]
            [bpfmap.exec.query :as query]
            [bpfmap.impl.display.hints :as hints]
            [bpfmap.metrics.page.cells :as cells]
            [bpfmap.metrics.page.layout :as layout]
            [bpfmap.metrics.page.markup :as markup]
            [bpfmap.metrics.page.picture :as picture]
            [bpfmap.metrics.page.shared :as shared]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(def params "The parameters of the page." [:q :where :sort :limit :bucket :slots])

(def ^:private default-limit 100)
(def ^:private most-rows "The largest number of rows of a page." 1000)
(def ^:private most-text "The largest number of characters of a cell." 160)
(def ^:private most-parameter "The largest number of characters of a parameter." 500)

(def history-text
  "The length of a history in words."
  (str (quot (* (long shared/interval) (long shared/samples)) 60000) " minutes"))

;; --- parameters

(defn- matches?
  "Returns true if a condition has a regular expression.

  A page has none, because some take unbounded time."
  [condition]
  (some #(= :matches %) (tree-seq sequential? seq condition)))

(defn- read-parameter [kind option text]
  (let [{:keys [read expects]} (arguments/kinds kind)
        x (try
            (read text)
            (catch ExceptionInfo e
              (throw (arguments/refused nil option text (ex-message e) (:hint (ex-data e))))))]
    (or x (throw (arguments/refused nil option text expects)))))

(defn checked
  "Returns the parameters as options of a query.

  `:bucket` and `:slots` are among them.

  Throws `:usage` for invalid ones. They are checked against the fields of the map later."
  [{:keys [where sort limit bucket slots q] :as given}]
  (doseq [[k text] given :when (< (long most-parameter) (count text))]
    (throw (arguments/refused nil k (subs text 0 20)
                              (str "must have at most " most-parameter " characters"))))
  (let [where (some->> where (read-parameter :where :where))]
    (when (matches? where)
      (throw (arguments/refused nil :where (:where given) "must have no regular expression"
                                "use the text filter")))
    (cond-> {:limit (cells/limit-of limit default-limit most-rows)
             :words (remove str/blank? (str/split (str/lower-case (or q "")) #"\s+"))}
      where (assoc :where [where])
      sort (assoc :sort (read-parameter :column :sort sort))
      bucket (assoc :bucket (read-parameter :field :bucket bucket))
      slots (assoc :slots (read-parameter :slots :slots slots)))))

;; --- texts

(defn- cut [text]
  (if (< (long most-text) (count text))
    (str (subs text 0 (if (Character/isHighSurrogate (nth text (dec (long most-text))))
                        (dec (long most-text))
                        most-text)) "…")
    text))

(defn- rate-text [x]
  (when (some? x) (output/format-1dp x)))

(defn- path-title [path]
  (if (seq path) (fields/path-text (map output/field-name path)) "value"))

(defn- rate-name
  "Returns the name of the rates at a path, for sorting."
  [path]
  (fields/path-text (cons "per-second" (map output/field-name path))))

;; --- parts

(defn- summary [{:keys [key-size value-size] :as row} {:keys [entries whole info gone] :as reading}]
  (let [row (cond-> (merge row (select-keys info [:max-entries]))
              entries (assoc :entries entries))
        full (when (:full row)
               (assoc row :full (/ (Math/round (/ (* 1000.0 (long (:entries row)))
                                                  (long (:max-entries row))))
                                   10.0)))
        [held used pinned] (cells/owners-text row)
        fact (fn [term x] (when x [:div [:dt term] [:dd x]]))]
    (layout/part
     "summary"
     [:dl {:class "facts"}
      (fact "Type" (output/cell (:type row)))
      (fact "Entries" (when (:entries row)
                        [(:entries row) [:span {:class "of"} (str " / " (:max-entries row))]
                         (when (and reading (not gone) (false? whole)) " (estimated)")]))
      (fact "Full" (cells/fullness (or full row)))
      (fact "Memory" (some-> (:memlock row) output/human-size))
      (fact "Key, value" (str key-size " B, " value-size " B"))
      (fact "Held by" held)
      (fact "Used by" used)
      (fact "Pinned at" pinned)])))

(defn- rates-part [{:keys [totals] {:keys [paths more-paths]} :plan}]
  (when (seq paths)
    (layout/part
     "rates"
     [:section {:aria-labelledby "rates-title"}
      [:h2 {:id "rates-title"} "Rates, all entries"]
      [:div {:class "rates"}
       (for [[i path] (map-indexed vector paths)
             :let [history (map #(nth % i) totals)]]
         [:figure
          [:figcaption [:span (output/cell (path-title path))]
           [:b (if (seq history) (str (rate-text (last history)) "/s") "…")]]
          (picture/sparkline history shared/samples
                             (str "Rate of " (path-title path) " per second, last " history-text))])]
      (when (pos? (long more-paths))
        [:p {:class "note"} (str (error/plural more-paths "field") " left out.")])])))

(defn- bound-text
  "Returns the upper bound of bucket i; the last bucket has none."
  [bounds i]
  (if-let [x (get bounds i)]
    (let [x (double x)]
      (str "≤ " (if (and (== x (Math/rint x)) (< (abs x) 1e15)) (bigint x) (format "%.3g" x))))
    (str "> " (if-let [x (peek bounds)]
                (let [x (double x)]
                  (if (and (== x (Math/rint x)) (< (abs x) 1e15)) (bigint x) (format "%.3g" x)))
                "all"))))

(defn- used-range
  "Returns the indices of buckets from the first to the last with a count."
  [counts]
  (let [used (keep-indexed (fn [i x] (when (pos? (double x)) i)) counts)]
    (if (seq used) (range (first used) (inc (long (last used)))) (range 0))))

(defn- labels-text [labels]
  (if (seq labels)
    (str/join " " (for [[k v] labels] (str k "=" (output/cell v))))
    "all"))

(defn- heat-figure [metric-name bounds several? {:keys [labels counts history]}]
  (let [indices (vec (used-range counts))
        indices (if (empty? indices) [0] indices)
        title (if several? (str metric-name ", " (labels-text labels)) metric-name)
        most (reduce max 1.0 counts)]
    [:figure {:class "heat"}
     [:figcaption [:span (output/cell title)]
      [:span {:class "of"} (str "last " history-text ", newest on the right")]]
     [:div {:class "map" :tabindex 0 :role "group" :aria-label title}
      [:div {:class "bounds" :aria-hidden "true"}
       (for [i (rseq indices)] [:span (bound-text bounds i)])]
      (picture/heat-map (mapv (fn [column] (mapv #(nth column % 0.0) indices)) history)
                        shared/samples
                        (str "Heat map of " title " over the last " history-text
                             "; the table below has the counts"))]
     [:details
      [:summary "Counts since the start"]
      [:table
       [:thead [:tr [:th {:scope "col" :class "number"} "Bucket"]
                [:th {:scope "col" :class "number"} "Count"]
                [:th {:scope "col"} [:span {:class "hidden"} "Share of the largest"]]]]
       [:tbody
        (for [i indices :let [x (double (nth counts i 0.0))]]
          [:tr [:th {:scope "row" :class "number"} (bound-text bounds i)]
           [:td {:class "number"} (bigint x)]
           [:td {:class "full"} (picture/bar (/ (* 100.0 x) most) "Share of the largest" nil)]])]]]]))

(defn- heat-part [{:keys [heat] {:keys [problems]} :plan}]
  (when (or (seq heat) (seq problems))
    (layout/part
     "heat"
     [:section {:aria-labelledby "heat-title"}
      [:h2 {:id "heat-title"} "Histograms"]
      (for [problem problems] [:p {:class "problem"} problem])
      (for [{:keys [name bounds series]} heat, one series]
        (heat-figure name bounds (next series) one))
      (when (some #(empty? (:series %)) heat)
        [:p {:class "note"} "A histogram has no counts yet."])])))

;; --- entries

(defn- shower [{:keys [shown]}]
  (if (empty? shown)
    identity
    (fn [{:keys [key value] :as row}]
      (-> row
          (assoc :raw key)
          (assoc :key (hints/show-side (:key shown) key row))
          (assoc :value (hints/show-side (:value shown) value row))))))

(defn- row-text [{:keys [key value]}]
  (str/lower-case (str (output/cell key) " " (output/cell value))))

(defn- selected
  "Returns `[rows matching]`: the selected rows of a reading, and their number."
  [{:keys [where sort limit words]} {:keys [rows plan]}]
  (let [show (shower plan)
        fields (:fields plan)
        matching (into [] (query/selecting {:where where :fields fields}) rows)
        matching (if (seq words)
                   (filterv (fn [row] (let [text (row-text (show row))]
                                        (every? #(str/includes? text %) words)))
                            matching)
                   matching)]
    [(mapv show (query/rows {:sort sort :limit limit :fields fields} matching))
     (count matching)]))

(defn- entry-cells [{:keys [columns paths spark]} {:keys [key change] :as row} by-key]
  (let [history (get by-key (get row :raw key))]
    [:tr {:class (when change "changed")}
     (for [[i {:keys [of cell]}] (map-indexed vector columns)
           :let [x (of row)]]
       [(if (zero? (long i)) :th :td)
        {:class (when (number? x) "number") :scope (when (zero? (long i)) "row")}
        (cut ((or cell output/cell) x))])
     (for [path paths]
       [:td {:class "number"} (rate-text (get-in (:per-second row) path))])
     (when (and (seq paths) spark)
       [:td {:class "full"}
        (when history
          (picture/sparkline (map #(nth % spark nil) history) shared/samples
                             (str "Rate of " (path-title (nth paths spark)))))])]))

(defn- spark-path
  "Returns the index of the field whose rates are drawn.

  It is the one that rows are sorted by."
  [{:keys [sort]} paths]
  (let [wanted (some-> sort :path last)]
    (when (seq paths)
      (or (first (keep-indexed (fn [i path] (when (= wanted (some-> (last path) output/field-name))
                                              i))
                               paths))
          0))))

(defn- entry-parts [id given options {:keys [plan by-key whole rows entries] :as reading}]
  (let [[shown matching] (try
                           (selected options reading)
                           (catch ExceptionInfo e
                             [nil (ex-message e)]))
        {:keys [paths trees]} plan
        columns (output/columns [:key :value] (not-empty shown) trees)
        path (str "/maps/" id)
        heading (fn [column] (layout/sort-heading column given path))
        layout-of {:columns columns :paths paths :spark (spark-path options paths)}]
    (shared/want reading (map #(get % :raw (:key %)) shown))
    (if (string? matching)
      [(layout/part "problem" [:p {:class "problem" :role "alert"} matching])]
      (concat
       [["open" (str "<section id=\"open\" aria-labelledby=\"entries-title\">"
                     "<h2 id=\"entries-title\">Entries</h2>"
                     "<div class=\"box\" role=\"region\" tabindex=\"0\" aria-label=\"Entries\">"
                     "<table>")]
        (layout/part
         "head"
         [:thead {}
          [:tr
           (for [{:keys [title path]} columns]
             (heading {:title title :name (fields/path-text (map output/field-name path))}))
           (for [path paths]
             (heading {:title (if (seq path) (str (path-title path) "/s") "per second")
                       :name (rate-name path) :numeric true}))
           (when (seq paths)
             [:th {:scope "col"} [:span {:class "hidden"} "Rate over time"]])]])
        ["body" "<tbody id=\"body\">"]]
       (map-indexed (fn [i row]
                      (layout/part (str "e" i) (entry-cells layout-of row by-key)))
                    shown)
       [["close" "</tbody></table></div></section>"]
        (layout/part
         "left"
         [:p {:class "note"}
          (when-not whole
            (str "Only the first " (count rows) (when entries (str " of " entries))
                 " entries are read. "))
          (layout/left-out (count shown) matching "entries")
          (when (zero? (long matching))
            (if (empty? rows) "The map has no entries. " "No entry matches. "))])]))))

(defn view
  "Returns the view of a reading of a map with the parameters of the page.

  `row` is the row of the map on the page of the host."
  [{:keys [id] :as row} given options]
  (fn [{:keys [error gone] :as reading}]
    (if error
      {:end gone
       :parts [(summary row reading)
               (layout/part "problem" [:p {:class "problem" :role "alert"} error])]}
      {:parts (into [] (remove nil?)
                    (concat [(summary row reading) (rates-part reading) (heat-part reading)]
                            (entry-parts id given options reading)))})))

(defn hidden-view
  "Returns the view of a map whose entries are not shown."
  [row]
  {:end true
   :parts [(summary row nil)
           (layout/part
            "problem"
            [:p {:class "problem"}
             (str "The entries are not shown: no metric of the config is about this map, and everyone "
                  "who can connect to this server would read them. To show them, give the config "
                  ":http {:basic-auth …} or :http {:page :all}.")])]})

;; --- the document

(defn- form [id {:keys [q where sort limit bucket slots]}]
  [:form {:action (str "/maps/" id) :method "get" :role "search"}
   (layout/field "Filter" {:name "q" :value q :type "search" :placeholder "text in an entry"
                           :maxlength 200})
   (layout/field "Condition" {:name "where" :value where :placeholder "bytes>1M"
                              :maxlength most-parameter :spellcheck "false"
                              :autocapitalize "off"})
   (layout/field "Rows" {:name "limit" :type "number" :min 1 :max most-rows :class "small"
                         :value (cells/limit-of limit default-limit most-rows)})
   (when sort [:input {:type "hidden" :name "sort" :value sort}])
   (layout/field "Buckets in" {:name "bucket" :value bucket :placeholder "field"
                               :maxlength 200 :class "small" :spellcheck "false"
                               :autocapitalize "off"})
   [:label [:span "Slots"]
    [:select {:name "slots"}
     (for [x ["" "log2" "bcc" "bpftrace"]]
       [:option {:value x :selected (when (= x (or slots "")) "selected")} x])]]
   [:button {:type "submit"} "Apply"]])

(defn document
  "Returns the document of a map with a view.

  `events` is true if the page follows the map."
  [{:keys [id] :as row} given view events]
  (layout/document {:title (cells/map-name row)
                    :path [(str "map " id)]
                    :form (when events (form id given))
                    :parts (:parts view)
                    :events (when (and events (not (:end view)))
                              (markup/url (str "/maps/" id "/events") given))}))
