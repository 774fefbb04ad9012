(ns ^:no-doc bpfmap.cli.export
  "Runs the command `export`: serves metrics until a signal ends it, or checks a config."
  (:require [bpfmap.cli.interactive :as interactive]
            [bpfmap.error :as error]
            [bpfmap.exec.output :as output]
            [bpfmap.metrics.collecting :as collecting]
            [bpfmap.metrics.config-file :as config-file]
            [bpfmap.metrics.credentials :as credentials]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(defn- check
  "Returns the view of `--check`: a line for each problem.

  As data it is `{:problems [{:message text}] :missing [text]}`; a problem in the config has its
  `:path`."
  [file]
  (let [{:keys [config problems missing]} (collecting/check (config-file/read-data file))
        {:keys [metrics http]} config
        problems (into problems (map #(hash-map :message %)) (credentials/problems http))]
    {:value {:problems problems :missing missing}
     :lines (if (seq problems)
              (map :message problems)
              [(str "The config is valid: "
                    (error/plural (count metrics) "metric"))])
     :notes missing
     :exit (if (seq problems) 1 0)}))

(defn- library-missing []
  (error/error :not-supported "export requires the libraries of io.prometheus"
               {:bpfmap/hint (str "run bin/bpfmap export in a checkout of bpfmap, which gets them "
                                  "from Maven Central, or bin/clj -M:export")}))

(defn- library?
  "Returns true if the libraries of the alias :export are on the class path."
  []
  (try
    (Class/forName "io.prometheus.metrics.exporter.httpserver.HTTPServer")
    true
    (catch ClassNotFoundException _ false)))

(defn- complain-change [{:keys [map up message]}]
  (output/complain "bpfmap: " (if up
                                (str "map " map " can be read again")
                                (cond->> message map (str "map " map ": ")))))

(defn- serve [file]
  (let [[start reload stop] (mapv #(requiring-resolve (symbol "bpfmap.metrics.export" %))
                                  ["start" "reload" "stop"])
        ended (promise)
        exporter (promise)]
    (interactive/handling
     {"HUP" #(output/complain "bpfmap: " (reload @exporter))
      "INT" #(deliver ended true)
      "TERM" #(deliver ended true)}
     (fn []
       (let [{:keys [url paged] :as started} (start file complain-change)]
         (try
           (deliver exporter started)
           (println "Metrics are at" url)
           (when paged
             (println "The page is at" (str/replace url #"metrics$" "")))
           (flush)
           @ended
           (finally (stop started))))))
    {:as-text true :lines []}))

(defn export
  "Serves the config in a file, or with `--check` prints its problems."
  [{:keys [config] check? :check} _request]
  (cond
    check? (check config)
    (library?) (serve config)
    :else (throw (library-missing))))
