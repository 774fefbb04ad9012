(ns bpfmap.impl.kernel.lacks-test
  "What a kernel lacks: the texts, and the tables compared with the running kernel."
  (:require [bpfmap.btf :as btf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.config :as config]
            [bpfmap.impl.kernel.lacks :as lacks]
            [bpfmap.links :as links]
            [bpfmap.prog :as prog]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]))

(set! *warn-on-reflection* true)

(def ^:private all-options
  (zipmap (mapcat :options (concat (vals lacks/program-types) [{:options lacks/trampolines}]))
          (repeat "y")))

(deftest refused-programs
  (testing "the release, the option, or what is known of a kernel that has both"
    (are [program kernel text]
         (= text (lacks/of-program program (merge {:release "6.18.0" :options all-options} kernel)))
      {:type :netfilter} {:release "6.1.0"} "programs of type :netfilter need Linux 6.4, this is 6.1.0"
      {:type :netfilter} {:options {}}
      "programs of type :netfilter need a kernel built with CONFIG_NETFILTER_BPF_LINK, and this one is not"
      {:type :netfilter} {:options nil} nil
      {:type :netfilter} {} nil
      {:type :cgroup-sock-addr :attach-type :cgroup-unix-connect} {:release "6.1.0"}
      "programs of attach type :cgroup-unix-connect need Linux 6.7, this is 6.1.0"
      {:type :lsm :attach-type :lsm-mac} {:options (dissoc all-options "CONFIG_BPF_LSM")}
      "programs of type :lsm need a kernel built with CONFIG_BPF_LSM, and this one is not"
      {:type :tracing :attach-type :trace-fentry}
      {:options (dissoc all-options "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS")}
      (str "programs of type :tracing at a function need a kernel built with "
           "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS, and this one is not")
      {:type :tracing :attach-type :trace-raw-tp} {:refuses-such (constantly true)} nil
      {:type :tracing :attach-type :trace-fentry} {:refuses-such (constantly false)} nil
      {:type :tracing :attach-type :trace-fentry} {:refuses-such (constantly true)}
      (str "this kernel has no trampolines: it refuses all programs at functions, although it is "
           "built with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS; use a tracepoint (raw_tp, tp_btf) "
           "instead")
      {:type :ext} {:refuses-such (constantly true) :options nil :lockdown (constantly "integrity")}
      (str "this kernel has no trampolines: it refuses all programs at functions; it must be built "
           "with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS and allow them; it is locked down "
           "(integrity)")
      {:type :tracing :attach-type :trace-iter} {:refuses-such (constantly true)}
      "this kernel refuses all programs of this iterator; use another iterator instead"
      {:type 99} {:release "6.1.0"} nil)))

(deftest complete-tables
  (testing "every program type has a row, and every attach type in the table exists"
    (is (= (set (keys prog/types)) (set (keys lacks/program-types))))
    (is (every? prog/attach-types (keys lacks/attach-types)))))

(kernel-test rows-and-this-kernel
  (testing "a kernel has what its release and options promise"
    (let [facts {:release (call/kernel-release) :options (config/options)}
          kernel (host/kernel-btf)]
      (if-not (:options facts)
        (fixture/skip! "the options of this kernel cannot be read")
        (do
          (is (= "y" (get (:options facts) "CONFIG_BPF_SYSCALL")))
          (doseq [[name row] lacks/iterators
                  :when (nil? (lacks/explain "x" row facts))]
            (is (links/btf-id :func (str "bpf_iter_" name)) name))
          (doseq [[name row] lacks/structs
                  :when (nil? (lacks/explain "x" row facts))]
            (is (btf/type-id kernel :struct (str "bpf_struct_ops_" name)) name)))))))

(kernel-test refused-without-a-reason
  (testing "a type or attach type that this kernel lacks is not supported, and the row says why"
    (let [release (call/kernel-release)]
      (doseq [[type row] {:netfilter (lacks/program-types :netfilter)
                          :lirc-mode2 (lacks/program-types :lirc-mode2)
                          :syscall (lacks/program-types :syscall)}
              :let [why (lacks/explain "x" row {:release release :options (config/options)})]
              :when why
              :let [{:keys [message] :bpfmap/keys [error]}
                    (error-of (links/loaded type [[:mov64 :r0 0] [:exit]]
                                            :expected-attach-type ({:netfilter :netfilter
                                                                    :lirc-mode2 :lirc-mode2}
                                                                   type)))]]
        (is (= :not-supported error) (str type))
        (is (str/includes? message (subs why 2)))
        (is (not (str/includes? message "CAP_")))))))
