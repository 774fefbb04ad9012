(ns bpfmap.cli.demo
  "The command `demo`: a BPF program counts the system calls of the whole host in a map of this library.

  The program is the kernel's side of the map and this process the other: it
  reads the map while the program writes to it. Nothing is pinned, so that all goes with
  the process, however it ends."
  (:require [bpfmap.cli.output :as output]
            [bpfmap.cli.signals :as signals]
            [bpfmap.core :as bpf]
            [bpfmap.prog :as prog]
            [bpfmap.syscalls :as syscalls])
  (:import (clojure.lang ExceptionInfo)
           (java.io Closeable)
           (java.util Locale)))

(set! *warn-on-reflection* true)

(def map-spec
  "The map that the demo counts in: number of a system call to how often it was called."
  {:name "bpfmap_demo" :type :hash :key :u32 :value :u64 :max-entries 512})

;; --- the kernel's side

(defn- look-up
  "r0 is the address of the value of the key at r10-4, or 0."
  [m]
  [[:lddw :r1 m]
   [:mov64 :r2 :r10]
   [:add64 :r2 -4]
   [:call :map-lookup-elem]])

(defn- instructions
  "What the program does at the raw tracepoint sys_enter, whose arguments are the registers and the call's number."
  [m]
  [[:ldxdw :r6 [:r1 8]]
   [:stxw [:r10 -4] :r6]
   (look-up m)
   [:jne :r0 0 :count]
   ;; The first call of this number: insert 1, unless another CPU just did.
   [:stdw [:r10 -16] 1]
   [:lddw :r1 m]
   [:mov64 :r2 :r10]
   [:add64 :r2 -4]
   [:mov64 :r3 :r10]
   [:add64 :r3 -16]
   [:mov64 :r4 1] ; BPF_NOEXIST
   [:call :map-update-elem]
   [:jeq :r0 0 :end]
   (look-up m)
   [:jeq :r0 0 :end] ; only when the map is full
   :count
   [:mov64 :r1 1]
   [:atomic-add64 [:r0 0] :r1]
   :end
   [:mov64 :r0 0]
   [:exit]])

;; --- counts as data

