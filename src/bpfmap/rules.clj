(ns bpfmap.rules
  "What the kernel allows, as data: map types, flags, and the rules of each type.

  The numbers and first kernel versions are those of the UAPI header
  `linux/bpf.h` and of the kernel's history. The rules of a type say what
  `BPF_MAP_CREATE` and the element commands accept; they are in
  `bpfmap.rules.types`."
  (:require [bpfmap.rules.types :as types]))

(set! *warn-on-reflection* true)

(def types
  "Map types by name, a row of rules each; see [[bpfmap.rules.types/types]].

      (:since (types :lpm-trie)) ;=> \"4.11\""
  types/types)

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

(def element-flags
  "Flags of element operations by name: `:value` is what the kernel takes, `:since` the first Linux release, `:by` how bpfmap
  is asked for it. Since a queue has no keys, `:exist` stands for something else there."
  {:any      {:value 0 :since "3.19" :by "put!, push!"}
   :noexist  {:value 1 :since "3.19" :by "insert!"}
   :exist    {:value 2 :since "3.19" :by "replace!, and push! with {:overwrite true}"}
   :lock     {:value 4 :since "5.1" :by "{:lock true}"}
   :cpu      {:value 8 :since "7.0" :by "{:cpu n}"}
   :all-cpus {:value 16 :since "7.0" :by "{:cpus :all}"}})

(def commands
  "First Linux releases of commands that a running kernel may lack."
  {:freeze! "5.2"
   :take!   "5.14"
   :drain!  "5.14"
   :open    "4.13"
   :list    "4.13"
   :info    "4.13"})

(declare ability at-least?)

(defn since
  "The first Linux release that has an operation on maps of a type, as far as the tables tell; nil if it came with the type.

      (since :stack-trace :drain!) ;=> \"6.18\"
      (since :hash :take!)         ;=> \"5.14\""
  [type op]
  (let [op (ability op)]
    (or (get-in types [type :ops-since op]) (commands op))))

