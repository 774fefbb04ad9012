(ns ^:volume bpfmap.model-test
  "Hash and array maps behave as the Clojure collections that model them; and a model that is
  wrong is found out."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.model :as model]
            [clojure.set :as set]
            [clojure.string :as str]
            [clojure.test :refer [is testing]]
            [clojure.test.check.generators :as gen]))

(set! *warn-on-reflection* true)

(def ^:private value (gen/choose 0 1000))

;; --- hash

(defn- hash-model
  "Ten keys for six places: the map is full often, and most commands meet a key that another used."
  [change]
  {:spec (merge {:name "t_model" :type :hash :key :u32 :value :u64 :max-entries 6} change)
   :init {}
   :command (model/key-commands (gen/choose 0 9) value)
   :step (model/hash-step 6)})

(def ^:private every-answer
  "What the trials must have met, lest they prove nothing."
  #{[:lookup :none] [:lookup :data] [:has-key? true] [:has-key? false] [:put! :done]
    [:put! :map-full]
    [:insert! true] [:insert! false] [:insert! :map-full] [:replace! true] [:replace! false]
    [:delete! true] [:delete! false] [:take! :data] [:take! :none] [:next-key :data] [:next-key nil]
    [:walk :data] [:entries :data] [:reduce-kv :data]})

(kernel-test hash-like-clojure-map
  (testing "a hash map behaves as a Clojure map"
    (doseq [[case change] {"allocated beforehand" nil
                           "allocated on demand" {:flags #{:no-prealloc}}
                           "keys of one byte, values of text" {:key :u8
                                                               :value [:via [:string 8] str
                                                                       parse-long]}}]
      (testing case
        (is (= #{} (set/difference every-answer (model/holds (hash-model change)))))))))

;; --- array

(def ^:private length 5)

(def array-model
  {:spec {:name "t_model" :type :array :key :u32 :value :u64 :max-entries length}
   :init (vec (repeat length 0))
   :command (model/key-commands (gen/choose 0 length) value)
   :step (model/array-step length)
   ;; in the order of the indices, and no other
   :contents (fn [m] (let [entries (seq m)]
                       (when (= (range length) (map key entries))
                         (mapv val entries))))})

(kernel-test array-like-a-vector
  (testing "an array behaves as a vector of its length"
    (is (= #{} (set/difference #{[:lookup :none] [:lookup :data] [:put! :done] [:put! :out-of-range]
                                 [:insert! false] [:insert! :out-of-range] [:replace! true]
                                 [:replace! :out-of-range]
                                 [:delete! :not-supported] [:take! :not-supported] [:next-key :data]
                                 [:next-key nil]
                                 [:walk :data] [:entries :data]}
                               (model/holds array-model))))))

;; --- models that are wrong

(defn- wrong
  "The hash model, with `change` made to its step: a function of state, command and the right
  [state answer]."
  [change]
  (let [step (model/hash-step 6)]
    (assoc (hash-model nil) :step
           (fn [state command] (change state command (step state command))))))

(kernel-test wrong-result-is-shrunk
  (testing "finds a wrong result and shrinks it to the relevant commands"
    (let [model (wrong (fn [state [op k v] right]
                         (if (and (= :insert! op) (contains? state k))
                           [(assoc state k v) true]
                           right)))
          before (fixture/settled-descriptors)
          {:keys [pass? from trace difference] :as outcome} (model/check model)]
      (is (false? pass?))
      (is (= before (fixture/open-descriptors)) "the maps of failed trials are closed too")
      (is (< 2 from))
      (let [[[[op k] _] [[op-2 k-2 _] answer] & more] trace]
        (is (#{:put! :insert!} op) "one command makes the key")
        (is (= [:insert! k false nil] [op-2 k-2 answer more])
            "the other meets it, and there is no third"))
      (is (= {:of :answer :found false :expected true} difference))
      (is (re-find (re-pattern (str "^seed \\d+, shrunk from \\d+ commands\n"
                                    "  \\[:(put|insert)! \\d 0\\] answers (:done|true)\n"
                                    "  \\[:insert! \\d 0\\] answers false\n"
                                    "  but the model says true$"))
                   (model/explain outcome))))))

(kernel-test wrong-contents
  (testing "finds wrong contents although every result is right"
    (let [model (wrong (fn [state [op] [after answer]]
                         [(if (= :delete! op) state after) answer]))
          {:keys [trace difference] :as outcome} (model/check model)
          [[[_ k] _] [command answer] & more] trace]
      (is (= [[:delete! k] true nil] [command answer more]))
      (is (= {:of :contents :found {} :expected {k 0}} difference))
      (is (str/ends-with? (model/explain outcome)
                          (str "  then the map holds {}\n  but the model says {" k " 0}"))))))

(kernel-test long-difference-is-kept
  (testing "keeps all commands that a difference needs and no more"
    (let [model (wrong (fn [state [op] right]
                         (if (and (= :put! op) (= 4 (count state))) [state :map-full] right)))
          {:keys [from trace difference]} (model/check model :most 60)]
      (is (= 5 (count trace)) (pr-str trace))
      (is (< 5 from))
      (is (= {:of :answer :found :done :expected :map-full} difference)))))

(kernel-test thrown-exceptions
  (testing "an exception is a difference whatever the model allows"
    (let [model (assoc (wrong (fn [state [op] right] (if (= :has-key? op) [state any?] right)))
                       :operations
                       {:has-key? (fn [_ k] (throw (IllegalStateException. (str "mine " k))))})
          {:keys [trace] :as outcome} (model/check model)]
      (is (= [[:has-key? 0]] (map first trace)))
      (is (str/includes? (model/explain outcome)
                         "[:has-key? 0] answers thrown: java.lang.IllegalStateException: mine 0")))
    (testing "also while everything is read"
      (let [model (assoc (hash-model nil) :contents
                         (fn [_] (throw (IllegalStateException. "mine"))))]
        (is (str/includes? (model/explain (model/check model))
                           "then the map holds thrown: java.lang.IllegalStateException: mine"))))
    (testing "and when it is the model that throws"
      (let [model (wrong (fn [_ [op] right]
                           (if (= :walk op) (throw (ex-info "no walks" {})) right)))]
        (is (re-find #"the model throws for \[\[:walk\]\]: .*no walks"
                     (model/explain (model/check model))))))))

(kernel-test model-adopts-contents
  (testing "a model can adopt the contents of the map"
    ;; A map that forgets the first key at times: right by a relation, wrong by equality.
    (let [forgetful {:put! (fn [m k v]
                             (bpf/put! m k v)
                             (when (zero? (rem v 3)) (some->> (bpf/next-key m) (bpf/delete! m)))
                             :done)}
          allowed (fn [state {:keys [contents]}]
                    (when (set/subset? (set contents) (set state)) contents))
          model (assoc (hash-model {:max-entries 10}) :step (model/hash-step 10) :operations
                       forgetful)]
      (is (false? (:pass? (model/check model))))
      (is (true? (:pass? (model/check (assoc model :settle allowed))))))))

(kernel-test seed-repeats-trials
  (testing "a seed repeats the same trials"
    (let [model (wrong (fn [state [op] right] (if (= :take! op) [state :never] right)))
          {:keys [seed] :as outcome} (model/check model)]
      (is (= outcome (model/check model :seed seed))))))
