(ns ^:volume bpfmap.arguments-test
  "Every public function with arguments that nobody means: an answer or an error as data, never
  anything else, never a hang."
  (:require [bpfmap.btf :as btf]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.memory]
            [bpfmap.prog :as prog]
            [clojure.test :refer [deftest is testing]])
  (:import (clojure.lang ExceptionInfo)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(def ^:private namespaces
  '[bpfmap.core bpfmap.host bpfmap.prog bpfmap.feature bpfmap.type bpfmap.btf bpfmap.spec
    bpfmap.impl.codec bpfmap.bytes])

(def ^:private not-called
  "`unsupported` takes a spec that was checked, the constructors are what deftype makes, close is
  for the end."
  #"^->[A-Z].*|unsupported|close|kernel-btf")

(defn- outcome
  "What a call comes to: :answer, :error for one as data, :hang, or the exception."
  [f args]
  (deref (future
           (try
             (let [answer (apply f args)]
               (when (and (instance? Closeable answer) (not-any? #(identical? answer %) args))
                 (.close ^Closeable answer))
               :answer)
             (catch ExceptionInfo e
               (if (:bpfmap/error (ex-data e)) :error e))
             (catch Throwable e e)))
         20000 :hang))

(kernel-test odd-arguments-as-data
  (testing "every public function returns or throws data for any odd argument"
    (with-open [m (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 4})
                p ^Closeable (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})]
      (let [before (fixture/settled-descriptors)
            odd [nil 7 -1 1e9 12345678901234567890N 1/2 "x" "" :hash 'y \c true [] [1] [nil]
                 [[:exit]] {} {:type :hash} {1 2}
                 (sorted-map "a" 1) #{} #{1} (Object.) (byte-array 3) (range 3) identity m p
                 (btf/parse (:bytes (btf/->btf [:u32] nil)))]
            random (java.util.Random. 11)]
        (doseq [ns namespaces
                [sym v] (do (require ns) (ns-publics ns))
                :when (and (fn? @v) (not (re-matches not-called (str sym)))
                           (or (not= 'bpfmap.impl.codec ns) (#{'codec 'key-codec} sym)))
                arglist (:arglists (meta v))
                args (case (count arglist)
                       0 [[]]
                       1 (map vector odd)
                       2 (for [a odd b odd] [a b])
                       (repeatedly 300
                                   (fn []
                                     (vec (repeatedly (count arglist)
                                                      #(nth odd (.nextInt random (count odd))))))))
                :let [outcome (outcome @v args)]]
          (when-not (#{:answer :error} outcome)
            (is (= :answer outcome) (str sym " " (pr-str args)))))
        (is (= before (fixture/open-descriptors)))))))

(def ^:private handles
  "The names that arguments have for a handle: an open map, memory, a view; `x` takes several."
  '{bpfmap.core #{m}, bpfmap.memory #{m memory view x}})

(def ^:private without-handle
  "Functions that return a handle, or take anything."
  '#{create open ->bytes bpf-map?})

(deftest handle-is-first-argument
  (testing "public functions take the map, memory or view as their first argument, and only there"
    (doseq [[ns named] handles
            [sym v] (ns-publics ns)
            :when (not (without-handle sym))
            [one & others :as arglist] (:arglists (meta v))]
      (is (contains? named one) (str ns "/" sym " " arglist))
      (is (not-any? (disj named 'x) others) (str ns "/" sym " " arglist)))))