(defn since-text
  "What an operation needs on maps of a type, if the release that runs is older: a hint. Nil if it is not, or nothing is known of it.

      (since-text :stack-trace :take! \"6.12.4\") ;=> \"it needs Linux 6.18, this is 6.12.4\""
  [type op release]
  (when-let [needed (since type op)]
    (when (some-> release (at-least? needed) not)
      (str "it needs Linux " needed ", this is " release))))

(def operations
  "Every operation on elements, by the name of its function; `:reduce` is any that reads all entries."
  #{:lookup :put! :insert! :replace! :delete! :take! :next-key :reduce :drain! :push! :pop! :peek :might-contain?})

(def reads
  "The operations that a handle for writing only does not do."
  #{:lookup :take! :next-key :reduce :drain! :pop! :peek :might-contain?})

(def writes
  "The operations that a handle for reading only does not do."
  #{:put! :insert! :replace! :delete! :take! :drain! :push! :pop! :freeze!})

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
  (loop [word (long word) set #{}]
    (if (zero? word)
      set
      (let [bit (Long/numberOfTrailingZeros word)]
        (recur (bit-and-not word (bit-shift-left 1 bit))
               (if (< bit 32) (conj set (bit->flag bit (bit-shift-left 1 bit))) set))))))

(defn flag-word
  "The flag word of a collection of names and numbers.

      (flag-word #{:no-prealloc :mmapable}) ;=> 1025"
  [flags-given]
  (transduce (map #(if (keyword? %) (bit-shift-left 1 (:bit (flags %))) %))
             (completing bit-or) 0 flags-given))

(defn has-flag?
  "Whether a flag is among those given, by its name or as a bit. What is given need not be well-formed.

      (has-flag? #{:no-prealloc} :no-prealloc) ;=> true
      (has-flag? [1] :no-prealloc)             ;=> true"
  [flags-given flag]
  (boolean (when (or (set? flags-given) (sequential? flags-given))
             (some #(or (= flag %)
                        (and (int? %) (<= 1 % 0xffffffff) (bit-test % (:bit (flags flag)))))
                   flags-given))))

(defn by-flag
  "What a row says by flags: the value of the first flag that is among those given, else that of nil.

      (by-flag {:stack-build-id 32, nil 8} #{:stack-build-id}) ;=> 32"
  [values flags-given]
  (get values (first (filter #(and % (has-flag? flags-given %)) (keys values)))))

(def ^:private abilities
  {:put-all! :put!, :delete-all! :delete!, :lookup-all :lookup, :snapshot :reduce, :count-entries :reduce, :entries :reduce})

(defn ability
  "The operation of [[operations]] that another one is made of.

      (ability :put-all!) ;=> :put!"
  [op]
  (abilities op op))

(def made-of-others
  "The operations that are made of one of [[operations]]; see [[ability]]."
  (set (keys abilities)))

(def ^:private keyed-instead
  "What to do with a map that has keys instead of what one without them does."
  {:push! "it has keys; use put!"
   :pop! "it has keys; use take!"
   :peek "it has keys; use lookup"
   :might-contain? "it has keys; use has-key?"})

(defn alternative
  "What to do instead of an operation that a map of this type and value size lacks; nil when it has it.

      (alternative :array :delete! 8) ;=> \"every index of an array always exists; …\""
  [type op value-size]
  (let [op (ability op)
        {:keys [ops instead reads-at freeze?] :as row} (types type)]
    (cond
      (= :freeze! op) (when (and row (not freeze?)) (get instead op "maps of this type cannot be frozen")) ; which is not about elements
      (nil? row) "bpfmap does not know how elements of this type lie in memory"
      (not (ops op)) (or (get instead op) (:else instead) (keyed-instead op))
      (and reads-at (not= reads-at value-size) (#{:lookup :reduce} op))
      (str "the kernel tells the cookies of its sockets only where values have " reads-at " bytes"))))

(defn refusals
  "The operations that a handle of a map of this type and value size never does, opened for `access`: op to [kind hint].

      (:freeze! (refusals :hash 8 :read-only)) ;=> [:read-only \"the map was opened read-only; …\"]"
  [type value-size access]
  (let [[barred hint] (case access
                        :read-only [writes "the map was opened read-only; open it with {:access :read-write}"]
                        :write-only [reads "the map was opened write-only; open it with {:access :read-write}"]
                        nil)]
    (into (into {} (map #(vector % [access hint])) barred)
          (keep #(when-let [instead (alternative type % value-size)]
                   [% [:not-supported instead]]))
          (conj operations :freeze!))))

(defn by-index?
  "Whether the keys of a map type are indices from 0 up to its number of entries.

      (by-index? :array) ;=> true"
  [type]
  (let [{:keys [index? every-index?]} (types type)]
    (boolean (or index? every-index?))))

(defn key-type
  "The type of the keys of a map type that leaves no choice, by their size in bytes, 0 or nil where that is not given; else nil.

      (key-type :array nil)         ;=> :u32
      (key-type :cgroup-storage 8)  ;=> :u64"
  [type key-size]
  (let [{:keys [key keys]} (types type)
        given (when-not (= 0 key-size) key-size)]
    (cond
      key (when (contains? #{nil 4} given) key)
      keys (keys (or given (apply min (clojure.core/keys keys)))))))

(defn most-keys
  "How many keys a map of a type and size can have at most, as far as its size tells.

      (most-keys :hash 10)        ;=> 10
      (most-keys :stack-trace 10) ;=> 16"
  [type max-entries]
  (let [n (long max-entries)]
    (cond
      (zero? n) Long/MAX_VALUE ; as many as there are objects that the elements hang on
      (and (:more-places? (types type)) (< 1 n)) (* 2 (Long/highestOneBit (dec n)))
      :else n)))

(defn value-multiple
  "What the value size of a map type with these flags is a multiple of, in bytes.

      (value-multiple :stack-trace #{:stack-build-id}) ;=> 32"
  [type flags-given]
  (or (by-flag (:value-multiple (types type)) flags-given) 1))

(defn at-least?
  "Whether a kernel release, as `uname -r` prints it, is the given version or newer.

      (at-least? \"6.18.44-arch1\" \"5.14\") ;=> true"
  [release version]
  (let [numbers (fn [s] (mapv parse-long (re-seq #"\d+" (first (re-find #"^(\d+(\.\d+)?)" s)))))]
    (not (neg? (compare (numbers release) (numbers version))))))

(defn charges-memlock?
  "Returns true if a kernel release charges maps and programs to RLIMIT_MEMLOCK, as those before 5.11 do.

      (charges-memlock? \"5.10.0-32-amd64\") ;=> true"
  [release]
  (boolean (some-> release (at-least? "5.11") not)))
