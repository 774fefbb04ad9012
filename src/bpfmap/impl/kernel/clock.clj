(ns ^:no-doc bpfmap.impl.kernel.clock
  "Reads the clocks of the kernel."
  (:import (bpfmap.sys Abi Native)
           (java.lang.foreign Arena ValueLayout)))

(set! *warn-on-reflection* true)

(def ^:private clocks
  "Source: linux/time.h."
  {:realtime 0 :monotonic 1 :boottime 7})

(defn nanoseconds
  "Returns the time of a clock in nanoseconds: :realtime, :monotonic or :boottime.

  The first counts from 1970. The others count from the start of the system, :boottime with the time
  that it was suspended.

      (nanoseconds :monotonic) ;=> 8123456789012"
  [clock]
  (with-open [arena (Arena/ofConfined)]
    (let [time (.allocate arena (long 16) (long 8))] ; struct timespec
      (Native/syscall Abi/SYS_CLOCK_GETTIME (long (clocks clock)) (.address time) 0 0 0)
      (+ (* 1000000000 (.get time ValueLayout/JAVA_LONG (long 0)))
         (.get time ValueLayout/JAVA_LONG (long 8))))))

(defn offset
  "Returns what to add to a time of a clock for nanoseconds since 1970.

  Returns nil if no system call can be made here.

  The two clocks are read one after the other; of several attempts, the quickest counts. Adjustments
  of the time of day since then are not in times of the past.

      (+ (offset :monotonic) (nanoseconds :monotonic)) ;=> 1764521972123456789"
  [clock]
  (when-not (Native/unavailable)
    (let [measured (fn []
                     (let [before (long (nanoseconds clock))
                           now (long (nanoseconds :realtime))
                           after (long (nanoseconds clock))]
                       [(- after before) (- now (quot (+ before after) 2))]))]
      (second (apply min-key first (repeatedly 5 measured))))))
