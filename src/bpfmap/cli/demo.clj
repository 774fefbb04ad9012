(ns bpfmap.cli.demo
  "The command `demo` on a terminal: the live table, and what Ctrl-C and Ctrl-Z do to it."
  (:require [bpfmap.cli.live :as live]
            [bpfmap.cli.output :as output]
            [bpfmap.core :as bpf]
            [bpfmap.exec.demo :as demo]
            [bpfmap.impl.waiting :as waiting])
  (:import (clojure.lang ExceptionInfo)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(def ^:private columns
  [{:title "NR" :of :number}
   {:title "NAME" :of :name}
   {:title "COUNT" :of :count :align :right}
   {:title "PER-SECOND" :of (comp output/tenths :per-second) :align :right}])

;; --- the live table

(defn- frame
  "The lines of the live table, for a screen of this height."
  [{:keys [samples counts elapsed seconds] {:keys [id]} :map} {:keys [height]}]
  (let [[before earlier] (first samples)
        title [(str "System calls of this whole host, counted in the kernel into BPF hash map " id)
               (str (output/tenths elapsed) " of " (output/tenths seconds) " s: " (demo/total counts) " calls of "
                    (output/plural (count counts) "kind" "kinds") "; Ctrl-C ends it")
               ""]
        room (max 0 (- height (count title) 1))]
    (into title (output/table columns (take room (demo/calls counts earlier (max 0.1 (- elapsed before))))))))

;; --- one run

(defn- gone?
  "Whether the kernel has removed a map: it does so shortly after the last program that uses it went. Waits for that."
  [id]
  (loop [attempts 100]
    (let [answer (try
                   (.close ^Closeable (bpf/open id {:access :read-only}))
                   (catch ExceptionInfo e (:bpfmap/error (ex-data e))))]
      (cond
        (= :not-found answer) true
        (and (nil? answer) (pos? attempts)) (do (waiting/sleep 20 :demo) (recur (dec attempts)))
        :else false))))

(defn- view
  "How the end of a run is seen. On a screen of some height, the table's top that fits."
  [{:keys [elapsed] {:keys [id type name]} :map :as run} signal height]
  (let [{:keys [total calls] :as value} (demo/result run)
        shown (if height (take (max 1 (- height 4)) calls) calls)] ; heading, closing lines, the shell's prompt
    {:value value
     :columns columns :rows shown
     :closing [(str "Counted " total " system calls of " (output/plural (count calls) "kind" "kinds")
                    " in " (output/tenths elapsed) " s"
                    (when (< (count shown) (count calls)) (str "; the top " (count shown) " are above")))
               (str "They were in BPF map " id " (" (clojure.core/name type) ", " name "), "
                    (if (gone? id) "which is gone now" "which the kernel is removing now"))]
     :exit (live/exit-code signal)}))

(defn demo
  "Counts the system calls of the host for `:seconds`, or until Ctrl-C; on a terminal, shows them live meanwhile.

      (:value (demo {:seconds 1.0} {:format :edn}))
      ;=> {:map {:id 12, …}, :seconds 1.0, :total 4711, :calls [{:number 0, :name \"read\", :count 1200, …} …]}"
  [{:keys [seconds]} {:keys [format]}]
  (let [{:keys [result signal height]} (live/run #(demo/observe seconds %1 %2) frame (and (nil? format) (live/terminal?)))]
    (view result signal height)))
