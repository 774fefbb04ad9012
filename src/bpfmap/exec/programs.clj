(ns ^:no-doc bpfmap.exec.programs
  "Implements the commands about programs: `prog list`, `prog show`, `prog dump` and `prog top`."
  (:require [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.listing :as listing]
            [bpfmap.exec.program-info :as program-info]
            [bpfmap.exec.query :as query]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.kernel.prog :as kernel.prog]
            [bpfmap.impl.open-object :as open-object]
            [bpfmap.impl.waiting :as waiting]
            [bpfmap.prog :as prog])
  (:import (clojure.lang IReduceInit)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(defn list-programs
  "Returns every program on the host with its maps, links, holders and pins.

  `:skipped` of the metadata has the programs that could not be read.

      (list-programs {}) ;=> [{:id 30, :type :xdp, :name \"count\", :tag \"…\", :maps [], … :held []}]"
  [options]
  (let [{:keys [wanted] :as plan} (listing/plan "prog list" program-info/program-fields options)
        programs (holders/programs {:brief (not (wanted :memlock))})
        row (program-info/program-row wanted)]
    (with-meta (listing/rows plan (eduction (map row) programs)) (meta programs))))

(defn- with-program
  "Calls f with the program of `:ref`: open, or given by id, pin path or name."
  [{:keys [ref]} f]
  (if (satisfies? open-object/OpenObject ref)
    (f ref)
    (with-open [^Closeable program (prog/open (if-let [name (:name ref)]
                                                (input/program-named name)
                                                ref))]
      (f program))))

(defn show
  "Returns the kernel's information about a program, and its owners.

      (show {:ref {:id 30}}) ;=> {:id 30, :type :xdp, …}"
  [options]
  (let [info (with-program options prog/info)]
    ((program-info/program-row any?) info)))

(defn dump
  "Returns the instructions of a program, as `bpfmap.prog/instructions` does.

  With `:jited`, returns its machine code, as `bpfmap.prog/machine-code` does.

      (dump {:ref {:id 30}}) ;=> {:name \"count\", :insns [[:mov64 :r0 0] [:exit]], :type :xdp}"
  [{:keys [jited] :as options}]
  (with-program options (if jited prog/machine-code prog/instructions)))

;; --- top

(def top-fields
  "The fields of a row of `prog top`.

  Headings of the table are aliases. See `bpfmap.exec.fields`."
  (let [number {:kind :number}]
    (fields/row [["id" number]
                 ["type" {:kind :name :names (update-keys kernel.prog/types name)}]
                 ["name" {:kind :text}]
                 ["runs-per-second" number]
                 ["average-ns" number]
                 ["cpu-percent" number]
                 ["runs" number]
                 ["time-ns" number]]
                {"runs/s" "runs-per-second" "average" "average-ns" "cpu" "cpu-percent"
                 "time" "time-ns"})))

(defn- rounded [x]
  (/ (Math/round (* 1000.0 (double x))) 1000.0))

(defn- counts
  "Returns the counters of all programs, by id."
  []
  (into {} (map (juxt :id identity)) (holders/programs {:brief true})))

(defn- more
  "Returns by how much a counter is larger than before."
  ^long [k info before]
  (- (long (k info 0)) (long (k before 0))))

(defn- row
  "Returns the row of a program.

  It is made of its counters now, at the reading before, and when measuring began. A program that
  did not run has no average."
  [{:keys [id type name] :as info} before begun seconds]
  (let [runs (more :run-count info before)
        time (more :run-time-ns info before)
        row (array-map :id id :type type :name name
                       :runs-per-second (rounded (/ runs (double seconds)))
                       :average-ns (when (pos? runs) (rounded (/ time (double runs))))
                       :cpu-percent (rounded (/ time (double seconds) 1e7))
                       :runs (more :run-count info begun)
                       :time-ns (more :run-time-ns info begun))]
    (if (pos? runs) row (dissoc row :average-ns))))

(defn arranged
  "Returns the rows that `:where` and `:limit` select, in the order of `:sort`.

  By default, the busiest come first.

      (arranged {} [{:id 30 :cpu-percent 0.1} {:id 31 :cpu-percent 2.5}])"
  [{:keys [sort] :as options} rows]
  (query/rows (cond-> (assoc options :fields top-fields)
                (nil? sort) (assoc :sort (query/column "-cpu-percent")))
              rows))

(defn- frame
  "Returns the frame for two readings, and the reading when measuring began.

  The counters of a program that was loaded later began with 0."
  [options begun before now]
  (let [seconds (max 1e-3 (- (double (:at now)) (double (:at before))))
        of (fn [reading id] (get (:counts reading) id {}))]
    {:elapsed (rounded (- (double (:at now)) (double (:at begun))))
     :interval (rounded seconds)
     :programs (count (:counts now))
     :rows (arranged options
                     (for [[id info] (sort-by key (:counts now))]
                       (row info (of before id) (of begun id) seconds)))}))

(defn top
  "Returns frames with the run times of all programs, to reduce.

  There is one every `:interval` seconds:

  | key                    | meaning                                                                |
  |------------------------|------------------------------------------------------------------------|
  | `:elapsed` `:interval` | seconds since measuring began, and since the previous frame            |
  | `:programs`            | the number of programs on the host                                     |
  | `:rows`                | programs: `:id :type :name :runs-per-second :average-ns :cpu-percent :runs :time-ns` |

  The kernel measures during the reduction. `:average-ns` and `:cpu-percent` are of the interval,
  `:runs` and `:time-ns` since measuring began. `:average-ns` is missing if the program did not run.
  The reduction ends after `:seconds` or `:rounds` frames (`:once`: one), or when the promise `stop`
  is delivered.

      (reduce (fn [_ frame] (println (first (:rows frame)))) nil (top {:interval 1.0 :seconds 10}))"
  ([options] (top options (promise)))
  ([{:keys [interval seconds] :as options} stop]
   (query/check (assoc options :fields top-fields))
   (let [most (arguments/rounds "prog top" options)
         clock #(/ (- (System/nanoTime)) -1e9)
         reading (fn [] {:at (clock) :counts (counts)})]
     (reify IReduceInit
       (reduce [_ f init]
         (with-open [^Closeable _ (prog/enable-statistics!)]
           (let [begun (reading)
                 ends (when seconds (+ (double (:at begun)) (double seconds)))
                 due (fn [before]
                       (let [due (+ (double (:at before)) (double interval))]
                         ;; No frame of a fraction of the interval at the end
                         (if (and ends (< (- (double ends) due) (* 0.1 (double interval))))
                           ends
                           due)))
                 wait (fn [before]
                        (let [pause (long (Math/ceil (* 1000 (- (double (due before))
                                                                (double (clock))))))]
                          (= ::over (waiting/value stop (max 1 pause) ::over :top))))]
             (loop [acc init before begun n 1]
               (if-not (wait before)
                 acc ; stopped
                 (let [now (reading)
                       acc (f acc (frame options begun before now))]
                   (cond
                     (reduced? acc) @acc
                     (= n most) acc
                     (and ends (<= (double ends) (double (clock)))) acc
                     :else (recur acc now (inc n)))))))))))))