(defn calls
  "What was counted, the most frequent first: `{:number :name :count :per-second}` of each system call.

  The rate is of what came since the `earlier` counts, in so many seconds.

      (calls {39 30} {39 10} 2.0) ;=> [{:number 39, :name \"getpid\", :count 30, :per-second 10.0}]"
  [counts earlier seconds]
  (->> (for [[number n] counts]
         {:number number
          :name (syscalls/syscall-name number)
          :count n
          :per-second (/ (Math/round (double (/ (* 1000 (- n (earlier number 0))) seconds))) 1000.0)})
       (sort-by (juxt (comp - :count) :number))
       vec))

(defn- total [counts]
  (reduce + (vals counts)))

(defn- seconds-text [x]
  (String/format Locale/ROOT "%.1f" (object-array [(double x)])))

(def ^:private columns
  [{:title "NR" :of :number}
   {:title "NAME" :of :name}
   {:title "COUNT" :of :count :align :right}
   {:title "PER-SECOND" :of (comp seconds-text :per-second) :align :right}])

;; --- the live table

(def ^:private frame-millis 250)

(def ^:private window-seconds
  "The live table shows the rates of about the last second."
  1.0)

(defn- frame
  "The lines of the live table, for a screen of this height."
  [{:keys [samples counts elapsed seconds] {:keys [id]} :map} height]
  (let [[before earlier] (first samples)
        title [(str "System calls of this whole host, counted in the kernel into BPF hash map " id)
               (str (seconds-text elapsed) " of " (seconds-text seconds) " s: " (total counts) " calls of "
                    (output/plural (count counts) "kind" "kinds") "; Ctrl-C ends it")
               ""]
        room (max 0 (- height (count title) 1))]
    (into title (output/table columns (take room (calls counts earlier (max 0.1 (- elapsed before))))))))

(defn- with-sample
  "Adds a sample to `[[elapsed counts] …]`, and drops those that the window has left behind."
  [samples [elapsed :as sample]]
  (let [behind? (fn [[t]] (<= window-seconds (- elapsed t)))]
    (loop [samples (conj samples sample)]
      (if (behind? (second samples))
        (recur (subvec samples 1))
        samples))))

;; --- one run

(defn- watch
  "Waits until `stop` is delivered or the seconds are over; returns how many there were. Meanwhile calls `show`, if
  given, with what there is to show, over and over."
  [m seconds stop show]
  (let [began (System/nanoTime)
        elapsed #(/ (- (System/nanoTime) began) 1e9)]
    (loop [samples [[0.0 {}]]]
      (let [now (elapsed)
            left (long (Math/ceil (* 1000 (- seconds now))))]
        (cond
          (or (not (pos? left)) (realized? stop))
          now

          show
          (let [counts (into {} m)]
            (show {:samples samples :counts counts :elapsed now :seconds seconds})
            (deref stop (min left frame-millis) nil)
            (recur (with-sample samples [now counts])))

          :else
          (do (deref stop left nil)
              (recur samples)))))))

(defn- observe
  "Counts until `stop` is delivered or the seconds are over. Returns `{:map :elapsed :counts}`, the map gone or about
  to go."
  [seconds stop show]
  (with-open [^Closeable m (bpf/create map-spec)
              ^Closeable program (prog/load {:type :raw-tracepoint
                                             :name (:name map-spec)
                                             :insns (instructions m)})]
    (let [info (select-keys (bpf/info m) [:id :type :name])
          elapsed (with-open [^Closeable _ (prog/attach-raw-tracepoint program "sys_enter")]
                    (watch m seconds stop (when show #(show (assoc % :map info)))))]
      ;; Only now that nobody writes any more are the counts final.
      {:map info :elapsed elapsed :counts (into {} m)})))

(defn- gone?
  "Whether the kernel has removed a map: it does so shortly after the last program that uses it went. Waits for that."
  [id]
  (loop [attempts 100]
    (let [answer (try
                   (.close ^Closeable (bpf/open id {:access :read-only}))
                   (catch ExceptionInfo e (:bpfmap/error (ex-data e))))]
      (cond
        (= :not-found answer) true
        (and (nil? answer) (pos? attempts)) (do (Thread/sleep 20) (recur (dec attempts)))
        :else false))))

(defn- result
  "What the command returns, of a run. On a screen of some height, the table's top that fits."
  [{:keys [elapsed counts] {:keys [id type name]} :map :as run} signal height]
  (let [all (calls counts {} elapsed)
        shown (if height (take (max 1 (- height 4)) all) all)] ; heading, closing lines, the shell's prompt
    {:value {:map (:map run) :seconds elapsed :total (total counts) :calls all}
     :lines (delay (output/table columns shown))
     :closing [(str "Counted " (total counts) " system calls of " (output/plural (count all) "kind" "kinds")
                    " in " (seconds-text elapsed) " s"
                    (when (< (count shown) (count all)) (str "; the top " (count shown) " are above")))
               (str "They were in BPF map " id " (" (clojure.core/name type) ", " name "), "
                    (if (gone? id) "which is gone now" "which the kernel is removing now"))]
     :exit (if signal (+ 128 (signals/numbers signal)) 0)}))

(defn- terminal?
  "Whether both input and output are a user's terminal, as JLine wants them."
  []
  (some-> (System/console) .isTerminal))

(defn- observe-live
  "Observes, and shows it on the terminal. Returns what was observed and how many lines the terminal has, if it is one
  to draw on."
  [seconds stop]
  (let [[open size draw suspended close] (map #(requiring-resolve (symbol "bpfmap.cli.screen" %))
                                              ["open" "size" "draw" "suspended" "close"])
        screen (delay (open)) ; not before there is something to show
        opened #(when (realized? screen) @screen)
        height #(some-> (opened) size :height)]
    (try
      (signals/handling
       {"TSTP" #(if (opened) (suspended @screen signals/stop-process) (signals/stop-process))}
       #(vector (observe seconds stop (fn [state] (when @screen (draw @screen (frame state (height))))))
                (height)))
      (finally
        (some-> (opened) close)))))

(defn demo
  "Counts the system calls of the host for `:seconds` (5.0), or until Ctrl-C; on a terminal, shows them live meanwhile.

      (:value (demo [] {:seconds 1.0 :edn true}))
      ;=> {:map {:id 12, …}, :seconds 1.0, :total 4711, :calls [{:number 0, :name \"read\", :count 1200, …} …]}"
  [_args {:keys [seconds edn json] :or {seconds 5.0}}]
  (let [stop (promise)
        stopping (into {} (map (fn [name] [name #(deliver stop name)])) (keys signals/numbers))]
    (signals/handling
     stopping
     (fn []
       (let [[run height] (if (and (terminal?) (not edn) (not json))
                            (observe-live seconds stop)
                            [(observe seconds stop nil)])]
         (result run (deref stop 0 nil) height))))))
