(ns bpfmap.impl.feature.progs-test
  "What the verifier's log tells, in the words of several kernels, and the numbers that the probes
  load with."
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.impl.feature.probe :as probe]
            [clojure.test :refer [are deftest is testing]]))

(set! *warn-on-reflection* true)

(deftest helper-from-verifier-log
  (testing "the verifier log shows if a helper exists"
    (are [said errno log] (= said (probe/called errno log))
      :known nil ""
      :known :EACCES "0: R1=ctx() R10=fp0\n0: (85) call bpf_get_stackid#27\nR2 !read_ok\n"
      :known :EINVAL
      "0: (85) call bpf_tail_call#12\ntail_call is only allowed in functions that return 'int'\n"
      :unknown :EINVAL "0: (85) call unknown#999999\ninvalid func unknown#999999\n"
      :unknown :EINVAL "0: (85) call bpf_probe_read#4\nunknown func bpf_probe_read#4\n"
      :unknown :EINVAL
      "0: (85) call bpf_probe_read#4\nprogram of this type cannot use helper bpf_probe_read#4\n"
      nil :EINVAL "Tracing programs must provide btf_id\n"
      nil :EPERM "")))

(deftest attach-types-of-header
  (testing "attach types match the kernel header"
    (let [ours {:cgroup-sock-addr "BPF_CGROUP_INET4_BIND" :lirc-mode2 "BPF_LIRC_MODE2"
                :cgroup-sockopt "BPF_CGROUP_GETSOCKOPT"
                :lsm "BPF_LSM_MAC" :sk-lookup "BPF_SK_LOOKUP" :netfilter "BPF_NETFILTER"}
          needs @#'probe/needs
          header (fixture/c-values ["linux/bpf.h"] (vals ours))]
      (is (= (set (keys ours)) (set (keep (fn [[type row]] (when (:attach-type row) type)) needs))))
      (if-not header
        (fixture/skip! "no C compiler to compare the numbers with")
        (doseq [[type constant] ours
                ;; The newest: the header may be older
                :when (or (header constant) (not= :netfilter type))]
          (is (= (header constant) (:attach-type (needs type))) (str type)))))))
