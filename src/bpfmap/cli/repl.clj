(ns ^:no-doc bpfmap.cli.repl
  "Runs the command `repl`: a Clojure REPL with bpfmap loaded, with JLine on a terminal."
  (:require [bpfmap.cli.interactive :as interactive]
            [bpfmap.impl.escape :as escape]
            [clojure.main :as main]
            [clojure.string :as str])
  (:import (java.io PushbackReader StringReader)
           (org.jline.reader Candidate Completer EOFError EndOfFileException LineReader
                             LineReader$Option LineReaderBuilder ParsedLine Parser
                             Parser$ParseContext SyntaxError UserInterruptException)
           (org.jline.reader.impl DefaultParser)
           (org.jline.terminal TerminalBuilder)))

(set! *warn-on-reflection* true)

(def ^:private aliases
  "The namespaces that the REPL loads, by alias."
  '{bpf bpfmap.core, host bpfmap.host, exec bpfmap.exec, prog bpfmap.prog, type bpfmap.type
    feature bpfmap.feature, display bpfmap.display})

(def ^:private greeting
  ["(exec/list {}) lists all maps, (bpf/open 12) opens one, (doc bpf/open) describes it."
   (str "TAB completes names, Ctrl-D exits. Aliases: " (str/join " " (sort (keys aliases))))])

(defn- init
  "Prepares the REPL before the first prompt."
  []
  (in-ns 'user)
  (apply require main/repl-requires)
  (doseq [[alias ns] aliases]
    (require [ns :as alias]))
  (require '[clojure.pprint :refer [print-table]] '[clojure.datafy :refer [datafy nav]])
  ;; A map can be large: bound the output.
  (set! *print-length* 100)
  (run! println greeting))

;; --- lines

(defn- unfinished?
  "Returns true if a form is incomplete."
  [text]
  (try
    (with-open [reader (PushbackReader. (StringReader. text))]
      (binding [*read-eval* false]
        (loop []
          (when-not (= ::end (read {:eof ::end :read-cond :allow} reader))
            (recur)))))
    false
    (catch RuntimeException e
      (str/includes? (str (ex-message e)) "EOF"))))

(defn- parser
  "Returns a JLine parser that continues the line while a form is incomplete."
  ^Parser []
  (let [words (doto (DefaultParser.)
                (.setEscapeChars nil)
                (.setQuoteChars (char-array 0)))]
    (reify Parser
      (parse [_ line cursor context]
        (when (and (= Parser$ParseContext/ACCEPT_LINE context) (unfinished? line))
          (throw (EOFError. -1 -1 "the form is not finished")))
        (.parse words line cursor context)))))

(defn completions
  "Returns the completions of a word in a namespace.

  After the slash of an alias these are the vars of its namespace, otherwise all mapped names and
  aliases.

      (completions \"bpf/pu\" 'user) ;=> (\"bpf/push!\" \"bpf/put!\" \"bpf/put-all!\")"
  [word ns]
  (let [[_ open word] (re-matches #"(?s)([\(\[\{'@#\^`~]*)(.*)" word)
        [alias] (when (str/includes? word "/") (str/split word #"/" 2))
        names (if alias
                (when-let [target (or (get (ns-aliases ns) (symbol alias))
                                      (find-ns (symbol alias)))]
                  (map #(str alias "/" %) (keys (ns-publics target))))
                (concat (map str (keys (ns-map ns))) (map #(str % "/") (keys (ns-aliases ns)))))]
    (when (seq word)
      (map #(str open %) (sort (filter #(str/starts-with? % word) names))))))

(defn- completer ^Completer []
  (reify Completer
    (complete [_ _reader line candidates]
      (doseq [name (completions (.word ^ParsedLine line) (ns-name *ns*))]
        (.add ^java.util.List candidates
              (Candidate. name name nil nil nil nil (not (str/ends-with? name "/"))))))))

(defn- line-reader ^LineReader []
  (-> (LineReaderBuilder/builder)
      (.terminal (-> (TerminalBuilder/builder)
                     (.system true)
                     (.encoding java.nio.charset.StandardCharsets/UTF_8)
                     (.provider "ffm")
                     (.build)))
      (.parser (parser))
      (.completer (completer))
      (.option LineReader$Option/DISABLE_EVENT_EXPANSION true)
      (.variable LineReader/SECONDARY_PROMPT_PATTERN "")
      (.build)))

(defn- reading
  "Returns a function that reads forms from edited lines.

  It is the `:read` of `clojure.main/repl`."
  [^LineReader lines]
  (let [pending (volatile! nil)]
    (fn [request-prompt request-exit]
      (loop []
        (if-let [^PushbackReader reader @pending]
          (let [form (read {:eof ::end :read-cond :allow} reader)]
            (if (= ::end form)
              (do (vreset! pending nil) (recur))
              form))
          (let [line (try
                       (.readLine lines (str (ns-name *ns*) "=> "))
                       (catch UserInterruptException _ "")
                       (catch SyntaxError _ "")
                       (catch EndOfFileException _ nil))]
            (cond
              (nil? line) request-exit
              (str/blank? line) request-prompt
              :else (do (vreset! pending (PushbackReader. (StringReader. line)))
                        (recur)))))))))

(defn- print-result
  "Prints a result like `prn`, with control characters escaped.

  Other programs write to maps."
  [x]
  (println (escape/escape-edn (pr-str x))))

(defn repl
  "Reads, evaluates and prints until Ctrl-D."
  [_options _request]
  (binding [*ns* *ns* *print-length* nil]
    (if (interactive/terminal?)
      (main/repl :init init :print print-result :read (reading (line-reader)) :prompt
                 (constantly nil) :need-prompt (constantly false))
      (main/repl :init init :print print-result)))
  {:as-text true :lines []})
