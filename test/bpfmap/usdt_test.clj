(ns bpfmap.usdt-test
  "USDT probes: programs of libbpf's usdt.bpf.h see what the traced program had in its registers and
  its memory.

  The traced programs are made by `bpfmap.probed`, so they are for x86-64. The objects are compiled
  by script/objects: usdt with the header of libbpf 1.1, usdt-index with a newer one."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.kernel.link :as kernel.link]
            [bpfmap.impl.kernel.perf :as kernel.perf]
            [bpfmap.impl.link.usdt :as usdt]
            [bpfmap.impl.object.externs :as externs]
            [bpfmap.link :as link]
            [bpfmap.links :as links :refer [counter counting]]
            [bpfmap.object :as object]
            [bpfmap.objects :as objects]
            [bpfmap.probed :as probed]
            [bpfmap.prog :as prog]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (bpfmap.impl.link.link Link)
           (java.io Closeable File)
           (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

(defn- on-x86-64
  "Calls f, or skips: the programs with probes are for x86-64."
  [f]
  (if (fixture/x86-64?)
    (f)
    (fixture/skip! "the programs with probes are for x86-64")))

(defn- loaded
  ^Closeable [name & options]
  (object/load (object/read (str "test/objects/" name "-el.o")) (apply hash-map options)))

(defn- program [object name] (get-in object [:programs name]))

(defn- probe
  "A target."
  [{:keys [path]} name & {:as more}]
  (merge {:usdt path :provider "bpfmap" :name name} more))

(defn- run [{:keys [path]}]
  (is (= 0 (:exit (fixture/run [path])))))

(defn- calls
  "The probes that were hit, in order."
  [object]
  (let [m (get-in object [:maps "calls"])]
    (into [] (take-while some?) (repeatedly #(bpf/pop! m)))))

(defn- arguments [{:keys [arguments]}]
  (if (str/blank? arguments) [] (str/split arguments #" ")))

(defn- expected
  "What the programs of the objects must record at a place, without the cookie."
  [{:keys [address] :as place}]
  (let [values (mapv #(probed/value % address) (arguments place))]
    {:count (count values)
     :errors (- 12 (count values))
     :values (into values (repeat (- 12 (count values)) 0))}))

(def ^:private register-operands
  (for [[size names] {8 (concat (for [r ["ax" "bx" "cx" "dx" "si" "di" "bp" "ip"]] (str "r" r))
                                (for [i (range 8 16)] (str "r" i)))
                      4 (concat (for [r ["ax" "bx" "cx" "dx" "si" "di" "bp"]] (str "e" r))
                                (for [i (range 8 16)] (str "r" i "d")))
                      2 (concat ["ax" "bx" "cx" "dx" "si" "di" "bp"]
                                (for [i (range 8 16)] (str "r" i "w")))
                      1 (concat ["al" "bl" "cl" "dl" "ah" "bh" "ch" "dh" "sil" "dil" "bpl"]
                                (for [i (range 8 16)] (str "r" i "b")))}
        sign ["" "-"]
        name names]
    (str sign size "@%" name)))

(def ^:private memory-operands
  (for [sign ["" "-"]
        size [1 2 4 8]
        place ["(%rbp)" "-8(%rbp)" "0x33(%rbp)" "17(,%rbp,1)" "8(%rsp)" "(%rsp)"]]
    (str sign size "@" place)))

(def ^:private index-operands
  (for [sign ["" "-"]
        size [1 2 4 8]
        place ["(%rbp,%r12)" "-64(%rbp,%r12,8)" "5(%rbp,%r13,4)" "0x10(%rbp,%r13,2)"]]
    (str sign size "@" place)))

(def ^:private constants
  (concat (for [sign ["" "-"] size [1 2 4 8] n ["$0" "$-9" "$200" "$0x7fffffff"]]
            (str sign size "@" n))
          ["8@$9223372036854775807" "-8@$-9223372036854775808"]))

(defn- probes-of [operands]
  (map-indexed (fn [i group] {:provider "bpfmap" :name (str "p" i)
                              :arguments (str/join " " group)})
               (partition-all 12 operands)))

(defn- check-arguments [object-name operands]
  (with-open [traced (probed/program (probes-of operands))
              object (loaded object-name :only ["any_probe"])]
    (let [links (vec (map-indexed (fn [i {:keys [name]}]
                                    (link/attach (program object "any_probe") (probe traced name)
                                                 {:cookie (+ 0x8000000000000000 (long i))}))
                                  (:probes traced)))]
      (try
        (run traced)
        (let [found (calls object)]
          (is (= (count links) (count found)))
          (doseq [[i place call] (map vector (range) (:probes traced) found)
                  :let [{:keys [values] :as wanted} (expected place)]]
            (is (= (assoc (dissoc wanted :values) :cookie (+ Long/MIN_VALUE (long i)))
                   (update (dissoc call :values) :cookie unchecked-long)))
            (doseq [[argument wanted got] (map vector (arguments place) values (:values call))]
              (is (= wanted got) argument))))
        (finally (run! link/close links)))
      (run traced)
      (is (= [] (calls object)) "closed links run nothing"))))

(kernel-test ^{:needs [[:kernel :links-of-perf-events]]} k11-arguments
  (testing "programs read arguments in registers, in memory and constants"
    (on-x86-64
     #(let [operands (concat register-operands memory-operands constants)]
        (check-arguments "usdt" operands)
        (check-arguments "usdt-index" (concat operands index-operands)))))
  (testing "an index register needs a newer header"
    (on-x86-64
     #(with-open [traced (probed/program [{:provider "bpfmap" :name "x"
                                           :arguments "8@(%rbp,%r12)"}])
                  object (loaded "usdt" :only ["any_probe"])]
        (let [{:keys [message] :bpfmap/keys [error op]}
              (error-of (link/attach (program object "any_probe") (probe traced "x")))]
          (is (= [:not-supported :attach] [error op]))
          (is (str/includes? message "with usdt.bpf.h of libbpf 1.7 or newer")))))))

(def ^:private places
  "A probe at three places with two descriptions, one with a semaphore, and one for typed arguments."
  [{:provider "bpfmap" :name "rax" :arguments "8@%rax -4@%ebx"}
   {:provider "other" :name "rax" :arguments "8@%rsi"}
   {:provider "bpfmap" :name "rax" :arguments "-4@$3"}
   {:provider "bpfmap" :name "gated" :arguments "8@%rdi" :semaphore true}
   {:provider "bpfmap" :name "rax" :arguments "8@%rax -4@%ebx"}
   {:provider "bpfmap" :name "sized" :arguments "8@$40 -4@$-7"}])

(defn- of-probe [{:keys [probes]} name]
  (filter #(= ["bpfmap" name] [(:provider %) (:name %)]) probes))

(defn- check-places
  "Asserts that a program runs at all places of a probe, once for each, in programs of both types."
  []
  (doseq [options [[] [:file-type 3] [:moved 0x100]]]
    (with-open [^Closeable traced (apply probed/program places options)
                object (loaded "usdt")]
      (with-open [l (link/attach (program object "any_probe") (probe traced "rax") {:cookie 9})]
        (run traced)
        (is (= (map #(assoc (expected %) :cookie 9) (of-probe traced "rax")) (calls object)))
        (is (= (:id (prog/info (program object "any_probe"))) (:program-id (link/info l)))))
      (testing "with a semaphore, which is positive for as long as the link is open"
        (run traced)
        (is (= [] (calls object)))
        (with-open [_ (link/attach (program object "any_probe") (probe traced "gated"))]
          (run traced)
          (is (= [(assoc (expected (first (of-probe traced "gated"))) :cookie 0)]
                 (calls object)))))
      (testing "and typed arguments"
        (with-open [_ (link/attach (program object "sum") (probe traced "sized"))]
          (run traced)
          (is (= 33 @(get-in object [:variables "total"]))))))))

(kernel-test ^{:needs [[:target :uprobe-multi]]} k11-one-link-for-all-places
  (testing "a probe with several places has one link of the kernel"
    (on-x86-64
     #(when @usdt/one-link-for-all-places
        (check-places)
        (with-open [traced (probed/program places)
                    object (loaded "usdt")
                    l (link/attach (program object "any_probe") (probe traced "rax"))]
          (is (= {:type :uprobe-multi :functions 3} (select-keys (link/info l)
                                                                 [:type :functions]))))))))

(defn- without-links-of-many
  "Calls f as on a kernel without links of many uprobes."
  [f]
  (with-redefs [usdt/one-link-for-all-places (delay false)]
    (f)))

(kernel-test ^{:needs [[:kernel :links-of-perf-events]]} k11-link-for-each-place
  (testing "without links of many uprobes, a link owns one for each place"
    (on-x86-64
     (fn []
       (without-links-of-many
        (fn []
          (check-places)
          (with-open [traced (probed/program places)
                      object (loaded "usdt")
                      l (link/attach (program object "any_probe") (probe traced "rax"))]
            (is (= 3 (count (distinct (:ids (link/info l))))))
            (is (= :perf-event (:type (link/info l))))
            (let [{:keys [message] :bpfmap/keys [error]} (error-of (link/pin! l (fixture/new-pin)))]
              (is (= :not-supported error))
              (is (str/includes? message (str "The link has 3 links of the kernel, one for each place "
                                              "of the probe: attach with :offset and :counter of "
                                              "bpfmap.link/probes")))))
          (testing "half-way failures give all back"
            (with-open [traced (probed/program places)
                        object (loaded "usdt")]
              (let [before (fixture/settled-descriptors)
                    leases @@#'usdt/leases
                    id (:id (prog/info (program object "any_probe")))]
                (doseq [[place outcome] {#'kernel.perf/open -24, #'kernel.link/create -12}]
                  (let [original @place
                        n (atom 0)]
                    (with-redefs-fn {place (fn [& args]
                                             (if (= 3 (swap! n inc))
                                               outcome
                                               (apply original args)))}
                      #(is (#{:too-many-files :no-memory}
                            (:bpfmap/error (error-of (link/attach (program object "any_probe")
                                                                  (probe traced "rax")))))))))
                (is (= before (fixture/open-descriptors)))
                (is (= leases @@#'usdt/leases))
                (run traced)
                (is (= [] (calls object)))
                (is (pos? (long id))))))))))))

(kernel-test ^{:needs [[:kernel :links-of-perf-events]]} k11-without-cookies
  (testing "without cookies, descriptions are found by the address of the probe"
    (on-x86-64
     (fn []
       (with-redefs [usdt/one-link-for-all-places (delay false)
                     externs/virtual (assoc @#'externs/virtual "LINUX_HAS_BPF_COOKIE" (delay 0))]
         (with-open [traced (probed/program places)
                     moved (probed/program places :file-type 3)
                     object (loaded "usdt")]
           (let [addresses (get-in object [:maps "__bpf_usdt_ip_to_spec_id"])]
             (with-open [_ (link/attach (program object "any_probe") (probe traced "rax")
                                        {:cookie 9})]
               (is (= (set (map :address (of-probe traced "rax")))
                      (set (keys (into {} addresses)))))
               (run traced)
               (is (= (map #(assoc (expected %) :cookie 9) (of-probe traced "rax")) (calls object)))
               (let [{:keys [message] :bpfmap/keys [error]}
                     (error-of (link/attach (program object "any_probe") (probe traced "rax")))]
                 (is (= :exists error))
                 (is (str/includes? message "The address of the probe is in use by another one"))))
             (is (= {} (into {} addresses)))
             (let [target (probe moved "rax")
                   attach #(error-of (link/attach (program object "any_probe") (merge target %)))]
               (is (str/includes? (:message (attach nil))
                                  "this kernel has no cookies, which came with Linux 5.15"))
               (is (str/includes? (:message (attach {:pid (.pid (ProcessHandle/current))}))
                                  "has not mapped the probe in"))))))))))

(kernel-test ^{:needs [[:kernel :links-of-perf-events]]} k10-k11-of-sections
  (testing "the section of a program has the path, the provider and the name"
    (on-x86-64
     (fn []
       (with-open [traced (probed/program places)
                   object (object/load
                           (update (object/read "test/objects/usdt-el.o") :programs update-vals
                                   #(cond-> %
                                      (:target %)
                                      (update :target str/replace "bpfmap-probed"
                                              (:path traced)))))]
         (is (= (probe traced "rax") (link/target (program object "of_section"))))
         (is (nil? (link/target (program object "any_probe"))))
         (with-open [_ (link/attach (program object "of_section"))
                     _ (link/attach (program object "sum"))]
           (run traced)
           (is (= (map expected (of-probe traced "rax")) (map #(dissoc % :cookie) (calls object))))
           (is (= 33 @(get-in object [:variables "total"]))))
         (let [{:keys [message] :bpfmap/keys [error]}
               (error-of (link/attach (program object "any_probe")))]
           (is (= :invalid-value error))
           (is (str/includes? message (str "The section \"usdt\" has no complete target: give a "
                                           "target such as {:usdt \"libc\" :provider \"libc\" "
                                           ":name \"setjmp\"}")))))))))

(kernel-test ^{:needs [[:kernel :links-of-perf-events]]} k7-k11-unknown-probes
  (testing "a probe that a file does not have is answered with near names"
    (on-x86-64
     (fn []
       (with-open [traced (probed/program places)
                   none (probed/program [])
                   p (prog/load {:type :kprobe :insns [[:mov64 :r0 0] [:exit]]})]
         (doseq [[target words] {(probe traced "gatd")
                                 "has no probe \"bpfmap:gatd\": did you mean bpfmap:gated?"
                                 (probe traced "zzzzzzzzzzz") "bpfmap.link/probes for all"
                                 (probe none "gated") "it was built without USDT probes"
                                 (probe {:path "/no/such/file"} "gated") "does not exist"
                                 (probe {:path "/etc/passwd"} "gated") "is not a 64-bit ELF file"}]
           (is (str/includes? (str (:message (error-of (link/attach p target)))) words)))
         (is (= (map #(dissoc % :semaphore :address) (:probes traced))
                (map #(dissoc % :semaphore :offset) (link/probes (:path traced)))))
         (is (= [nil nil nil 0x1f06 nil nil] (map :semaphore (link/probes (:path traced))))))))))

(kernel-test ^{:needs [[:kernel :links-of-perf-events]]} k11-without-an-object
  (testing "a program that reads no arguments can be on a probe too, with a cookie of its own"
    (on-x86-64
     (fn []
       (with-open [traced (probed/program places)
                   m (counter)]
         (doseq [more (cond-> [nil]
                        @usdt/one-link-for-all-places
                        (conj {:expected-attach-type :trace-uprobe-multi}))]
           (with-open [p (prog/load (merge {:type :kprobe :insns (counting m 0)} more))
                       _ (link/attach p (probe traced "rax"))]
             (bpf/put! m 0 0)
             (run traced)
             (is (= 3 (m 0))))
           (with-open [p (prog/load (merge {:type :kprobe :insns (links/storing-cookie m)} more))
                       _ (link/attach p (probe traced "gated") {:cookie 77})]
             (run traced)
             (is (= 77 (m 0))))))))))

(kernel-test ^{:needs [[:kernel :links-of-perf-events]]} k11-loaded-elsewhere
  (testing "a program that reads arguments is attached only where it was loaded"
    (on-x86-64
     (fn []
       (with-open [traced (probed/program places)
                   object (loaded "usdt")
                   m (counter)
                   other (prog/load {:type :kprobe :insns (counting m 0)})
                   copy (prog/open {:program-id (:id (prog/info (program object "any_probe")))})
                   counting-copy (prog/open {:program-id (:id (prog/info other))})]
         (let [{:keys [message] :bpfmap/keys [error op]}
               (error-of (link/attach copy (probe traced "rax")))]
           (is (= [:not-supported :attach] [error op]))
           (is (str/includes? message "The program any_probe reads arguments of probes"))
           (is (str/includes? message "or load the object with bpfmap.object/load")))
         (testing "one that reads none is attached"
           (with-open [_ (link/attach counting-copy (probe traced "rax"))]
             (run traced)
             (is (= 3 (m 0))))))))))

(kernel-test ^{:needs [[:kernel :links-of-perf-events]]} k11-of-one-process
  (testing "a probe is observed in one process only"
    (on-x86-64
     (fn []
       (with-open [traced (probed/program places)
                   object (loaded "usdt")
                   child (objects/child-process)
                   _ (link/attach (program object "any_probe")
                                  (probe traced "rax" :pid (:pid child)))]
         (run traced)
         (is (= [] (calls object))))))))

(kernel-test ^{:needs [[:kernel :links-of-perf-events]]} k9-k11-descriptions-are-given-back
  (testing "a closed link gives its descriptions back, a pinned one keeps them"
    (on-x86-64
     (fn []
       (with-open [traced (probed/program places)
                   object (object/load (assoc-in (object/read "test/objects/usdt-el.o")
                                                 [:maps "__bpf_usdt_specs" :max-entries] 3))]
         (let [attach (fn [name] (link/attach (program object "any_probe") (probe traced name)))]
           (dotimes [_ 3]
             (link/close (attach "rax")))
           (with-open [^Link _ (attach "rax")
                       ^Link _ (attach "gated")]
             (let [{:keys [message] :bpfmap/keys [error]} (error-of (attach "sized"))]
               (is (= :map-full error))
               (is (str/includes? message "The map of descriptions has room for 3: close links to "))))
           (when @usdt/one-link-for-all-places
             (let [path (fixture/new-pin)
                   l (attach "gated")]
               (link/pin! l path)
               (link/close l)
               (with-open [^Link _ (attach "rax")]
                 (run traced)
                 (is (= 4 (count (calls object)))))
               (is (= :map-full (:bpfmap/error (with-open [^Link _ (attach "rax")]
                                                 (error-of (attach "sized"))))))
               (.delete (File. ^String path))))))))))

(kernel-test ^{:needs [[:kernel :links-of-perf-events]]} k1-reference-counters
  (testing "a uprobe with a reference counter makes the program pass its place"
    (on-x86-64
     (fn []
       (with-open [traced (probed/program places)
                   m (counter)
                   p (prog/load {:type :kprobe :insns (counting m 0)})]
         (let [{:keys [offset semaphore]} (first (filter :semaphore (link/probes (:path traced))))]
           (with-open [_ (link/attach p {:uprobe (:path traced) :offset offset})]
             (run traced)
             (is (= 0 (m 0))))
           (with-open [_ (link/attach p {:uprobe (:path traced) :offset offset
                                         :counter semaphore})]
             (run traced)
             (is (= 1 (m 0))))
           (run traced)
           (is (= 1 (m 0)))))))))
