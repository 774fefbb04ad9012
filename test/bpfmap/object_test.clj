(ns bpfmap.object-test
  "Objects of clang as data: what is read, in either byte order, and what it can be used for.

  The objects in test/objects are compiled by script/objects."
  (:require [bpfmap.asm :as asm]
            [bpfmap.btf :as btf]
            [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf]
            [bpfmap.elf-file :as elf-file]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.disassembler :as disassembler]
            [bpfmap.impl.isa :as isa]
            [bpfmap.impl.object.code :as code]
            [bpfmap.impl.object.context :as context]
            [bpfmap.impl.object.section-name :as section-name]
            [bpfmap.object :as object]
            [bpfmap.prog :as prog]
            [bpfmap.since :as since]
            [bpfmap.spec :as spec]
            [bpfmap.type :as type]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.set :as set]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (clojure.lang ExceptionInfo)
           (java.io File)
           (java.nio ByteBuffer ByteOrder)
           (java.nio.file Files)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

(def ^:private folder "test/objects/")

(def ^:private names
  (for [source ["flows" "newer" "old" "packets" "rejected"] order ["el" "eb"]]
    (str source "-" order ".o")))

(defn- bytes-of ^bytes [object]
  (Files/readAllBytes (.toPath (io/file folder object))))

(defn- read-object [object]
  (object/read (str folder object)))

(def ^:private native
  "This machine's byte order, as the objects are named."
  (if (= ByteOrder/BIG_ENDIAN (ByteOrder/nativeOrder)) "eb" "el"))

(def ^:private flows (delay (read-object "flows-el.o")))

;; --- what is read

(def ^:private address [:struct {:name "address"} [:ip :u32] [:port :u16] [:pad :u16]])

(def ^:private state [:enum :u32 {:NEW 0 :OPEN 5 :CLOSED 6} {:name "state"}])

(deftest maps
  (testing "maps are specs, with types, inner maps, contents and tags"
    (are [map-name expected] (= (assoc expected :name map-name) (get-in @flows [:maps map-name]))
      "flows" {:type :hash :max-entries 1024 :flags #{:no-prealloc} :key address
               :value [:struct {:name "flow"} [:packets :u64] [:bytes :u64] [:state state]]
               :tags ["export" "per host"]}
      "totals" {:type :percpu-array :max-entries 2 :key :u32 :value :u64}
      "events" {:type :ringbuf :max-entries 4096
                :record-type [:struct {:name "event"} [:time :u64] [:comm [:string 16]]]}
      "stacks" {:type :stack-trace :max-entries 128 :flags #{:numa-node} :numa-node 0
                :key-size 4 :value-size 1016}
      "known" {:type :bloom-filter :max-entries 100 :map-extra 3 :pinning :by-name :value :u32}
      "rows" {:type :array-of-maps :max-entries 3 :key :u32
              :inner-map {:type :array :max-entries 4 :key :u32 :value :u64}
              :contents {0 {:map "first"} 2 {:map "second"}}}
      "jumps" {:type :prog-array :max-entries 2 :key-size 4 :contents {1 {:program "classify"}}}
      ".bss" {:type :array :key :u32 :max-entries 1 :flags #{:mmapable}
              :value [:struct {:name ".bss"} [:count_packets.turn :u32] [:total :u64]]}
      ".rodata.str1.1" {:type :array :key :u32 :max-entries 1 :value-size 20 :freeze true
                        :flags #{:rdonly-prog}
                        :contents {0 (bytes/wrap (.getBytes "classified a packet\u0000"))}}))
  (testing "and create takes them, but for references to other parts"
    (doseq [object names
            [map-name map-spec] (:maps (read-object object))]
      (is (= [] (vec (spec/problems (dissoc map-spec :contents :autoload))))
          (str object " " map-name)))))

(kernel-test maps-are-created
  (testing "create makes the maps of an object from their specs"
    (doseq [object ["flows" "old" "newer"]
            [map-name map-spec] (:maps (read-object (str object "-" native ".o")))
            :when (and (not= :struct-ops (:type map-spec))
                       (since/here? [:map-type (:type map-spec)]))]
      (testing (str object " " map-name)
        (with-open [m (bpf/create (dissoc map-spec :contents :pinning :freeze))]
          (is (= (:type map-spec) (:type (bpf/info m))))
          (is (nil? (bpf/spec-diff m (dissoc map-spec :contents :pinning :freeze)))))))))

