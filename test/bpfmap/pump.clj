(ns bpfmap.pump
  "What makes programs send and receive events in tests: programs that are run on a chosen CPU."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture]
            [bpfmap.prog :as prog]
            [bpfmap.since :as since]
            [clojure.string :as str])
  (:import (java.io Closeable)
           (java.lang ProcessBuilder$Redirect)
           (java.lang.foreign Arena ValueLayout)))

(set! *warn-on-reflection* true)

(def ^:private packet (byte-array 64))

(defn run
  "Runs a packet program n times; returns r0 of the last run as a signed number."
  ([p] (run p 1))
  ([p n]
   (unchecked-int (:return (prog/test-run p {:data packet :repeat n})))))

;; --- CPUs

(defn on-cpu
  "Calls f while this thread runs on one CPU."
  [cpu f]
  (with-open [arena (Arena/ofConfined)]
    (let [size 128
          before (.allocate arena size 8)
          mask (.allocate arena size 8)
          word (long (* 8 (quot (long cpu) 64)))]
      (fixture/syscall "sched_getaffinity" 0 size (.address before))
      (.set mask ValueLayout/JAVA_LONG word (long (bit-set 0 (rem (long cpu) 64))))
      (assert (zero? (long (fixture/syscall "sched_setaffinity" 0 size (.address mask)))))
      (try
        (f)
        (finally (fixture/syscall "sched_setaffinity" 0 size (.address before)))))))

;; --- other processes

(defn in-jvm
  "Starts a JVM that evaluates forms and prints a line when it is ready; returns the process."
  ^Process [& forms]
  (let [process (.start (doto (ProcessBuilder.
                               ^java.util.List
                               (fixture/java "-e" (str/join "\n" (map pr-str forms))))
                          (.redirectError ProcessBuilder$Redirect/INHERIT)))
        line (.readLine (.inputReader process))]
    (when-not (= "ready" line)
      (.destroyForcibly process)
      (throw (ex-info (str "a JVM is not ready but says " (pr-str line)) {})))
    process))

;; --- user ring buffers

(defn draining
  "Loads a program that drains a user ring buffer; r0 is the number of records, or an errno.

  It pushes the first bytes of each record, as many as a value of the queue `out` has, to the queue.
  Shorter records are only counted."
  ^Closeable [ring out]
  (prog/load {:type :socket-filter
              :insns [[:lddw :r1 ring]
                      [:ld-func :r2 :record]
                      [:mov64 :r3 0]
                      [:mov64 :r4 0]
                      [:call :user-ringbuf-drain]
                      [:exit]
                      :record
                      [:mov64 :r2 0]
                      [:mov64 :r3 (:value-size (bpf/spec out))]
                      [:call :dynptr-data]
                      [:jeq :r0 0 :done]
                      ;; Linux 6.1 pushes only from the stack.
                      (for [i (range (long (:value-size (bpf/spec out))))]
                        [[:ldxb :r1 [:r0 i]]
                         [:stxb [:r10 (- (long i) (long (:value-size (bpf/spec out))))] :r1]])
                      [:lddw :r1 out]
                      [:mov64 :r2 :r10]
                      [:add64 :r2 (- (long (:value-size (bpf/spec out))))]
                      [:mov64 :r3 0]
                      [:call :map-push-elem]
                      :done
                      [:mov64 :r0 0]
                      [:exit]]}))

;; --- perf event arrays

(def ^:private current-cpu 0xffffffff) ; BPF_F_CURRENT_CPU

(defn perf-output
  "Loads a program that sends events of `size` bytes to a perf event array.

  An event has words of eight bytes: the number of the event, counted from 1 in the array `counter`,
  then the same number times a constant. r0 is 0 or an errno, also of the call for the last event."
  ^Closeable [m counter size]
  (let [words (quot (+ (long size) 7) 8)
        from (- (* 8 words))]
    (prog/load {:type :socket-filter
                :insns [[:stw [:r10 (- from 4)] 0]
                        [:mov64 :r9 :r1]
                        [:lddw :r1 counter]
                        [:mov64 :r2 :r10]
                        [:add64 :r2 (- from 4)]
                        [:call :map-lookup-elem]
                        [:jeq :r0 0 :out]
                        [:mov64 :r7 1]
                        ;; Without a fetch, programs on several CPUs may get the same number.
                        (if (since/here? [:kernel :atomic-fetch])
                          [[:atomic-fetch-add64 [:r0 0] :r7]
                           [:add64 :r7 1]]
                          [[:atomic-add64 [:r0 0] :r7]
                           [:ldxdw :r7 [:r0 0]]])
                        [:stxdw [:r10 from] :r7]
                        [:lddw :r8 -7046029254386353131]
                        [:mul64 :r7 :r8]
                        (for [i (range 1 words)]
                          [:stxdw [:r10 (+ from (* 8 (long i)))] :r7])
                        [:mov64 :r1 :r9]
                        [:lddw :r2 m]
                        [:lddw :r3 current-cpu]
                        [:mov64 :r4 :r10]
                        [:add64 :r4 from]
                        [:mov64 :r5 size]
                        [:call :perf-event-output]
                        [:exit]
                        :out
                        [:mov64 :r0 0]
                        [:exit]]})))

(defn intact?
  "Returns true if an event is one that [[perf-output]] has sent: a number, and its checks."
  [[n & checks]]
  (let [check (unchecked-multiply (long n) -7046029254386353131)]
    (every? #(= check (.longValue ^Number %)) checks)))
