(ns ^:no-doc bpfmap.cli.screen
  "Draws on a terminal's alternate screen, with JLine. The previous screen comes back afterwards.

  This is the only namespace that requires JLine. It is loaded when a screen is opened."
  (:require [bpfmap.impl.escape :as escape]
            [bpfmap.impl.kernel.events :as events]
            [clojure.string :as str])
  (:import (java.io Closeable)
           (org.jline.terminal Attributes Attributes$ControlChar Attributes$LocalFlag Terminal
                               TerminalBuilder
                               TerminalBuilder$SystemOutput)
           (org.jline.utils InfoCmp$Capability)))

(set! *warn-on-reflection* true)

(defn size
  "Returns the size of the terminal's screen: `{:width columns :height lines}`."
  [{:keys [^Terminal terminal]}]
  ;; The terminal of a serial line or a test may report a size of 0.
  (let [or-usual (fn [n usual] (if (pos? (long n)) n usual))]
    {:width (or-usual (.getWidth terminal) 80)
     :height (or-usual (.getHeight terminal) 24)}))

(defn- put [^Terminal terminal & capabilities]
  (doseq [^InfoCmp$Capability capability capabilities]
    (.puts terminal capability (object-array 0))))

(defn- enter [{:keys [^Terminal terminal ^Attributes quiet]}]
  (.setAttributes terminal quiet)
  (put terminal InfoCmp$Capability/enter_ca_mode InfoCmp$Capability/cursor_invisible)
  (.flush terminal))

(defn- leave [{:keys [^Terminal terminal ^Attributes original]}]
  ;; If the terminal has no second screen, the table is erased.
  (put terminal
       InfoCmp$Capability/cursor_home InfoCmp$Capability/clr_eos
       InfoCmp$Capability/exit_ca_mode InfoCmp$Capability/cursor_normal)
  (.flush terminal)
  (.setAttributes terminal original))

(defn open
  "Opens the terminal's alternate screen for drawing.

  Hides the cursor and does not echo input. Returns nil if the terminal cannot draw. [[close]]
  restores the terminal."
  []
  (when-let [^Terminal terminal
             (try
               (-> (TerminalBuilder/builder)
                   (.system true)
                   (.encoding java.nio.charset.StandardCharsets/UTF_8)
                   (.systemOutput TerminalBuilder$SystemOutput/SysOut)
                   (.provider "ffm")
                   (.dumb false)
                   (.nativeSignals false)
                   (.graphemeCluster false) ; JLine would write to the terminal to detect it
                   (.build))
               (catch IllegalStateException _ nil))]
    (if (or (str/starts-with? (.getType terminal) "dumb")
            (nil? (.getStringCapability terminal InfoCmp$Capability/cursor_home)))
      (.close terminal)
      (let [original (.getAttributes terminal)
            screen {:terminal terminal
                    :original original
                    :quiet (doto (Attributes. original)
                             (.setLocalFlag Attributes$LocalFlag/ECHO false)
                             ;; A key is there to read at once, and not only after Enter.
                             (.setLocalFlag Attributes$LocalFlag/ICANON false)
                             (.setControlChar Attributes$ControlChar/VMIN 1)
                             (.setControlChar Attributes$ControlChar/VTIME 0))
                    :lock (Object.)}]
        (enter screen)
        screen))))

(defn close
  "Restores the terminal."
  [{:keys [lock] :as screen}]
  (locking lock
    (leave screen)
    (.close ^Closeable (:terminal screen))))

(def ^:private styles
  {:bold InfoCmp$Capability/enter_bold_mode})

(defn- write-line
  "Writes a line cut to a width, with its style if the terminal has it."
  [^Terminal terminal line width]
  (let [{:keys [style text]} (if (map? line) line {:text line})
        text (escape/escape text)
        cut (subs text 0 (min (count text) (max 0 (long width))))]
    (when style (put terminal (styles style)))
    (.write (.writer terminal) ^String cut)
    (when style (put terminal InfoCmp$Capability/exit_attribute_mode))))

(defn draw
  "Draws lines from the top of the screen in one write.

  Cuts each line to the width. A line is a text, or `{:style :bold :text …}`."
  [{:keys [^Terminal terminal lock] :as screen} lines]
  (locking lock
    (let [{:keys [width height]} (size screen)]
      (put terminal InfoCmp$Capability/cursor_home)
      (doseq [[i line] (map-indexed vector (take height lines))]
        (when (pos? (long i)) (.write (.writer terminal) "\r\n"))
        ;; One column stays free, because a terminal may wrap after writing the last one.
        (write-line terminal line (dec (long width)))
        (put terminal InfoCmp$Capability/clr_eol))
      (put terminal InfoCmp$Capability/clr_eos)
      (.flush terminal))))

(defn suspended
  "Calls f, which stops the process, with the terminal restored."
  [{:keys [lock] :as screen} f]
  (locking lock
    (leave screen)
    (try
      (f)
      (finally (enter screen)))))

;; --- keys

(def ^:private names "The names of keys that send several characters."
  {"\u001b[C" ">", "\u001bOC" ">", "\u001b[D" "<", "\u001bOD" "<"})

(defn pressed
  "Returns the keys in a text that a terminal sent.

  The right and left arrows are `>` and `<`.

      (pressed \"q\\u001b[C\") ;=> (\"q\" \">\")"
  [text]
  (map #(names % %) (re-seq #"(?s)\u001b[\[O][0-9;]*[A-Za-z~]|." text)))

(def ^:private wait-nanos 60000000000)

(defn keys-to
  "Calls f with each key that is pressed, on another thread, until it is closed.

  A thread that reads from a terminal cannot be interrupted. So it waits with epoll, and reads only
  what is there."
  ^Closeable [f]
  (let [ctx {:op :top}
        waiter (events/readable 0 ctx)
        buffer (byte-array 256)
        ended (atom false)
        read-keys (fn []
                    (loop []
                      (when-not @ended
                        (if (events/wait waiter wait-nanos ctx)
                          (when-not @ended
                            (let [n (.read System/in buffer)]
                              (when (pos? n)
                                (run! f (pressed (String. buffer 0 n "UTF-8")))
                                (recur))))
                          (recur)))))
        thread (doto (Thread. ^Runnable read-keys "bpfmap-keys")
                 (.setDaemon true)
                 (.start))]
    (reify Closeable
      (close [_]
        (reset! ended true)
        (events/end-wait waiter)
        (.join thread)
        (.close ^java.lang.AutoCloseable waiter)))))
