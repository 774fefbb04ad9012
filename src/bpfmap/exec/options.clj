(ns ^:no-doc bpfmap.exec.options
  "What commands take, as data: each option and argument once, with its name, its kind and a line
  about it.

  | key       | what it holds                                                                 |
  |-----------|-------------------------------------------------------------------------------|
  | `:takes`  | the word for its value in usage and errors; a flag takes none                 |
  | `:kind`   | a row of `bpfmap.exec.arguments/kinds`: how text becomes data                 |
  | `:of`     | for the kind `:choice`: what may be chosen                                    |
  | `:many`  | may be given more than once; the value is then a vector                       |
  | `:doc`    | a line about it")

(set! *warn-on-reflection* true)

(def options
  "Every option and argument of any command, by its keyword."
  {;; --- which map, and what is in it
   :ref {:takes "REF" :kind :ref :doc "The map: its id, its pin path or its name"}
   :key {:takes "KEY" :kind :element :doc "A key, as EDN or as bytes in hexadecimal"}
   :value {:takes "VALUE" :kind :element :doc "A value, as EDN or as bytes in hexadecimal"}
   :key-type {:takes "TYPE" :kind :type :doc "Read and write keys as this type"}
   :value-type {:takes "TYPE" :kind :type :doc "Read and write values as this type"}
   :cpus {:takes "WHICH" :kind :cpus :doc "Per-CPU values: each or all, sum, or CPU N; else each"}
   :lock {:kind :flag :doc "Hold the value's spin lock meanwhile"}

   :insert {:kind :flag :doc "Only if the key is not there"}
   :replace {:kind :flag :doc "Only if the key is there"}
   :yes {:kind :flag :doc "Do it, though others have the map"}

   :move {:kind :flag :doc "Move the pin REF, instead of adding one"}

   ;; --- a new map
   :path {:takes "PATH" :kind :path :doc "A place below a BPF file system"}
   :type {:takes "TYPE" :kind :map-type :doc "The map type: hash, array, lru-hash …"}
   :max-entries {:takes "N" :kind :whole :doc "How many entries at most"}
   :key-size {:takes "BYTES" :kind :whole :doc "The size of keys without a type"}
   :value-size {:takes "BYTES" :kind :whole :doc "The size of values without a type"}
   :flags {:takes "NAMES" :kind :flags :doc "Create flags: no-prealloc,mmapable …"}
   :name {:takes "NAME" :kind :text :doc "The name; the last part of PATH unless given"}
   :like {:takes "REF" :kind :ref :doc "A map whose spec it has where nothing else is said"}
   :spec {:takes "EDN" :kind :edn :doc "More of the spec, such as '{:map-extra 3}'"}

   ;; --- which rows
   :where {:takes "TERM" :kind :where :many true
           :doc "Only rows for which TERM holds; may be given again"}
   :sort {:takes "COLUMN" :kind :column :doc "By this column; -COLUMN puts the largest first"}
   :limit {:takes "N" :kind :whole :doc "N rows at most"}
   :columns {:takes "NAMES" :kind :columns :doc "These columns alone, with commas between them"}
   :count {:kind :flag :doc "Count the entries of large maps too"}
   :keys {:kind :flag :doc "Keys alone"}
   :stream {:kind :flag :doc "One record a line, as it is read"}

   ;; --- where
   :directory {:takes "DIRECTORY" :kind :path :doc "Only what is in and below it"}

   ;; --- what changes
   :changed {:kind :flag :doc "Only what came, changed or went"}
   :follow {:kind :flag :doc "Go on with the map that takes its place"}
   :interval {:takes "N" :kind :positive :doc "Seconds from one look to the next"}
   :old {:takes "OLD" :kind :source :doc "A map, or the file of a saved one, NAME.edn"}
   :new {:takes "NEW" :kind :source :doc "As OLD; without it, OLD a while later"}

   ;; --- histograms
   :field {:takes "FIELD" :kind :field :doc "Count the values of this field"}
   :bucket {:takes "FIELD" :kind :field :doc "The field that numbers the buckets, or has them"}
   :slots {:takes "WAY" :kind :slots :doc "How buckets are numbered: log2, bcc or bpftrace"}
   :linear {:takes "STEP" :kind :count :doc "Buckets of this width, instead of powers of two"}
   :unit {:takes "NAME" :kind :text :doc "What the numbers are, as a heading"}

   ;; --- files
   :file {:takes "FILE" :kind :path :doc "A file"}
   :pin {:takes "PATH" :kind :path :doc "Make a new map, and pin it there"}
   :into {:takes "REF" :kind :ref :doc "Write the entries into this map"}
   :exact {:kind :flag :doc "Delete what the file does not have"}

   ;; --- how long
   :seconds {:takes "N" :kind :positive :doc "How long, in seconds"}

   ;; --- this command line
   :shell {:takes "SHELL" :kind :shell :doc "bash, zsh or fish"}
   :listed {:takes "REF" :kind :source
            :doc "The map, or file of a saved one, whose fields are listed"}
   :command {:takes "COMMAND" :kind :text :doc "The name of a command"}})

(defn doc-of
  "Returns the line about an option of a command, which may have its own: see `:docs` of
  `bpfmap.exec.commands`.

      (doc-of {:name \"unpin\"} :yes) ;=> \"Do it, though others have the map\""
  [command k]
  (or (get-in command [:docs k]) (:doc (options k))))
