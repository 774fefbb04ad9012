(ns ^:no-doc bpfmap.exec.wording
  "Rewords messages of the library for the command line: commands and options replace functions and
  keywords."
  (:require [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def ^:private spec-options
  "The options of `create` for keys of a spec."
  {"type" "--type" "key" "--key-type" "value" "--value-type" "key-size" "--key-size"
   "value-size" "--value-size"
   "max-entries" "--max-entries" "flags" "--flags" "name" "--name"
   "inner-map" "inner-map (of --spec)" "map-extra" "map-extra (of --spec)"})

(def ^:private printed
  "Printed objects, and their names on the command line."
  [[#"#<bpf-map (\d+) :[a-z-]+ \"([^\"]*)\"(?:->|[^>])*>" "map $1 ($2)"]
   [#"#<bpf-map (\d+)(?:->|[^>])*>" "map $1"]
   [#"#<(?:bpf-)?([a-z-]+) (\d+)(?:->|[^>])*>" "$1 $2"]])

(def ^:private replacements
  "Patterns of the library's messages and their replacements, in order."
  [;; A difference between two specs, and not an option
   [#":([a-z-]+) is (?=[^;]+, the (?:spec|object) has )" "$1 is "]
   [#":(?:yes|keys|cpus|sort|pin|into|exact|only|target|types|entries) \((--[a-z]+)\)" "$1"]
   [#"a keyword such as :(\w+) or a vector that starts with a keyword such as"
    "a name such as $1 or a list in brackets that starts with a name such as"]
   [#"^(?:lookup|peek|might-contain\?|has-key\?) on " "get on "]
   [#"^(?:reduce|snapshot|entries|count-entries) on " "dump on "]
   [#"^next-key on " "dump --keys on "]
   [#"\{:cpus :all\}" "--cpus all"]
   [#"\{:cpu (?:n|\d+)\}" "--cpus N"]
   [#"\{:lock true\}" "--lock"]
   [#"; open it with \{:access :read-write\}" ""]
   [#"an open map, \{:map-id n\} or \{:fd n\}" "a map: its id, its pin path or its name"]
   [#"a loaded program, \{:program-id n\} or \{:fd n\}"
    "a program: its id, its pin path or its name"]
   [#", or \{:fd n\}(?:, a pidfd)?" ""]
   [#"lookup, then put! a zero value" "get it, then put a zero value"]
   [#"snapshot it, then put-all! zeros" "dump it, then put zeros"]
   [#"snapshot, then delete-all!" "dump it, then delete the keys"]
   [#"lookup and delete! the objects that you know" "get and delete the objects that you know"]
   [#"lookup, then delete!" "get, then delete"]
   [#"use put! or put-all! to write, and snapshot to read all entries as a map"
    "put writes, dump reads"]
   [#"put! it, after has-key\? if that matters" "put it, after get if that matters"]
   [#"use push!, pop! and peek" "put, take and get it without a KEY"]
   [#"use push! and might-contain\?" "put and get a VALUE"]
   [#"next-key returns the indices" "dump --keys lists the indices"]
   [#"pin! the map at the new path and unpin! it at the old one"
    "pin the map at the new path and unpin the old one"]
   [#"\(create \{\.\.\.\}\)" "create"]
   [#"\binsert!" "put --insert"]
   [#"\breplace!" "put --replace"]
   [#"\b(?:take!|drain(?:-into)?!|pop!)" "take"]
   [#"\b(put|delete|freeze|unpin|pin)(?:-all)?!" "$1"]
   [#"\bpush!" "put"]
   [#"\bmight-contain\?" "get"]
   [#"\bhas-key\?" "get"]
   [#"\b(has no|does not) reduce\b" "$1 dump"]
   [#"\bhas no lookup\b" "has no get"]
   [#"\bhas no (?:peek|might-contain)\b" "has no get"]
   [#"\bnil\b" "nothing"]])

(defn- path-words
  "Replaces paths in given data by names: `[:key :src]` by key.src."
  [text]
  (str/replace text #"(?:^|(?<=: ))\[((?::[^\s\]]+|\d+)(?: (?::[^\s\]]+|\d+))*)\]: "
               (fn [[_ names]]
                 (str (str/join "." (map #(str/replace % #"^:" "") (str/split names #" "))) ": "))))

(defn- spec-words
  "Replaces keys of a spec by options."
  [text]
  (if (re-find #"\bspec\b" text)
    (str/replace text #"(?<=[\s(,]):([a-z-]+)(?=[\s,;:.)]|$)"
                 (fn [[found k]] (get spec-options k found)))
    text))

(defn- replaced [text patterns]
  (reduce (fn [text [pattern words]] (str/replace text pattern words)) text patterns))

(defn- unquoted
  "Returns a text with f applied to the parts outside of double quotes."
  [text f]
  (let [m (re-matcher #"\"(?:[^\"\\]|\\.)*\"" text)]
    (loop [from 0 out []]
      (if (.find m)
        (recur (.end m) (conj out (f (subs text from (.start m))) (.group m)))
        (str/join (conj out (f (subs text from))))))))

(defn worded
  "Returns the message of an error in the words of the command line.

  Text in quotes stays: the user wrote it.

      (worded \"[:key :port]: 70000 is not a :port: it must be an integer from 0 to 65535\")
      ;=> \"key.port: 70000 is not a port: it must be an integer from 0 to 65535\""
  [message]
  (unquoted (path-words (replaced message printed))
            #(-> (spec-words (replaced % replacements))
                 ;; Types, fields and map types have no colons
                 (str/replace #"(?<=[\s\[({]|^):(?=[a-zA-Z])" ""))))
