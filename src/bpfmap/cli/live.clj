(ns ^:no-doc bpfmap.cli.live
  "Runs a command that goes on until a signal, and draws it."
  (:import (java.lang ProcessHandle)
           (java.util List)
           (sun.misc Signal SignalHandler)))

(set! *warn-on-reflection* true)

;; --- signals

(def numbers
  "Signals by name to number: a process that one of them ended exits with 128 and the number."
  {"HUP" 1, "INT" 2, "TERM" 15})

(defn- install
  "Sets the handler of a signal; returns the former one, nil where the JVM leaves the signal to
  the system (-Xrs)."
  [name handler]
  (try
    (Signal/handle (Signal. name) handler)
    (catch IllegalArgumentException _ nil)))

(defn handling
  "Calls f and returns what it returns; meanwhile each named signal calls its function, on another
  thread.

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

;; --- live screens

(defn terminal?
  "Whether both input and output are a user's terminal, as JLine wants them."
  []
  (boolean (some-> (System/console) .isTerminal)))

(defn- on-screen
  "Calls f with a function that draws the lines of a state; returns what f returns, and the height
  of the screen if there was one."
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

  `stop` is a promise, delivered when a signal asks for the end; `show` draws a state, as lines
  that `(frame state {:width :height})` makes of it, and is nil unless `drawn?`. `:signal` is the
  name of the signal, `:height` that of the screen, where there was one.

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
  "The exit code of what a signal ended, or nothing did.

      (exit-code \"INT\") ;=> 130"
  [signal]
  (if signal (+ 128 (long (numbers signal))) 0))
