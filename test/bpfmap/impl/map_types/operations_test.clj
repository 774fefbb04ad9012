(ns bpfmap.impl.map-types.operations-test
  "Every row of the table of map types, compared with the running kernel: granted operations
  are used, and denied ones are refused by the library by name, and by the kernel too."
  (:require [bpfmap.core :as bpf]
            [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.since :as since]
            [bpfmap.uses :as uses :refer [answer grants? here? refusals row-of used uses]]
            [clojure.set :as set]
            [clojure.string :as str]
            [clojure.test :refer [is testing]]))

(set! *warn-on-reflection* true)

(kernel-test every-type-or-release
  (testing "every type is covered, and a type newer than the kernel is rejected with its release"
    (is (= (set (keys map-types/types)) (into uses/left-out (map (comp :type :spec)) uses)))
    (doseq [{:keys [spec] :as use} uses]
      (if (:supported (feature/map-type (:type spec)))
        (is (bpf-map/bpf-map? (doto (bpf/create spec) (bpf/close))) (str spec))
        (let [{:keys [message] :bpfmap/keys [error]} (error-of (bpf/create spec))]
          (is (= :not-supported error))
          (is (str/includes? message
                             (str " lacks the map type " (:type spec) ", which was added in Linux "
                                  (:since (row-of use))))))))))

;; ---------------------------------------------------------------- granted operations

