(ns ^:no-doc bpfmap.cli.man-page
  "Makes the manual page from the table of commands, in the language of man(7).

  To write `doc/bpfmap.1` again:

      (spit \"doc/bpfmap.1\" (page))"
  (:require [bpfmap.cli.command-line :as command-line]
            [bpfmap.cli.flags :as flags]
            [bpfmap.exec.bpftool :as bpftool]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.options :refer [kind-of]]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(defn- escaped
  "Returns a text as one line of roff that prints it.

      (escaped \"--limit\") ;=> \"\\\\-\\\\-limit\""
  [text]
  (let [text (-> text
                 (str/replace "\\" "\\e")
                 (str/replace "-" "\\-")
                 (str/replace "~" "\\(ti")
                 (str/replace "^" "\\(ha")
                 (str/replace "`" "\\(ga")
                 (str/replace "'" "\\(aq"))]
    ;; A point at the beginning of a line would be a request.
    (if (str/starts-with? text ".") (str "\\&" text) text)))

(defn- bold [text]
  (str "\\fB" (escaped text) "\\fR"))

(defn- heading [text]
  [(str ".SH \"" (str/upper-case (escaped text)) "\"")])

(defn- definition
  "Returns the lines of a term, which is bold, with its text."
  [term lines]
  (concat [".TP" (bold term)] (map escaped lines)))

(defn- option-lines
  "Returns the lines of options of tools.cli."
  [options]
  (mapcat (fn [[short long doc]]
            (definition (str/join ", " (remove nil? [short long])) [(str doc ".")]))
          options))

(defn- command-lines
  "Returns the lines about a command."
  [{:keys [doc text examples] :as command}]
  (concat [(str ".SS \"" (escaped (command-line/usage command)) "\"")
           (escaped (str doc "."))]
          (when text (cons ".PP" (map escaped text)))
          (option-lines (flags/tool-options command))
          (when examples
            (concat [".PP" "Examples:" ".PP" ".nf" ".RS"]
                    (map escaped (mapcat #(command-line/example-lines command %) examples))
                    [".RE" ".fi"]))))

(defn- references
  "Returns the lines about the references of maps, programs and links."
  []
  (mapcat (fn [text] [".PP" (escaped (str/replace text "\n" " "))])
          (distinct (keep #(command-line/ref-texts (kind-of % :ref))
                          (filter #(some #{:ref} (:args %)) commands/commands)))))

(defn page
  "Returns the text of the manual page.

      (first (str/split-lines (page))) ;=> \".TH BPFMAP 1\""
  []
  (str/join
   (map #(str % "\n")
        (concat
         [".\\\" Made by bpfmap.cli.man-page from the table of commands."
          ".TH BPFMAP 1 \"\" \"bpfmap\" \"User Commands\""]
         (heading "Name")
         ["bpfmap \\- inspect and change eBPF maps"]
         (heading "Synopsis")
         [(str (bold "bpfmap") " [" (escaped "COMMAND [ARGUMENT ...] [OPTION ...]") "]")]
         (heading "Description")
         [(escaped "Without a command, bpfmap prints an overview of this host.")]
         (references)
         (heading "General options")
         (option-lines flags/general-options)
         (mapcat (fn [group]
                   (concat (heading (:group (first group)))
                           (mapcat command-lines group)))
                 (partition-by :group commands/commands))
         (heading "Words of bpftool")
         (mapcat (fn [[word command]] (definition word [(str "The same as " command ".")]))
                 bpftool/aliases)
         (heading "Exit status")
         (mapcat (fn [[code text]] (definition code [text]))
                 [["0" "Success."] ["1" "Failure."] ["2" "Wrong usage."]
                  ["130" "Interrupted by Ctrl-C."]
                  ["141" "The reader of the output closed its pipe."]])))))
