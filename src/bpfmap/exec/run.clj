(ns ^:no-doc bpfmap.exec.run
  "Implements the command `run`: loads a compiled object, attaches its programs, and reports what
  they do, as rows to reduce.

  A row is one of:

  | row                              | meaning                                                        |
  |----------------------------------|----------------------------------------------------------------|
  | `{:status :running :elapsed …}`  | everything is attached; the first row, a summary as below      |
  | `{:elapsed s :programs …}`       | a summary, at every interval                                   |
  | `{:map name :value event}`       | an event of a ring buffer or perf event array, as for `tail`   |
  | `{:map name :lost n}`            | n events found no room in a buffer of a perf event array       |
  | `{:status :ended :elapsed …}`    | the last row, a summary before everything is taken away        |

  A summary has:

  | key          | value                                                                              |
  |--------------|------------------------------------------------------------------------------------|
  | `:object`    | the name of the object                                                             |
  | `:elapsed`   | seconds since everything was attached                                              |
  | `:programs`  | `{:name :id :type :attached-to}`, with `:recursion-misses` if it did not run that often because it was running or a map was written; a program without a target has no `:attached-to` |
  | `:maps`      | `{:name :id :type :max-entries}`, with `:entries` of maps that can be counted, `:fill` of rings, and `:untyped` for rings whose events have no type |
  | `:variables` | name to value: variables that are not constants                                    |

  Programs, maps and links belong to the process. They end with the reduction, and if the process is
  killed."
  (:require [bpfmap.btf :as btf]
            [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.events :as events]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.host :as exec.host]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.map-info :as map-info]
            [bpfmap.exec.tail :as tail]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.events.reader :as reader]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.impl.waiting :as waiting]
            [bpfmap.link :as link]
            [bpfmap.object :as object]
            [bpfmap.prog :as prog]
            [bpfmap.type :as type]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo IReduceInit)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

;; --- the object, as the options change it

(defn- unknown
  "Returns the `:usage` error for a name that the object does not have."
  [option name what names]
  (arguments/refused "run" option name (str "must name a " what " of the object")
                     (if (seq names)
                       (nearest/alternatives name (sort names))
                       (str "the object has no " what "s"))))

(defn- check-names [option given what parts]
  (doseq [name given :when (not (contains? parts name))]
    (throw (unknown option name what (keys parts)))))

