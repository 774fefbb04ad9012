(ns ^:no-doc bpfmap.exec.commands
  "Every command as data: what the command line parses, completes and explains, and what
  `bpfmap.exec` has functions of.

  | key         | what it holds                                                                           |
  |-------------|-----------------------------------------------------------------------------------------|
  | `:name`     | how it is called                                                                        |
  | `:group`    | where help lists it                                                                     |
  | `:args`     | arguments by place, from `bpfmap.exec.options`; those in `:optional` may be missing     |
  | `:options`  | options, from there too; those in `:needs` must be given                                |
  | `:docs`     | lines about options that mean something else here                                       |
  | `:defaults` | what stands for an option that is not given                                             |
  | `:doc`      | a line about it, without a full stop; `:text`: further lines                            |
  | `:examples` | options maps, which are shown as command lines and as calls                             |
  | `:rows?`    | it returns rows: `--csv` has them too                                                   |
  | `:reduces` | it returns something to reduce, whatever its options are                                |
  | `:changes` | it changes a map: one of another process asks first, see `bpfmap.exec.confirm`          |
  | `:fn`       | the function of one options map that does it and returns data                           |
  | `:view`     | how people see what it returned: see `bpfmap.exec.views`                                 |
  | `:run`      | true if the command line runs it: see `runners` in `bpfmap.cli.main`                     |")

(set! *warn-on-reflection* true)

(def ^:private typed [:key-type :value-type])

(def commands
  "The commands, in the order in which help lists them."
  [;; --- what is there
   {:name "list" :group "What there is" :options [:where :sort :limit :columns :count :stream]
    :rows? true
    :doc "All maps on this host, and whose they are"
    :text ["ENTRIES are counted where the map is small; --count counts all of them. MEMORY"
           "is what the kernel charges for the map. HELD BY are the processes that have it"
           "open, USED BY the programs. Columns have the names that --edn shows, and those"
           "that stand above them: held is every holder, held.command the name of one."
           "Needs CAP_SYS_ADMIN."]
    :examples [{}
               {:where ["type=lru-hash" "held.command=agent"] :sort "-memlock"}
               {:columns "id,name,entries,max-entries" :where ["pinned~^/sys/fs/bpf/net"]}]
    :fn 'bpfmap.exec.host/list-maps :view 'bpfmap.exec.views/maps}
   {:name "show" :group "What there is" :args [:ref]
    :doc "Everything the kernel says of one map"
    :examples [{:ref "flows"} {:ref "/sys/fs/bpf/flows"}]
    :fn 'bpfmap.exec.reading/show :view 'bpfmap.exec.views/fields}
   {:name "tree" :group "What there is" :args [:directory] :optional #{:directory}
    :doc "What is pinned on the BPF file systems"
    :examples [{} {:directory "/sys/fs/bpf/net"}]
    :fn 'bpfmap.exec.host/tree :view 'bpfmap.exec.views/tree}
   {:name "features" :group "What there is" :options [:where :sort :limit :stream]
    :rows? true
    :doc "What this kernel has, found out by trying"
    :examples [{} {:where ["name=mmapable" "here=true"]}]
    :fn 'bpfmap.exec.types/features :view 'bpfmap.exec.views/features}
   {:name "types" :group "What is in a map" :args [:ref] :options typed
    :doc "The types of keys and values, in C and as data"
    :examples [{:ref "flows"}]
    :fn 'bpfmap.exec.types/types :view 'bpfmap.exec.views/types}
   {:name "dump" :group "What is in a map" :args [:ref]
    :options (into [:where :sort :limit :keys :cpus :stream] typed)
    :rows? true
    :doc "The entries of a map"
    :text ["They are read by the types that the map's BTF tells; where it has none, bytes"
           "are printed in hexadecimal. A TYPE given here goes before: u32, s64be, ipv4,"
           "'[string 16]', '[struct [pid u32] [cpu u32]]' and so on, as in a map spec."
           "A TERM is like 'bytes>1M', 'src=10.0.0.0/24', 'key.port!=443' or 'comm~^ssh',"
           "on a field of the value or the key; in quotes, since > is the shell's. Values"
           "of per-CPU maps are shown for each CPU, unless --cpus says otherwise."]
    :examples [{:ref "flows"}
               {:ref "flows" :where ["bytes>1M"] :sort "-bytes" :limit 10}
               {:ref 12 :key-type :u32 :value-type [:string 16]}]
    :fn 'bpfmap.exec.reading/dump :view 'bpfmap.exec.views/entries}

   {:name "get" :group "What is in a map" :args [:ref :key] :optional #{:key}
    :options (into [:cpus :lock] typed)
    :doc "The value of a key"
    :text ["KEY is what dump prints of it, as a table, EDN or JSON: 7, 10.0.0.1 or"
           "'{src \"10.0.0.1\" port 443}'; or bytes in hexadecimal, such as '0a 00 00 01'."
           "Write -- before one that begins with a dash. Of a queue or stack without a KEY"
           "it is the next value; of a bloom filter, whether KEY may be in it."]
    :examples [{:ref "flows" :key {:src "10.0.0.1" :port 443}} {:ref "blocked" :key "10.0.0.1"}]
    :fn 'bpfmap.exec.reading/get-entry :view 'bpfmap.exec.views/entry}

   ;; --- what changes
   {:name "watch" :group "What changes" :args [:ref] :defaults {:interval 1.0} :reduces true
    :docs {:cpus "Per-CPU values: each or all, sum, or CPU N; else sum"}
    :options (into [:interval :seconds :follow :where :sort :limit :changed :cpus] typed)
    :doc "See a map change, live"
    :text ["The liveliest entries first, with the rates of their numbers; + is new,"
           "* changed, - gone. Per-CPU values are added up; --cpus each shows them apart."
           "Where there is no terminal, what changed is printed again and again. The map is"
           "not kept alive: if its pin goes or is another map's, or the map is gone, watch"
           "says so. --follow goes on with the map that is pinned, or named, in its place."]
    :examples [{:ref "flows"} {:ref "flows" :interval 0.5 :sort "-per-second.bytes" :limit 10}
               {:ref "/sys/fs/bpf/flows" :follow true}]
    :fn 'bpfmap.exec.live/watch :run true}
   {:name "diff" :group "What changes" :args [:old :new] :optional #{:new}
    :options (into [:seconds :where :sort :limit :cpus :stream] typed)
    :rows? true
    :doc "Show what changed later, or since a map was saved"
    :text ["OLD alone is looked at twice, --seconds apart (1). OLD and NEW are each a map,"
           "or the file of a saved one, whose name ends in .edn."]
    :examples [{:old "flows" :seconds 10} {:old "/root/flows.edn" :new "flows"}]
    :fn 'bpfmap.exec.diff/diff :view 'bpfmap.exec.views/diff}
   {:name "hist" :group "What changes" :args [:ref]
    :options (into [:field :bucket :slots :linear :unit :where :cpus :stream] typed)
    :docs {:cpus "Per-CPU values: sum, or CPU N; else sum"}
    :rows? true
    :doc "Histograms of the buckets of a map, or of a field"
    :text ["A map has buckets where its values have arrays of counts, or where its keys (or"
           "a field of them, --bucket) are their numbers. Bucket n counts what is from 2^n"
           "on; bcc and bpftrace number them otherwise, which --slots says."]
    :examples [{:ref "hists" :unit "usecs"} {:ref "flows" :field "bytes"}
               {:ref "sizes" :linear 100}]
    :fn 'bpfmap.exec.hist/hist :view 'bpfmap.exec.views/histograms}

   ;; --- changing
   {:name "put" :group "Changing" :args [:ref :key :value] :optional #{:value}
    :options (into [:insert :replace :cpus :lock :yes] typed)
    :docs {:cpus "all: VALUE for every CPU; N: for CPU N alone"}
    :changes true
    :doc "Write the entry of a key"
    :text ["KEY and VALUE are EDN or bytes, as for get; a map or program is a VALUE by its"
           "id, pin path or name. A per-CPU map takes a vector with a value for each CPU;"
           "--cpus all writes one for all. A queue, a stack or a bloom filter takes a VALUE"
           "alone."]
    :examples [{:ref "blocked" :key "10.0.0.1" :value 1}
               {:ref "limits" :key 0 :value {:rate 100 :burst 20} :replace true}]
    :fn 'bpfmap.exec.changing/put :view 'bpfmap.exec.views/put}
   {:name "delete" :group "Changing" :args [:ref :key] :options (into [:yes] typed)
    :changes true
    :doc "Delete a key"
    :examples [{:ref "blocked" :key "10.0.0.1"}]
    :fn 'bpfmap.exec.changing/delete :view 'bpfmap.exec.views/deleted}
   {:name "take" :group "Changing" :args [:ref :key] :optional #{:key} :options (into [:yes] typed)
    :changes true
    :doc "Take an entry out of a map, in one step"
    :text ["Of a queue or stack, which have no keys, the next value."]
    :examples [{:ref "flows" :key 7} {:ref "jobs"}]
    :fn 'bpfmap.exec.changing/take-entry :view 'bpfmap.exec.views/entry}
   {:name "create" :group "Changing" :args [:path]
    :options (into [:type :max-entries :key-size :value-size :flags :name :like :spec] typed)
    :doc "Create a map, and pin it"
    :text ["A map lives as long as something holds it: this one, the pin."]
    :examples [{:path "/sys/fs/bpf/counts" :type :hash :key-type :u32 :value-type :u64
                :max-entries 1024}
               {:path "/sys/fs/bpf/routes" :type :lpm-trie :key-type [:prefix :ipv4]
                :value-type :u32 :max-entries 64
                :flags "no-prealloc"}
               {:path "/sys/fs/bpf/copy" :like "flows" :max-entries 10}]
    :fn 'bpfmap.exec.pins/create :view 'bpfmap.exec.views/pinned}
   {:name "pin" :group "Changing" :args [:ref :path] :options [:move :yes]
    :changes true
    :doc "Pin a map at a path, so that it stays"
    :text ["A pin that the map has already stays. With --move, REF is the path of a pin,"
           "which moves to PATH."]
    :examples [{:ref 12 :path "/sys/fs/bpf/counts"}
               {:ref "/sys/fs/bpf/counts" :path "/sys/fs/bpf/old_counts" :move true}]
    :fn 'bpfmap.exec.pins/pin :view 'bpfmap.exec.views/pinned}
   {:name "unpin" :group "Changing" :args [:path] :options [:yes]
    :changes true
    :doc "Remove the pin of a map"
    :examples [{:path "/sys/fs/bpf/counts"}]
    :fn 'bpfmap.exec.pins/unpin :view 'bpfmap.exec.views/unpinned}
   {:name "freeze" :group "Changing" :args [:ref] :options [:yes]
    :changes true
    :doc "Make a map unchangeable from user space, for good"
    :examples [{:ref "limits"}]
    :fn 'bpfmap.exec.changing/freeze :view 'bpfmap.exec.views/frozen}

   ;; --- saving
   {:name "save" :group "Saving" :args [:ref :file] :options typed
    :doc "Write a map's spec and contents to a file, as EDN"
    :text ["The file takes its place when all of it is on the disk. Its owner alone may"
           "read it. A map of maps is saved with the maps in it. A map whose contents"
           "could not be restored, such as a queue, is not saved."]
    :examples [{:ref "flows" :file "/root/flows.edn"}]
    :fn 'bpfmap.exec.backup/save :view 'bpfmap.exec.views/saved}
   {:name "restore" :group "Saving" :args [:file] :options [:pin :into :exact :yes]
    :changes true
    :doc "Make a map as it was saved, or write into one"
    :text ["Entries that are there already are skipped. What is reported is what the map"
           "has afterwards; if some of the entries are missing, the exit code is 1."]
    :examples [{:file "/root/flows.edn" :pin "/sys/fs/bpf/flows"}
               {:file "/root/flows.edn" :into "flows" :exact true}]
    :fn 'bpfmap.exec.backup/restore :view 'bpfmap.exec.views/restored}

   ;; --- this command line
   {:name "demo" :group "Else" :options [:seconds] :defaults {:seconds 5.0}
    :doc "Count the host's system calls, live, in a map"
    :text ["Loads a BPF program that counts them by number. PER-SECOND is the rate of the"
           "last second while it runs, and of the whole time when it ends. Ctrl-C ends it"
           "sooner. Nothing stays in the kernel. Needs CAP_BPF and CAP_PERFMON."]
    :examples [{:seconds 3}]
    :fn 'bpfmap.exec.demo/demo :run true}
   {:name "repl" :group "Else"
    :doc "Clojure with the library at hand"
    :run true}
   {:name "completion" :group "Else" :args [:shell :command :listed] :optional #{:command :listed}
    :doc "A script for TAB in a shell"
    :text ["bash: source <(bpfmap completion bash). zsh: as _bpfmap in a directory of"
           "$fpath. fish: as bpfmap.fish in ~/.config/fish/completions. With COMMAND and"
           "REF, the fields that rows of that command have for that map: TAB asks for them."]
    :examples [{:shell :bash} {:shell :bash :command "dump" :listed "flows"}]
    :run true}
   {:name "help" :group "Else" :args [:command] :optional #{:command}
    :doc "This text, or that of a command"
    :run true}])

(def ^:private by-name
  (into {} (map (juxt :name identity)) commands))

(defn command-named
  "The row of a command; nil where there is none.

      (:doc (command-named \"list\")) ;=> \"All maps on this host\""
  [name]
  (by-name name))
