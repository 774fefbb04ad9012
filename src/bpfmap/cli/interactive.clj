(ns ^:no-doc bpfmap.cli.interactive
  "Runs a command until a signal ends it, and draws its state."
  (:require [bpfmap.cli.terminal :as terminal]
            [bpfmap.exec.progress :as progress])
  (:import (java.io Closeable)
           (java.lang ProcessHandle)
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

(def ^:private common-keys
  [["space" "pause, and continue"] ["h" "this help"] ["q" "quit"]])

(defn- help-lines
  "Returns the lines of help for keys: `[key text]` pairs."
  [help]
  (let [pairs (concat help common-keys)
        width (apply max (map (comp count first) pairs))]
    (concat ["Keys" ""]
            (for [[key text] pairs]
              (str "  " key (apply str (repeat (+ 2 (- (long width) (count key))) \space)) text))
            ["" "Press any key to go back."])))

(defn- keyed
  "Returns the state of a screen after a key, without the last state to draw.

  `:paused` is true if new states are not drawn, `:help` if the help is drawn."
  [{:keys [help] :as state} key]
  (cond
    help (dissoc state :help)
    (contains? #{"h" "?"} key) (assoc state :help true)
    (contains? #{" " "p"} key) (update state :paused not)
    :else state))

(defn- on-screen
  "Calls f with a function that draws a state.

  `keys` is nil, or has functions of keys; see [[run]]. Returns the result of f and the height of
  the screen, nil if nothing was drawn."
  [f frame {:keys [on-key help quit] :as keys}]
  (let [[open size draw suspended close keys-to]
        (map #(requiring-resolve (symbol "bpfmap.cli.screen" %))
             ["open" "size" "draw" "suspended" "close" "keys-to"])
        screen (delay (open)) ; not before there is something to show
        opened #(when (realized? screen) @screen)
        lock (Object.)
        mode (volatile! {})
        latest (volatile! nil)
        shown (volatile! nil)
        redraw (fn []
                 (locking lock
                   (when-not (:paused @mode)
                     (vreset! shown @latest))
                   (draw @screen (if (:help @mode)
                                   (help-lines help)
                                   (frame @shown (assoc (size @screen)
                                                        :paused (:paused @mode)))))))
        press (fn [key]
                (let [before @mode]
                  (cond
                    (not= before (vswap! mode keyed key)) (redraw)
                    (= "q" key) (quit)
                    (on-key key) (redraw))))
        listener (delay (when keys (keys-to press)))
        show (fn [state]
               (progress/end)
               (when @screen
                 (vreset! latest state)
                 (when-not (or (:paused @mode) (:help @mode))
                   (redraw))
                 @listener))]
    (try
      (handling
       {"TSTP" #(if (opened) (suspended @screen stop-process) (stop-process))}
       #(let [result (f show)]
          [result (some-> (opened) size :height)]))
      (finally
        (when (realized? listener) (some-> ^Closeable @listener .close))
        (some-> (opened) close)))))

(defn run
  "Calls `(f stop show)` and returns `{:result :signal :height}`.

  `stop` is a promise that a signal delivers, or \"PIPE\" if the reader of standard output closes its
  pipe. `show` draws a state: the lines of `(frame state {:width :height :paused})`. It is nil unless
  `drawn?`. `:signal` is the name of the signal, `:height` the height of the screen, or nil.

  With `keys`, keys work on a screen: q delivers `stop` too, the space bar pauses the drawing, and h
  shows a help. `keys` is `{:on-key f :help [[key text]]}`: f is called with each other key, and
  returns true if the state has to be drawn again.

  The progress of the command `name` is shown until the first state is drawn, or always if the
  output is not a terminal.

      (run \"top\" (fn [stop show] (deref stop 1000 nil)) nil false) ;=> {:result nil, :signal nil, :height nil}"
  ([name f frame drawn?] (run name f frame drawn? nil))
  ([name f frame drawn? keys]
   (let [stop (promise)
         stopping (into {} (map (fn [name] [name #(deliver stop name)]))
                        (clojure.core/keys numbers))]
     (handling
      stopping
      (fn []
        (let [[result height] (if drawn?
                                (on-screen (fn [show]
                                             (terminal/with-progress name #(f stop show)))
                                           frame
                                           (some-> keys (assoc :quit #(deliver stop :quit))))
                                [(terminal/until-closed
                                  #(deliver stop "PIPE")
                                  (fn []
                                    (terminal/with-printing-progress name #(f stop nil))))])
              ended (deref stop 0 nil)]
          {:result result :signal (when (string? ended) ended) :height height}))))))

(defn exit-code
  "Returns the exit code for the name of a signal, or for nil.

      (exit-code \"INT\") ;=> 130"
  [signal]
  (if signal (+ 128 (long ((assoc numbers "PIPE" 13) signal))) 0))
