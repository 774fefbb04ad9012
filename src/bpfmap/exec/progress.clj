(ns ^:no-doc bpfmap.exec.progress
  "Reports the progress of a command, and notes that are not part of its result.")

(set! *warn-on-reflection* true)

(def ^:dynamic *report*
  "The function that shows progress, or nil.

  It is called from time to time as `(f \"entries\" 4096)`: the kind of items and their number so
  far."
  nil)

(def ^:dynamic *end* "The function that ends the display of progress, or nil." nil)

;; --- notes

(def ^:dynamic *note* "The function that prints a note of one line, or nil." nil)

(defn note
  "Reports something that the user should know, and that is not part of the result.

      (note \"the file of hints h.edn has no hints for flows\") ;=> nil"
  [text]
  (when-let [f *note*] (f text))
  nil)

;; --- progress

(defn end
  "Ends the display of progress, before a command draws on the terminal itself.

      (end) ;=> nil"
  []
  (when-let [f *end*] (f))
  nil)

(def ^:private ^:const every "Rows between two reports." 4096)

(defn counting
  "Returns a transducer that reports how many items pass through.

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

(defn counter
  "Returns a function that adds items, 1 by default, and reports their number.

  For items of which each can take long.

      ((counter \"maps\")) ;=> nil"
  [what]
  (let [report (or *report* (fn [_ _]))
        sum (volatile! 0)]
    (fn add
      ([] (add 1))
      ([n]
       (report what (vswap! sum + n))
       nil))))
