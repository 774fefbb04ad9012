(ns ^:no-doc bpfmap.exec.progress
  "How far a command has come, for whoever wants to show it.")

(set! *warn-on-reflection* true)

(def ^:dynamic *report*
  "Called now and then with what there is to count, and how many there were: `(f \"entries\"
  4096)`. Nil where nobody looks."
  nil)

(def ^:private ^:const every "Rows between two reports." 4096)

(defn counting
  "A transducer that changes nothing, and reports how many went through.

      (into [] (counting \"entries\") [1 2]) ;=> [1 2]"
  [what]
  (if-let [report *report*]
    (fn [rf]
      (let [n (volatile! 0)]
        (fn
          ([] (rf))
          ([acc] (rf acc))
          ([acc x]
           (when (zero? (rem (long (vswap! n inc)) every))
             (report what @n))
           (rf acc x)))))
    (map identity)))
