(ns ^:no-doc bpfmap.exec.options
  "The options and arguments of all commands as data: each once, with its name, its kind and one
  line about it.

  | key       | meaning                                                                       |
  |-----------|-------------------------------------------------------------------------------|
  | `:takes`  | the word for its value in usage and errors; a flag has none                   |
  | `:kind`   | a row of `bpfmap.exec.arguments/kinds`: how text becomes data                 |
  | `:many`   | true if it can be repeated; the value is then a vector                        |
  | `:doc`    | one line: a flag's begins with an imperative verb, any other names the value  |"
  (:require [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def options
  "Every option and argument of any command, by its keyword."
  {;; --- a map, its keys and values
   :ref {:takes "REF" :kind :ref :doc "Map, given by its id, pin path or name"}
   :key {:takes "KEY" :kind :element :doc "Key, as a word, EDN, JSON or hexadecimal bytes"}
   :value {:takes "VALUE" :kind :element :doc "Value, as a word, EDN, JSON or hexadecimal bytes"}
   :key-type {:takes "TYPE" :kind :type :doc "Type of the keys (default: from the map's BTF)"}
   :value-type {:takes "TYPE" :kind :type :doc "Type of the values (default: from the map's BTF)"}
   :types {:takes "FILE" :kind :types
           :doc "File of types of maps without BTF, bpftrace or none"}
   :save {:kind :flag :doc "Save the types for maps with this name and owner"}
   :cpus {:takes "WHICH" :kind :cpus
          :doc "Per-CPU values: each, sum or CPU N (default: each)"}
   :lock {:kind :flag :doc "Hold the value's spin lock during the operation"}

   :insert {:kind :flag :doc "Write only if the key does not exist"}
   :replace {:kind :flag :doc "Write only if the key exists"}
   :yes {:kind :flag :doc "Change the map even if others use it"}

   :move {:kind :flag :doc "Move the pin REF instead of adding a pin"}

   ;; --- a new map
   :path {:takes "PATH" :kind :path :doc "Path on a BPF file system"}
   :type {:takes "TYPE" :kind :map-type :doc "Map type, such as hash, array or lru-hash"}
   :max-entries {:takes "N" :kind :whole :doc "Maximum number of entries"}
   :key-size {:takes "BYTES" :kind :whole :doc "Size of the keys, if they have no type"}
   :value-size {:takes "BYTES" :kind :whole :doc "Size of the values, if they have no type"}
   :flags {:takes "NAMES" :kind :flags :doc "Flags for creation, such as no-prealloc,mmapable"}
   :name {:takes "NAME" :kind :text :doc "Name of the map (default: last part of PATH)"}
   :like {:takes "REF" :kind :ref :doc "Map whose spec supplies the defaults"}
   :spec {:takes "EDN" :kind :edn :doc "Further keys of the spec, such as '{:map-extra 3}'"}

   ;; --- rows
   :where {:takes "TERM" :kind :where :many true
           :doc "Condition that rows must meet; can be repeated"}
   :sort {:takes "COLUMN" :kind :column :doc "Column to sort by; -COLUMN sorts in descending order"}
   :limit {:takes "N" :kind :whole :doc "Maximum number of rows"}
   :columns {:takes "NAMES" :kind :columns :doc "Columns to print, separated by commas"}
   :held-by {:takes "PROCESS" :kind :process
             :doc "Pid or command of a process that has the map open"}
   :process {:takes "PROCESS" :kind :process
             :doc "Pid or command of a process; * and ? stand for any characters"}
   :inner {:kind :flag :doc "Print the entries of the inner maps of a map of maps"}
   :outer-type {:takes "TYPE" :kind :type :doc "Type of the keys of the outer map, for --inner"}
   :total {:kind :flag :doc "Print only the number of maps"}
   :count {:kind :flag :doc "Count the entries of large maps too"}
   :as {:takes "FIELD=HINT" :kind :hint :many true
        :doc "Hint for a field, such as src=ipv4; can be repeated"}
   :hints {:takes "FILE" :kind :path :doc "File with hints by map and field, as EDN"}
   :template {:kind :flag :doc "Print a file for --hints instead"}
   :keys {:kind :flag :doc "Print only the keys"}
   :stream {:kind :flag :doc "Print each row as soon as it is read, one per line"}

   ;; --- directories
   :directory {:takes "DIRECTORY" :kind :path
               :doc "Directory to search (default: every BPF file system)"}

   ;; --- changes
   :changed {:kind :flag :doc "Show only added, changed and removed entries"}
   :follow {:kind :flag :doc "Continue with the map that replaces this one"}
   :interval {:takes "N" :kind :positive :doc "Seconds between two readings"}
   :old {:takes "OLD" :kind :source :doc "Map, or file of a saved map (NAME.edn)"}
   :new {:takes "NEW" :kind :source :doc "Map or file to compare with (default: OLD, later)"}

   :rounds {:takes "N" :kind :count :doc "Number of readings after which it ends"}
   :once {:kind :flag :doc "Print one reading, after one interval"}

   ;; --- events
   :from {:takes "WHERE" :kind :from
          :doc "First event, oldest or now; events are copied then"}
   :events {:kind :flag :doc "Print each start and end of a program instead, as events"}
   :steal {:kind :flag :doc "Take the events, even if another process may read them"}

   ;; --- histograms
   :field {:takes "FIELD" :kind :field :doc "Field whose values are counted"}
   :bucket {:takes "FIELD" :kind :field :doc "Field that has the buckets, or their numbers"}
   :slots {:takes "WAY" :kind :slots :doc "Numbering of the buckets: log2, bcc or bpftrace"}
   :linear {:takes "STEP" :kind :count :doc "Width of the buckets (default: powers of two)"}
   :unit {:takes "NAME" :kind :text :doc "Unit of the values, for the heading"}

   ;; --- objects
   :program {:takes "NAME" :kind :text :doc "Program or function to print as assembly"}
   :jited {:kind :flag :doc "Print the machine code instead, as bytes"}
   :only {:takes "PROGRAM" :kind :text :many true
          :doc "Program to run, instead of all; can be repeated"}
   :target {:takes "NAME=TARGET" :kind :targets :many true
            :doc "Target of a program, as EDN; can be repeated"}
   :event {:takes "NAME=TYPE" :kind :event-types :many true
           :doc "Type of the events of a map; can be repeated"}
   :var {:takes "NAME=VALUE" :kind :values :many true
         :doc "Value of a variable, as EDN; can be repeated"}
   :entries {:takes "NAME=N" :kind :values :many true
             :doc "Maximum number of entries of a map; can be repeated"}
   :map {:takes "NAME=REF" :kind :refs :many true
         :doc "Existing map to use; can be repeated"}

   ;; --- files
   :file {:takes "FILE" :kind :path :doc "Path of the file"}
   :pin {:takes "PATH" :kind :path :doc "Path at which a new map is pinned"}
   :into {:takes "REF" :kind :ref :doc "Existing map to write the entries into"}
   :exact {:kind :flag :doc "Delete entries that are not in the file"}

   :config {:takes "CONFIG" :kind :path :doc "File with the config of the metrics, as EDN"}
   :check {:kind :flag :doc "Print the problems of the config, and serve nothing"}

   ;; --- time
   :seconds {:takes "N" :kind :positive :doc "Duration in seconds"}

   ;; --- this command line
   :shell {:takes "SHELL" :kind :shell :doc "Shell: bash, zsh or fish"}
   :listed-type {:takes "TYPE" :kind :event-type :doc "Type of the events of the map, for tail"}
   :listed {:takes "REF" :kind :source :doc "Map, or file of a saved map, whose fields are printed"}
   :command {:takes "COMMAND" :kind :text :doc "Name of a command"}})

(defn function-name
  "Returns the name of a command's function in `bpfmap.exec`.

  Commands about programs and links have two words.

      (function-name \"prog list\") ;=> \"prog-list\""
  [command]
  (str/replace command " " "-"))

(defn kind-of
  "Returns the kind of an option of a command, which can override it in `:kinds`.

      (kind-of {:name \"dump\"} :value-type) ;=> :type"
  [command k]
  (or (get-in command [:kinds k]) (:kind (options k))))

(defn doc-of
  "Returns the line about an option of a command, which can override it in `:docs`.

      (doc-of {:name \"unpin\"} :yes) ;=> \"Change the map even if others use it\""
  [command k]
  (or (get-in command [:docs k]) (:doc (options k))))