(defn- keys-by-walking [m]
  (vec (take 100 (take-while some? (iterate #(bpf/next-key m %) (bpf/next-key m))))))

(def ^:private deletes-blindly
  "Types whose delete tells not whether anything was there."
  #{:devmap :cpumap :xskmap})

(defn- slots?
  "Whether next-key goes through all indices, filled or not."
  [{:keys [spec] :as use}]
  (let [{:keys [every-index] index? :index} (row-of use)]
    (or every-index (and index? (not= :stack-trace (:type spec))))))

(def ^:private granted
  "What each operation must do: `(check m use)`, of a map in which the first value is under the
  first key."
  (let [reads? (fn [m use]
                 (nil? (map-types/alternative (:type (:spec use)) :lookup
                                              (:value-size (bpf/spec m)))))
        there (fn [m {same? :same :as use} k v]
                (when (reads? m use)
                  (is (same? v (bpf/lookup m k)))))
        gone (fn [m use k]
               (when (reads? m use)
                 (is (= ::gone (bpf/lookup m k ::gone)))
                 (is (false? (bpf/has-key? m k)))))]
    {:put! (fn [m {[k] :keys [v v2] :values :as use}]
             (is (identical? m (bpf/put! m k v2)))
             (there m use k v2)
             (is (= 1 (bpf/put-all! m [[k v]])))
             (there m use k v))
     :insert! (fn [m {[k k2] :keys [v v2] :values :as use}]
                (let [every? (boolean (:every-index (row-of use)))]
                  (is (false? (bpf/insert! m k v2)))
                  (there m use k v)
                  (is (= (not every?) (bpf/insert! m k2 v2)))
                  (when-not every? (there m use k2 v2))))
     :replace! (fn [m {[k k2] :keys [_ v2] :values :as use}]
                 (is (true? (bpf/replace! m k v2)))
                 (there m use k v2)
                 (when k2
                   (is (= (boolean (:every-index (row-of use))) (bpf/replace! m k2 v2)))
                   (when-not (:every-index (row-of use)) (gone m use k2))))
     :delete! (fn [m {[k k2] :keys :keys [spec none] :as use}]
                (is (true? (bpf/delete! m k)))
                (gone m use k)
                (is (= (contains? deletes-blindly (:type spec)) (bpf/delete! m k)))
                (when (and none (not (deletes-blindly (:type spec))))
                  (is (false? (bpf/delete! m none))))
                (is (= (if (deletes-blindly (:type spec)) 1 0) (bpf/delete-all! m [(or k2 k)]))))
     :take! (fn [m {[k] :keys [v] :values :keys [none] same? :same :as use}]
              (is (same? v (bpf/take! m k)))
              (gone m use k)
              (is (= [nil ::gone] [(bpf/take! m k) (bpf/take! m none ::gone)])))
     :lookup (fn [m {[k k2] :keys [v] :values :keys [none] same? :same :as use}]
               (is (same? v (bpf/lookup m k)))
               (is (= [(bpf/lookup m k) (m k) (get m k)] (repeat 3 (bpf/lookup m k ::gone))))
               (is (true? (bpf/has-key? m k)))
               (when (and k2 (not (:every-index (row-of use)))) (gone m use k2))
               (when none (gone m use none))
               (is (= {k (bpf/lookup m k)} (bpf/lookup-all m (cond-> [k] none (conj none))))))
     :next-key (fn [m {[k] :keys :as use}]
                 (is (= (if (slots? use) (range (:max-entries (bpf/spec m))) [k])
                        (keys-by-walking m))))
     :reduce (fn [m {[k] :keys [v] :values :keys [spec] same? :same :as use}]
               (let [all (into {} m)]
                 (is (same? v (all k)))
                 (is (= (if (:every-index (row-of use)) (:max-entries spec) 1) (count all)))
                 (is (= all (bpf/snapshot m) (into {} (bpf/entries m)) (reduce-kv assoc {} m)
                        (into {} (seq m))))
                 (is (= (count all) (bpf/count-entries m)))))
     :drain! (fn [m {[k] :keys [v] :values same? :same :as use}]
               (when-not k (bpf/push! m v))
               (let [all (bpf/drain! m)]
                 (is (if k (and (= [k] (keys all)) (same? v (all k))) (= [v] all)))
                 (is (empty? (bpf/drain! m)))
                 (when (and k (reads? m use)) (gone m use k))))
     :push! (fn [m {[v] :values}]
              (is (identical? m (bpf/push! m v))))
     :peek (fn [m {[v] :values}]
             (is (nil? (bpf/peek m)))
             (bpf/push! m v)
             (is (= [v v] [(bpf/peek m) (bpf/peek m)])))
     :pop! (fn [m {[v] :values}]
             (bpf/push! m v)
             (is (= [v ::gone] [(bpf/pop! m) (bpf/pop! m ::gone)])))
     :might-contain? (fn [m {[v] :values}]
                       (is (false? (bpf/might-contain? m v)))
                       (bpf/push! m v)
                       (is (true? (bpf/might-contain? m v))))}))
(kernel-test e10-granted-operations-work
  (testing "every operation that a row grants works"
    (is (= (set (keys granted)) map-types/operations))
    (let [before (fixture/settled-descriptors)]
      (doseq [use uses :when (here? use)
              [op check] granted :when (and (grants? use op) (uses/has? use op))]
        (testing (str (:spec use) " " op)
          (used use check)))
      (is (= before (fixture/open-descriptors))))))

;; ---------------------------------------------------------------- denied operations

(def ^:private asked
  "Each operation as the library is asked for it, and whatever else is made of it."
  {:lookup [(fn [m k _] (bpf/lookup m k)) (fn [m k _] (m k)) (fn [m k _] (bpf/has-key? m k))
            (fn [m k _] (bpf/lookup-all m [k]))]
   :put! [(fn [m k v] (bpf/put! m k v)) (fn [m k v] (bpf/put-all! m [[k v]]))
          (fn [m _ _] (bpf/put-all! m {}))]
   :insert! [(fn [m k v] (bpf/insert! m k v))]
   :replace! [(fn [m k v] (bpf/replace! m k v))]
   :delete! [(fn [m k _] (bpf/delete! m k)) (fn [m k _] (bpf/delete-all! m [k]))]
   :take! [(fn [m k _] (bpf/take! m k))]
   :next-key [(fn [m _ _] (bpf/next-key m)) (fn [m k _] (bpf/next-key m k))]
   :reduce [(fn [m _ _] (into {} m)) (fn [m _ _] (seq m)) (fn [m _ _] (reduce-kv assoc {} m))
            (fn [m _ _] (bpf/snapshot m))
            (fn [m _ _] (into {} (bpf/entries m))) (fn [m _ _] (bpf/count-entries m))]
   :drain! [(fn [m _ _] (bpf/drain! m)) (fn [m _ _] (bpf/drain-into! m conj []))]
   :push! [(fn [m _ v] (bpf/push! m v))]
   :pop! [(fn [m _ _] (bpf/pop! m))]
   :peek [(fn [m _ _] (bpf/peek m))]
   :might-contain? [(fn [m _ v] (bpf/might-contain? m v))]})
(kernel-test e11-lacking-operation-named
  (testing "names an unsupported operation and its alternative"
    (doseq [{:keys [spec] :as use} uses :when (here? use)]
      (used use
            (fn [m {[k] :keys [v] :values}]
              (doseq [op map-types/operations :when (not (grants? use op))
                      ask (asked op)
                      :let [{:keys [message] :bpfmap/keys [error map] said-op :bpfmap/op}
                            (error-of (ask m k v))]]
                (testing (str spec " " op)
                  (is (= :not-supported error))
                  (is (= op (map-types/ability said-op)))
                  (is (= (:type spec) (:type map)))
                  (is (str/includes? message (str "a map of type " (:type spec) " has no ")))
                  (is (str/includes? message (name said-op)))
                  (is (str/includes? message
                                     (map-types/alternative
                                      (:type spec) op (:value-size (bpf/spec m))))))))))))
(def ^:private denied-though-the-kernel-answers
  "What a row denies and the kernel does not refuse: what it says to that, with a key that is not
  there where there are two, and why it is denied. "
  {[:devmap :insert!] [:EEXIST "an empty slot counts as there: nothing can be inserted"]
   [:devmap :replace!] [:ok "an empty slot counts as an entry: a missing key is \"replaced\""]
   [:cpumap :insert!] [:EEXIST "as :devmap"]
   [:cpumap :replace!] [:ok "as :devmap"]
   [:devmap-hash :replace!] [:ok "the flag is ignored: a missing key is \"replaced\""]
   [:cgroup-storage :put!] [:ok "only an existing key is written, else ENOENT: that is replace!"]
   [:percpu-cgroup-storage :put!] [:ok "as :cgroup-storage"]
   [:queue :might-contain?] [:ENOENT "the same command is peek"]
   [:stack :might-contain?] [:ENOENT "the same command is peek"]
   [:bloom-filter :peek] [:ENOENT "the same command is might-contain?"]})

(kernel-test e11-kernel-agrees
  (testing "the kernel rejects every operation that a row denies"
    (let [before (fixture/settled-descriptors)
          excepted (atom #{})]
      (doseq [{{:keys [type]} :spec :as use} uses :when (here? use)
              op map-types/operations :when (not (grants? use op))]
        (used use
              (fn [m {[k k2] :keys [v v2] :values}]
                (let [writes? (#{:insert! :replace!} op)
                      found (answer m op (if writes? (or k2 k) k) (if writes? (or v2 v) v))]
                  (if-let [[expected] (denied-though-the-kernel-answers [type op])]
                    (do (swap! excepted conj [type op])
                        (is (= expected found) (str (:spec use) " " op)))
                    (is (refusals found) (str (:spec use) " " op)))))))
      (is (= (set (filter (fn [[type]] (since/has? [:map-type type]))
                          (keys denied-though-the-kernel-answers))) @excepted))
      (is (= before (fixture/open-descriptors))))))

;; ---------------------------------------------------------------- odd arguments

(kernel-test e3-odd-keys-and-values
  (testing "every type answers or rejects odd keys and values as data"
    (let [before (fixture/settled-descriptors)
          seen (volatile! #{})]
      (doseq [use uses :when (here? use)]
        (used use
              (fn [m {[k] :keys [v] :values}]
                (let [odd [nil -1 4294967295 1e9 1/2 "" "x" :x 'y \c true [] [nil] {} {:fd -1}
                           {:fd "x"} {:pid 0x7ffffff0} {:tid -1}
                           {:pid 1 :fd -1} {:map-id -1} {:program-id nil} {:ifindex 1 :program m}
                           {:program {}} {1 2}
                           (sorted-map "a" 1) #{} (Object.) (byte-array 3) identity m]]
                  (doseq [op map-types/operations
                          ;; slow machines take some for each type and operation, in turns
                          :let [odd (take (fixture/trials (count odd))
                                          (drop (mod (hash [(:spec use) op]) (count odd))
                                                (cycle odd)))]
                          ask (asked op)
                          [k v] (concat (for [x odd] [x v]) (for [x odd] [k x]))]
                    (let [outcome (try (ask m k v)
                                       :answer
                                       (catch Throwable e (or (:bpfmap/error (ex-data e)) e)))]
                      (vswap! seen conj outcome)
                      (when-not (keyword? outcome)
                        (is (= :answer outcome) (pr-str (:spec use) op k v)))))))))
      (is (set/subset? (cond-> #{:answer :invalid-value :not-supported}
                         (= 1 fixture/slowness) (conj :not-found :incompatible))
                       @seen))
      (is (= before (fixture/open-descriptors))))))
