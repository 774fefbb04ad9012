(ns ^:no-doc bpfmap.metrics.page.host
  "The page of all maps of the host: shows a reading as a table."
  (:require [bpfmap.exec.output :as output]
            [bpfmap.exec.query :as query]
            [bpfmap.metrics.page.cells :as cells]
            [bpfmap.metrics.page.layout :as layout]
            [bpfmap.metrics.page.markup :as markup]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

;; --- selecting rows

(def params "The parameters of the page." [:q :sort :limit])

(def ^:private default-limit 200)
(def ^:private most-rows "The largest number of rows of a page." 2000)

(defn- text-of [{:keys [id name type held used-by pinned]}]
  (str/lower-case
   (str/join " " (concat [id name (output/cell type)] (map output/holder-text held)
                         (map output/user-text used-by) pinned))))

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

(defn- row-part [{:keys [id type entries max-entries memlock] :as row}]
  (let [[held used pinned] (cells/owners-text row)]
    (layout/part (str "m" id)
                 [:tr {}
                  [:td {:class "number"} id]
                  [:th {:scope "row"} [:a {:href (str "/maps/" id)} (cells/map-name row)]]
                  [:td {:class "number full"} (cells/fullness row)]
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
        high (count (filter #(= "high" (cells/fullness-level %)) rows))]
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
          limit (cells/limit-of limit default-limit most-rows)
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
   (layout/field "Rows" {:name "limit" :value (cells/limit-of limit default-limit most-rows)
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
