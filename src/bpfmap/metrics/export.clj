(ns ^:no-doc bpfmap.metrics.export
  "Serves the config in a file over HTTP, and reads the file again on demand.

  The registry has one collector, which passes on to the collection of the current config. So no
  scrape is lost while the config changes."
  (:require [bpfmap.error :as error]
            [bpfmap.metrics.collecting :as collecting]
            [bpfmap.metrics.config-file :as config-file]
            [bpfmap.metrics.page :as page]
            [bpfmap.metrics.page.readings :as readings]
            [bpfmap.metrics.page.watched :as watched]
            [bpfmap.metrics.server :as server]
            [bpfmap.metrics.snapshot :as snapshot])
  (:import (clojure.lang ExceptionInfo)
           (io.prometheus.metrics.model.registry MultiCollector PrometheusRegistry)
           (io.prometheus.metrics.model.snapshots MetricSnapshot MetricSnapshots)
           (java.util Collection)))

(set! *warn-on-reflection* true)

(defn- seconds-now [] (/ (System/currentTimeMillis) 1e3))

(defn- config-families
  "Returns the families about the config."
  [{:keys [good loaded]}]
  (for [[name help x]
        [["bpfmap_config_last_reload_successful"
          "1 if the config was valid when it was last read, 0 if the one before is still in use."
          (if good 1 0)]
         ["bpfmap_config_last_reload_success_timestamp_seconds"
          "Time at which the config in use was read." loaded]]]
    {:name name :type :gauge :help help :label-names [] :rows [[[] x]]}))

(defn- collect
  "Returns the snapshots of the current collection.

  If it was closed after it was looked up here, another one has taken its place."
  [state]
  (loop []
    (let [{:keys [collection] :as current} @state]
      (if-let [found (collecting/collect collection #(into [] (keep snapshot/snapshot) %))]
        (let [^Collection all (into found (map snapshot/snapshot) (config-families current))]
          (MetricSnapshots. all))
        (if (identical? collection (:collection @state))
          (MetricSnapshots. ^"[Lio.prometheus.metrics.model.snapshots.MetricSnapshot;"
                            (make-array MetricSnapshot 0))
          (recur))))))

(defn- page-of
  "Returns a function that starts the page, for `bpfmap.metrics.server/start`."
  [state]
  (fn [{:keys [http loopback]}]
    (let [metrics-of (fn [row] (watched/metrics-of (:config @state) row))
          all? #(let [{:keys [page basic-auth]} (http)]
                  (or (= :all page) (and basic-auth (nil? page))))
          started (page/start
                   {:host (readings/source)
                    :map-source (fn [row params]
                                  (watched/source (:id row) #(metrics-of row) params))
                    :metrics-of metrics-of
                    :all all?
                    :loopback loopback})]
      (assoc started
             :handle #(when-not (false? (:page (http))) (page/handle started %))
             :renew #(page/end-streams started)
             :close #(page/stop started)))))

(defn start
  "Serves the config of a file; the result is for [[reload]] and [[stop]].

  `:url` has the address, and `:paged` is true if the page is served. `on-change` is as of `bpfmap.metrics/collector`. Throws the errors of
  reading the config and of starting the server; nothing stays open then."
  [file on-change]
  (let [config (config-file/read-config file)
        options {:on-change on-change}
        collection (collecting/start config options)
        state (atom {:collection collection :config config :good true :loaded (seconds-now)})
        registry (PrometheusRegistry.)
        scrape (collecting/sharing #(collect state))]
    (.register registry (reify MultiCollector (collect [_] (scrape))))
    (try
      (merge {:file file :options options :state state :paged (not (false? (:page (:http config))))}
             (server/start registry (:http config) (page-of state)
                           #(on-change {:up false :message (str "A scrape failed: " %)})))
      (catch Throwable e
        (collecting/close collection)
        (throw e)))))

(defn reload
  "Reads the config and its files again; returns a text about what happened.

  An invalid config is not used: the one before stays. A new `:http` is not used if the server
  would have to listen in another way."
  [{:keys [file options state page] :as export}]
  (locking state
    (try
      (let [config (config-file/read-config file)
            {:keys [restart] use-http :use} (server/prepare export (:http config))
            collection (collecting/start config options)
            {former :collection former-config :config} @state]
        (swap! state assoc :collection collection :config config :good true :loaded (seconds-now))
        (use-http)
        (when (not= config former-config)
          ((:renew page))) ; clients may see other maps than before
        (collecting/close former)
        (str "The config " (error/printed file) " was read again"
             (when (seq restart)
               (str ", but its :http is not in use: restart to " (error/list-of restart "and")))))
      (catch ExceptionInfo e
        (swap! state assoc :good false)
        (str (ex-message e) "; the config before it stays in use")))))

(defn stop
  "Stops the server, and closes the collection."
  [{:keys [state] :as export}]
  (server/stop export)
  (collecting/close (:collection @state)))