(deftest variables
  (testing "variables have a section, a place, a type and a value"
    (are [variable expected] (= expected (dissoc (get-in @flows [:variables variable]) :btf-id))
      "limit" {:section ".rodata" :offset 0 :size 4 :type :u32 :value 100}
      "greeting" {:section ".rodata" :offset 4 :size 8 :type [:string 8] :value "hello"}
      "verbose" {:section ".rodata" :offset 12 :size 1 :type :bool :value true}
      "state" {:section ".data" :offset 0 :size 4 :type state :value :OPEN}
      "peer" {:section ".data" :offset 4 :size 8 :type address :value {:ip 7 :port 443 :pad 0}}
      "seen" {:section ".data" :offset 16 :size 8 :type :u64 :value 3 :linkage :static}
      "total" {:section ".bss" :offset 8 :size 8 :type :u64 :value 0 :tags ["read me"]}
      "own" {:section ".data.own" :offset 0 :size 4 :type :u32 :value 9}
      "count_packets.turn" {:section ".bss" :offset 0 :size 4 :type :u32 :value 0
                            :linkage :static}))
  (testing "without BTF they are bytes"
    (is (= {"global" {:section ".data" :offset 0 :size 4 :type [:bytes 4]
                      :value (bytes/->bytes "05 00 00 00")}
            "hidden_global" {:section ".data" :offset 4 :size 4 :type [:bytes 4]
                             :value (bytes/->bytes "06 00 00 00") :linkage :static}
            "zero" {:section ".bss" :offset 0 :size 4 :type [:bytes 4]
                    :value (bytes/->bytes "00 00 00 00")}}
           (:variables (read-object "old-el.o")))))
  (testing "and large ones that are zero have no value"
    (is (= [true false]
           (for [n [4096 4097]
                 :let [o (object/read (elf-file/object
                                       {:sections [{:name ".bss" :type 8 :flags 3 :size n
                                                    :bytes (byte-array 0)}]
                                        :symbols [{:name "v" :section ".bss" :type :object
                                                   :size n}]}))]]
             (contains? (get-in o [:variables "v"]) :value)))))
  (testing "and what the kernel has is declared"
    (is (= {"LINUX_KERNEL_VERSION" {:type :s32}
            "CONFIG_BPF" {:type :bool :weak true}
            "CONFIG_CC_VERSION_TEXT" {:type [:string 8] :weak true}}
           (update-vals (:kconfig @flows) #(dissoc % :btf-id))))
    (is (= {"bpf_rcu_read_lock" {:kind :function :weak true}
            "bpf_rcu_read_unlock" {:kind :function :weak true}
            "init_task" {:kind :variable :weak true}
            "bpf_prog_active" {:kind :variable :type "int" :weak true}}
           (update-vals (:ksyms @flows) #(dissoc % :btf-id))))))

(deftest programs
  (testing "programs have what their section says"
    (is (= ["Dual MIT/GPL" 0x060102 :little-endian "flows-el"]
           ((juxt :license :kernel-version :byte-order :name) @flows)))
    (are [program expected] (= (assoc expected :name program)
                               (dissoc (get-in @flows [:programs program])
                                       :insns :lines :core :btf-id))
      "count_packets" {:section "xdp" :type :xdp :attach-type :xdp}
      "pass" {:section "xdp" :type :xdp :attach-type :xdp}
      "classify" {:section "tc" :type :sched-cls}
      "on_enter" {:section "?raw_tp/sys_enter" :type :raw-tracepoint :target "sys_enter"
                  :autoload false}
      "on_unlink" {:section "fentry.s/do_unlinkat" :type :tracing :attach-type :trace-fentry
                   :target "do_unlinkat" :flags #{:sleepable}}
      "untyped" {:section "something/else"})
    (is (= 6 (count (:programs @flows)))))
  (testing "functions are apart"
    (is (= {"twice" {:linkage :global} "add" {:linkage :static}
            "hidden" {:linkage :global :visibility :hidden}
            "overridden" {:linkage :global :weak true} "count_one" {:linkage :static}}
           (update-vals (:functions @flows)
                        #(select-keys % [:linkage :visibility :weak])))))
  (testing "instructions refer to parts by name"
    (is (set/subset? #{[:ld-map-value :r1 {:variable "peer"} 0]
                       [:lddw :r1 {:map "flows"}]
                       [:ld-map-value :r1 {:variable "count_packets.turn"} 0]
                       [:call {:function "twice"}]}
                     (set (get-in @flows [:programs "count_packets" :insns]))))
    (is (set/subset? #{[:call {:kfunc "bpf_rcu_read_lock"}] [:lddw :r4 {:ksym "init_task"}]
                       [:ld-map-value :r1 {:kconfig "CONFIG_BPF"} 0]}
                     (set (get-in @flows [:programs "on_enter" :insns]))))
    (is (some #{[:lddw :r2 {:function "count_one"}]}
              (get-in @flows [:programs "classify" :insns])))
    (is (some #{[:call {:function "add"}]} (get-in @flows [:functions "twice" :insns]))
        "for which there is no relocation"))
  (testing "and have source lines"
    (let [{:keys [slot file line text]} (first (get-in @flows [:programs "pass" :lines]))]
      (is (= [0 "tail_call(context, &jumps, 1);"] [slot (str/trim text)]))
      (is (str/ends-with? file "test/objects/flows.bpf.c"))
      (is (= text (nth (str/split-lines (slurp (str folder "flows.bpf.c"))) (dec line)))))))

(deftest core-relocations
  (testing "CO-RE relocations are data, of every kind that clang 14 makes"
    (is (= [[:field-byte-offset "struct task_struct___own" [:pid]]
            [:field-byte-offset "struct task_struct___own" [:links 1 :next]]
            [:field-exists "struct task_struct___own" [:gone]]
            [:field-byte-size "struct task_struct___own" [:comm]]
            [:field-signed "struct task_struct___own" [:reset]]
            [:field-lshift-u64 "struct task_struct___own" [:reset]]
            [:field-rshift-u64 "struct task_struct___own" [:reset]]
            [:type-exists "struct list" nil]
            [:type-size "struct list" nil]
            [:type-id-local "struct list" nil]
            [:type-id-target "struct list" nil]
            [:enumval-exists "enum map_kind" "KIND_RING"]
            [:enumval-value "enum map_kind" "KIND_RING"]]
           (map (juxt :kind :type #(or (:path %) (:enumerator %)))
                (get-in @flows [:programs "on_enter" :core]))))))

(deftest struct-ops-and-arenas
  (testing "reads values of kernel structs, variables of arenas, and the newest instructions"
    (let [{:keys [maps variables programs functions]} (read-object "newer-el.o")]
      (is (= {"arena" {:name "arena" :type :arena :flags #{:mmapable} :max-entries 16
                       :map-extra 0x100000000000}
              "own_cc" {:name "own_cc" :type :struct-ops :struct-ops "tcp_congestion_ops"
                        :flags #{:link}
                        :contents {0 {:ssthresh {:program "ssthresh"}
                                      :cong_avoid {:program "cong_avoid"}
                                      :undo_cwnd {:program "undo_cwnd"}
                                      :flags 2 :name "own_cc"}}}
              "spare_cc" {:name "spare_cc" :type :struct-ops :struct-ops "tcp_congestion_ops"
                          :autoload false
                          :contents {0 {:ssthresh {:program "ssthresh"} :name "spare_cc"}}}}
             maps))
      (is (= {"in_arena" [".addr_space.1" 8] "zero_in_arena" [".addr_space.1" 0]}
             (update-vals variables (juxt :section :value))))
      (is (= {"ssthresh" "ssthresh" "cong_avoid" nil "undo_cwnd" "undo_cwnd" "compute" nil}
             (update-vals programs :target)))
      (is (= [["exception_callback:failed"] #{:sleepable}]
             ((juxt :tags :flags) (programs "compute"))))
      (is (= ["failed"] (keys functions)))
      (is (set/subset? #{:addr-space-cast :bswap32 :movsb32 :movsh32 :movsw64 :sdiv32 :sdiv64
                         :smod32 :ldxsb}
                       (set (map first (filter vector? (get-in programs ["compute" :insns])))))))))

(defn- without-order
  "An object without what its byte order decides."
  [o]
  (-> (dissoc o :name :byte-order :btf :maps)
      (update-in [:programs] update-vals #(dissoc % :insns))
      (update-in [:functions] update-vals #(dissoc % :insns))))

(deftest both-byte-orders
  (testing "an object of the other byte order is the same data"
    (doseq [source ["flows" "newer"]
            :let [[little big] (map #(read-object (str source "-" % ".o")) ["el" "eb"])]]
      (is (= [:little-endian :big-endian] (map :byte-order [little big])))
      (is (= (without-order little) (without-order big)))
      (is (= (update-vals (:maps little) #(dissoc % :contents))
             (update-vals (:maps big) #(dissoc % :contents)))))))

(deftest plain-data
  (testing "an object prints and reads back, and is changed as data"
    (doseq [object names :let [o (read-object object)]]
      (is (= o (edn/read-string {:readers {'bpfmap/bytes bytes/->bytes}} (pr-str o))) object))
    (let [changed (-> @flows
                      (update-in [:maps "flows" :max-entries] * 2)
                      (update :programs dissoc "on_enter")
                      (assoc-in [:variables "limit" :value] 7))]
      (is (= [2048 5 7] [(get-in changed [:maps "flows" :max-entries])
                         (count (:programs changed))
                         (get-in changed [:variables "limit" :value])]))))
  (testing "and its BTF can be parsed, with the places of variables"
    (let [b (btf/parse (:btf @flows))]
      (is (= {:limit 0 :greeting 4 :verbose 12}
             (into {} (for [[path {:keys [offset]}] (type/offsets (btf/type-named b ".rodata"))]
                        [(first path) offset])))))))

;; --- instructions

(defn- slots-of
  "The slots of bytes, without what a relocation changes."
  [bytes order relocated]
  (let [{:keys [slots]} (disassembler/starts (.order (ByteBuffer/wrap bytes) order))]
    (map-indexed (fn [i slot]
                   (if (relocated i)
                     (select-keys slot [:code :dst])
                     slot))
                 slots)))

(deftest instructions-law
  (testing "instructions assemble to the bytes of the object"
    (doseq [object names
            :let [{:keys [order] :as ctx} (context/of (bytes-of object))
                  options {:byte-order order}
                  {:keys [programs functions]} (read-object object)]
            section (filter context/code? (:sections ctx))
            :let [contents (context/contents ctx section)]]
      (testing "without names"
        (is (Arrays/equals contents ^bytes (:bytes (asm/assemble (asm/disassemble contents options)
                                                                 options)))))
      (testing "and with names, except for what stands for them"
        (doseq [{:keys [unique value end]} (filter #(= section (:section %)) (code/functions ctx))
                :let [found (get programs unique (functions unique))
                      {:keys [bytes relocations]} (asm/assemble (:insns found) options)
                      relocated (set (mapcat (fn [{:keys [slot kind]}]
                                               (if (#{:call :kfunc} kind) [slot] [slot (inc slot)]))
                                             relocations))
                      original (Arrays/copyOfRange contents (int value) (int end))]]
          (is (= (slots-of original order relocated) (slots-of bytes order relocated))
              (str object " " unique)))))))

(deftest readable-programs
  (testing "every function prints with its source lines"
    (doseq [object names
            :let [{:keys [programs functions]} (read-object object)]
            [function {:keys [insns lines] :as found}] (merge programs functions)
            :let [text (asm/disassemble found)
                  slots (reduce + (map #(if (vector? %) (:slots (isa/mnemonics (first %)) 1) 0)
                                       insns))]]
      (is (str/starts-with? text (str function ":\n")))
      (is (= (count (filter vector? insns)) (count (re-seq #"(?m)^ *\d+: " text))))
      (is (< (parse-long (last (re-find #"(?m)^ *(\d+): .*\n\z" text))) slots))
      (is (= (boolean (seq lines)) (str/includes? text ".bpf.c:"))))
    (is (str/includes? (asm/disassemble (get-in @flows [:programs "on_enter"]))
                       "r1 = 0  ; CO-RE field-byte-offset struct task_struct___own.pid\n"))))

;; --- section names

(deftest section-table
  (testing "the table has the program and attach types of the kernel"
    (is (<= 60 (count section-name/rows)))
    (doseq [[section {:keys [type attach-type flags]}] section-name/rows]
      (is (prog/types type) section)
      (is (or (nil? attach-type) (prog/attach-types attach-type)) section)
      (is (set/subset? (set flags) #{:sleepable :xdp-has-frags}) section))
    (are [section expected] (= expected (section-name/described section))
      "kprobe/do_unlinkat+0x10" {:type :kprobe :target "do_unlinkat+0x10"}
      "kprobe" {:type :kprobe}
      "?kretprobe/f" {:type :kprobe :target "f" :autoload false}
      "uprobe.multi.s//bin/bash:read*" {:type :kprobe :attach-type :trace-uprobe-multi
                                        :target "/bin/bash:read*" :flags #{:sleepable}}
      "tp/sched/sched_switch" {:type :tracepoint :target "sched/sched_switch"}
      "tp_btf/sched_switch" {:type :tracing :attach-type :trace-raw-tp :target "sched_switch"}
      "tc/egress" {:type :sched-cls :attach-type :tcx-egress}
      "tc/mine" {:type :sched-cls}
      "xdp.frags/cpumap" {:type :xdp :attach-type :xdp-cpumap :flags #{:xdp-has-frags}}
      "cgroup/getpeername_unix" {:type :cgroup-sock-addr :attach-type :cgroup-unix-getpeername}
      "cgroup/sendmsg6" {:type :cgroup-sock-addr :attach-type :cgroup-udp6-sendmsg}
      "cgroup/connect4" {:type :cgroup-sock-addr :attach-type :cgroup-inet4-connect}
      "lsm.s/bprm_committed_creds" {:type :lsm :attach-type :lsm-mac :flags #{:sleepable}
                                    :target "bprm_committed_creds"}
      "struct_ops/ssthresh" {:type :struct-ops :target "ssthresh"}
      "kprobes/f" {}
      "socket1" {})))

;; --- compilers

(deftest compiled-now
  (testing "the sources compile to objects that read like the checked-in ones"
    (if-let [clang (fixture/executable "clang")]
      (let [dir (fixture/temporary-directory)]
        (try
          (doseq [source ["flows" "old" "packets" "rejected"] order ["el" "eb"]
                  :let [out (str (io/file dir (str source "-" order ".o")))
                        {:keys [exit err]} (fixture/run
                                            [clang "-target" (str "bpf" order) "-O2" "-g"
                                             "-Wno-everything" "-c"
                                             (str folder source ".bpf.c") "-o" out])]]
            (is (= 0 exit) err)
            (let [now (object/read out)
                  then (read-object (str source "-" order ".o"))
                  outline (fn [o] [(:license o) (set (keys (:maps o)))
                                   (update-vals (:programs o) #(dissoc % :insns :lines :core
                                                                       :btf-id))
                                   (set (keys (:functions o)))])]
              (if (not= "old" source)
                (is (= (outline then) (outline now)))
                (is (= (map #(set (keys (% then))) [:programs :functions])
                       (map #(set (keys (% now))) [:programs :functions]))))))
          (finally
            (run! #(.delete ^File %) (reverse (file-seq dir))))))
      (fixture/skip! "no clang to compile objects with"))))

(deftest pointers
  (testing "pointers in data are references, at their offsets in a variable"
    (let [o (object/read
             (elf-file/object
              (elf-file/merged
               (elf-file/program "xdp" "pass" [:mov64 :r0 2] [:exit])
               {:sections [{:name "maps" :flags 3 :bytes (elf-file/words 1 4 4 1 0)}
                           {:name ".data" :flags 3
                            :bytes (elf-file/words 5 6 0 0 0 0 4 0 0 0 9 0 0 0)}
                           {:name ".rodata.str1.1" :flags 2 :bytes (elf-file/text "hello")}]
                :symbols [{:name "m" :section "maps" :type :object :size 20}
                          {:name "x" :section ".data" :type :object :size 8}
                          {:name "ops" :section ".data" :type :object :value 8 :size 40}
                          {:name "plain" :section ".data" :type :object :value 48 :size 8}
                          {:name "" :section ".rodata.str1.1" :type :section}
                          {:name "gone"}]
                :relocations {".data" [{:offset 8 :type 2 :symbol "x"}
                                       {:offset 16 :type 2 :symbol "pass"}
                                       {:offset 24 :type 2 :symbol "x"}
                                       {:offset 32 :type 2 :symbol 6}
                                       {:offset 40 :type 2 :symbol "gone"}]}})))
          o (:variables o)]
      (is (= {0 {:variable "x"} 8 {:function "pass"} 16 {:variable "x" :offset 4}
              24 {:section ".rodata.str1.1"}}
             (:pointers (o "ops"))))
      (is (= [nil nil] (map :pointers [(o "x") (o "plain")]))))))

(deftest per-cpu-variables
  (testing "variables of each CPU are in a per-CPU array"
    (let [o (object/read
             (elf-file/object
              {:sections [{:name ".percpu" :flags 3 :bytes (elf-file/words 7 0)}]
               :symbols [{:name "counter" :section ".percpu" :type :object :size 8}]}))]
      (is (= {:name ".percpu" :type :percpu-array :key :u32 :value-size 8 :max-entries 1}
             (get-in o [:maps ".percpu"])))
      (is (= {:section ".percpu" :type [:bytes 8] :offset 0 :size 8
              :value (bytes/->bytes "07 00 00 00 00 00 00 00")}
             (get-in o [:variables "counter"]))))))

;; --- CO-RE relocations of a kernel

(deftest o6-relocations
  (let [kernel-btf (btf/parse
                    (:bytes (btf/->btf [[:struct {:name "task_struct"} [:flags :u64] [:pid :s32]
                                         [:links [:array :u64 2]]]]
                                       nil)))
        found (object/relocations @flows {:kernel-btf kernel-btf})]
    (testing "relocations are compared with the BTF of any kernel"
      (is (= (count (mapcat :core (mapcat (comp vals @flows) [:programs :functions])))
             (count found)))
      (is (= {:function "on_enter" :slot 24 :kind :field-byte-offset
              :type "struct task_struct___own" :type-id 100 :access "0:0" :path [:pid]
              :satisfied true :value 8}
             (first found)))
      (is (= [[:field-byte-offset false "struct task_struct has no field links[1].next on this kernel"]
              [:field-exists true nil]
              [:enumval-value false "this kernel has no enum map_kind"]]
             (map (juxt :kind :satisfied :reason) [(nth found 1) (nth found 2) (last found)]))))
    (testing "a load that cannot get the size of the kernel's field is not satisfied"
      (let [kernel-btf (btf/parse
                        (:bytes (btf/->btf [[:struct {:name "task_struct"} [:pid :s64]]] nil)))
            as (fn [insn] (-> @flows
                              (select-keys [:btf])
                              (assoc :programs {"p" {:insns [insn [:exit]]
                                                     :core [{:slot 0 :kind :field-byte-offset
                                                             :type-id 100 :access "0:0"}]}})
                              (object/relocations {:kernel-btf kernel-btf})
                              first
                              (select-keys [:satisfied :value :reason])))
            reason "struct task_struct field pid has 8 bytes on this kernel, and 4 in the object"]
        (is (= {:satisfied true :value 0} (as [:mov64 :r1 0])))
        (is (= {:satisfied false :reason reason}
               (as [:ldxw :r1 [:r2 0]])
               (as [:insn {:code 0x61 :dst 1 :src 2}])))))
    (testing "types of the kernel that differ are a reason"
      (let [struct (fn [& members] (into [:struct {:name "task_struct"}] members))
            kernel-btf (btf/parse (:bytes (btf/->btf [(struct [:a :u64] [:pid :s32])
                                                      (struct [:pid :s32])]
                                                     nil)))]
        (is (re-find #"^All types struct task_struct of this kernel must give the same value, got 8"
                     (:reason (first (object/relocations @flows {:kernel-btf kernel-btf})))))))
    (testing "objects without relocations have none"
      (is (= [] (object/relocations {}) (object/relocations (read-object "old-el.o")))))
    (testing "and invalid arguments are errors"
      (are [message o options]
           (= message (try
                        (object/relocations o options)
                        (catch ExceptionInfo e
                          (is (= :invalid-value (:bpfmap/error (ex-data e))))
                          (ex-message e))))
        "Unknown option :kernel: did you mean :kernel-btf?" @flows {:kernel kernel-btf}
        "The argument must be a BTF blob, got 7: pass a result of parse" @flows {:kernel-btf 7}
        "The :btf of an object with relocations must be bytes, got nil"
        (dissoc @flows :btf) {:kernel-btf kernel-btf}))))

(kernel-test o6-relocations-of-this-kernel
  (testing "the default is the running kernel"
    (is (= {:satisfied true :function "on_enter"}
           (select-keys (first (object/relocations @flows)) [:satisfied :function])))
    (is (= (object/relocations @flows)
           (object/relocations @flows {:kernel-btf (host/kernel-btf)})))))
