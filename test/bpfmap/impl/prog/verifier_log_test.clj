(ns bpfmap.impl.prog.verifier-log-test
  "Logs of several kernels: reason, instruction, statistics and hint."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.prog.verifier-log :as verifier-log]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]))

(set! *warn-on-reflection* true)

(def ^:private end "\nprocessed 9 insns (limit 1000000) max_states_per_insn 1 total_states 2 peak_states 3")

(deftest reasons
  (testing "the reason is the last line that is neither statistics nor a state of registers"
    (are [expected log] (= expected (verifier-log/reason (str log end)))
      {:reason "R5 !read_ok" :slot 0 :instruction "r0 = r5"} "0: (bf) r0 = r5\nR5 !read_ok"
      {:reason "R1 invalid mem access 'scalar'" :slot 3 :instruction "r0 = *(u32 *)(r1 +0)"}
      "3: (61) r0 = *(u32 *)(r1 +0)   ; R1=scalar()\nR1 invalid mem access 'scalar'"
      {:reason "infinite loop detected at insn 5" :slot 5}
      "11: (2d) if r2 > r3 goto pc-7\ninfinite loop detected at insn 5\ncur state: R1=1\nold state: R1=1"
      {:reason "back-edge from insn 7 to 2" :slot 7} "back-edge from insn 7 to 2"
      {:reason "unreachable insn 4"} "unreachable insn 4")
    (is (= {} (verifier-log/reason "")))))

(deftest statistics
  (testing "statistics are numbers by name"
    (is (= {:insns 9 :limit 1000000 :max-states-per-insn 1 :total-states 2 :peak-states 3
            :microseconds 12 :stack-depths [8 16]}
           (verifier-log/stats (str "verification time 12 usec\nstack depth 8+16" end))))
    (is (= {} (verifier-log/stats nil)))))

(deftest hints
  (testing "known reasons have a hint"
    (are [words log]
         (let [e (verifier-log/explained (error/error :program-rejected "Loading failed with EACCES"
                                                      {:bpfmap/hint "the old hint"})
                                         (str log end)
                                         {:type :xdp :poison {3 "struct a has no field b"}
                                          :release "5.10.0-32-cloud-amd64"})]
           (and (is (str/includes? (:bpfmap/hint (ex-data e)) words))
                (is (str/includes? (ex-message e) words))
                (is (not (str/includes? (ex-message e) "the old hint")))))
      "functions that are passed to helpers need Linux 5.13, this is 5.10.0-32-cloud-amd64"
      "number of funcs in func_info doesn't match number of subprogs"
      "programs of type :xdp cannot call bpf_f on this kernel" "unknown func bpf_f#7"
      "programs of type :xdp cannot call bpf_f" "program of this type cannot use helper bpf_f#7"
      "this kernel has no helper unknown#999" "invalid func unknown#999"
      "cannot call the kernel function f" "calling kernel function f is not allowed"
      "compatible with the GPL" "cannot call GPL-restricted function from non-GPL compatible program"
      "count in a variable that only grows" "back-edge from insn 7 to 2"
      "a million instructions" "The sequence of 8193 jumps is too complex."
      "512 bytes of stack" "combined stack size of 2 calls is 544. Too large"
      "with NULL" "R0 invalid mem access 'map_value_or_null'"
      "BPF_CORE_READ" "R1 invalid mem access 'inv'"
      "with a constant" "invalid access to packet, off=0 size=1, R1(id=0,off=0,r=0)"
      "release the acquired object" "Unreleased reference id=2 alloc_insn=3"
      "only sleepable programs" "helper call might sleep in a non-sleepable prog"
      "CAP_PERFMON" "R1 leaks addr into map"
      "bpf_f does not take a map of this type" "cannot pass map_type 1 into func bpf_f#7"
      "bpf_core_field_exists" "3: (85) call unknown#195896080\ninvalid func unknown#195896080")
    (testing "a poisoned instruction has its own reason"
      (is (= "struct a has no field b"
             (:bpfmap/reason
              (ex-data (verifier-log/explained
                        (error/error :program-rejected "Loading failed" {})
                        (str "3: (85) call unknown#195896080\ninvalid func unknown#195896080" end)
                        {:poison {3 "struct a has no field b"}}))))))
    (testing "a row for older kernels has an error of its own, and does not count on others"
      (are [kind hint release]
           (= [kind hint]
              ((juxt :bpfmap/error :bpfmap/hint)
               (ex-data (verifier-log/explained
                         (error/error :program-rejected "Loading failed" {:bpfmap/hint "old"})
                         (str "number of funcs in func_info doesn't match number of subprogs" end)
                         {:release release}))))
        :not-supported "functions that are passed to helpers need Linux 5.13, this is 5.12.19" "5.12.19"
        :program-rejected "old" "5.13.0"
        :program-rejected "old" nil))
    (testing "without a log nothing changes"
      (let [e (error/error :program-rejected "Loading failed" {})]
        (is (identical? e (verifier-log/explained e "" {})))))))
