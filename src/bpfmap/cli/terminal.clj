(ns ^:no-doc bpfmap.cli.terminal
  "Whether there is a terminal, how large it is, and what is asked and shown there while a command
  runs."
  (:require [bpfmap.exec.progress :as progress]
            [bpfmap.impl.escape :as escape]
            [bpfmap.impl.kernel.call :as call])
  (:import (java.io BufferedReader InputStreamReader)))

(set! *warn-on-reflection* true)

(def ^:private numbers {:in 0 :out 1 :err 2})

(defn terminal?
  "Whether standard :in, :out or :err is a terminal.

      (terminal? :out) ;=> false"
  [stream]
  (some? (call/terminal-size (numbers stream))))

(defn width
  "How many columns the terminal on standard output has; nil where there is none, 80 where it does
  not know."
  []
  (when-let [{:keys [width]} (call/terminal-size (numbers :out))]
    (if (pos? (long width)) width 80)))

;; --- asking

(defn ask
  "Asks a question on the terminal; whether the answer is yes."
  [question]
  (binding [*out* *err*]
    (print (str (escape/escape question) " [y/N] "))
    (flush))
  (let [answer (.readLine (BufferedReader. (InputStreamReader. System/in)))]
    (boolean (some->> answer (re-matches #"(?i)\s*y(es)?\s*")))))

;; --- progress

(def ^:private quiet-millis "How long a command may be silent." 1000)
(def ^:private frame-millis 250)

(defn- show-progress
  "Shows how far it has come, over and over, until `done` is delivered; then wipes it away."
  [what state done]
  (let [begun (System/nanoTime)
        clear "\r\u001b[K"]
    (when (= ::not-yet (deref done quiet-millis ::not-yet))
      (loop []
        (let [seconds (quot (- (System/nanoTime) begun) 1000000000)
              [counted n] @state]
          (binding [*out* *err*]
            (print (str clear (escape/escape what) ": " (when n (str n " " counted ", ")) seconds
                        " s"))
            (flush))
          (when (= ::not-yet (deref done frame-millis ::not-yet))
            (recur))))
      (binding [*out* *err*]
        (print clear)
        (flush)))))

(defn with-progress
  "Calls f; on a terminal, once a second is over, says on standard error how far it has come."
  [what f]
  (if-not (terminal? :err)
    (f)
    (let [state (atom nil)
          done (promise)
          show (bound-fn [] (show-progress what state done))
          shower (doto (Thread. ^Runnable show)
                   (.setDaemon true)
                   (.start))]
      (try
        (binding [progress/*report* (fn [counted n] (reset! state [counted n]))]
          (f))
        (finally
          (deliver done true)
          (try
            (.join shower)
            (catch InterruptedException _
              (.interrupt (Thread/currentThread)))))))))
