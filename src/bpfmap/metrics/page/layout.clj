(ns ^:no-doc bpfmap.metrics.page.layout
  "The frame of a page, and tables whose headings sort them."
  (:require [bpfmap.metrics.page.markup :as markup]))

(set! *warn-on-reflection* true)

(defn document
  "Returns a page as HTML.

  `:parts` are the parts of a view, `:events` is the URL of its events, `:path` are links from `/` to
  the page, and `:form` comes above the parts."
  [{:keys [title path form parts events]}]
  (str
   "<!DOCTYPE html>\n"
   (markup/html
    [:html {:lang "en"}
     [:head
      [:meta {:charset "utf-8"}]
      [:meta {:name "viewport" :content "width=device-width, initial-scale=1"}]
      [:meta {:name "color-scheme" :content "light dark"}]
      [:title title]
      [:link {:rel "icon" :href "/page.svg" :type "image/svg+xml"}]
      [:link {:rel "stylesheet" :href "/page.css"}]
      [:script {:src "/page.js" :defer "defer"} ""]]
     [:body
      [:a {:class "skip" :href "#live"} "Skip to the content"]
      [:header
       [:nav {:aria-label "Place"}
        [:a {:href "/" :aria-current (when (empty? path) "page")} "bpfmap"]
        (for [text path]
          [[:span {:aria-hidden "true"} " / "] [:span {:aria-current "page"} text]])]
       [:p {:id "status" :role "status"} ""]]
      [:main
       [:h1 title]
       form
       [:div {:id "live" :data-events events :tabindex -1}
        (markup/written (map second parts))]
       [:noscript [:p {:class "note"} "Reload the page for new numbers."]]]]])))

(defn part
  "Returns a part of a view: an element with an id."
  [id x]
  [id (markup/html (update x 1 assoc :id id))])

(defn sort-heading
  "Returns the heading of a column, as a link that sorts by it.

  `order` is the current order, such as `-entries`. A second click sorts the other way."
  [{:keys [title name numeric]} {:keys [sort] :as params} path]
  (let [down (str "-" name)
        way (cond (= sort name) "ascending" (= sort down) "descending")
        next-order (cond (= sort name) down (= sort down) name numeric down :else name)]
    [:th {:scope "col" :aria-sort way :class (when numeric "number")}
     [:a {:href (markup/url path (assoc params :sort next-order))}
      title
      (when way [:span {:aria-hidden "true"} (if (= "ascending" way) " ↑" " ↓")])]]))

(defn field
  "Returns an input of a form with its label."
  [label attributes]
  [:label [:span label] [:input attributes]])

(defn left-out
  "Returns a sentence about rows that are not shown, or nil."
  [shown all noun]
  (when (< (long shown) (long all))
    (str (- (long all) (long shown)) " more " noun " left out: raise the limit or filter. ")))
