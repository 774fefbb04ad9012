(ns ^:no-doc bpfmap.cli.interactive
  "Runs a command until a signal ends it, and draws its state."
  (:import (java.lang ProcessHandle)
           (java.util List)
           (sun.misc Signal SignalHandler)))

(set! *warn-on-reflection* true)

;; --- signals

(def numbers
  "The numbers of signals by name.

  A process that is ended by one of them exits with 128 plus the number."
  {"HUP" 1, "INT" 2, "TERM" 15})

(defn- install
  "Sets the handler of a signal and returns the previous one.

  Returns nil if the JVM does not handle the signal (-Xrs)."
  [name handler]
  (try
    (Signal/handle (Signal. name) handler)
    (catch IllegalArgumentException _ nil)))

(defn handling
  "Calls f while handlers for signals are set, and returns its result.

  Each signal calls its function on another thread.

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
  "Stops this process as the default action of Ctrl-Z does.

  Returns when the process is continued. Another process sends the signal, because the JVM cannot
  raise a signal that it does not handle."
  []
  (let [^List command ["sh" "-c" (str "kill -STOP " (.pid (ProcessHandle/current)))]]
    (.waitFor (.start (.inheritIO (ProcessBuilder. command))))))

;; --- live screens

(defn terminal?
  "Returns true if input and output are a terminal."
  []
  (boolean (some-> (System/console) .isTerminal)))

(defn- on-screen
  "Calls f with a function that draws a state.

  Returns the result of f and the height of the screen, nil if nothing was drawn."
  [f frame]
  (let [[open size draw suspended close] (map #(requiring-resolve (symbol "bpfmap.cli.screen" %))
                                              ["open" "size" "draw" "suspended" "close"])
        screen (delay (open)) ; not before there is something to show
        opened #(when (realized? screen) @screen)]
    (try
      (handling
       {"TSTP" #(if (opened) (suspended @screen stop-process) (stop-process))}
       #(let [result (f (fn [state] (when @screen (draw @screen (frame state (size @screen))))))]
          [result (some-> (opened) size :height)]))
      (finally
        (some-> (opened) close)))))

(defn run
  "Calls `(f stop show)` and returns `{:result :signal :height}`.

  `stop` is a promise that a signal delivers. `show` draws a state: the lines of `(frame state
  {:width :height})`. It is nil unless `drawn?`. `:signal` is the name of the signal, `:height`
  the height of the screen, or nil.

      (run (fn [stop show] (deref stop 1000 nil)) nil false) ;=> {:result nil, :signal nil, :height nil}"
  [f frame drawn?]
  (let [stop (promise)
        stopping (into {} (map (fn [name] [name #(deliver stop name)])) (keys numbers))]
    (handling
     stopping
     (fn []
       (let [[result height] (if drawn?
                               (on-screen #(f stop %) frame)
                               [(f stop nil)])]
         {:result result :signal (deref stop 0 nil) :height height})))))

(defn exit-code
  "Returns the exit code for the name of a signal, or for nil.

      (exit-code \"INT\") ;=> 130"
  [signal]
  (if signal (+ 128 (long (numbers signal))) 0))
