(ns bpfmap.model
  "Maps of the running kernel against models of them.

  Random commands go to a map and to a model in Clojure, one after the other. Both must answer
  alike and, after every command, hold the same. What does not is shrunk to the shortest sequence
  that shows it.

  A model is data:

  | key           | what it is                                                                                     |
  |---------------|------------------------------------------------------------------------------------------------|
  | `:spec`       | of the map; every trial creates a fresh one                                                    |
  | `:create`     | creates the map from it; `bpf/create` where nothing is said                                     |
  | `:init`       | the state of the model while the map is fresh                                                  |
  | `:command`    | a generator of commands, which are an operation and its arguments: `[:put! 1 2]`               |
  | `:step`       | `(step state command)` returns `[state answer]`; a function as the answer is asked of the map's |
  | `:operations` | what commands do to the map, beside [[operations]] or instead of them: `{:op (fn [m & args])}`  |
  | `:contents`   | `(contents m)`: everything in the map; `(into {} m)` where nothing is said                      |
  | `:settle`     | `(settle state observed)`, where the model does not say exactly what the map then holds: see below |

  A command must make sense in every state, since shrinking leaves out earlier ones.

  The contents must equal the state, unless there is a `:settle`. It is given `{:contents :command
  :answer}` (no command before the first), and returns the state to go on from, or nil where the
  contents cannot be. So the model of a map that evicts learns its contents from the map."
  (:require [bpfmap.core :as bpf]
            [clojure.string :as str]
            [clojure.test :as t]
            [clojure.test.check :as check]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop]
            [clojure.test.check.results :as results])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

;; --- what commands do

