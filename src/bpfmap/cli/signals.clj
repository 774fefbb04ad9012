(ns bpfmap.cli.signals
  "Signals from the user: what Ctrl-C, Ctrl-Z and kill send."
  (:import (java.lang ProcessHandle)
           (java.util List)
           (sun.misc Signal SignalHandler)))

(set! *warn-on-reflection* true)

(def numbers
  "Signals by name to number: a process that one of them ended exits with 128 and the number."
  {"HUP" 1, "INT" 2, "TERM" 15})

(defn- install
  "Sets the handler of a signal; returns the former one, nil where the JVM leaves the signal to the system (-Xrs)."
  [name handler]
  (try
    (Signal/handle (Signal. name) handler)
    (catch IllegalArgumentException _ nil)))

(defn handling
  "Calls f and returns what it returns; meanwhile each named signal calls its function, on another thread.

      (handling {\"INT\" #(deliver stop \"INT\")} #(deref stop 1000 nil))"
  [handlers f]
  (let [former (into {}
                     (map (fn [[name handler]]
                            [name (install name (reify SignalHandler (handle [_ _] (handler))))]))
                     handlers)]
    (try
      (f)
      (finally
        (doseq [[name handler] former :when handler]
          (install name handler))))))

(defn stop-process
  "Stops this process as Ctrl-Z does one that takes no notice; returns when it is continued.

  Another process has to send the signal: the JVM raises none that it cannot handle."
  []
  (let [^List command ["sh" "-c" (str "kill -STOP " (.pid (ProcessHandle/current)))]]
    (.waitFor (.start (.inheritIO (ProcessBuilder. command))))))
