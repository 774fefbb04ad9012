(ns bpfmap.cli.bad-test
  "Bad invocations of every command: one clear line, the right exit code, nothing on standard
  output, nothing half done."
  (:require [bpfmap.cli.calling :refer [bpfmap id-of]]
            [bpfmap.core :as bpf]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.options :refer [kind-of options]]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.prog :as prog]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(def ^:private of-clojure
  "What no message of the command line has: names of functions, keywords, options maps, and how
  Clojure prints things. What the user gave stands in quotes, or is what the message is about."
  #"\b(?:reduce|put!|insert!|replace!|delete!|take!|drain!|push!|pop!|peek|snapshot|lookup|next-key|has-key\?|might-contain\?|put-all!|delete-all!|nil)(?![\w-])|\{:|#<|#object|(?<![\w\"']):[a-z]")

(defn- without-given
  "A message without what stands in quotes, and without the words that were given."
  [line words]
  (reduce (fn [line word] (str/replace line (str word) ""))
          (str/replace line #"\"(?:[^\"\\]|\\.)*\"|'[^']*'|`[^`]*`" "")
          (sort-by (comp - count str) (filter #(< 1 (count (str %))) words))))

(defn- check
  "Runs a bad invocation: the exit code is as it should be, and what is said is one line that a
  person can use."
  [words code pattern]
  (let [{:keys [exit out err]} (apply bpfmap words)
        line (str/trim-newline err)]
    (testing (str "bpfmap " (str/join " " (map pr-str words)))
      (is (= code exit) err)
      (is (= "" out))
      (is (= 1 (count (str/split-lines err))) err)
      (is (re-find #"^bpfmap: [^ ]" line))
      (is (not (re-find #"(?i)bug in bpfmap|exception|\tat |clojure\.|java\.|#object" line)) line)
      (is (not (re-find of-clojure (without-given line words))) line)
      (is (< 15 (count line) 1200))
      (when (= 2 code)
        (is (re-find #"(;|\?) [sS]ee `bpfmap help[a-z ]*`$|Unknown field|^bpfmap: .*: [^:]*$" line)
            line))
      (is (re-find pattern line)))))

;; --- from the table: whatever the command

(defn- enough
  "Arguments for the places of a command, none of which is looked at before its options are."
  [{:keys [args]}]
  (for [k args]
    (case (:kind (options k))
      :path "/tmp/nothing"
      :shell "bash"
      "1")))

(def ^:private bad-values
  "Invalid values, by kind of option."
  {:ref [""] :program-ref [""] :link-ref ["" "name"] :source [""] :path [""] :type ["u33" "[bytes" "" "[struct [a u8] [a u8]]"]
   :whole ["x" "-1" "1.5" ""] :count ["0" "x"]
   :positive ["0" "x" "-3"] :where ["" "a" "a~(" "[:x :a 1]" "[" ">5"] :column ["" "-"]
   :columns ["" ",," "a,\"b"] :flags ["" ",,"] :cpus ["some" "-1" ""]
   :event-type ["[bytes" "" "[struct [a u8] [a u8]]" "a b"] :from ["later" ""]
   :values ["x" "=1"] :refs ["x" "x="] :targets ["x" "x=1" "x=[" "=1"]
   :event-types ["x" "=u32" "x=[bytes" "x="]
   :slots ["log10"] :field ["" "a..b"] :edn ["[" "1 2"] :map-type ["(" "1.5"] :shell ["csh"]})

(defn- from-the-table
  "`[words pattern]` of invocations that are wrong whatever there is on the host."
  []
  (concat
   (for [{:keys [name] :as command} commands/commands]
     [(concat [name] (enough command) ["--nope"]) #"Unknown option \"--nope\""])
   (for [{:keys [name several] :as command} commands/commands :when (not several)]
     [(concat [name] (enough command) ["x" "y"]) #"takes (only|no arguments)"])
   (for [{:keys [name] :as command} commands/commands :when (seq (arguments/required command))]
     [[name] #"requires [A-Z]"])
   (for [{:keys [name] :as command} commands/commands]
     [(concat [name] (enough command) ["--edn" "--json"]) #"--edn and --json cannot be combined"])
   (for [{:keys [name] rows? :rows :as command} commands/commands :when (not rows?)]
     [(concat [name] (enough command) ["--csv"]) #"Unknown option \"--csv\""])
   (for [{:keys [name] :as command} commands/commands
         k (:options command) :when (:takes (options k))]
     [(concat [name] (enough command) [(str "--" (clojure.core/name k))])
      #"requires a value"])
   (for [{:keys [name] :as command} commands/commands
         k (:options command)
         bad (bad-values (kind-of command k))]
     [(concat [name] (enough command) [(str "--" (clojure.core/name k)) bad])
      (re-pattern (str "^bpfmap: --" (clojure.core/name k) " "))])
   (for [{:keys [name args] :as command} commands/commands
         [i k] (map-indexed vector args)
         bad (take 1 (bad-values (kind-of command k)))]
     [(concat [name] (assoc (vec (enough command)) i bad))
      (re-pattern (str "^bpfmap: " (:takes (options k)) " must be .*, got \""))])))

(deftest wrong-usage-of-commands
  (testing "wrong usage of any command exits with 2"
    (let [all (from-the-table)]
      (is (< 200 (count (distinct (map first all)))))
      (doseq [[words pattern] all]
        (check words 2 pattern)))))

(deftest unknown-command-exit-code
  (testing "an unknown command exits with 2"
    (doseq [[words pattern] [[[""] #"Unknown command \"\""]
                             [["lis"] #"Unknown command \"lis\": did you mean list\?"]
                             [["LIST"] #"Unknown command \"LIST\": did you mean list\?"]
                             [["--list"] #"Unknown option \"--list\""]
                             [["-x"] #"Unknown option \"-x\""]
                             [["dmup" "flows"] #"did you mean dump\?"]
                             [["prog"] #"prog requires one more word: list, show, dump or top"]
                             [["prog" "--edn"] #"prog requires one more word"]
                             [["prog" "lst"] #"\"prog lst\": did you mean prog list\?"]
                             [["lnk" "list"] #"Unknown command \"lnk\": did you mean link\?"]
                             [["help" "prog" "tpo"] #"did you mean prog top\?"]
                             [["list; rm -rf /"] #"Unknown command"]
                             [["\u001b[2J"] #"Unknown command \"\\u001b\[2J\""]
                             [["help" "nothing"] #"Unknown command \"nothing\""]]]
      (check words 2 pattern))))

;; --- what the host has not, or not like this

(defn- gone-id []
  (let [id (with-open [^Closeable m (bpf/create {:type :array :value :u8 :max-entries 1})]
             (id-of m))]
    (Thread/sleep 100)
    (str id)))

(kernel-test missing-object-exit-code
  (testing "a reference to a missing object exits with 1"
    (let [gone (gone-id)]
      (doseq [{:keys [name args] :as command} commands/commands
              :when (some #{:ref :old} args)
              [ref pattern code]
              (case (kind-of command (some #{:ref :old} args))
                :program-ref [["4294967295" #"no program has that id \(any more\)"]
                              ["99999999999999999999" #"an id must be an integer from 0"]
                              ["no_such_program" #"No program named"]
                              ["/no/such/pin" #"the file /no/such/pin does not exist"]
                              ["/etc/passwd" #"not on a BPF file system"]]
                :link-ref [["4294967295" #"no link has that id \(any more\)"]
                           ["99999999999999999999" #"Invalid reference to a link"]
                           ["name" #"REF must be an id or a pin path, got \"name\"" 2]
                           ["/no/such/pin" #"the file /no/such/pin does not exist"]
                           ["/etc/passwd" #"not on a BPF file system"]]
                [[gone #"no map has that id \(any more\)"]
                 ["2147483647" #"no map has that id"]
                 ["99999999999999999999" #"The id of a map must be an integer from 0"]
                 ["no_such_map" #"No map named"]
                 ["-" #"The name of a map must have|No map named"]
                 ["/no/such/pin" #"the file /no/such/pin does not exist"]
                 ["/etc/passwd"
                  #"not on a BPF file system|is not a BPF|not-bpffs|cannot be opened|failed with"]])
              :let [more (drop 1 (enough command))]]
        (check (concat [name ref] more) (or code 1) pattern)))))

(kernel-test ^{:needs [[:map-type :task-storage]]} misfit-exit-code
  (testing "a key or value that does not fit the map exits with 1"
    (with-open [^Closeable m (bpf/create {:name "bad_m" :type :hash
                                          :key [:struct [:src :ipv4] [:port :port]] :value :u64
                                          :max-entries 1
                                          :contents {{:src "10.0.0.1" :port 1} 1}})
                ^Closeable raw (bpf/create {:name "bad_raw" :type :hash :key-size 4 :value-size 8
                                            :max-entries 1})
                ^Closeable a (bpf/create {:name "bad_a" :type :array :value :u8 :max-entries 2})
                ^Closeable frozen (bpf/create {:name "bad_frozen" :type :array :value :u8
                                               :max-entries 1 :freeze true})
                ^Closeable ring (bpf/create {:name "bad_ring" :type :ringbuf :max-entries 4096})
                ^Closeable tasks (bpf/create {:name "bad_tasks" :type :task-storage :value :u64
                                              :flags #{:no-prealloc}})
                ^Closeable p (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})]
      (let [pin (fixture/new-pin)
            program-pin (fixture/new-pin)
            key "{src \"10.0.0.1\" port 1}"
            [m raw a frozen ring tasks] (map (comp str id-of) [m raw a frozen ring tasks])]
        (prog/pin! p program-pin)
        (try
          (doseq [[words pattern]
                  [[["get" m "{src \"10.0.0.1\"}"] #"the field port is missing"]
                   [["get" m "{src \"10.0.0.1\" port 1 x 2}"]
                    #"x is not a field: use src or port"]
                   [["get" m "{src \"10.0.0.1\" port 70000}"] #"70000 is not a port"]
                   [["get" m "{src \"1.2.3\" port 1}"] #"\"1\.2\.3\" is not a ipv4"]
                   [["get" m "nil"] #"is not a \[struct|the key"]
                   [["put" m key "-1"] #"value: -1 is not a u64"]
                   [["put" m key "18446744073709551616"] #"is not a u64"]
                   [["put" m key "x"] #"value: x is not a u64"]
                   [["put" m key "\"x\""] #"value: \"x\" is not a u64"]
                   [["put" m "{src \"10.0.0.2\" port 1}" "1"]
                    #"failed with E2BIG: the map is full with 1 entry;"]
                   [["put" m key "1" "--lock"] #"Values of this map have no lock"]
                   [["put" m key "1" "--cpus" "all"] #"The map is not a per-CPU map"]
                   [["put" m key "1" "--cpus" "0"] #"The map is not a per-CPU map"]
                   [["get" m key "--cpus" "0"] #"The map is not a per-CPU map"]
                   [["dump" m "--cpus" "0"] #"The map is not a per-CPU map"]
                   [["get" raw "01 02 03"] #"it must have 4 bytes, got 3"]
                   [["get" raw "hello"] #"must be pairs of hexadecimal digits"]
                   [["put" raw "01020304" "00"] #"it must have 8 bytes, got 1"]
                   [["dump" raw "--key-type" "u64"] #"it has 4 bytes, and the type has 8"]
                   [["dump" raw "--value-type" "[array u64 2]"]
                    #"it has 8 bytes, and the type has 16"]
                   [["put" a "9" "1"] #"E2BIG: .*index"]
                   [["put" a "0" "300"] #"300 is not a u8"]
                   [["delete" a "0"] #"every index of an array always exists"]
                   [["take" a "0"] #"every index of an array always exists"]
                   [["put" frozen "0" "1"] #"frozen"]
                   [["dump" ring] #"it has no entries"]
                   [["get" ring "0"] #"has no get; it has no entries"]
                   [["diff" tasks] #"the kernel cannot list it; `get` looks up"]
                   [["hist" ring] #"it has no entries"]
                   [["watch" ring "--seconds" "1"] #"it has no entries"]
                   [["diff" ring] #"it has no entries"]
                   [["save" ring "/tmp/x.edn"] #"cannot be saved: it has no entries"]
                   [["show" program-pin] #"is not a map: it is a program"]
                   [["unpin" program-pin] #"is not a map: it is a program"]
                   [["pin" m program-pin] #"there is a file already|EEXIST"]
                   [["pin" m "/tmp/not-bpffs"] #"BPF file system"]
                   [["pin" m (str pin ".x")] #"must not have a dot"]
                   [["pin" m "/no/such/dir/x"] #"does not exist"]
                   [["tree" "/usr"] #"not on a BPF file system"]
                   [["tree" "/no/such/dir"] #"cannot be read"]
                   [["create" pin] #"--type is required"]
                   [["create" pin "--type" "hash"] #"--key-type or --key-size is required"]
                   [["create" pin "--type" "hsh" "--key-type" "u32" "--value-type" "u32"
                     "--max-entries" "1"] #"unknown map type hsh; did you mean hash\?"]
                   [["create" pin "--type" "array" "--key-type" "u64" "--value-type" "u32"
                     "--max-entries" "1"] #"the key of array maps must have 4 bytes, got 8"]
                   [["create" pin "--type" "array" "--value-type" "u32" "--max-entries" "1"
                     "--flags" "nonsense"] #"nonsense"]
                   [["create" pin "--type" "array" "--value-type" "u32" "--max-entries" "0"]
                    #"max-entries"]
                   [["create" "/tmp/x" "--type" "array" "--value-type" "u32" "--max-entries" "1"]
                    #"BPF file system"]
                   [["create" pin "--like" "no_such_map"] #"No map named"]
                   [["restore" "/no/such/file.edn" "--pin" pin]
                    #": there is no such file"]
                   [["restore" "/etc/passwd" "--pin" pin] #"is not a saved map"]
                   [["restore" "/tmp" "--pin" pin] #"Cannot read the saved map .*: it is a directory"]
                   [["save" m "/no/such/dir/x.edn"]
                    #"Cannot write the file .*: its directory does not exist"]
                   [["save" m "/tmp"] #"it is not a regular file"]
                   [["save" m "/proc/x.edn"] #"Cannot write the file .*: no file can be created there"]
                   [["diff" m "/no/such.edn"] #": there is no such file"]
                   [["diff" m "no_such_map"] #"No map named"]]]
            (check words 1 pattern))
          (doseq [[words pattern]
                  [[["get" m "{src"] #"KEY must be FIELD=VALUE pairs, EDN, JSON or hexadecimal bytes, got \"\{src\": "]
                   [["get" m "}"] #"KEY must be FIELD=VALUE pairs, EDN, JSON or hexadecimal bytes"]
                   [["get" m "#inst \"x\""] #"KEY must be FIELD=VALUE pairs, EDN, JSON or hexadecimal bytes"]
                   [["get" m ""] #"it is empty"]
                   [["put" m key "{"] #"VALUE must be EDN, JSON or hexadecimal bytes, got \"\{\""]
                   [["put" m key] #"put requires REF \[KEY\] VALUE"]
                   [["put" m key "1" "--insert" "--replace"]
                    #"--insert cannot be combined with --replace"]
                   [["dump" m "--where" "nothing=1"]
                    #"Unknown field nothing: the fields are key.src, key.port, value"]
                   [["dump" m "--sort" "nothing"] #"Unknown field nothing"]
                   [["dump" m "--stream" "--sort" "value"]
                    #"--stream cannot be combined with --sort"]
                   [["list" "--where" "nothing=1"] #"Unknown field nothing"]
                   [["diff" m m "--seconds" "1"] #"--seconds cannot be combined with NEW"]
                   [["diff" "/tmp/x.edn"] #"OLD requires NEW if it is a file"]
                   [["restore" "/tmp/x.edn"] #"restore requires --pin PATH or --into REF"]
                   [["restore" "/tmp/x.edn" "--pin" pin "--into" m]
                    #"--into cannot be combined with --pin"]
                   [["restore" "/tmp/x.edn" "--pin" pin "--exact"]
                    #"--exact requires --into"]
                   [["hist" m "--field" "port" "--slots" "bcc"]
                    #"--field cannot be combined with --bucket or --slots"]
                   [["hist" m] #"has no buckets"]]]
            (check words 2 pattern))
          (is (not (.exists (io/file pin))) "nothing was created")
          (finally (io/delete-file program-pin)))))))

(kernel-test without-privileges
  (testing "without privileges every command names the missing capability"
    (with-open [^Closeable m (bpf/create {:name "bad_nobody" :type :array :value :u8
                                          :max-entries 1})]
      (let [pin (fixture/new-pin)
            id (id-of m)]
        (bpf/pin! m pin)
        (try
          (doseq [{:keys [name args fn] :as command} commands/commands
                  :when (and fn (not (#{"features" "tree" "inspect" "overview"} name)))
                  :let [words (concat [name] (for [k args]
                                               (case k
                                                 (:ref :old) (str id)
                                                 :file (if (= "run" name)
                                                         "test/objects/calls-el.o"
                                                         "/tmp/none.edn")
                                                 :path (str pin "x")
                                                 "1"))
                                      (case name
                                        "create" ["--type" "array" "--value-type" "u8"
                                                  "--max-entries" "1"]
                                        "restore" ["--pin" (str pin "x")]
                                        "demo" ["--seconds" "1"]
                                        nil))]]
            (fixture/unprivileged #(check words 1 (if (#{"restore" "unpin"} name)
                                                    #"no such file|the file \S+ does not exist|permission|EPERM"
                                                    #"EPERM|EACCES|permission"))))
          (finally (bpf/unpin! m)))))))
