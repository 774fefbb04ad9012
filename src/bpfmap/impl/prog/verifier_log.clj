(ns ^:no-doc bpfmap.impl.prog.verifier-log
  "Reads the log of the verifier: reason, instruction, statistics, and a hint from a table.

  The log ends with the reason for a rejection, behind the instruction. Some reasons are followed by
  the states of registers, and all by statistics."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.escape :as escape]
            [bpfmap.impl.map-types :as map-types]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

;; --- statistics

(def ^:private statistics
  "Statistics by name, with what precedes each in the log."
  {:insns #"processed (\d+) insns"
   :limit #"\(limit (\d+)\)"
   :max-states-per-insn #"max_states_per_insn (\d+)"
   :total-states #"total_states (\d+)"
   :peak-states #"peak_states (\d+)"
   :microseconds #"verification time (\d+) usec"})

(defn stats
  "Returns the statistics in a log, as numbers by name.

  `:stack-depths` has the stack of each function in bytes.

      (stats \"verification time 12 usec\\nstack depth 8+16\\nprocessed 4 insns (limit 1000000) …\")
      ;=> {:insns 4 :limit 1000000 :microseconds 12 :stack-depths [8 16]}"
  [log]
  (let [log (str log)
        [_ stack] (re-find #"stack depth ([0-9+]+)" log)]
    (cond-> (into {}
                  (keep (fn [[k pattern]]
                          (when-let [[_ digits] (re-find pattern log)]
                            [k (parse-long digits)])))
                  statistics)
      stack (assoc :stack-depths (mapv parse-long (str/split stack #"\+"))))))

(def ^:private of-statistics
  #"^(processed \d+ insns|verification time|stack depth|max_states_per_insn|insns processed).*")

;; --- the reason

(def ^:private hints
  "Reasons that have a hint; the first pattern that a line matches counts.

  `:hint` is a text, or a function of the match and the facts of [[explained]]. `:reason`, if the row
  has it, is a function of the facts to a better reason than the line. A row with `:before` is for
  older kernels only. `:error` replaces the kind of the exception."
  [;; These kernels do not see such a function, as nothing calls it: check_btf_func in
   ;; kernel/bpf/verifier.c.
   {:row :callbacks
    :pattern #"number of funcs in func_info doesn't match number of subprogs"
    :before "5.13"
    :error :not-supported
    :hint (fn [_ {:keys [release]}]
            (str "functions that are passed to helpers need Linux 5.13, this is " release))}
   {:row :missing-in-kernel
    :pattern #"invalid func unknown#195896080"
    :reason (fn [{:keys [poison slot]}]
              (or (when poison (poison slot))
                  "the program needs a field, type or value that this kernel does not have"))
    :hint (str "test for it before its use (bpf_core_field_exists and others), or leave the program "
               "out")}
   {:row :missing-helper
    :pattern #"(?:program of this type cannot use helper|unknown func) (\S+?)#\d+"
    :hint (fn [[_ helper] {:keys [type]}]
            (str "programs of type " (or type "this") " cannot call " helper
                 " on this kernel; bpfmap.feature/helpers lists the helpers of a type"))}
   {:row :unknown-helper
    :pattern #"invalid func (\S+)"
    :hint (fn [[_ helper] _] (str "this kernel has no helper " helper))}
   {:row :missing-kfunc
    :pattern #"calling kernel function (\S+) is not allowed"
    :hint (fn [[_ kfunc] {:keys [type]}]
            (str "programs of type " (or type "this") " cannot call the kernel function " kfunc))}
   {:row :license
    :pattern #"cannot call GPL-restricted function|GPL-compatible program|from non-GPL compatible"
    :hint "give the object a license that is compatible with the GPL, such as \"GPL\""}
   {:row :unbounded-loop
    :pattern #"infinite loop detected|back-edge from insn"
    :hint (str "the loop has no bound that the verifier sees: count in a variable that only grows, "
               "and compare it with a constant; or use bpf_loop")}
   {:row :too-many-instructions
    :pattern #"BPF program is too large|sequence of \d+ jumps is too complex"
    :hint (str "the verifier reads at most a million instructions, and each way through a loop or "
               "branch again: bound loops by smaller constants, use bpf_loop, or split the program "
               "into global functions or tail calls")}
   {:row :stack-too-large
    :pattern #"[Cc]ombined stack size|exceeds max stack|invalid write to stack R\d+ off=-(5[2-9]\d|[6-9]\d\d|\d{4,})"
    :hint "a program has 512 bytes of stack, with its functions; use a per-CPU array for more"}
   {:row :null-check
    :pattern #"invalid mem access '\w*_or_null_?'|Possibly NULL pointer"
    :hint "compare the pointer with NULL before its use"}
   {:row :not-a-pointer
    :pattern #"invalid mem access '(scalar|inv)'"
    :hint (str "the address is a number to the verifier; read kernel memory with "
               "bpf_probe_read_kernel or BPF_CORE_READ")}
   {:row :out-of-bounds
    :pattern #"invalid access to (map value|packet|memory|mem)|min value is (negative|outside)|unbounded memory access|(max|min) value is outside"
    :hint (str "compare the index, or the end of the packet, with a constant right before the "
               "access")}
   {:row :unreleased
    :pattern #"Unreleased reference"
    :hint "release the acquired object on every way out of the program"}
   {:row :may-sleep
    :pattern #"helper call might sleep|might sleep in a non-sleepable|sleepable"
    :hint "only sleepable programs may call it: a section such as \"lsm.s/…\" or \"fentry.s/…\""}
   {:row :privilege
    :pattern #"leaks addr|pointer comparison prohibited|prohibited for !root"
    :hint "the process needs CAP_PERFMON for this"}
   {:row :map-type
    :pattern #"cannot pass map_type (\d+) into func (\S+?)#\d+"
    :hint (fn [[_ _ helper] _] (str helper " does not take a map of this type"))}])

(defn- row-of
  "Returns the row of a line with its `:match`, or nil."
  [line]
  (some (fn [{:keys [pattern] :as row}]
          (when-let [match (re-find pattern line)]
            (assoc row :match (if (string? match) [match] match))))
        hints))

(def ^:private instruction-line #"^(\d+): \([0-9a-f]{2}\) (.*)")

(defn reason
  "Returns the reason for a rejection in a log: `{:reason :slot :instruction}`.

  Keys that the log does not have are missing.

      (reason \"0: (bf) r0 = r5\\nR5 !read_ok\\nprocessed 1 insns (limit 1000000) …\")
      ;=> {:reason \"R5 !read_ok\" :slot 0 :instruction \"r0 = r5\"}"
  [log]
  (let [lines (into []
                    (comp (map str/trimr) (remove str/blank?) (remove #(re-find of-statistics %)))
                    (str/split-lines (str log)))
        near (rseq (subvec lines (max 0 (- (count lines) 40))))
        line (or (first (filter row-of near)) (first near))
        ;; Register states may stand behind an instruction, on its line.
        [_ slot instruction] (some #(re-find instruction-line %) (rseq lines))
        [_ named] (when line (re-find #"(?:at insn|from insn) (\d+)" line))]
    (cond-> {}
      line (assoc :reason line)
      (or named slot) (assoc :slot (parse-long (or named slot)))
      (and instruction (or (nil? named) (= named slot)))
      (assoc :instruction (str/trim (first (str/split instruction #"\s+;\s")))))))

;; --- errors

(defn- source-text [{:keys [file line text]}]
  (str "at " file ":" line (when-not (str/blank? text) (str ": " (str/trim text)))))

(def ^:private lines-shown 6)

(defn- row-for
  "Returns the row of a line, or nil if it is for older kernels than this one."
  [line {:keys [release]}]
  (let [{:keys [before] :as row} (row-of line)]
    (when-not (and before (or (nil? release) (map-types/at-least? release before)))
      row)))

(defn explained
  "Returns the exception of a refused program with what its log says.

  The reason, the source line and the instruction come first, then a hint, then the end of the log.
  Facts, all optional:

  | key       | meaning                                                              |
  |-----------|----------------------------------------------------------------------|
  | `:type`   | the name of the program type                                         |
  | `:line`   | function of a slot that returns its source line, as an object has it |
  | `:poison` | function of a slot that returns why an instruction must not run      |
  | `:release` | the release of the kernel                                           |

  Without a log the exception is returned unchanged."
  ^Throwable [^ExceptionInfo e log {:keys [line] :as facts}]
  (if (str/blank? log)
    e
    (let [{:keys [slot instruction] :as found} (reason log)
          facts (assoc facts :slot slot)
          {:keys [match hint] better :reason kind :error} (row-for (str (:reason found)) facts)
          reason (if better (better facts) (:reason found))
          hint (if (fn? hint) (hint match facts) hint)
          source (when (and line slot) (line slot))
          {old-hint :bpfmap/hint} (ex-data e)
          ;; The reason of the verifier is better than what the errno alone can mean.
          what (str/replace (ex-message e) (str ": " old-hint) "")
          shown (concat [(if reason (str what ": " reason) (ex-message e))]
                        (when source [(source-text source)])
                        (when instruction [(str "instruction " slot ": " instruction)])
                        (when hint [(str "hint: " hint)])
                        ["the end of the verifier's log:"]
                        (map #(str "  " %) (take-last lines-shown (str/split-lines (str/trim log)))))
          made (ex-info (str/join "\n" (map escape/escape shown))
                        (into (ex-data e)
                              (remove (comp nil? val))
                              {:bpfmap/error kind
                               :bpfmap/log log
                               :bpfmap/reason reason
                               :bpfmap/slot slot
                               :bpfmap/source (some-> source
                                                      (select-keys [:file :line :column :text]))
                               :bpfmap/hint (or hint old-hint)})
                        e)]
      (doto ^Throwable made (.setStackTrace (.getStackTrace e))))))
