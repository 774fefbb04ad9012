(ns bpfmap.bench.processor
  "Which processors this process may use, and threads that keep to one of them.

  Two threads that are to run at once then do, on a busy machine too; and the
  threads of C and of the JVM that are compared use the same cache."
  (:require [bpfmap.impl.host.syscalls :as syscalls]
            [clojure.string :as str])
  (:import (bpfmap.sys Bytes Native)
           (java.lang.foreign Arena)
           (java.nio.file Files Path)
           (java.util.concurrent Executors ThreadFactory)))

(set! *warn-on-reflection* true)

(defn allowed
  "The numbers of the processors that this process may use, in order.

      (allowed) ;=> [0 1]"
  []
  (let [status (Files/readString (Path/of "/proc/self/status" (make-array String 0)))]
    (into []
          (mapcat (fn [part]
                    (let [[low high] (map parse-long (str/split part #"-"))]
                      (range low (inc (or high low))))))
          (str/split (second (re-find #"Cpus_allowed_list:\s*(\S+)" status)) #","))))

(def ^:private set-affinity
  (delay (first (filter #(= "sched_setaffinity" (syscalls/syscall-name %)) (range 512)))))

(defn- pin
  "Makes the current thread keep to a processor."
  [cpu]
  (with-open [arena (Arena/ofConfined)]
    (let [capture (.allocate arena Native/CAPTURE_SIZE 8)
          mask (.allocate arena 1024 8)]
      (Bytes/putBits mask cpu 1 1)
      (Native/syscall capture @set-affinity 0 (.byteSize mask) (.address mask) 0 0))))

(defn threads
  "An executor for each of n threads, which are daemons, and keep to one of the processors each."
  [n cpus]
  (mapv (fn [cpu]
          (Executors/newSingleThreadExecutor
           (reify ThreadFactory
             (newThread [_ task]
               (doto (Thread. (fn [] (pin cpu) (.run task)) "bench")
                 (.setDaemon true))))))
        (take n (cycle cpus))))
