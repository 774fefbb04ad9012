(ns bpfmap.exec.commands
  "Every command as data: what the command line parses, completes and explains, and what `bpfmap.exec` has functions of.

  | key         | what it holds                                                                           |
  |-------------|-----------------------------------------------------------------------------------------|
  | `:name`     | how it is called                                                                        |
  | `:group`    | where help lists it                                                                     |
  | `:args`     | arguments by place, from `bpfmap.exec.options`; those in `:optional` may be missing     |
  | `:options`  | options, from there too; those in `:needs` must be given                                |
  | `:defaults` | what stands for an option that is not given                                             |
  | `:doc`      | a line about it, without a full stop; `:text`: further lines                            |
  | `:examples` | options maps, which are shown as command lines and as calls                             |
  | `:rows?`    | it returns rows: `--csv` has them too                                                   |
  | `:changes?` | it changes a map: one of another process asks first, see `bpfmap.exec.consent`          |
  | `:fn`       | the function of one options map that does it and returns data                           |
  | `:view`     | how people see what it returned: see `bpfmap.cli.views`                                 |
  | `:run`      | instead of both, of what only the command line has: a function that returns a view      |")

(set! *warn-on-reflection* true)

(def ^:private typed [:key-type :value-type])

(def commands
  "The commands, in the order in which help lists them."
  [;; --- what is there
   {:name "list" :group "What there is"
    :rows? true
    :doc "All maps on this host"
    :text ["MEMORY is what the kernel charges for the map; FROZEN shows when a map is."
           "Needs CAP_SYS_ADMIN."]
    :examples [{}]
    :fn 'bpfmap.exec.reading/list-maps :view 'bpfmap.cli.views/maps}
   {:name "show" :group "What there is" :args [:ref]
    :doc "Everything the kernel says of one map"
    :examples [{:ref "flows"} {:ref "/sys/fs/bpf/flows"}]
    :fn 'bpfmap.exec.reading/show :view 'bpfmap.cli.views/fields}
   {:name "dump" :group "What there is" :args [:ref] :options typed
    :rows? true
    :doc "The entries of a map"
    :text ["They are read by the types that the map's BTF tells; where it has none, bytes"
           "are printed in hexadecimal. A TYPE given here goes before: u32, s64be, ipv4,"
           "'[string 16]', '[struct [pid u32] [cpu u32]]' and so on, as in a map spec."]
    :examples [{:ref "flows"} {:ref 12 :key-type :u32 :value-type [:string 16]}]
    :fn 'bpfmap.exec.reading/dump :view 'bpfmap.cli.views/entries}

   ;; --- this command line
   {:name "demo" :group "Else" :options [:seconds] :defaults {:seconds 5.0}
    :doc "Count the host's system calls, live, in a map of this library"
    :text ["Loads a BPF program that counts them by number. PER-SECOND is the rate of the"
           "last second while it runs, and of the whole time when it ends. Ctrl-C ends it"
           "sooner. Nothing stays in the kernel. Needs CAP_BPF and CAP_PERFMON."]
    :examples [{:seconds 3}]
    :fn 'bpfmap.exec.demo/demo :run 'bpfmap.cli.demo/demo}
   {:name "help" :group "Else" :args [:command] :optional #{:command}
    :doc "This text, or that of a command"
    :run 'bpfmap.cli.help/help}])

(def ^:private by-name
  (into {} (map (juxt :name identity)) commands))

(defn command-named
  "The row of a command; nil where there is none.

      (:doc (command-named \"list\")) ;=> \"All maps on this host\""
  [name]
  (by-name name))
