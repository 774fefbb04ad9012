(ns ^:no-doc bpfmap.cli.edit
  "Runs the command `edit`: shows entries in an editor and writes back what changed."
  (:require [bpfmap.cli.interactive :as interactive]
            [bpfmap.cli.terminal :as terminal]
            [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.exec.confirm :as confirm]
            [bpfmap.exec.editing :as editing]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.output :as output]
            [bpfmap.impl.user-file :as user-file]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.nio.file Files Path)
           (java.nio.file.attribute FileAttribute)
           (java.util List)))

(set! *warn-on-reflection* true)

;; --- the editor

(defn- editor
  "Returns the command of the user's editor."
  []
  (or (some #(not-empty (str/trim (or (System/getenv %) ""))) ["VISUAL" "EDITOR"])
      "vi"))

(defn- run-editor
  "Runs the editor on a file and returns its exit code.

  Ctrl-C is for the editor alone."
  [file]
  (let [^List command ["sh" "-c" (str (editor) " \"$1\"") "bpfmap-edit" file]]
    (interactive/handling {"INT" (fn []) "TSTP" (fn [])}
      #(.waitFor (.start (.inheritIO (ProcessBuilder. command)))))))

(defn- check-terminal []
  (when-not (interactive/terminal?)
    (throw (error/error :not-supported "edit requires a terminal"
                        {:bpfmap/op :edit
                         :bpfmap/hint "use put, or dump the map to a file and put --file it"}))))

;; --- the file

(defn- new-file ^Path [{:keys [name]}]
  ;; Only its owner can read it: createTempFile creates it so.
  (let [name (str/replace (or name "map") #"[^A-Za-z0-9_-]" "_")]
    (Files/createTempFile (str "bpfmap-" name "-") ".edn" (make-array FileAttribute 0))))

(defn- read-text [path]
  (user-file/text-in {:file path :what "the text in" :op :edit}))

(defn- kept [path]
  (str "nothing was written; the text is kept in " path))

;; --- the conversation

(defn- changes-of
  "Edits a text until it can be written.

  Returns `{:changes rows}`, or `:notes` and `:exit`."
  [{:keys [edit ask keep]} m entries options ^Path path text]
  (loop []
    (let [exit (edit (str path))
          edited (try (read-text path) (catch ExceptionInfo e e))
          found (cond
                  (not= 0 exit) nil
                  (instance? Throwable edited) edited
                  (= text edited) []
                  :else (try
                          (editing/changes m entries edited (assoc options :file (str path)) keep)
                          (catch ExceptionInfo e e)))]
      (cond
        (and (nil? found) (= text edited)) {:notes [(str "the editor ended with exit code " exit
                                                         "; nothing was written")]
                                            :exit 1}
        (nil? found) {:notes [(str "the editor ended with exit code " exit) (kept path)] :exit 1
                      :keep true}
        (instance? Throwable found) (do (output/print-failure found false)
                                        (if (ask "Edit it again?")
                                          (recur)
                                          {:notes [(kept path)] :exit 1 :keep true}))
        (empty? found) {:notes ["nothing was changed"]}
        :else {:changes found}))))

(defn- line-of
  "Returns the line about a change, as `put` and `delete` print it."
  [{:keys [key old new] :as change}]
  (str (output/element-cell key)
       (when (contains? change :new) (str "  " (output/element-cell new)))
       (if (contains? change :old) (str "  (was " (output/element-cell old) ")") "  (new)")
       (when-not (contains? change :new) "  (deleted)")))

(defn edited
  "Edits entries of an open map and returns the view of the changes.

  `by` has the functions of the conversation: `:edit` runs an editor on a file and returns its exit
  code, `:ask` asks a question, `:keep` keeps an object open."
  [{:keys [ask] :as by} m options]
  (let [entries (editing/entries m options)]
    (if (nil? entries)
      {:lines [] :notes ["no such entry"] :exit 1}
      (let [text (editing/text m entries options)
            path (new-file (bpf/info m))
            keep? (volatile! true)] ; an exception leaves the text where it is
        (try
          (Files/writeString path text (make-array java.nio.file.OpenOption 0))
          (let [{:keys [changes] :as outcome} (changes-of by m entries options path text)
                conflicts (editing/conflicts m changes)
                refused? (and (seq conflicts)
                              (do (doseq [{:keys [key now]} conflicts]
                                    (output/complain "bpfmap: The entry of "
                                                     (output/element-cell key)
                                                     " changed meanwhile: "
                                                     (if (nil? now)
                                                       "it was deleted"
                                                       (str "it is "
                                                            (output/element-cell now) " now"))))
                                  (not (ask "Write yours anyway?"))))
                view (cond
                       (nil? changes) (assoc outcome :lines [])
                       refused? {:lines [] :notes [(kept path)] :exit 1 :keep true}
                       :else {:lines (->> (editing/replacing changes conflicts)
                                         (editing/write m)
                                         (mapv line-of))})]
            (vreset! keep? (:keep view))
            view)
          (catch Throwable e
            (output/complain "bpfmap: The text is kept in " (str path))
            (throw e))
          (finally
            (when-not @keep? (Files/deleteIfExists path))))))))

(defn edit
  "Runs the command `edit` on the terminal."
  [options _request]
  (input/call-typed options :read-write [:key]
    (fn [m typed keep]
      (check-terminal)
      (editing/check-editable m)
      (terminal/confirmed #(confirm/check m % "Edit it?") options)
      (edited {:edit run-editor :ask terminal/ask :keep keep} m (merge options typed)))))
