(ns bpfmap.exec
  "Runs the commands of the command line as functions: each takes one options map and returns data.
  For scripts, and for `clojure -X` and `-T`.

      (require '[bpfmap.exec :as exec])

      (exec/dump {:ref \"flows\" :limit 10}) ;=> [{:key {:src \"10.0.0.1\", :port 443}, :value 1} …]

  Options and positional arguments of the command line are keys of the map: `--limit 10` is `:limit
  10`, REF is `:ref`. Values are data, or the strings and symbols that a shell passes. An invalid
  option throws `:bpfmap/error :usage` before anything is done. `:print` prints the result too, as
  `:table`, `:edn`, `:json` (requires org.clojure/data.json) or `:csv` (requires
  org.clojure/data.csv):

      clojure -X bpfmap.exec/list :where 'type=hash' :print :table

  `watch`, and every command with `:stream`, returns a reducible. Each reduction opens the map and
  closes it. Printing a reducible shows the command and its options, `datafy` returns them as data.
  Neither opens the map:

      (exec/watch {:ref \"flows\"}) ; prints #bpfmap.exec/watch {:ref {:name \"flows\"}, :interval 1.0}

  The functions are generated from the table `bpfmap.exec.commands`. Their metadata has a spec for
  babashka.cli, under `:org.babashka/cli`."
  (:refer-clojure :exclude [get list take])
  (:require [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.options :refer [doc-of function-name kind-of options]]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(defn- in-options
  "Returns a help text with options as keywords: `:limit` for `--limit`."
  [text]
  (-> text
      (str/replace #"'?-COLUMN" "\"-COLUMN\"")
      (str/replace #"--([a-z]+(?:-[a-z]+)*)" ":$1")))

(defn- option-lines
  "Returns one line for each argument and option of a command."
  [{:keys [args defaults] :as command}]
  (let [required (set (arguments/required command))
        width (transduce (map #(count (str %))) max 0 (concat args (:options command)))]
    (for [k (concat args (:options command))
          :let [padding (.repeat " " (- (long width) (count (str k))))]]
      (str "    " k padding "  " (in-options (doc-of command k))
           (cond
             (required k) " (required)"
             (contains? defaults k) (str " (default: " (defaults k) ")"))))))

(defn- reducible-line
  "Returns the docstring's line about returning a reducible, or nil."
  [{:keys [name options reduces]}]
  (when-let [condition (cond reduces "Returns" (some #{:stream} options) "With :stream, returns")]
    (str "\n  " condition " a reducible, which prints as #bpfmap.exec/"
         (function-name name) " and its options.\n")))

(defn- third-person
  "Returns a sentence with its imperative verb in the third person.

      (third-person \"Watch a map\") ;=> \"Watches a map\""
  [sentence]
  (str/replace sentence #"^\w+" #(str % (if (re-find #"(ch|sh|s|x)$" %) "es" "s"))))

(defn- docstring [{:keys [name args doc text examples] :as command}]
  (str (third-person doc) ".\n"
       (when text (str "\n" (str/join "\n" (map #(str "  " (in-options %)) text)) "\n"))
       (reducible-line command)
       (when (or (seq args) (seq (:options command)))
         (str "\n" (str/join "\n" (option-lines command)) "\n"))
       (when examples
         (str "\n" (str/join "\n" (map #(str "      (exec/" (function-name name) " " (pr-str %) ")")
                                         examples))))))

(defn- babashka-spec
  "Returns the spec of a command for babashka.cli."
  [{:keys [args defaults] :as command}]
  {:args->opts (vec args)
   :spec (into {}
               (for [k (concat args (:options command))
                     :let [{:keys [takes] many? :many} (options k)
                           as (:as (arguments/kinds (kind-of command k)))]]
                 [k (cond-> {:desc (doc-of command k) :coerce (if many? [as] as)}
                      takes (assoc :ref takes)
                      (some #{k} (arguments/required command)) (assoc :require true)
                      (contains? defaults k) (assoc :default (defaults k)))]))})

(defmacro define-commands
  "Defines a function for each command.

  Each merges the given options over `defaults` and calls the command.

      (define-commands {:print :table})"
  [defaults]
  `(do
     ~@(for [{:keys [name fn] :as command} commands/commands :when fn]
         `(defn ~(with-meta (symbol (function-name name))
                   {:org.babashka/cli `(quote ~(babashka-spec command))})
            ~(docstring command)
            {:arglists '([~'options])}
            [options#]
            (arguments/call (commands/command-named ~name) (arguments/over ~defaults options#))))))

(define-commands nil)
