(ns bpfmap.soak
  "Does everything that bpfmap can do, at random, from several threads, for as long as it is told,
  and says each minute what that costs. Whatever grows there would grow in a service.

      bin/clj -M:soak 10       ten minutes; as root

  Ends with 1 where an exception was not one of bpfmap's, or where something grew."
  (:require [bpfmap.core :as bpf]
            [bpfmap.soak.actions :as actions]
            [clojure.string :as str])
  (:import (java.io Closeable File)
           (java.lang ProcessHandle)
           (java.lang.management ManagementFactory)
           (java.nio.file Files Path)
           (java.nio.file.attribute FileAttribute)
           (java.util.concurrent ConcurrentHashMap)
           (java.util.concurrent.atomic AtomicBoolean AtomicLong LongAdder)
           (java.util.function Function)
           (javax.management ObjectName)))

(set! *warn-on-reflection* true)

(def ^:private threads 4)

;; --- what it costs

(defn- native-memory
  "The JVM's own account of its native memory in bytes, by category; see
  `-XX:NativeMemoryTracking` in deps.edn."
  []
  (let [report (str (.invoke (ManagementFactory/getPlatformMBeanServer)
                             (ObjectName. "com.sun.management:type=DiagnosticCommand")
                             "vmNativeMemory"
                             (object-array [(into-array String ["summary" "scale=B"])])
                             (into-array String ["[Ljava.lang.String;"])))]
    (into {} (map (fn [[_ category committed]] [(str/trim category) (parse-long committed)]))
          (re-seq #"-\s+([A-Z][A-Za-z ]+) \(reserved=\d+, committed=(\d+)\)" report))))

(defn- resident
  "Bytes of this process that are in memory."
  []
  (let [status (Files/readString (Path/of "/proc/self/status" (make-array String 0)))]
    (* 1024 (parse-long (second (re-find #"VmRSS:\s+(\d+)" status))))))

(defn- costs
  "What the process holds, after a collection: what nobody can reach any more is given back by
  then."
  []
  (let [counts (doall (repeatedly 5 (fn []
                                      (System/gc)
                                      (Thread/sleep 200) ; the cleaner closes what was found
                                      (count (.list (File. "/proc/self/fd"))))))
        native (native-memory)]
    ;; The least: the others go on meanwhile, and lose four descriptors with each lost reader.
    {:descriptors (reduce min counts)
     :resident (resident)
     :heap (.getUsed (.getHeapMemoryUsage (ManagementFactory/getMemoryMXBean)))
     :foreign (get native "Other" 0) ; the category of what the foreign function API allocates
     :native (reduce + (vals (dissoc native "Java Heap")))}))

(def ^:private growth
  "By how much each may have grown from the second minute to the last, in its own unit: what a
  garbage collector's own books and a JIT compiler still do by then, and handles that are open
  just then."
  {:descriptors 12, :resident (* 48 1024 1024), :heap (* 8 1024 1024), :foreign (* 256 1024)
   :native (* 32 1024 1024)})

;; --- the threads

(defn- count-in [^ConcurrentHashMap counts k]
  (.increment ^LongAdder (.computeIfAbsent counts k (reify Function (apply [_ _] (LongAdder.))))))

(defn- unexpected?
  "Whether an exception is neither an error of bpfmap's nor one that an action means to throw."
  [e]
  (nil? (:bpfmap/error (ex-data e))))

(defn- run-action [world {:keys [operations errors ^AtomicBoolean bad]}]
  (let [action (actions/choose)]
    (try
      (actions/perform world action)
      (catch Throwable e
        (count-in errors (:bpfmap/error (ex-data e) :none))
        (when (unexpected? e)
          (.set bad true)
          (binding [*out* *err*]
            (println "soak:" action "threw" (str e))
            (.printStackTrace e)))))
    (.increment ^LongAdder operations)))

(defn- worker ^Thread [world {:keys [^AtomicBoolean over] :as books}]
  (doto (Thread. (fn [] (while (not (.get over)) (run-action world books))) "soak")
    (.start)))

;; --- the world

(defn- run-command [& command]
  (.waitFor (.start (.inheritIO (ProcessBuilder. ^java.util.List (vec command))))))

(defn- with-pins
  "Calls f with a directory on a BPF file system of its own."
  [f]
  (let [dir (str (Files/createTempDirectory "bpfmap-soak" (make-array FileAttribute 0)))]
    (try
      (when-not (zero? (run-command "mount" "-t" "bpf" "bpf" dir))
        (throw (ex-info "cannot mount a BPF file system; run it as root" {})))
      (try
        (f dir)
        (finally (run-command "umount" "-l" dir)))
      (finally (.delete (File. dir))))))

(defn- world [pins]
  (let [names (into {}
                    (map (fn [kind] [kind (str "sk" (.pid (ProcessHandle/current)) (name kind))]))
                    (keys actions/specs))
        open (fn [[kind spec]] [kind (atom (bpf/create (assoc spec :name (names kind))))])]
    {:maps (into {} (map open) actions/specs)
     :names (update-vals names #(subs % 0 (min 15 (count %))))
     :pins pins
     :ids (AtomicLong.)}))

;; --- the report

(def ^:private columns
  [["minute" 6] ["operations" 11] ["errors" 9] ["descriptors" 11] ["resident" 9] ["heap" 8]
   ["foreign" 9] ["native" 8]])

(defn- mib [bytes] (format "%.1f" (/ bytes 1048576.0)))

(defn- line [cells]
  (str/join "  " (map (fn [cell [_ width]] (format (str "%" width "s") cell)) cells columns)))

(defn- by-kind [errors]
  (into (sorted-map) (map (fn [[kind ^LongAdder n]] [kind (.sum n)])) errors))

(defn- print-minute [minute operations errors {:keys [descriptors resident heap foreign native]}]
  (println (line [(if (== minute (long minute)) (long minute) (format "%.1f" (double minute)))
                  (format "%,d" operations) (format "%,d" (reduce + (vals errors))) descriptors
                  (mib resident) (mib heap) (format "%.1f" (/ foreign 1024.0)) (mib native)]))
  (println (str "        " (str/join ", " (map (fn [[kind n]] (str (name kind) " " n)) errors))))
  (flush))

(defn- grown
  "What grew by more than it may from one of the costs to another, as lines."
  [before after]
  (for [[what most] growth
        :let [by (- (what after) (what before))]
        :when (< most by)]
    (str (name what) " grew by " (format "%,d" by) ", more than " (format "%,d" most))))

(defn- soak
  "Runs for so many minutes; returns what was wrong, as lines."
  [minutes pins]
  (let [books {:operations (LongAdder.) :errors (ConcurrentHashMap.) :over (AtomicBoolean.)
               :bad (AtomicBoolean.)}
        {:keys [^LongAdder operations ^ConcurrentHashMap errors ^AtomicBoolean over
                ^AtomicBoolean bad]} books
        world (world pins)
        begun (System/nanoTime)
        elapsed #(/ (- (System/nanoTime) begun) 60e9)]
    (println (str threads " threads, JDK " (Runtime/version) ", heap of at most "
                  (mib (.maxMemory (Runtime/getRuntime))) " MiB"))
    (println
     "Resident, heap after a collection, and native memory without the heap in MiB; foreign, which is that of maps' keys and")
    (println
     "values, in KiB. Native and foreign are the JVM's own accounts (NativeMemoryTracking). Below each minute: errors by kind.")
    (println)
    (println (line (map first columns)))
    (let [workers (doall (repeatedly threads #(worker world books)))
          seen (loop [minute 1 seen []]
                 (let [until (min minute minutes)]
                   (while (< (elapsed) until) (Thread/sleep 50))
                   (let [now (costs)]
                     (print-minute until (.sum operations) (by-kind errors) now)
                     (if (< until minutes)
                       (recur (inc minute) (conj seen now))
                       (conj seen now)))))]
      (.set over true)
      (run! (fn [^Thread t] (.join t)) workers)
      (run! (fn [slot] (.close ^Closeable @slot)) (vals (:maps world)))
      (println)
      (concat (when (.get bad) ["an exception was none of bpfmap's"])
              (when (< 2 (count seen)) (grown (second seen) (peek seen)))))))

(defn -main
  "Runs, and exits with 1 where something was wrong."
  [& [minutes]]
  (let [minutes (some-> minutes parse-double)]
    (when-not (and minutes (pos? minutes))
      (binding [*out* *err*] (println "soak: bin/clj -M:soak MINUTES"))
      (System/exit 2))
    (let [wrong (with-pins #(doall (soak minutes %)))]
      (run! println wrong)
      (when (empty? wrong)
        (println (if (< 2 minutes) "Nothing grew." "All errors were bpfmap's own.")))
      (System/exit (if (seq wrong) 1 0)))))
