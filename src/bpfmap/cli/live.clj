(ns bpfmap.cli.live
  "What goes on until Ctrl-C: ended by signals, and drawn on the terminal meanwhile where there is one."
  (:require [bpfmap.cli.signals :as signals]))

(set! *warn-on-reflection* true)

(defn terminal?
  "Whether both input and output are a user's terminal, as JLine wants them."
  []
  (boolean (some-> (System/console) .isTerminal)))

(defn- on-screen
  "Calls f with a function that draws the lines of a state; returns what f returns, and the height of the screen if there was one."
  [f frame]
  (let [[open size draw suspended close] (map #(requiring-resolve (symbol "bpfmap.cli.screen" %))
                                              ["open" "size" "draw" "suspended" "close"])
        screen (delay (open)) ; not before there is something to show
        opened #(when (realized? screen) @screen)]
    (try
      (signals/handling
       {"TSTP" #(if (opened) (suspended @screen signals/stop-process) (signals/stop-process))}
       #(let [result (f (fn [state] (when @screen (draw @screen (frame state (size @screen))))))]
          [result (some-> (opened) size :height)]))
      (finally
        (some-> (opened) close)))))

(defn run
  "Calls `(f stop show)` and returns `{:result :signal :height}`.

  `stop` is a promise, delivered when a signal asks for the end; `show` draws a
  state, as lines that `(frame state {:width :height})` makes of it, and is nil unless `drawn?`. `:signal`
  is the name of the signal, `:height` that of the screen, where there was one.

      (run (fn [stop show] (deref stop 1000 nil)) nil false) ;=> {:result nil, :signal nil, :height nil}"
  [f frame drawn?]
  (let [stop (promise)
        stopping (into {} (map (fn [name] [name #(deliver stop name)])) (keys signals/numbers))]
    (signals/handling
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
  (if signal (+ 128 (long (signals/numbers signal))) 0))
