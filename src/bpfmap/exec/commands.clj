(ns ^:no-doc bpfmap.exec.commands
  "The table of all commands, for parsing, completion, help and `bpfmap.exec`.

  | key         | meaning                                                                                 |
  |-------------|-----------------------------------------------------------------------------------------|
  | `:name`     | the name of the command: a word, or two for a command about programs or links           |
  | `:group`    | the heading under which help lists it                                                   |
  | `:args`     | positional arguments from `bpfmap.exec.options`; `:optional` has the optional ones      |
  | `:several`  | the last argument, if it can be repeated; it is a vector then                           |
  | `:options`  | options from the same table; `:needs` has the required ones                             |
  | `:docs`     | lines about options that mean something different for this command                      |
  | `:kinds`    | kinds of options that mean something different for this command                         |
  | `:defaults` | default values of options                                                               |
  | `:doc`      | one line that begins with an imperative verb, without a full stop; `:text`: more lines  |
  | `:examples` | options maps, which are shown as command lines and as calls                             |
  | `:rows`     | true if it returns rows, which `--csv` can print                                        |
  | `:reduces`  | true if it always returns a reducible                                                   |
  | `:changes`  | true if it changes a map: see `bpfmap.exec.confirm`                                     |
  | `:fn`       | the function of an options map that runs the command and returns data                   |
  | `:view`     | the function that renders the result for people: see `bpfmap.exec.views`                |
  | `:run`      | true if the command line runs it: see `runners` in `bpfmap.cli.main`                    |")

(set! *warn-on-reflection* true)

(def ^:private program-ref
  "Keys of the rows of commands whose `:ref` is a program."
  {:kinds {:ref :program-ref} :docs {:ref "Program, given by its id, pin path or name"}})

(def ^:private link-ref
  "Keys of the rows of commands whose `:ref` is a link."
  {:kinds {:ref :link-ref} :docs {:ref "Link, given by its id or pin path"}})

(def ^:private typed [:key-type :value-type :types])

(def ^:private shown "Options about how fields are shown." [:as :hints])

(def commands
  "The commands, in the order in which help lists them."
  [;; --- the host
   {:name "overview" :group "Inspect the host"
    :doc "Show the maps of this host in a few lines"
    :text ["bpfmap without a command does the same. Shows the fullest maps, and those that"
           "change fastest within 0.3 seconds. See `bpfmap help top` for what is measured."
           "Without CAP_SYS_ADMIN, shows what this user can see."]
    :examples [{}]
    :fn 'bpfmap.exec.overview/overview :view 'bpfmap.exec.views/overview}
   {:name "list" :group "Inspect the host"
    :options [:name :held-by :where :sort :limit :columns :count :total :stream] :rows true
    :docs {:name "Name of the maps; * and ? stand for any characters"}
    :doc "List the BPF maps on this host and their owners"
    :text ["ENTRIES is counted for small maps; --count counts it for all maps. FULL is the"
           "percentage of MAX in use, with lru for maps that evict entries. If --where,"
           "--sort or --columns names FULL, large maps are counted too: hash maps by the"
           "kernel (Linux 6.6), others for at most a second in all. MEMORY is the memory"
           "that the kernel charges for the map. For ring buffers, MAX is their size in"
           "bytes, and FILL the bytes in use. HELD BY shows the processes that have the map"
           "open, USED BY the programs that use it. Conditions and --sort name a column by"
           "its heading or by its name in --edn: held is any holder, held.command the"
           "command of a holder. The kernel keeps 15 characters of a name: NAME is the"
           "whole name if it is certain, and kernel-name what the kernel has kept of it."
           "OUTER, the maps of maps that hold a map, is read only if it is named."
           "Requires CAP_SYS_ADMIN."]
    :examples [{}
               {:name "flow_*" :held-by "agent"}
               {:where ["full>90"] :sort "-full"}
               {:where ["held=-" "pinned=-" "used-by=-"]}
               {:where ["type=lru-hash" "held.command=agent"] :sort "-memlock"}
               {:columns "id,name,entries,max-entries" :where ["pinned~^/sys/fs/bpf/net"]}]
    :fn 'bpfmap.exec.host/list-maps :view 'bpfmap.exec.views/maps}
   {:name "show" :group "Inspect the host" :args [:ref] :several :ref :optional #{:ref}
    :options [:held-by :types]
    :doc "Show the details of maps"
    :text ["With several REF, a REF with * or ?, or --held-by, shows each of the maps below"
           "a heading. One that is missing or cannot be read is reported, with exit code 1."
           "REF is required without --held-by."]
    :examples [{:ref "flows"} {:ref "/sys/fs/bpf/flows"} {:ref "flow_*" :held-by "agent"}]
    :fn 'bpfmap.exec.reading/show :view 'bpfmap.exec.views/map-fields}
   {:name "holds" :group "Inspect the host" :args [:process]
    :options [:where :sort :limit :columns :stream] :rows true
    :doc "List the maps, programs and links that a process holds"
    :text ["PROCESS is a pid, or the command of one or several processes. NAME is what a"
           "link is attached to. ENDS is yes if the object ends with the processes: no"
           "other process, pin, link, program or map of maps keeps it. Requires"
           "CAP_SYS_ADMIN."]
    :examples [{:process 4711} {:process "agent" :where ["kind=map"] :sort "-memory"}
               {:process "agent" :where ["kind=link" "ends=true"]}]
    :fn 'bpfmap.exec.held-objects/holds :view 'bpfmap.exec.views/held-objects}
   {:name "tree" :group "Inspect the host" :args [:directory] :optional #{:directory}
    :doc "Show the pins on the BPF file systems"
    :examples [{} {:directory "/sys/fs/bpf/net"}]
    :fn 'bpfmap.exec.host/tree :view 'bpfmap.exec.views/tree}
   {:name "features" :group "Inspect the host" :options [:where :sort :limit :stream]
    :rows true
    :doc "List the BPF features of this kernel (by probing)"
    :examples [{} {:where ["name=mmapable" "here=true"]}]
    :fn 'bpfmap.exec.features/features :view 'bpfmap.exec.views/features}

   ;; --- the contents of a map
   {:name "types" :group "Read a map" :args [:ref] :options (conj typed :template :save :held-by)
    :kinds {:value-type :event-type}
    :doc "Show the types of keys and values, in C and as data"
    :text ["With --save, writes the types to ~/.config/bpfmap/types.edn, or the FILE of"
           "--types. Every command uses them for a map without BTF that has this name, the"
           "same sizes, and the same owner, which is a process or program that uses it. A"
           "command with --types none does not. Numbers of 8 bytes in maps of bpftrace"
           "have the type u64. The --value-type of a ring buffer or perf event array is"
           "that of its events, or the name of a struct as for tail."]
    :examples [{:ref "flows"} {:ref "flows" :template true}
               {:ref "stats" :key-type :u32 :value-type :u64 :save true}]
    :fn 'bpfmap.exec.reading/types :view 'bpfmap.exec.views/types}
   {:name "dump" :group "Read a map" :args [:ref] :several :ref :optional #{:ref}
    :options (-> [:where :sort :limit :count :held-by]
                 (into shown) (into [:keys :inner :outer-type :cpus :stream]) (into typed))
    :docs {:count "Print only the number of matching entries"}
    :rows true
    :doc "Dump the entries of maps"
    :text ["Keys and values are decoded by the types in the map's BTF. Without BTF, they"
           "are printed as hexadecimal bytes. A TYPE given here replaces the map's own:"
           "u32, s64be, ipv4, '[string 16]' or '[struct [pid u32] [cpu u32]]', as in a map"
           "spec. A TERM compares a field of the key or value: 'bytes>1M',"
           "'src=10.0.0.0/24', 'key.port!=443' or 'comm~^ssh'. Quote it, because > has a"
           "meaning in the shell. For a per-CPU map, the value of each CPU is printed"
           "unless --cpus selects otherwise. The keys of a local storage are thread ids,"
           "ids of cgroups, or cookies of sockets. --as prints a field as what it means,"
           "in every format; conditions and --sort still see its value. The hints are"
           "cgroup, cpus, enum, errno, flags, group, hex, ifname, ip, ipv4, ipv4-host,"
           "ipv6, ksym, ktime, ktime-boot, mac, ms, ns, octal, pid, pid-tgid, port,"
           "port-be, s, size, syscall, us, user and usym. Some have a parameter: '[flags"
           "{SYN 1 ACK 2}]', '[enum bpf_map_type]' (an enum of the map or the kernel, or"
           "one of its values), '[usym 4711]' (a pid), '[usym key.pid]' (the field that"
           "has it) or '[usym \"/usr/bin/app\"]' (a file, or a directory with files)."
           "--inner prints the entries of inner maps, with the key of the outer map as"
           "OUTER; key and value types are for the inner maps then."
           "With several REF, a REF with * or ?, or --held-by, prints each of the maps"
           "below a heading. One that is missing or cannot be read is reported, with exit"
           "code 1. REF is required without --held-by."]
    :examples [{:ref "flows"}
               {:ref "flows" :where ["bytes>1M"] :sort "-bytes" :limit 10}
               {:ref "flow_*" :where ["bytes>1M"] :count true}
               {:ref "tenants" :inner true :outer-type [:string 8]}
               {:ref 12 :key-type :u32 :value-type [:string 16]}
               {:ref "flows" :as ["src=ipv4" "flags=[flags {SYN 1 ACK 2}]"]}]
    :fn 'bpfmap.exec.reading/dump :view 'bpfmap.exec.views/entries}
   {:name "get" :group "Read a map" :args [:ref :key] :optional #{:key}
    :options (-> (conj shown :cpus :lock :held-by) (into typed))
    :doc "Look up the value of a key"
    :text ["KEY is written as dump prints it, or as for put: 7, 10.0.0.1, 'src=10.0.0.1"
           "port=443', '{src \"10.0.0.1\" port 443}' or '0a 00 00 01'. Write -- before a KEY"
           "that begins with a dash. For a queue or stack, omit KEY: the next value is"
           "printed. For a bloom filter, prints maybe or no. `bpfmap help dump` lists the"
           "hints of --as."]
    :examples [{:ref "flows" :key {:src "10.0.0.1" :port 443}} {:ref "blocked" :key "10.0.0.1"}]
    :fn 'bpfmap.exec.reading/get-entry :view 'bpfmap.exec.views/entry}
   {:name "hist" :group "Read a map" :args [:ref]
    :options (-> [:field :bucket :slots :linear :unit :where :held-by] (into shown)
                 (into [:cpus :stream])
                 (into typed))
    :docs {:cpus "Per-CPU values: sum or CPU N (default: sum)"}
    :rows true
    :doc "Show histograms of the buckets, or of a field, of a map"
    :text ["A map has buckets if its values are arrays of counts, or if its key, or the"
           "field --bucket of the key, is the number of a bucket. Bucket n counts values"
           "from 2^n. bcc and bpftrace number buckets differently: select that with"
           "--slots. In a map of bpftrace, the number of the bucket is the end of the key,"
           "and the rest of the key is the field arg. Hints of --as, which `bpfmap help"
           "dump` lists, are for keys in titles, and for the limits of buckets: name the"
           "field that is counted, or that has the buckets."]
    :examples [{:ref "hists" :unit "usecs"} {:ref "flows" :field "bytes"}
               {:ref "sizes" :linear 100} {:ref "AT_latency" :as ["arg=syscall"] :unit "ns"}]
    :fn 'bpfmap.exec.hist/hist :view 'bpfmap.exec.views/histograms}

   ;; --- changes over time
   {:name "watch" :group "Observe changes" :args [:ref] :defaults {:interval 1.0} :reduces true
    :docs {:cpus "Per-CPU values: each, sum or CPU N (default: sum)"
           :seconds "Duration in seconds (default: until Ctrl-C)"}
    :options (-> [:interval :seconds :follow :held-by :where :sort :limit] (into shown)
                 (into [:changed :cpus]) (into typed))
    :doc "Watch the entries of a map change, live"
    :text ["Sorts by rate of change, highest first. Marks added entries with +, changed"
           "ones with * and removed ones with -. Adds up per-CPU values unless --cpus is"
           "given. On a terminal, the keys < and > choose the column to sort by, r reverses"
           "the order, c shows changed entries only, the space pauses, h shows the keys,"
           "and q ends it. If not on a terminal, prints the changes at every interval."
           "Does not keep the map alive: if the map disappears, or its pin is removed or"
           "replaced, watch reports that. With --follow, watch continues with the map that"
           "replaced it at the same pin path or under the same name. `bpfmap help dump`"
           "lists the hints of --as."]
    :examples [{:ref "flows"} {:ref "flows" :interval 0.5 :sort "-per-second.bytes" :limit 10}
               {:ref "/sys/fs/bpf/flows" :follow true}]
    :fn 'bpfmap.exec.watch/watch :run true}
   {:name "top" :group "Observe changes" :defaults {:interval 1.0} :reduces true
    :options [:interval :seconds :rounds :once :name :held-by :where :sort :limit]
    :docs {:seconds "Duration in seconds (default: until Ctrl-C)"
           :name "Name of the maps; * and ? stand for any characters"}
    :doc "Watch how full maps are and how fast they change"
    :text ["CHANGES/S is the number of entries that were added, removed or have another"
           "value, each counted once for an interval. It is measured for maps up to 64"
           "KiB. ENTRIES/S is the growth of the number of entries. Sorts by change, fastest"
           "first, and then by FULL, unless --sort is given. On a terminal, the keys < and"
           "> choose the column to sort by, r reverses the order, the space bar pauses, h"
           "shows the keys, and q ends it. If the output is not a terminal, prints all maps"
           "at every interval. Requires CAP_SYS_ADMIN."]
    :examples [{} {:held-by "agent" :interval 5} {:once true :sort "-full" :limit 10}
               {:once true :interval 10 :sort "-entries/s"}]
    :fn 'bpfmap.exec.top/top :run true}
   {:name "tail" :group "Observe changes" :args [:ref] :reduces true :rows true
    :options (-> [:value-type :types :held-by :where :limit] (into shown)
                 (into [:seconds :from :steal]))
    :kinds {:value-type :event-type}
    :docs {:value-type "Type of the events, or the name of a C struct"
           :limit "Number of events after which it ends"
           :seconds "Duration in seconds (default: until Ctrl-C)"
           :where "Condition that events must meet; can be repeated"}
    :doc "Print events of a ring buffer or perf event array live"
    :text ["Each event goes to one reader. If another process has the map open, tail copies"
           "the events and takes none, so that this process still gets all of them. A copy"
           "can miss events; the number of missed bytes is reported. Otherwise tail takes"
           "the events. --steal always takes them, --from always copies."
           "Write TYPE as for dump, or as the name of a struct in the BTF of a program that"
           "writes to the map: a ring buffer has no type of its own. Without TYPE, events"
           "are printed as bytes, and structs of that size are suggested. --as requires"
           "TYPE; `bpfmap help dump` lists its hints. `types --save` saves TYPE."]
    :examples [{:ref "events" :value-type "event" :where ["comm~^ssh"]}
               {:ref "events" :value-type [:struct [:pid :u32] [:comm [:string 16]]] :limit 10}
               {:ref 12 :from :now :seconds 5}]
    :fn 'bpfmap.exec.tail/tail :view 'bpfmap.exec.views/events :run true}
   {:name "diff" :group "Observe changes" :args [:old :new] :optional #{:new}
    :options (-> [:seconds :held-by :where :sort :limit] (into shown) (into [:cpus :stream])
                 (into typed))
    :docs {:seconds "Seconds between two readings of OLD (default: 1)"}
    :rows true
    :doc "Show what changed over time, or since a map was saved"
    :text ["OLD and NEW are maps, or files of saved maps, whose names end in .edn. Without"
           "NEW, reads OLD twice, --seconds apart. `bpfmap help dump` lists the hints of"
           "--as."]
    :examples [{:old "flows" :seconds 10} {:old "/root/flows.edn" :new "flows"}]
    :fn 'bpfmap.exec.diff/diff :view 'bpfmap.exec.views/diff}
   {:name "export" :group "Observe changes" :args [:config] :options [:check]
    :doc "Serve metrics of maps over HTTP, for Prometheus"
    :text ["The metrics are at http://127.0.0.1:9435/metrics, unless the config has"
           "another address. Maps are read at each scrape. By default, metrics about the"
           "maps and programs of the host are added. SIGHUP reads the config again; Ctrl-C"
           "and SIGTERM end the command. --check also compares the config with the maps"
           "that exist, and prints all problems. Requires the libraries of io.prometheus,"
           "which bin/bpfmap gets from Maven Central, and CAP_SYS_ADMIN for the metrics of"
           "the host. A browser shows the maps of the host, live, at"
           "http://127.0.0.1:9435/, and the entries of maps that the config names; :http"
           "{:page false} in the config turns this page off."]
    :examples [{:config "metrics.edn"} {:config "metrics.edn" :check true}]
    :run true}

   ;; --- changing a map
   {:name "put" :group "Change a map" :args [:ref :key :value] :optional #{:key :value}
    :kinds {:file :input}
    :options (into [:field :file :insert :replace :cpus :lock :held-by :yes] typed)
    :docs {:cpus "CPU to write: N, or all for one VALUE on every CPU"
           :field "Field of the value to change, such as stats.rx"
           :file "Entries to write, as EDN, JSON or CSV; - is stdin"}
    :changes true
    :doc "Write the value of a key, or many entries from a file"
    :text ["The type decides how KEY and VALUE are read. A text, an address, a MAC, a"
           "prefix, a number, an enum and a boolean are a word: curl, 10.0.0.1, 0x1f, NEW,"
           "true. A struct is FIELD=VALUE pairs with blanks between them:"
           "'rx=1 pos.x=2 comm=\"a b\"'. Everything can also be EDN, '{rx 1}', JSON,"
           "'{\"rx\":1}', or hexadecimal bytes, '0a 00 00 01'; a text in double quotes,"
           "since it is the word itself otherwise. If VALUE is a map or program, give its"
           "id, pin path or name. A per-CPU map takes a vector with a value for each CPU;"
           "with --cpus all, one value for all of them. A queue, stack or bloom filter"
           "takes only a VALUE. With --field, reads the value, changes one field to VALUE"
           "and writes it back. The kernel has no single step for that: bpfmap reads a"
           "value that changes again, but a change just before the write is lost. The lock"
           "of a value that has one is held for each step. With --file, writes the entries"
           "of a file, as dump prints them with --edn, --json or --csv: rows with key and"
           "value, one JSON object a line, or CSV with a header line. All entries are"
           "checked first: if one does not fit, nothing is written and the problems are"
           "listed by line. The exit code is 1 if the map evicted some."]
    :examples [{:ref "blocked" :key "10.0.0.1" :value 1}
               {:ref "flows" :key "src=10.0.0.1 port=443" :value "packets=1 bytes=60 comm=curl"}
               {:ref "limits" :key 0 :value {:rate 100 :burst 20} :replace true}
               {:ref "limits" :key 0 :value 200 :field "rate"}
               {:ref "blocked" :file "blocked.csv"}]
    :fn 'bpfmap.exec.changing/put :view 'bpfmap.exec.views/put}
   {:name "edit" :group "Change a map" :args [:ref :key] :optional #{:key}
    :options (into [:held-by :yes] typed)
    :changes true
    :doc "Change an entry, or a small map, in a text editor"
    :text ["Opens the editor in VISUAL or EDITOR, or else vi, with the entry as EDN."
           "Writes the value back when the editor ends with another text. If others"
           "changed the entry meanwhile, asks first. Without KEY, edits all entries of a"
           "map with at most 1,000: entries that are added or removed in the text are in"
           "the map. A text that cannot be written can be edited again; otherwise it is"
           "kept in a file. Requires a terminal."]
    :examples [{:ref "limits" :key 0} {:ref "blocked"}]
    :run true}
   {:name "delete" :group "Change a map" :args [:ref :key]
    :options (into [:held-by :yes] typed)
    :changes true
    :doc "Delete the entry of a key"
    :examples [{:ref "blocked" :key "10.0.0.1"}]
    :fn 'bpfmap.exec.changing/delete :view 'bpfmap.exec.views/deleted}
   {:name "take" :group "Change a map" :args [:ref :key] :optional #{:key}
    :options (into [:held-by :yes] typed)
    :changes true
    :doc "Look up and delete an entry in one operation"
    :text ["For a queue or stack, omit KEY: removes and prints the next value."]
    :examples [{:ref "flows" :key 7} {:ref "jobs"}]
    :fn 'bpfmap.exec.changing/take-entry :view 'bpfmap.exec.views/entry}
   {:name "clear" :group "Change a map" :args [:ref] :options [:held-by :yes]
    :changes true
    :doc "Delete all entries of a map"
    :text ["Entries that others write meanwhile stay; the exit code is 1 if there are any."
           "A queue or stack loses its values, and a map with slots, such as a prog-array,"
           "what is in them. An array has no entries that can be deleted."]
    :examples [{:ref "flows"}]
    :fn 'bpfmap.exec.changing/clear :view 'bpfmap.exec.views/cleared}
   {:name "create" :group "Change a map" :args [:path]
    :options [:type :max-entries :key-size :value-size :flags :name :like :spec :key-type
              :value-type]
    :docs {:key-type "Type of the keys" :value-type "Type of the values"}
    :doc "Create a map and pin it"
    :text ["The kernel frees a map when nothing refers to it. The pin keeps this one alive."]
    :examples [{:path "/sys/fs/bpf/counts" :type :hash :key-type :u32 :value-type :u64
                :max-entries 1024}
               {:path "/sys/fs/bpf/routes" :type :lpm-trie :key-type [:prefix :ipv4]
                :value-type :u32 :max-entries 64
                :flags "no-prealloc"}
               {:path "/sys/fs/bpf/copy" :like "flows" :max-entries 10}]
    :fn 'bpfmap.exec.pins/create :view 'bpfmap.exec.views/pinned}
   {:name "pin" :group "Change a map" :args [:ref :path] :options [:move :held-by :yes]
    :changes true
    :doc "Pin a map at a path, which keeps it alive"
    :text ["Other pins of the map stay. With --move, REF is the path of a pin, which is"
           "moved to PATH."]
    :examples [{:ref 12 :path "/sys/fs/bpf/counts"}
               {:ref "/sys/fs/bpf/counts" :path "/sys/fs/bpf/old_counts" :move true}]
    :fn 'bpfmap.exec.pins/pin :view 'bpfmap.exec.views/pinned}
   {:name "unpin" :group "Change a map" :args [:path] :options [:yes]
    :changes true
    :doc "Remove the pin of a map"
    :examples [{:path "/sys/fs/bpf/counts"}]
    :fn 'bpfmap.exec.pins/unpin :view 'bpfmap.exec.views/unpinned}
   {:name "freeze" :group "Change a map" :args [:ref] :options [:held-by :yes]
    :changes true
    :doc "Make a map read-only for user space, permanently"
    :examples [{:ref "limits"}]
    :fn 'bpfmap.exec.changing/freeze :view 'bpfmap.exec.views/frozen}

   ;; --- files
   {:name "save" :group "Save and restore" :args [:ref :file] :options (into [:held-by] typed)
    :doc "Save the spec and entries of a map to a file, as EDN"
    :text ["Replaces the file in one step, after all data is on the disk. Only the owner of"
           "the file can read it. Saves the inner maps of a map of maps too. Rejects a map"
           "that could not be restored, such as a queue."]
    :examples [{:ref "flows" :file "/root/flows.edn"}]
    :fn 'bpfmap.exec.backup/save :view 'bpfmap.exec.views/saved}
   {:name "restore" :group "Save and restore" :args [:file] :options [:pin :into :exact :yes]
    :changes true
    :doc "Restore a saved map, as a new or into an existing map"
    :text ["Skips entries that the map already has. Reports what the map contains"
           "afterwards. The exit code is 1 if some of the saved entries are missing then."]
    :examples [{:file "/root/flows.edn" :pin "/sys/fs/bpf/flows"}
               {:file "/root/flows.edn" :into "flows" :exact true}]
    :fn 'bpfmap.exec.backup/restore :view 'bpfmap.exec.views/restored}

   ;; --- objects, programs and links
   {:name "inspect" :group "Programs and links" :args [:file] :options [:program]
    :docs {:file "Object that clang compiled, such as flows.bpf.o"}
    :doc "Show the maps and programs of a compiled object"
    :text ["Requires no privileges. Kernel configuration and symbols are declared in the"
           "object and defined by the kernel. A CO-RE relocation is a place in the code"
           "that depends on a type of the kernel: HERE is its value on this kernel. With"
           "--program, prints the instructions of a program with its source lines."]
    :examples [{:file "flows.bpf.o"} {:file "flows.bpf.o" :program "count_packets"}]
    :fn 'bpfmap.exec.inspect/inspect :view 'bpfmap.exec.views/object}
   {:name "run" :group "Programs and links" :args [:file] :defaults {:interval 1.0} :reduces true
    :options [:only :target :event :var :entries :map :pin :interval :seconds]
    :docs {:file "Object that clang compiled, such as flows.bpf.o"
           :pin "Directory of pinned maps (default: /sys/fs/bpf)"
           :seconds "Duration in seconds (default: until Ctrl-C)"}
    :doc "Load and attach an object, and show its events and maps"
    :text ["Attaches each program to the target of its section, or of --target. Prints the"
           "events of ring buffers and perf event arrays whose type is known, or else the"
           "state of maps and variables, live. Events have a type if the map has one in C,"
           "or if a struct is named like the map, such as event for events. --event gives a"
           "map another type, or the struct of a name. At the end, the programs, links and"
           "maps are removed, except maps that the object pins by name. Requires CAP_BPF,"
           "and the capabilities of the program types."]
    :examples [{:file "flows.bpf.o"}
               {:file "flows.bpf.o" :only ["count_packets"] :seconds 10
                :target [{"count_packets" {:xdp "eth0"}}]}
               {:file "flows.bpf.o" :var [{"limit" 10}] :map [{"flows" "/sys/fs/bpf/flows"}]}
               {:file "flows.bpf.o" :event [{"drops" [:struct [:pid :u32] [:bytes :u64]]}]}]
    :fn 'bpfmap.exec.run/run :run true}
   {:name "prog list" :group "Programs and links"
    :options [:where :sort :limit :columns :stream] :rows true
    :doc "List the BPF programs on this host and their links"
    :text ["RUNS and TIME are shown if the kernel has measured a program, as for prog top."
           "ATTACHED TO shows the targets of links, with their ids, and of attachments"
           "without a link. HELD BY shows the processes that have the program open."
           "Requires CAP_SYS_ADMIN."]
    :examples [{}
               {:where ["type=xdp" "held.command=agent"] :sort "-memlock"}
               {:columns "id,name,run-count,maps" :where ["maps.name=flows"]}]
    :fn 'bpfmap.exec.programs/list-programs :view 'bpfmap.exec.views/programs}
   (merge
    program-ref
    {:name "prog show" :group "Programs and links" :args [:ref]
     :doc "Show the details of a program"
     :examples [{:ref "count_packets"} {:ref 30}]
     :fn 'bpfmap.exec.programs/show :view 'bpfmap.exec.views/fields})
   (merge
    program-ref
    {:name "prog dump" :group "Programs and links" :args [:ref] :options [:jited]
     :doc "Print the instructions of a loaded program"
     :text ["Prints what the kernel runs: the verifier inlines some calls and removes"
            "dead code. Maps, variables and functions have their names, and source lines"
            "are shown if the program was loaded with them. With --jited, prints the bytes"
            "of the machine code, which a disassembler can read: pipe it to `llvm-mc"
            "--disassemble`. Requires CAP_BPF, and --jited CAP_SYSLOG."]
     :examples [{:ref "count_packets"} {:ref "count_packets" :jited true}]
     :fn 'bpfmap.exec.programs/dump :view 'bpfmap.exec.views/program})
   {:name "prog top" :group "Programs and links" :defaults {:interval 1.0} :reduces true
    :options [:interval :seconds :rounds :once :where :sort :limit]
    :docs {:seconds "Duration in seconds (default: until Ctrl-C)"}
    :doc "Watch how often and how long BPF programs run, live"
    :text ["The kernel measures programs as long as this command runs. RUNS/S is the number"
           "of runs per second, AVERAGE the mean duration of a run, and CPU the share of"
           "one processor. RUNS and TIME are totals since measuring began. Sorts by CPU,"
           "highest first, unless --sort is given. On a terminal, the keys < and > choose"
           "the column to sort by, r reverses the order, and q ends it. If the output is"
           "not a terminal, prints the programs that ran, at every interval. Requires"
           "CAP_SYS_ADMIN and Linux 5.8."]
    :examples [{} {:once true :limit 5} {:interval 5 :sort "-runs-per-second" :limit 10}
               {:where ["type=xdp"] :seconds 10}]
    :fn 'bpfmap.exec.programs/top :run true}
   {:name "link list" :group "Programs and links"
    :options [:where :sort :limit :columns :stream] :rows true
    :doc "List the BPF links on this host and their programs"
    :text ["A link attaches a program to its target. The last rows, without an ID, are"
           "programs that are attached without a link: to perf events that processes have"
           "open, cgroups, network devices (of this network namespace) and maps of sockets."
           "Requires CAP_SYS_ADMIN and Linux 5.8."]
    :examples [{} {:where ["attached-to~eth0"]} {:where ["program.name=count_packets"]}]
    :fn 'bpfmap.exec.links/list-links :view 'bpfmap.exec.views/links}
   (merge
    link-ref
    {:name "link show" :group "Programs and links" :args [:ref]
     :doc "Show the details of a link"
     :examples [{:ref 7} {:ref "/sys/fs/bpf/count_link"}]
     :fn 'bpfmap.exec.links/show :view 'bpfmap.exec.views/fields})
   {:name "link detach" :group "Programs and links" :args [:ref] :options [:yes]
    :kinds (:kinds link-ref)
    :docs (assoc (:docs link-ref) :yes "Detach the link even if others hold it")
    :changes true
    :doc "Detach a link, also for the processes that hold it"
    :text ["The kernel detaches links of cgroups, network devices, network namespaces,"
           "netfilter, sockmaps and struct_ops. A link of any other type is detached when"
           "no process and no pin has it any more. Requires CAP_SYS_ADMIN and Linux 5.9."]
    :examples [{:ref 7} {:ref "/sys/fs/bpf/count_link" :yes true}]
    :fn 'bpfmap.exec.links/detach :view 'bpfmap.exec.views/detached}

   ;; --- this command line
   {:name "demo" :group "Other commands" :options [:seconds :events] :defaults {:seconds 5.0}
    :doc "Count the system calls of this host in a map, live"
    :text ["Loads a BPF program that counts system calls by number. PER-SECOND is the rate"
           "over the last second during the run, and over the whole run at its end. With"
           "--events, the program sends an event to a ring buffer whenever a process starts"
           "a program or ends. Ctrl-C ends the run early. Nothing stays in the kernel."
           "Requires CAP_BPF and CAP_PERFMON."]
    :examples [{:seconds 3} {:events true :seconds 10}]
    :fn 'bpfmap.exec.demo/demo :run true}
   {:name "repl" :group "Other commands"
    :doc "Start a Clojure REPL with bpfmap loaded"
    :run true}
   {:name "completion" :group "Other commands" :args [:shell :command :listed :listed-type]
    :optional #{:command :listed :listed-type}
    :doc "Print a completion script for a shell"
    :text ["bash: source <(bpfmap completion bash). zsh: save it as _bpfmap in a directory"
           "of $fpath. fish: save it as bpfmap.fish in ~/.config/fish/completions. With"
           "COMMAND and REF, prints the fields that the rows of this command have for this"
           "map; for tail with TYPE, the fields of the events, and without it, the structs"
           "that --value-type can name. The scripts use that."]
    :examples [{:shell :bash} {:shell :bash :command "dump" :listed "flows"}]
    :run true}
   {:name "help" :group "Other commands" :args [:command] :optional #{:command}
    :doc "Show help for bpfmap, or for a command"
    :run true}])

(def ^:private by-name
  (into {} (map (juxt :name identity)) commands))

(def families
  "The first words of the commands of two words."
  (into #{} (keep #(second (re-matches #"(\S+) \S+" (:name %)))) commands))

(defn command-named
  "Returns the row of a command; nil for an unknown command.

      (:doc (command-named \"list\")) ;=> \"List the BPF maps on this host and their owners\""
  [name]
  (by-name name))
