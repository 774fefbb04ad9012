(ns ^:no-doc bpfmap.metrics.page.host
  "The page of all maps of the host: reads them, and shows them as a table.

  The numbers of entries are read each time, and what takes longer (memory, owners, pins) less
  often."
  (:require [bpfmap.exec.host :as exec.host]
            [bpfmap.exec.map-info :as map-info]
            [bpfmap.exec.output :as output]
            [bpfmap.exec.query :as query]
            [bpfmap.exec.views :as views]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.host.pressure :as pressure]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.metrics.page.layout :as layout]
            [bpfmap.metrics.page.markup :as markup]
            [bpfmap.metrics.page.picture :as picture]
            [bpfmap.metrics.page.shared :as shared]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

;; --- reading

(def interval "Milliseconds between two readings of the host." 2000)

(def ^:private owners-interval "Milliseconds between two readings of owners." 10000)

(defn- owners
  "Returns the rows of `list` by id: whole names, memory, pins, holders and programs."
  []
  (into {} (map (juxt :id #(select-keys % [:name :memlock :held :used-by :pinned :frozen])))
        (exec.host/list-maps {:columns [["id"] ["name"] ["memlock"] ["held"] ["used-by"]
                                        ["pinned"] ["frozen"]]})))

(defn- numbers
  "Returns the infos of all maps with their entries, `:full` and `:fill`."
  []
  (let [counts (pressure/kernel-counts)
        until (pressure/deadline 250)]
    (holders/maps
     {:brief true
      :row (fn [scanner info]
             (let [n (exec.host/entries info false #(pressure/entries scanner info counts until))]
               (cond-> (map-info/with-entries info info n (constantly true))
                 (map-info/ring? info) (assoc :fill (map-info/fill info)))))})))

(defn source
  "Returns the source of readings of the host: `{:rows}`, or `{:error}` if it cannot be read."
  []
  (let [slow (shared/source owners-interval (fn [_] (owners)))]
    (shared/source interval
                   (fn [_]
                     (try
                       (let [infos (numbers)
                             [_ by-id] (shared/current slow)]
                         {:rows (mapv #(merge % (get by-id (:id %))) infos)})
                       (catch ExceptionInfo e
                         {:error (ex-message e)}))))))

;; --- selecting rows

(def params "The parameters of the page." [:q :sort :limit])

(def ^:private default-limit 200)
(def ^:private most-rows "The largest number of rows of a page." 2000)

(defn limit-of
  "Returns the parameter `limit` as a number within bounds.

      (limit-of \"50\" 200 2000) ;=> 50"
  [text default most]
  (let [n (when (and text (re-matches #"[0-9]{1,6}" text)) (parse-long text))]
    (if (and n (pos? (long n))) (min (long n) (long most)) default)))

(defn- text-of [{:keys [id name type held used-by pinned]}]
  (str/lower-case
   (str/join " " (concat [id name (output/cell type)] (map views/holder-text held)
                         (map views/user-text used-by) pinned))))

(def ^:private columns
  [{:name "id" :title "ID" :numeric true}
   {:name "name" :title "Name"}
   {:name "full" :title "Full" :numeric true}
   {:name "entries" :title "Entries" :numeric true}
   {:name "type" :title "Type"}
   {:name "memlock" :title "Memory" :numeric true}
   {:name "held" :title "Held by"}
   {:name "used-by" :title "Used by"}
   {:name "pinned" :title "Pinned at"}])

(def ^:private sort-keys
  "Functions of a row for columns whose values are not in order by themselves."
  {"held" (comp :command first :held)
   "used-by" (comp :name first :used-by)
   "pinned" (comp first :pinned)})

(defn- ordered
  "Returns the rows in the order of the parameter `sort`; missing values come last."
  [sort rows]
  (let [down? (str/starts-with? (or sort "") "-")
        column (if down? (subs sort 1) (or sort "id"))
        k (when (some #(= column (:name %)) columns)
            (get sort-keys column (keyword column)))]
    (if-not k
      rows
      (let [[known unknown] ((juxt filter remove) #(some? (k %)) rows)
            compare-rows (if down? #(query/order %2 %1) query/order)]
        (concat (sort-by k compare-rows known) unknown)))))

;; --- the table

(defn fullness-level
  "Returns the class of a bar: `high` from 90 percent on, unless the map evicts entries.

      (fullness-level {:type :hash :full 97.7}) ;=> \"high\""
  [{:keys [type full]}]
  (cond
    (nil? full) nil
    (:evicts (map-types/types type)) "evicts"
    (<= 90.0 (double full)) "high"))

(defn fullness
  "Returns how full a map is as a bar and a text; nil if it has no fullness."
  [{:keys [full fill max-entries] :as row}]
  (cond
    full [[:span {:class "text"} (views/full-text row)]
          (picture/bar full "Full" (fullness-level row))]
    fill (let [percent (/ (Math/round (/ (* 1000.0 (long fill)) (long max-entries))) 10.0)]
           [[:span {:class "text"} (output/human-size fill)]
            (picture/bar percent "Ring in use" nil)])))

(defn- several
  "Returns the first texts, and how many are left out."
  [texts]
  (when (seq texts)
    (str (str/join ", " (map output/cell (take 3 texts)))
         (when (< 3 (count texts)) (str " +" (- (count texts) 3))))))

(defn map-name
  "Returns the name of a map for people, or its id."
  [{:keys [id name]}]
  (if (str/blank? name) (str "map " id) (output/cell name)))

(defn owners-text
  "Returns the holders, programs and pins of a map, each as a text."
  [{:keys [held used-by pinned]}]
  [(several (map views/holder-text held))
   (several (map views/user-text used-by))
   (several pinned)])

(defn- row-part [{:keys [id type entries max-entries memlock] :as row}]
  (let [[held used pinned] (owners-text row)]
    (layout/part (str "m" id)
                 [:tr {}
                  [:td {:class "number"} id]
                  [:th {:scope "row"} [:a {:href (str "/maps/" id)} (map-name row)]]
                  [:td {:class "number full"} (fullness row)]
                  [:td {:class "number"}
                   (when entries [[:span entries] [:span {:class "of"} " / "]])
                   [:span {:class (when entries "of")} max-entries]]
                  [:td (output/cell type)]
                  [:td {:class "number"} (some-> memlock output/human-size)]
                  [:td {:class "wide"} held]
                  [:td {:class "wide"} used]
                  [:td {:class "wide"} pinned]])))

(defn- summary [rows shown matching]
  (let [memory (transduce (keep :memlock) + 0 rows)
        high (count (filter #(= "high" (fullness-level %)) rows))]
    (layout/part "summary"
                 [:p {:class "summary"}
                  [:span [:b (count rows)] (if (= 1 (count rows)) " map" " maps")]
                  [:span [:b (output/human-size memory)] " of memory"]
                  [:span {:class (when (pos? high) "high")} [:b high] " nearly full"]
                  (when (not= matching (count rows))
                    [:span [:b matching] " match"])
                  (when (< (long shown) (long matching))
                    [:span [:b shown] " shown"])])))

(defn view
  "Returns the view of a reading with the parameters of the page."
  [params]
  (fn [{:keys [rows error]}]
    (let [{:keys [q sort limit]} params
          limit (limit-of limit default-limit most-rows)
          words (remove str/blank? (str/split (str/lower-case (or q "")) #"\s+"))
          matching (if (seq words)
                     (filter (fn [row] (let [text (text-of row)]
                                         (every? #(str/includes? text %) words)))
                             rows)
                     rows)
          shown (take limit (ordered sort matching))]
      (if error
        {:parts [(layout/part "problem" [:p {:class "problem"} error])]}
        {:parts
         (concat
          [(summary rows (count shown) (count matching))
           ["open" (str "<div class=\"box\" id=\"open\" role=\"region\" tabindex=\"0\" "
                        "aria-label=\"Maps\"><table id=\"rows\">")]
           (layout/part "head"
                        [:thead {}
                         [:tr (map #(layout/sort-heading % params "/") columns)]])
           ["body" "<tbody id=\"body\">"]]
          (map row-part shown)
          [["close" "</tbody></table></div>"]
           (layout/part "left"
                        [:p {:class "note"}
                         (layout/left-out (count shown) (count matching) "maps")
                         (when (and (empty? shown) (empty? matching))
                           (if (seq words) "No map matches. " "There are no maps. "))])])}))))

(defn form
  "Returns the form that filters the maps."
  [{:keys [q sort limit]}]
  [:form {:action "/" :method "get" :role "search"}
   (layout/field "Filter" {:name "q" :value q :type "search" :placeholder "name, type, owner, path"
                           :maxlength 200})
   (layout/field "Rows" {:name "limit" :value (limit-of limit default-limit most-rows)
                         :type "number" :min 1 :max most-rows :class "small"})
   (when sort [:input {:type "hidden" :name "sort" :value sort}])
   [:button {:type "submit"} "Apply"]])

(defn page
  "Returns the document of a reading."
  [params reading]
  (layout/document {:title "Maps of this host"
                    :form (form params)
                    :parts (:parts ((view params) reading))
                    :events (markup/url "/events" params)}))
