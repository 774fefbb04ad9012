(ns ^:no-doc bpfmap.exec.bpftool
  "bpftool's commands about maps, programs, links and BTF, and what stands for them here.

  Source of the commands: `bpftool help` and its manual pages, bpftool 7.1."
  (:require [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def table
  "The commands of bpftool, in its order.

  | key        | meaning                                                          |
  |------------|------------------------------------------------------------------|
  | `:bpftool` | the words after bpftool, without arguments                       |
  | `:here`    | the command here, with its arguments; nil if there is none       |
  | `:alias`   | the command here that bpftool's last word runs, for the same arguments |
  | `:note`    | a sentence without a full stop about a difference, or what to use instead |"
  [{:bpftool ["map show" "map list"] :here "list" :note "bpfmap show REF has all about one map"}
   {:bpftool ["map create"] :here "create PATH --type TYPE --max-entries N"}
   {:bpftool ["map dump"] :here "dump REF"}
   {:bpftool ["map update"] :here "put REF KEY VALUE" :alias "put"
    :note "exist is --replace, noexist is --insert"}
   {:bpftool ["map lookup"] :here "get REF KEY" :alias "get"}
   {:bpftool ["map getnext"] :here "dump REF --keys"
    :note "prints all keys; bpfmap.core/next-key returns one"}
   {:bpftool ["map delete"] :here "delete REF KEY"}
   {:bpftool ["map pin"] :here "pin REF PATH"}
   {:bpftool ["map event_pipe"] :here "tail REF" :alias "tail"
    :note "reads ring buffers too, and takes no events from another reader"}
   {:bpftool ["map peek"] :here "get REF" :alias "get"}
   {:bpftool ["map push" "map enqueue"] :here "put REF VALUE" :alias "put"}
   {:bpftool ["map pop" "map dequeue"] :here "take REF" :alias "take"}
   {:bpftool ["map freeze"] :here "freeze REF"}
   {:bpftool ["prog show" "prog list"] :here "prog list"
    :note "bpfmap prog show REF has all about one program"}
   {:bpftool ["prog dump xlated"] :here "prog dump REF"}
   {:bpftool ["prog dump jited"] :here "prog dump REF --jited"}
   {:bpftool ["prog pin"] :note "use bpfmap.prog/pin!"}
   {:bpftool ["prog load" "prog loadall"] :here "run FILE"
    :note "runs an object until Ctrl-C; bpfmap.object/load keeps it"}
   {:bpftool ["prog attach"] :note "use bpfmap.link/attach, or bpfmap run FILE --target"}
   {:bpftool ["prog detach"] :here "link detach REF" :note "for links; else use bpftool"}
   {:bpftool ["prog run"] :note "use bpfmap.prog/test-run"}
   {:bpftool ["prog profile"] :here "prog top" :note "has runs and times, no hardware counters"}
   {:bpftool ["prog tracelog"] :note "use cat /sys/kernel/tracing/trace_pipe"}
   {:bpftool ["link show" "link list"] :here "link list"
    :note "bpfmap link show REF has all about one link"}
   {:bpftool ["link pin"] :note "use bpfmap.link/pin!"}
   {:bpftool ["link detach"] :here "link detach REF"}
   {:bpftool ["btf show" "btf list"] :note "use bpftool"}
   {:bpftool ["btf dump map"] :here "types REF"}
   {:bpftool ["btf dump file"] :here "inspect FILE" :note "bpfmap.btf reads all types"}
   {:bpftool ["btf dump prog" "btf dump id"]
    :note "use bpfmap.host/btf-by-id with bpfmap.btf"}
   {:bpftool ["cgroup" "net" "perf"] :here "link list"
    :note "has programs that are attached without a link too"}
   {:bpftool ["feature"] :here "features"}
   {:bpftool ["struct_ops"] :here "list --where 'type=struct-ops'"}
   {:bpftool ["iter"] :note "use bpfmap.link, whose targets have :iter"}
   {:bpftool ["gen"] :note "use bpfmap.object, which needs no generated code"}
   {:bpftool ["batch"] :note "use a script with the functions of bpfmap.exec"}])

(def aliases
  "The commands here by bpftool's words for them, if these take the same arguments."
  (into (sorted-map)
        (for [{:keys [bpftool alias]} table :when alias, words bpftool]
          [(peek (str/split words #" ")) alias])))

(defn- begins?
  "Returns true if one list of words begins with the other."
  [a b]
  (every? true? (map = a b)))

(defn pointer
  "Returns a sentence about the command here for words of a command line, or nil.

  The words may lack `map`, as in `bpfmap getnext`.

      (pointer [\"map\" \"lookup\" \"id\" \"12\"])
      ;=> \"bpftool's map lookup is bpfmap get REF KEY\""
  [words]
  (let [found (fn [words]
                (some (fn [{:keys [bpftool] :as row}]
                        (some (fn [command]
                                (let [parts (str/split command #" ")]
                                  ;; One word is enough only for what has one.
                                  (when (and (begins? parts words)
                                             (<= (min 2 (count parts)) (count words)))
                                    (assoc row :command command))))
                              bpftool))
                      table))
        {:keys [command here note]} (or (found words) (found (cons "map" words)))]
    (when command
      (str "bpftool's " command
           (if here (str " is bpfmap " here) " has no command here")
           (when note (str "; " note))))))

(defn markdown
  "Returns the table for the page about exploring a host."
  []
  (let [code #(str "`" % "`")]
    (str "| bpftool | bpfmap | note |\n|---|---|---|\n"
         (str/join (for [{:keys [bpftool here note alias]} table]
                     (str "| " (str/join ", " (map code bpftool))
                          " | " (if here (code here) "")
                          (when alias
                            (str ", also " (str/join ", " (map #(code (peek (str/split % #" ")))
                                                               bpftool))))
                          " | " note " |\n"))))))