(defn- with-variable
  "Returns an object with another value of a variable, which may be text."
  [o [name value]]
  (let [{:keys [type size]} (get-in o [:variables name])
        spec {:type :array :key :u32 :value (or type [:bytes size]) :max-entries 1}]
    (try
      (let [data (input/typed spec :value value identity)]
        ((:value-in (raw-entries/types spec 0)) data) ; throws if it does not fit
        (assoc-in o [:variables name :value] data))
      (catch ExceptionInfo e
        (throw (arguments/refused "run" :var (str name "=" value)
                 (str "must fit the variable, which has the type "
                      (str/replace (type/summary (or type [:bytes size])) #":(?=[a-z])" ""))
                 (ex-message e)))))))

(defn- with-entries
  "Returns an object with another number of entries of a map, which may be text."
  [o [name n]]
  (let [number (if (string? n) (parse-long n) n)]
    (when-not (and (int? number) (<= 1 (long number) 0xffffffff))
      (throw (arguments/refused "run" :entries (str name "=" n)
               "must have a number of entries from 1 to 4294967295")))
    (assoc-in o [:maps name :max-entries] number)))

(defn- prepared
  "Returns the object of the file, with the values of `:var` and `:entries`."
  [{:keys [file only target event entries pin] vars :var maps :map}]
  (let [o (object/read file)
        vars (into {} vars)
        entries (into {} entries)]
    (check-names :var (keys vars) "variable" (:variables o))
    (check-names :only only "program" (:programs o))
    (check-names :target (keys (into {} target)) "program" (:programs o))
    (check-names :event (keys (into {} event)) "ring buffer or perf event array"
                 (into {} (filter (comp map-types/event-types :type val)) (:maps o)))
    (check-names :map (keys (into {} maps)) "map" (:maps o))
    (check-names :entries (keys entries) "map" (:maps o))
    (when (and pin (not-any? :pinning (vals (:maps o))))
      (throw (arguments/refused "run" :pin pin
               "is for maps that the object pins by name, and it pins none")))
    (reduce with-entries (reduce with-variable o vars) entries)))

(defn- without-entries
  "Returns an error with what to do if a map has no number of entries.

  Some tools set the number when they start. Any other error stays as it is."
  ^Throwable [^ExceptionInfo e {:keys [maps]}]
  (let [{:bpfmap/keys [error path] :as data} (ex-data e)
        [part map-name k] path]
    (if (and (= [:maps :max-entries] [part k]) (nil? (get-in maps [map-name :max-entries])))
      (error/error error (str "The object has no number of entries for map " map-name)
                   (assoc data :bpfmap/hint (str "give it with :entries (--entries), such as "
                                                 map-name "=1024"))
                   e)
      e)))

(defn- loaded-object
  "Returns the open object."
  ^Closeable [o options]
  (try
    (object/load o options)
    (catch ExceptionInfo e
      (throw (without-entries e o)))))

;; --- what is open during a run

(defn- with-all
  "Calls f with the results of functions that open something.

  Closes all of them afterwards, the last one first, also if one of the functions throws."
  [openers f]
  (let [opened (volatile! ())]
    (try
      (f (mapv (fn [open]
                 (let [x (open)]
                   (when x (vswap! opened conj x))
                   x))
               openers))
      (finally
        (run! #(.close ^Closeable %) @opened)))))

(defn- with-hint
  "Returns an error about a program with its name, and one more hint."
  [^ExceptionInfo e program hint]
  (let [{:bpfmap/keys [error] own :bpfmap/hint :as data} (ex-data e)
        message (cond-> (ex-message e) own (str/replace (str ": " own) ""))]
    (if error
      (error/error error (str "Program " program " cannot be attached: " message)
                   (assoc data :bpfmap/hint (str/join "; " (remove nil? [own hint])))
                   e)
      e)))

(defn- attach
  "Returns the link of a program, or nil if it has no target."
  [targets name program]
  (when-let [target (or (targets name) (link/target program))]
    (try
      (link/attach program target)
      (catch ExceptionInfo e
        (throw (with-hint e name (str ":only (--only) selects the programs to run, :target "
                                      "(--target) another target")))))))

(defn- openers-of-links
  "Returns functions that attach all programs, and struct_ops maps with links."
  [{:keys [maps]} {:keys [programs] :as loaded} targets]
  (concat (for [[name program] (sort-by key programs)]
            #(attach targets name program))
          (for [[name {:keys [type flags]}] maps
                :let [m (get-in loaded [:maps name])]
                :when (and m (= :struct-ops type) (contains? (set flags) :link))]
            #(link/attach m))))

(defn- check-attached
  "Throws if nothing is attached."
  [{:keys [name]} programs links]
  (when (and (empty? programs) (empty? links))
    (throw (error/error :invalid-value (str (or name "The object") " has no program to run")
                        {:bpfmap/op :attach
                         :bpfmap/hint "bpfmap inspect shows the parts of an object"})))
  (when (every? nil? links)
    (throw (error/error :invalid-value
                        (str "No program of " (or name "the object") " says what it attaches to")
                        {:bpfmap/op :attach
                         :bpfmap/hint (str "give a target with :target (--target), such as "
                                           "'" (key (first programs))
                                           "={xdp \"eth0\"}'; bpfmap.link/targets has all kinds")}))))

(defn target-text
  "Returns a target as text.

      (target-text {:tcx :ingress :interface \"eth0\"}) ;=> \"tcx ingress interface eth0\""
  [target]
  (str/join " " (for [[k x] target :when (not (false? x))]
                  (cond
                    (true? x) (name k)
                    (keyword? x) (str (name k) " " (name x))
                    :else (str (name k) " " x)))))

;; --- events

(defn- event-type
  "Returns the type of the events of a ring.

  It is the record type of the map, or a struct that is named like it.
  The map `events` has events of `struct event`, if the object has no other type for them."
  [b name {:keys [record-type]}]
  (or record-type
      (when b
        ;; The map itself is a variable of the same name.
        (some #(some->> (btf/type-id b :struct %) (btf/type-of b))
              [name (str/replace name #"s$" "")]))))

(defn- structs-in
  "Returns the names of the structs in types of an object."
  [b]
  (keep #(when (= :struct (blob/kind b %)) (blob/name-of b %))
        (range 1 (inc (long (blob/type-count b))))))

(defn- given-type
  "Returns the type of a value of `:event`.

  It is the value, or the struct of the object with this name."
  [b name x]
  (if (string? x)
    (or (when b (btf/type-named b x))
        (throw (arguments/refused "run" :event (str name "=" x)
                 "must have a type, or the name of a struct of the object"
                 (or (nearest/did-you-mean x (sort (concat (when b (structs-in b))
                                                           (map clojure.core/name
                                                                (keys type/scalars)))))
                     "write the type as '[struct [pid u32]]'"))))
    x))

(defn- types-of-rings
  "Returns the types of the events of rings, by name.

  `given` has the types of `:event`."
  [{:keys [maps] b :btf} given]
  (let [b (when b (btf/parse b))]
    (into {} (for [[name {:keys [type] :as spec}] maps
                   :when (map-types/event-types type)
                   :let [x (get given name)
                         found (if (some? x) (given-type b name x) (event-type b name spec))]
                   :when found]
               [name found]))))

(defn- opener-of-reader
  "Returns a function that opens the reader of a ring, and how to use it."
  [loaded name type]
  (fn []
    (let [m (get-in loaded [:maps name])
          perf? (= :perf-event-array (:type (bpf/spec m)))
          errors (volatile! [])
          r (events/reader m {:type type
                                   :with-cpu perf?
                                   :on-error (fn [e]
                                               (vswap! errors conj
                                                       {:value (:bpfmap/bytes (ex-data e))
                                                        :error (ex-message e)}))})]
      {:name name :reader r :errors errors
       :of-event (if perf? tail/row-with-cpu tail/row)
       :seen (volatile! nil)})))

(defn- event-rows
  "Returns the rows of the events that a reader has now."
  [{:keys [name errors of-event seen] r :reader}]
  (let [rows (volatile! [])
        before @seen]
    (events/drain! r #(vswap! rows conj (of-event %)))
    (let [now (vreset! seen (events/stats r))
          undecoded @errors]
      (vreset! errors [])
      (map #(into {:map name} %)
           (concat (some-> (reader/loss before now) vector) @rows undecoded)))))

;; --- summaries

(defn- map-row [typed [name m]]
  (let [{:keys [id type max-entries] :as info} (bpf/info m)
        entries (exec.host/entries info false #(bpf/count-entries m))]
    (cond-> (array-map :name name :id id :type type :max-entries max-entries)
      entries (assoc :entries entries)
      (map-info/ring? info) (assoc :fill (map-info/fill info))
      (and (map-types/event-types type) (not (typed name))) (assoc :untyped true))))

(defn- variable?
  "Returns true for a variable that is not a constant."
  [{:keys [section]}]
  (not (or (nil? section) (str/starts-with? section ".rodata") (= ".kconfig" section))))

(defn- values-of-variables [o loaded]
  (into (sorted-map)
        (for [[name variable] (:variables o)
              :when (variable? variable)
              :let [view (get-in loaded [:variables name])]
              :when view]
          [name @view])))

(defn- summarizing
  "Returns a function from the elapsed seconds to a summary."
  [o loaded programs types]
  (fn [elapsed]
    (array-map :object (:name o)
               :elapsed (/ (Math/round (* 1000.0 (double elapsed))) 1000.0)
               :programs (programs)
               :maps (mapv #(map-row types %) (sort-by key (:maps loaded)))
               :variables (values-of-variables o loaded))))

(defn- programs-with-targets
  "Returns a function that returns the loaded programs with their targets, by name."
  [{:keys [programs]} links targets]
  (let [attached-to (mapv (fn [[name program] link]
                            (when link
                              {:attached-to (target-text (or (targets name)
                                                             (link/target program)))}))
                          (sort-by key programs) links)]
    (fn []
      (mapv (fn [[name program] target]
              (let [info (select-keys (prog/info program) [:id :type :recursion-misses])]
                (-> {:name name} (into info) (into target))))
            (sort-by key programs) attached-to))))

;; --- the command

(def ^:private pause
  "The number of milliseconds between two looks at the rings."
  20)

(defn- report
  "Passes rows to f until `stop` is delivered or the seconds are over.

  The metadata of summaries has the types of the events of rings, by name."
  [{:keys [interval seconds]} stop {:keys [readers types summary]} f init]
  (let [began (System/nanoTime)
        elapsed #(/ (- (System/nanoTime) began) 1e9)
        summary (fn [more] (with-meta (into more (summary (elapsed))) {:types types}))
        events (fn [acc]
                 (reduce (fn [acc row]
                           (let [acc (f acc row)]
                             (if (reduced? acc) (reduced acc) acc)))
                         acc (mapcat event-rows readers)))]
    (loop [acc (f init (summary {:status :running})) due (double interval)]
      (if (reduced? acc)
        @acc
        (let [now (double (elapsed))
              left (- (if seconds (min due (double seconds)) due) now)
              wait (long (Math/ceil (* 1000 (max 0.0 left))))
              wait (if (seq readers) (min wait (long pause)) wait)
              stopped? (not= ::not-yet (waiting/value stop wait ::not-yet :run))
              acc (events acc)
              now (double (elapsed))]
          (cond
            (reduced? acc) @acc
            (or stopped? (and seconds (<= (double seconds) now)))
            (unreduced (f acc (summary {:status :ended})))
            (<= due now) (recur (f acc (summary {})) (+ now (double interval)))
            :else (recur acc due)))))))

(defn- run-rows [{:keys [only pin target event] maps :map :as options} stop f init]
  (let [o (prepared options)
        targets (into {} target)
        types (types-of-rings o (into {} event))
        given (sort-by key (into {} maps))]
    (with-all (for [[_ ref] given] #(input/open {:ref ref} :read-write))
      (fn [opened]
        (with-open [^Closeable loaded
                    (loaded-object o (cond-> {}
                                       (seq opened) (assoc :maps (zipmap (map key given) opened))
                                       (seq only) (assoc :only only)
                                       pin (assoc :pin-path pin)))]
          (let [rings (filter #(get-in loaded [:maps (key %)]) (sort-by key types))
                readers (volatile! [])]
            ;; The readers come first, so that they see the first events.
            (with-all (for [[name type] rings
                            :let [open (opener-of-reader loaded name type)]]
                        #(:reader (peek (vswap! readers conj (open)))))
              (fn [_]
                (with-all (for [open (openers-of-links o loaded targets)]
                            #(when-not (realized? stop) (open)))
                  (fn [links]
                    (if (realized? stop)
                      init
                      (do
                        (check-attached o (:programs loaded) links)
                        (let [programs (programs-with-targets loaded links targets)]
                          (report options stop
                                  {:readers @readers :types types
                                   :summary (summarizing o loaded programs types)}
                                  f init))))))))))))))

(defn run
  "Returns the rows of a run of an object, to reduce.

  The object is loaded and attached during the reduction, which ends after `:seconds`, or when the
  promise `stop` is delivered. There is no row if that is before everything is attached. If a step
  fails, the steps before it are undone.

      (into [] (run {:file \"flows.bpf.o\" :interval 1.0 :seconds 5}))
      ;=> [{:status :running, :object \"flows\", :elapsed 0.0, :programs [{:name \"count\", …}], …} …]"
  ([options] (run options (promise)))
  ([options stop]
   (reify IReduceInit
     (reduce [_ f init] (run-rows options stop f init)))))
