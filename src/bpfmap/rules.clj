(ns bpfmap.rules
  "What the kernel allows, as data: map types, flags, and the rules of each type.

  The numbers and first kernel versions are those of the UAPI header
  `linux/bpf.h` and of the kernel's history. The rules of a type say what
  `BPF_MAP_CREATE` and the element commands accept; they were measured with
  system calls on Linux 6.18. A type without `:elements` is known by name, and
  its elements are not read or written yet."
  (:require [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def ^:private general-flags
  "Create flags that most types accept."
  #{:numa-node :rdonly :wronly :rdonly-prog :wronly-prog})

(def types
  "Map types by name.

  `:number` is the kernel's, `:since` the first Linux release that has it.
  `:key-size`, `:value-size` and `:max-entries` are `[least most]`, in bytes and
  entries; `:flags` the create flags accepted. `:elements :plain` says that one lookup moves
  exactly value-size bytes. `:btf :none` that the kernel refuses types for key and value. `:denied` maps an operation that the type
  lacks to what to do instead."
  {:hash
   {:number 1 :since "3.19"
    :key-size [1 0xffffffff] :value-size [1 0xffffffff] :max-entries [1 0xffffffff]
    :flags (conj general-flags :no-prealloc :zero-seed)
    :elements :plain}

   :array
   {:number 2 :since "3.19"
    :key-size [4 4] :value-size [1 0xffffffff] :max-entries [1 0xffffffff]
    :flags (conj general-flags :mmapable :inner-map)
    :elements :plain
    :denied {:delete! "every index of an array always exists; put! a zero value instead"
             :take! "every index of an array always exists; lookup, then put! a zero value"}}

   :prog-array            {:number 3 :since "4.2"}
   :perf-event-array      {:number 4 :since "4.3" :btf :none}
   :percpu-hash           {:number 5 :since "4.6"}
   :percpu-array          {:number 6 :since "4.6"}
   :stack-trace           {:number 7 :since "4.6" :btf :none}
   :cgroup-array          {:number 8 :since "4.8" :btf :none}
   :lru-hash              {:number 9 :since "4.10"}
   :lru-percpu-hash       {:number 10 :since "4.10"}
   :lpm-trie              {:number 11 :since "4.11"}
   :array-of-maps         {:number 12 :since "4.12" :btf :none}
   :hash-of-maps          {:number 13 :since "4.12" :btf :none}
   :devmap                {:number 14 :since "4.14" :btf :none}
   :sockmap               {:number 15 :since "4.14" :btf :none}
   :cpumap                {:number 16 :since "4.15" :btf :none}
   :xskmap                {:number 17 :since "4.18" :btf :none}
   :sockhash              {:number 18 :since "4.18" :btf :none}
   :cgroup-storage        {:number 19 :since "4.19"}
   :reuseport-sockarray   {:number 20 :since "4.19"}
   :percpu-cgroup-storage {:number 21 :since "4.20"}
   :queue                 {:number 22 :since "4.20" :btf :none}
   :stack                 {:number 23 :since "4.20" :btf :none}
   :sk-storage            {:number 24 :since "5.2"}
   :devmap-hash           {:number 25 :since "5.4" :btf :none}
   :struct-ops            {:number 26 :since "5.6"}
   :ringbuf               {:number 27 :since "5.8" :btf :none}
   :inode-storage         {:number 28 :since "5.10"}
   :task-storage          {:number 29 :since "5.11"}
   :bloom-filter          {:number 30 :since "5.16"}
   :user-ringbuf          {:number 31 :since "6.1" :btf :none}
   :cgrp-storage          {:number 32 :since "6.2"}
   :arena                 {:number 33 :since "6.9" :btf :none}
   :insn-array            {:number 34 :since "6.19"}
   :rhash                 {:number 35 :since "7.2"}})

(def flags
  "Create flags by name: `:bit` is the position in `map_flags`, `:since` the first Linux release."
  {:no-prealloc      {:bit 0 :since "4.6"}
   :no-common-lru    {:bit 1 :since "4.10"}
   :numa-node        {:bit 2 :since "4.14"}
   :rdonly           {:bit 3 :since "4.15"}
   :wronly           {:bit 4 :since "4.15"}
   :stack-build-id   {:bit 5 :since "4.17"}
   :zero-seed        {:bit 6 :since "5.0"}
   :rdonly-prog      {:bit 7 :since "5.2"}
   :wronly-prog      {:bit 8 :since "5.2"}
   :clone            {:bit 9 :since "5.4"}
   :mmapable         {:bit 10 :since "5.5"}
   :preserve-elems   {:bit 11 :since "5.10"}
   :inner-map        {:bit 12 :since "5.10"}
   :link             {:bit 13 :since "6.4"}
   :path-fd          {:bit 14 :since "6.5"}
   :vtype-btf-obj-fd {:bit 15 :since "6.9"}
   :token-fd         {:bit 16 :since "6.9"}
   :segv-on-fault    {:bit 17 :since "6.9"}
   :no-user-conv     {:bit 18 :since "6.9"}
   :rb-overwrite     {:bit 19 :since "6.19"}})

(def commands
  "First Linux releases of commands that a running kernel may lack."
  {:freeze! "5.2"
   :take!   "5.14"
   :open    "4.13"})

(def ^:private number->type
  (into {} (map (fn [[type row]] [(:number row) type])) types))

(def ^:private bit->flag
  (into {} (map (fn [[flag row]] [(:bit row) flag])) flags))

(defn type-name
  "The name of a map type's number, or the number where it has none.

      (type-name 1)  ;=> :hash
      (type-name 99) ;=> 99"
  [number]
  (number->type number number))

(defn type-number
  "The number of a map type's name; a number stays as it is, an unknown name gives nil.

      (type-number :hash) ;=> 1"
  [type]
  (if (keyword? type) (:number (types type)) type))

(defn flag-set
  "The set of names of the bits of a flag word; a bit without a name stays a number.

      (flag-set 0x401)     ;=> #{:no-prealloc :mmapable}
      (flag-set (bit-shift-left 1 30)) ;=> #{1073741824}"
  [word]
  (into #{}
        (comp (filter #(bit-test word %))
              (map #(bit->flag % (bit-shift-left 1 %))))
        (range 32)))

(defn flag-word
  "The flag word of a collection of names and numbers.

      (flag-word #{:no-prealloc :mmapable}) ;=> 1025"
  [flags-given]
  (transduce (map #(if (keyword? %) (bit-shift-left 1 (:bit (flags %))) %))
             (completing bit-or) 0 flags-given))

(defn alternative
  "What to do instead of an operation that a map type lacks; nil when it has it.

      (alternative :array :delete!) ;=> \"every index of an array always exists; …\""
  [type op]
  (let [row (types type)]
    (if (:elements row)
      (get-in row [:denied op])
      (str "this version of bpfmap reads and writes elements of "
           (str/join " and " (sort (keep (fn [[name {:keys [elements]}]] (when elements name)) types)))
           " maps only"))))

(defn at-least?
  "Whether a kernel release, as `uname -r` prints it, is the given version or newer.

      (at-least? \"6.18.44-arch1\" \"5.14\") ;=> true"
  [release version]
  (let [numbers (fn [s] (mapv parse-long (re-seq #"\d+" (first (re-find #"^(\d+(\.\d+)?)" s)))))]
    (not (neg? (compare (numbers release) (numbers version))))))
