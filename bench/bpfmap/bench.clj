(ns bpfmap.bench
  "Measures bpfmap beside the same work in C, on the same maps, in the same run.

      bin/clj -M:bench                        everything, and into doc/performance.md
      bin/clj -M:bench --quick                two sizes, one thread, fewer rounds, printed only
      bin/clj -M:bench --only \"lookup, hit\"   the operations whose name contains this, printed only
      bin/clj -M:bench --map array            the maps whose name contains this, printed only
      bin/clj -M:bench --sizes 1000,100000 --threads 1
      bin/clj -M:bench --rounds 3             everything, in 3 rounds instead of 5

  Needs the right to make BPF maps and to open them by id (run it as root), and a C compiler.
  `bpfmap.bench.rows` says what is measured, doc/performance.md how to read it. What is measured
  in part is written there with --write only."
  (:require [bpfmap.bench.measure :as measure]
            [bpfmap.bench.page :as page]
            [bpfmap.bench.report :as report]
            [bpfmap.bench.shapes :as shapes]
            [bpfmap.bench.targets :as targets]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(defn- positive [text]
  (let [n (some-> text parse-long)]
    (when (and n (pos? n)) n)))

(defn- numbers [text]
  (let [ns (some->> (some-> text (str/split #",")) (map positive))]
    (when (and (seq ns) (every? some? ns)) (vec (sort ns)))))

(def ^:private everything {:sizes [1000 100000 1000000] :threads [1 2] :rounds 5})

(def ^:private options
  "Option to what it sets, and what reads its argument; or to what it sets at once."
  {"--rounds" [:rounds positive]
   "--sizes" [:sizes numbers]
   "--threads" [:threads numbers]
   "--only" [:only identity]
   "--map" [:kind identity]
   "--write" {:write true}
   "--quick" {:sizes [1000 100000] :threads [1] :rounds 3}})

(defn- parse [args]
  (loop [[arg & more] args parsed everything]
    (if-not arg
      parsed
      (let [option (options arg)]
        (if (map? option)
          (recur more (merge parsed option))
          (let [[k reader] option
                value (when reader (reader (first more)))]
            (when-not value
              (throw (ex-info (str "unclear: " (str/join " " (take 2 (cons arg more)))
                                   "; it takes --quick, --only TEXT, "
                                   "--map TEXT, --sizes N,N, --threads N,N, --rounds N, --write")
                              {})))
            (recur (rest more) (assoc parsed k value))))))))

(defn- containing [text name]
  (or (nil? text) (str/includes? name text)))

(defn- command-line [args]
  (str/join " " (cons "bin/clj -M:bench" (map #(if (str/includes? % " ") (pr-str %) %) args))))

(defn- minutes [ns]
  (format "%.0f min" (/ ns 60e9)))

(defn- report-lines [args {:keys [rounds]} machine summaries took collected]
  (concat (report/facts
           (concat [["command" (str "`" (command-line args) "`")]]
                   machine
                   [["rounds" rounds]
                    ["undisturbed slices"
                     (format "%.0f %%" (* 100 (report/median (map :undisturbed summaries))))]
                    ["it took"
                     (str (minutes took) ", of which the garbage collector had "
                          (format "%.1f s" (/ collected 1e3)))]]))
          [""]
          (targets/table summaries)
          [""]
          (report/map-tables summaries)))

(defn -main
  "Runs the benchmark and prints its tables; see the namespace for the options."
  [& args]
  (try
    (let [{:keys [only kind] :as options} (parse args)
          machine (report/machine)
          begun (System/nanoTime)
          summaries (measure/measure
                     (assoc options
                            :kinds (filter #(containing kind (:title %)) shapes/maps)
                            :wanted #(containing only (:operation %))
                            :progress (fn [text] (binding [*out* *err*] (println "bench:" text)))))
          _ (when (empty? summaries)
              (throw (ex-info "no row is of an operation and a map with such names" {})))
          lines (report-lines args options machine summaries
                              (- (System/nanoTime) begun) (measure/garbage-collection))]
      (run! println lines)
      (when (or (:write options) (= (dissoc everything :rounds) (dissoc options :rounds)))
        (page/write "bin/clj -M:bench" lines)
        (println "Wrote" page/file)))
    (catch ExceptionInfo e
      (binding [*out* *err*] (println "bench:" (ex-message e)))
      (System/exit 1)))
  (shutdown-agents))
