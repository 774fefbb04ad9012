(ns ^:no-doc bpfmap.cli.terminal
  "Detects the terminal, asks questions on it, and shows progress while a command runs."
  (:require [bpfmap.error :as error]
            [bpfmap.exec.output :as output]
            [bpfmap.exec.progress :as progress]
            [bpfmap.impl.escape :as escape]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.events :as events]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.io BufferedReader InputStreamReader Writer)))

(set! *warn-on-reflection* true)

(def ^:private numbers {:in 0 :out 1 :err 2})

(defn terminal?
  "Returns true if standard :in, :out or :err is a terminal.

      (terminal? :out) ;=> false"
  [stream]
  (some? (call/terminal-size (numbers stream))))

(defn width
  "Returns the width of the terminal on standard output, or nil without one.

  Returns 80 if the terminal does not report its width."
  []
  (when-let [{:keys [width]} (call/terminal-size (numbers :out))]
    (if (pos? (long width)) width 80)))

;; --- a closed pipe

(defn until-closed
  "Calls f, and `closed` if the reader of standard output closes its pipe.

  `closed` is called on another thread. Without this, a command that waits would notice a closed
  pipe only at its next output. Returns the result of f."
  [closed f]
  (if-let [waiter (events/closing (numbers :out) {:op :tail})]
    (let [ended (atom false)
          thread (doto (Thread. ^Runnable
                                (fn []
                                  (loop []
                                    (when-not (or (events/wait waiter 60000000000 {:op :tail})
                                                  @ended)
                                      (recur)))
                                  (when-not @ended (closed))))
                   (.setDaemon true)
                   (.start))]
      (try
        (f)
        (finally
          (reset! ended true)
          (events/end-wait waiter)
          (.join thread)
          (.close ^java.lang.AutoCloseable waiter))))
    (f)))

;; --- asking

(defn ask
  "Asks a question on the terminal and returns true for yes."
  [question]
  (binding [*out* *err*]
    (print (str (escape/escape question) " [y/N] "))
    (flush))
  (let [answer (.readLine (BufferedReader. (InputStreamReader. System/in)))]
    (boolean (some->> answer (re-matches #"(?i)\s*y(es)?\s*")))))

(defn confirmed
  "Calls `(f options)`, and asks for confirmation if that is required.

  Asks on the terminal, and calls f again if the answer is yes.

      (confirmed #(confirm/check m % \"Edit it?\") {})"
  [f options]
  (try
    (f options)
    (catch ExceptionInfo e
      (let [{:bpfmap/keys [error question hint]} (ex-data e)]
        (if (and (= :not-confirmed error) (terminal? :in) (terminal? :err))
          (do (output/complain (str/replace (ex-message e) (str ": " hint) ""))
              (if (ask question)
                (f (assoc options :yes true))
                (throw (error/error :not-confirmed "Nothing was changed" {}))))
          (throw e))))))

;; --- progress

(def ^:private quiet-millis "Milliseconds before a command shows its progress." 1000)
(def ^:private frame-millis 250)

(defn- line-below
  "Returns a line that stays below the text, as `{:writer :show :erase}`.

  Text for `writer` goes to `out` and erases the line first. `show` replaces the line, unless the
  last line of text has no end yet."
  [^Writer out]
  (let [lock (Object.)
        start "\r\u001b[K"
        state (volatile! {:shown false :ended true})
        erase (fn []
                (locking lock
                  (when (:shown @state)
                    (.write out ^String start)
                    (.flush out)
                    (vswap! state assoc :shown false))))
        write (fn [^String text]
                (when (seq text)
                  (locking lock
                    (erase)
                    (.write out text)
                    (vswap! state assoc :ended (str/ends-with? text "\n")))))]
    {:writer (proxy [Writer] []
               (write
                 ([x] (write (cond (string? x) x
                                   (int? x) (str (char x))
                                   :else (String. ^chars x))))
                 ([x offset length]
                  (write (if (string? x)
                           (subs x offset (+ (long offset) (long length)))
                           (String. ^chars x (int offset) (int length))))))
               (flush [] (locking lock (.flush out)))
               (close [] (.close out)))
     :show (fn [text]
             (locking lock
               (when (:ended @state)
                 (.write out (str start text))
                 (.flush out)
                 (vswap! state assoc :shown true))))
     :erase erase}))

(defn- show-progress
  "Shows the progress repeatedly until `done` is delivered, then erases it."
  [what state done {:keys [show erase]}]
  (let [begun (System/nanoTime)]
    (loop [wait (long quiet-millis)]
      (when (= ::not-yet (deref done wait ::not-yet))
        (let [seconds (quot (- (System/nanoTime) begun) 1000000000)
              [counted n] @state]
          (show (str (escape/escape what) ": " (when n (str n " " counted ", ")) seconds " s"))
          (recur (long frame-millis)))))
    (erase)))

(defn with-progress
  "Calls f and shows its progress on standard error.

  Only on a terminal, and only after one second. What f writes to *err* stands above the progress."
  [what f]
  (if-not (terminal? :err)
    (f)
    (let [state (atom nil)
          done (promise)
          line (line-below *err*)
          shower (doto (Thread. ^Runnable #(show-progress what state done line))
                   (.setDaemon true)
                   (.start))
          end (fn []
                (deliver done true)
                (try
                  (.join shower)
                  (catch InterruptedException _
                    (.interrupt (Thread/currentThread)))))]
      (try
        (binding [progress/*report* (fn [counted n] (reset! state [counted n]))
                  progress/*end* end
                  *err* (:writer line)]
          (f))
        (finally (end))))))

(defn with-printing-progress
  "Calls f, which prints to standard output; see [[with-progress]].

  Shows no progress if the output is a terminal, because it would stand in it."
  [what f]
  (if (terminal? :out) (f) (with-progress what f)))
