(ns bpfmap.exec.options
  "What commands take, as data: each option and argument once, with its name, its kind and a line about it.

  | key       | what it holds                                                                 |
  |-----------|-------------------------------------------------------------------------------|
  | `:takes`  | the word for its value in usage and errors; a flag takes none                 |
  | `:kind`   | a row of `bpfmap.exec.arguments/kinds`: how text becomes data                 |
  | `:of`     | for the kind `:choice`: what may be chosen                                    |
  | `:many?`  | may be given more than once; the value is then a vector                       |
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
   :cpus {:takes "WHICH" :kind :cpus :doc "Of per-CPU values: each, sum, or the number of one CPU"}
   :lock {:kind :flag :doc "Hold the value's spin lock meanwhile"}

   ;; --- which rows
   :where {:takes "TERM" :kind :where :many? true :doc "Only rows for which TERM holds; may be given again"}
   :sort {:takes "COLUMN" :kind :column :doc "By this column; -COLUMN puts the largest first"}
   :limit {:takes "N" :kind :whole :doc "N rows at most"}
   :keys {:kind :flag :doc "Keys alone"}
   :stream {:kind :flag :doc "One record a line, as it is read"}

   ;; --- how long
   :seconds {:takes "N" :kind :positive :doc "How long, in seconds"}

   ;; --- this command line
   :command {:takes "COMMAND" :kind :text :doc "The name of a command"}})
