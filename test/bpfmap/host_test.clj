(ns bpfmap.host-test
  (:require [bpfmap.btf :as btf]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.lifecycle :as lifecycle]
            [clojure.string :as str]
            [clojure.test :refer [are is testing]])
  (:import (java.io Closeable)
           (java.util.concurrent.atomic AtomicBoolean)))

(set! *warn-on-reflection* true)

(def ^:private spec {:name "t_host" :type :array :key :u32 :value :u64 :max-entries 1})

(kernel-test all-maps-are-listed-by-ascending-id
  (with-open [a ^Closeable (bpf/create spec)
              b ^Closeable (bpf/create (assoc spec :type :hash))]
    (let [maps (host/maps)
          ids (map :id maps)]
      (is (vector? maps))
      (is (= ids (sort ids)))
      (doseq [m [a b]]
        (is (= [(dissoc (bpf/info m) :key :value)] (filter #(= (:id (bpf/info m)) (:id %)) maps)))))))

(kernel-test maps-that-vanish-meanwhile-are-skipped-and-said
  (let [over (AtomicBoolean.)
        churns (doall (repeatedly 4 (fn [] (fixture/thread #(while (not (.get over))
                                                              (bpf/close (bpf/create spec)))))))
        deadline (+ (System/nanoTime) 20000000000)]
    (try
      (let [skipped (first (filter #(or (seq %) (< deadline (System/nanoTime)))
                                   (repeatedly #(:skipped (meta (host/maps))))))]
        (is (seq skipped) "one vanished between being named and being opened")
        (is (every? #(= :not-found (:error %)) skipped))
        (is (every? #(str/includes? (:message %) "no map has that id") skipped)))
      (finally
        (.set over true)
        (run! fixture/join churns)))))

(kernel-test without-the-capability-the-list-says-which-is-missing
  (let [{:keys [message] :bpfmap/keys [error op]} (fixture/unprivileged #(error-of (host/maps)))]
    (is (= [:permission :list] [error op]))
    (is (str/includes? message "list needs CAP_SYS_ADMIN"))))

(kernel-test listing-leaves-no-descriptor-open
  (with-open [_ ^Closeable (bpf/create spec)]
    (let [before (fixture/open-descriptors)]
      (dotimes [_ 20] (lifecycle/infos :list (fn [_ _])))
      (is (= before (fixture/open-descriptors))))))

;; --- BTF

(kernel-test the-kernel's-own-types-are-at-hand
  (is (= [:struct {:name "list_head"} [:next [:ptr "struct list_head"]] [:prev [:ptr "struct list_head"]]]
         (btf/type-named (host/kernel-btf) "list_head")))
  (testing "also as an object, whose id the kernel gives"
    (let [id (first (filter #(= (str (host/kernel-btf))
                                (try (str (host/btf-by-id %)) (catch clojure.lang.ExceptionInfo _ nil)))
                            (range 1 5)))]
      (is (some? id) "vmlinux is among the first"))))

(kernel-test a-map's-own-btf-is-read-by-its-id
  (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value [:struct {:name "v"} [:ip :ipv4]] :max-entries 1})]
    (let [{:keys [btf-id btf-value-type-id]} (bpf/info m)]
      (is (= [:struct {:name "v"} [:ip :ipv4]] (btf/type-of (host/btf-by-id btf-id) btf-value-type-id))))))

(kernel-test types-are-loaded-by-themselves
  (let [before (fixture/open-descriptors)
        b (host/load-btf [[:struct {:name "flow"} [:src :ipv4]] :my-int] {:my-int :s64})]
    (is (= "#<bpf-btf>" (pr-str b)))
    (is (= (inc before) (fixture/open-descriptors)))
    (.close ^Closeable b)
    (is (= "#<bpf-btf closed>" (pr-str b)))
    (is (= before (fixture/open-descriptors)))))

(kernel-test btf-that-is-not-there
  (are [expr kind words] (let [{:keys [message] :bpfmap/keys [error op]} (error-of expr)]
                           (and (= kind error) (keyword? op) (str/includes? message words)))
    (host/btf-by-id 0x7ffffff0) :not-found "no BTF object has that id"
    (host/btf-by-id "x") :invalid-value "Not an id: \"x\""
    (host/module-btf "no_such_module") :not-found "There is no BTF of no_such_module"
    (host/module-btf "../x") :invalid-value "Not the name of a module"
    (host/load-btf :u32) :invalid-value "Not a sequence of types: :u32"
    (host/load-btf [[:struct {:name (str/join (repeat 1000 "a"))} [:a :u8]]]) :invalid-value "this kernel does not take these types"
    (fixture/unprivileged #(host/load-btf [:u32])) :permission "CAP_BPF"
    (fixture/unprivileged #(host/btf-by-id 1)) :permission "CAP_SYS_ADMIN"))