(defn- walk
  "The keys as next-key finds them, with how often it finds each. An endless walk ends after 1000
  steps."
  [m]
  (->> (iterate #(bpf/next-key m %) (bpf/next-key m))
       (take-while some?)
       (take 1000)
       frequencies))

(def operations
  "What the commands do that every map with keys has. A missing key answers :none, what returns
  the map :done."
  {:lookup    (fn [m k] (bpf/lookup m k :none))
   :has-key?  bpf/has-key?
   :put!      (fn [m k v] (if (identical? m (bpf/put! m k v)) :done :not-the-map))
   :insert!   bpf/insert!
   :replace!  bpf/replace!
   :delete!   bpf/delete!
   :take!     (fn [m k] (bpf/take! m k :none))
   :next-key  bpf/next-key
   :walk      walk
   :entries   (fn [m] (frequencies (seq m)))
   :reduce-kv (fn [m] (reduce-kv (fn [acc k v] (update acc [k v] (fnil inc 0))) {} m))})

(defn key-commands
  "A generator of the commands that work with keys, for generators of keys and of values."
  [k v]
  (gen/frequency [[2 (gen/tuple (gen/return :lookup) k)]
                  [5 (gen/tuple (gen/return :put!) k v)] ; or the map would never be full
                  [4 (gen/tuple (gen/return :insert!) k v)]
                  [2 (gen/tuple (gen/return :replace!) k v)]
                  [2 (gen/tuple (gen/return :delete!) k)]
                  [1 (gen/tuple (gen/return :take!) k)]
                  [1 (gen/tuple (gen/return :has-key?) k)]
                  [1 (gen/tuple (gen/return :next-key))]
                  [1 (gen/tuple (gen/return :next-key) k)]
                  [1 (gen/tuple (gen/elements [:walk :entries :reduce-kv]))]]))

(defn hash-step
  "The step of a map of at most `capacity` entries; its state is what it holds, as a Clojure map."
  [capacity]
  (fn [state [op k v :as command]]
    (let [there? (contains? state k)
          full? (and (not there?) (= capacity (count state)))]
      (case op
        :lookup [state (get state k :none)]
        :has-key? [state there?]
        :put! (if full? [state :map-full] [(assoc state k v) :done])
        :insert! (cond there? [state false] full? [state :map-full] :else [(assoc state k v) true])
        :replace! (if there? [(assoc state k v) true] [state false])
        :delete! [(dissoc state k) there?]
        :take! [(dissoc state k) (get state k :none)]
        ;; The order is the kernel's own: after the last key comes none, after an unknown key the
        ;; first.
        :next-key [state (if (and there? (= 2 (count command)))
                           #(or (nil? %) (and (not= k %) (contains? state %)))
                           #(if (empty? state) (nil? %) (contains? state %)))]
        :walk [state (zipmap (keys state) (repeat 1))]
        (:entries :reduce-kv) [state (zipmap (seq state) (repeat 1))]))))

(defn array-step
  "The step of an array: every index exists, from the beginning to the end; none beyond can be
  made. Its state is a vector."
  [length]
  (fn [state [op i v :as command]]
    (let [there? (and i (< i length))]
      (case op
        :lookup [state (if there? (state i) :none)]
        :has-key? [state there?]
        (:put! :replace!) (if there?
                            [(assoc state i v) (if (= :put! op) :done true)]
                            [state :out-of-range])
        :insert! [state (if there? false :out-of-range)]
        (:delete! :take!) [state :not-supported]
        :next-key [state (cond (or (= 1 (count command)) (not there?)) 0
                               (= i (dec length)) nil
                               :else (inc i))]
        :walk [state (zipmap (range length) (repeat 1))]
        (:entries :reduce-kv) [state (zipmap (map-indexed vector state) (repeat 1))]))))

;; --- one trial

(defn- guarded
  "Returns the result of f, or its exception as a value that no model accepts."
  [f]
  (try (f) (catch Throwable e {::thrown e})))

(defn- thrown [x]
  (when (map? x) (::thrown x)))

(defn- perform
  "What the map answers; for an error of this library its kind."
  [operations m [op & args]]
  (let [f (or (operations op) (throw (ex-info (str "there is no operation " op) {})))
        answer (guarded #(apply f m args))]
    (or (:bpfmap/error (ex-data (thrown answer))) answer)))

(defn- accepts? [expected answer]
  (cond
    (thrown answer) false
    (fn? expected) (boolean (expected answer))
    :else (= expected answer)))

(defn- equal [state {:keys [contents]}]
  (when (= state contents) state))

(defn trial
  "Gives the commands to a fresh map and to the model.

  Returns `{:trace [[command answer] …]}`, and at the first difference ends with it as
  `:difference`: `{:of :answer or :contents, :found what the map says, :expected what the model
  says}`."
  [{:keys [spec create init step contents settle]
    :or {create bpf/create contents #(into {} %) settle equal} :as model}
   commands]
  (let [operations (merge operations (:operations model))]
    (with-open [m ^Closeable (create spec)]
      (loop [state init observed {} trace [] commands (seq commands)]
        (let [found (guarded #(contents m))
              known (when-not (thrown found) (settle state (assoc observed :contents found)))]
          (cond
            (nil? known) {:trace trace :difference {:of :contents :found found :expected state}}
            (nil? commands) {:trace trace}
            :else
            (let [command (first commands)
                  [after expected] (step known command)
                  answer (perform operations m command)
                  trace (conj trace [command answer])]
              (if (accepts? expected answer)
                (recur after {:command command :answer answer} trace (next commands))
                {:trace trace :difference {:of :answer :found answer :expected expected}}))))))))

;; --- many trials

(defn- kind
  "An answer as far as it tells one case from another."
  [answer]
  (if (or (nil? answer) (boolean? answer) (keyword? answer)) answer :data))

(defn check
  "Tries a model with random commands: `:trials` times (200) up to `:most` commands (40), from
  `:seed`.

  Returns `{:pass? true :seen #{[operation answer] …}}`, where an answer that is neither nil, a
  boolean nor a keyword is :data. Or `{:pass? false :seed n :from n}` with the `:trace` and
  `:difference` of the shortest sequence found, see [[trial]]; `:from` is how many commands there
  were before shrinking."
  [model & {:keys [trials most seed] :or {trials 200 most 40}}]
  (let [seen (volatile! #{})
        property (prop/for-all [commands (gen/vector (:command model) 0 most)]
                               (let [{:keys [trace difference] :as outcome} (trial model commands)]
                                 (vswap! seen into (map (fn [[[op] answer]] [op (kind answer)]))
                                         trace)
                                 (reify results/Result
                                   (pass? [_] (nil? difference))
                                   (result-data [_] outcome))))
        {:keys [pass? fail shrunk seed]} (check/quick-check
                                          trials property :seed (or seed (System/nanoTime)))]
    (if pass?
      {:pass? true :seen @seen}
      ;; Without a difference it was the model that threw.
      (merge {:pass? false :seed seed :from (count (first fail))
              :commands (first (:smallest shrunk))}
             (:result-data shrunk)))))

(defn- said [x]
  (cond
    (thrown x) (str "thrown: " (thrown x))
    (fn? x) "something else"
    :else (pr-str x)))

(defn explain
  "Tells a failed outcome of [[check]] as text."
  [{:keys [seed from commands trace difference] :as outcome}]
  (let [{:keys [of found expected]} difference]
    (str "seed " seed ", shrunk from " from " commands
"
         (if-not difference
           (str "  the model throws for " (pr-str commands) ": "
                (:clojure.test.check.properties/error outcome))
           (str (str/join (for [[command answer] trace]
                            (str "  " (pr-str command) " answers " (said answer) "
")))
                (case of
                  :answer (str "  but the model says " (said expected))
                  :contents (str "  then the map holds " (said found) "
"
                                 "  but the model says " (said expected))))))))

(defn holds
  "Asserts that map and model agree; returns which answers were seen, see [[check]] for them and
  for the options."
  [model & options]
  (let [{:keys [seen] :as outcome} (apply check model options)]
    (t/is (:pass? outcome) (explain outcome))
    seen))
