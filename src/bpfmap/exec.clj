(ns bpfmap.exec
  "The commands as functions of one options map that return data: for `clojure -X` and `-T`, and
  for scripts.

      (require '[bpfmap.exec :as exec])

      (exec/dump {:ref \"flows\" :limit 10}) ;=> [{:key {:src \"10.0.0.1\", :port 443}, :value 1} …]

  Each takes the options that the command line has, as keywords, and its arguments by their names
  in small letters. Values may be data, or the texts and symbols that a shell gives. What is wrong
  with them throws `:bpfmap/error :usage` before anything is done. Besides, `:print` prints what
  is returned, as `:table`, `:edn`, `:json` (with org.clojure/data.json on the class path) or
  `:csv` (org.clojure/data.csv):

      clojure -X bpfmap.exec/list :where 'type=hash' :print :table

  `watch`, and every command with `:stream`, returns something to reduce; each reduction opens the
  map and closes it. It prints as the command and its options, and `datafy` makes data of it;
  neither opens the map:

      (exec/watch {:ref \"flows\"}) ; prints #bpfmap.exec/watch {:ref {:name \"flows\"}, :interval 1.0}

  The functions are made from the table `bpfmap.exec.commands`; their metadata has
  `:org.babashka/cli` too."
  (:refer-clojure :exclude [get list take])
  (:require [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.options :refer [doc-of options]]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(defn- in-options
  "Text for the command line as a docstring has it: options by their keywords, and neither quotes
  nor dashes of a shell."
  [text]
  (-> text
      (str/replace #"'?-COLUMN" "\"-COLUMN\"")
      (str/replace #"--([a-z]+(?:-[a-z]+)*)" ":$1")))

(defn- option-lines
  "A line about each option of a command."
  [{:keys [args defaults] :as command}]
  (let [required (set (arguments/required command))
        width (transduce (map #(count (str %))) max 0 (concat args (:options command)))]
    (for [k (concat args (:options command))
          :let [padding (.repeat " " (- (long width) (count (str k))))]]
      (str "    " k padding "  " (in-options (doc-of command k))
           (cond
             (required k) "; required"
             (contains? defaults k) (str "; " (defaults k) " unless given"))))))

(defn- reducible-line
  "A line about a command that returns something to reduce."
  [{:keys [name options reduces]}]
  (when-let [condition (cond reduces "Returns" (some #{:stream} options) "With :stream, returns")]
    (str "\n  " condition " something to reduce, which prints as #bpfmap.exec/" name
         " and its options.\n")))

(defn- docstring [{:keys [name args doc text examples] :as command}]
  (str doc ".\n"
       (when text (str "\n" (str/join "\n" (map #(str "  " (in-options %)) text)) "\n"))
       (reducible-line command)
       (when (or (seq args) (seq (:options command)))
         (str "\n" (str/join "\n" (option-lines command)) "\n"))
       (when examples
         (str "\n" (str/join "\n" (map #(str "      (exec/" name " " (pr-str %) ")") examples))))))

(defn- babashka-spec
  "What babashka.cli parses and explains the command by."
  [{:keys [args defaults] :as command}]
  {:args->opts (vec args)
   :spec (into {}
               (for [k (concat args (:options command))
                     :let [{:keys [takes kind] many? :many} (options k)
                           as (:as (arguments/kinds kind))]]
                 [k (cond-> {:desc (doc-of command k) :coerce (if many? [as] as)}
                      takes (assoc :ref takes)
                      (some #{k} (arguments/required command)) (assoc :require true)
                      (contains? defaults k) (assoc :default (defaults k)))]))})

(defmacro define-commands
  "Defines a function for each command that `bpfmap.exec` has, which calls it with the options
  given over `defaults`.

      (define-commands {:print :table})"
  [defaults]
  `(do
     ~@(for [{:keys [name fn] :as command} commands/commands :when fn]
         `(defn ~(with-meta (symbol name) {:org.babashka/cli `(quote ~(babashka-spec command))})
            ~(docstring command)
            {:arglists '([~'options])}
            [options#]
            (arguments/call (commands/command-named ~name) (arguments/over ~defaults options#))))))

(define-commands nil)
