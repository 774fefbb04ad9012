(ns ^:no-doc bpfmap.impl.display.hints
  "The table of display hints; which types each fits, and how each shows a value.

  A hint is a keyword, or a vector of a keyword and a parameter. [[parse]] reads one. [[compile]]
  checks hints against the types of entries, before anything is read, and returns functions that
  show values. `host` are the resolvers of `bpfmap.impl.display.host`."
  (:refer-clojure :exclude [compile])
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.display.amount :as amount]
            [bpfmap.impl.display.text :as text]
            [bpfmap.impl.field-path :as field-path]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.impl.type.node :as node]
            [clojure.string :as str])
  (:import (java.nio ByteOrder)))

(set! *warn-on-reflection* true)

;; --- a value as a number or as bytes
;; `node` is the node of the value's type, or nil if it is unknown.

(def ^:private little? (= ByteOrder/LITTLE_ENDIAN (ByteOrder/nativeOrder)))

(defn- big-endian?
  "Returns true if the bytes of a node's integers are in network byte order."
  [{:keys [order]}]
  (case order :be true :le false (not little?)))

(defn- from-octets
  "Returns the unsigned number of bytes."
  [octets big?]
  (let [n (BigInteger. 1 (byte-array (if big? octets (reverse octets))))]
    (if (< (.bitLength n) 64) (.longValue n) (bigint n))))

(defn- to-octets
  "Returns the `size` bytes of an integer in memory; nil if it is larger."
  [n size big?]
  (let [n (biginteger n)
        size (long size)]
    (when (<= (.bitLength n) (* 8 size))
      (let [octets (map #(.intValue (.and (.shiftRight n (* 8 (int %))) (biginteger 255)))
                        (range size))]
        (if big? (reverse octets) octets)))))

(defn- number-of
  "Returns the integer that a value is, or nil.

  A name of an enum is its number, and up to eight bytes are a number of this machine."
  [x {:keys [values]}]
  (cond
    (integer? x) x
    (keyword? x) (get values x)
    (bytes/byte-view? x) (when (contains? #{1 2 4 8} (count x))
                           (from-octets (map #(bit-and 0xff (long %)) x) (not little?)))))

(defn- unsigned-of
  "Returns the integer that a value is, unsigned if its type is known."
  [x {:keys [size] :as node}]
  (when-let [n (number-of x node)]
    (if (and size (neg? n))
      (let [n (.add (biginteger n) (.shiftLeft BigInteger/ONE (* 8 (int size))))]
        (if (< (.bitLength n) 64) (.longValue n) (bigint n)))
      n)))

(defn- octets-of
  "Returns the bytes of a value in memory, as numbers, or nil.

  `size` is the size of an integer whose type is unknown."
  [x {:keys [kind element] :as node} size]
  (cond
    (bytes/byte-view? x) (map #(bit-and 0xff (long %)) x)
    (integer? x) (when-let [size (or (:size node) size)]
                   (to-octets x size (big-endian? node)))
    (and (vector? x) (seq x) (every? integer? x))
    (let [parts (map #(octets-of % (when (= :array kind) element) 1) x)]
      (when (every? some? parts) (apply concat parts)))))

(defn- array-of [octets] (byte-array (map unchecked-byte octets)))

;; --- the types that a hint fits

(def ^:private integer-kinds #{:integer :enum :pointer})

(defn- unknown? [node] (or (nil? node) (= :via (:kind node))))

(defn- integer-of
  "Returns a predicate for nodes that are integers, or bytes, of some sizes."
  [& sizes]
  (let [sizes (set sizes)]
    (fn [{:keys [kind size] :as node}]
      (or (unknown? node)
          (and (or (integer-kinds kind) (= :bytes kind)) (contains? sizes size))))))

(def ^:private integer (integer-of 1 2 4 8 16))
(def ^:private id (integer-of 1 2 4 8))

(defn- octets
  "Returns a predicate for nodes that are some numbers of bytes.

  They are an integer, bytes, or an array of integers."
  [& sizes]
  (let [sizes (set sizes)]
    (fn [{:keys [kind size element] :as node}]
      (or (unknown? node)
          (and (contains? sizes size)
               (or (integer-kinds kind) (= :bytes kind)
                   (and (= :array kind) (= :integer (:kind element)))))))))

(defn- or-already
  "Returns a predicate that also accepts nodes that print so without a hint."
  [fits? & kinds]
  (fn [node] (or (contains? (set kinds) (:kind node)) (fits? node))))

(defn- bit-set?
  "Returns true for nodes of integers, bytes, and arrays of integers."
  [{:keys [kind element] :as node}]
  (or (unknown? node) (contains? integer-kinds kind) (= :bytes kind)
      (and (= :array kind) (= :integer (:kind element)))))

(defn- build-id-frame? [{:keys [kind members]}]
  (and (= :struct kind) (= #{:status :build-id :offset} (set (map :name members)))))

(def ^:private code-address
  (let [address? (integer-of 8)]
    (fn [node] (or (address? node) (build-id-frame? node)))))

;; --- showing
;; A function that shows returns nil for a value that it cannot show, which then stays as it is.

(defn- named
  "Returns a name, or the text of a number without one, with the reason."
  [n-text {:keys [name missing]}]
  (or name (str n-text " (" missing ")")))

(defn- by-number
  "Returns the function that shows a number by one of the resolvers."
  [resolver]
  (fn [x node _ host]
    (when-let [n (unsigned-of x node)]
      (named n ((resolver host) n)))))

(defn- address-of [size]
  (fn [x node _ _]
    (if (string? x)
      x
      (when-let [found (octets-of x node (or size 4))]
        (when (or (nil? size) (= size (count found)))
          (text/address (array-of found)))))))

(defn- host-order-address [x node _ _]
  (when-let [n (unsigned-of x node)]
    (some-> (to-octets n 4 true) array-of text/address)))

(defn- mac [x node _ _]
  (if (string? x)
    x
    (when-let [found (octets-of x node 6)]
      (when (= 6 (count found))
        (text/mac (array-of found))))))

(defn- port
  "Returns the function that shows a port, in network byte order or not."
  [network?]
  (fn [x node _ _]
    (when-let [n (unsigned-of x node)]
      (when (<= 0 n 0xffff)
        (if (= network? (big-endian? node))
          n
          (from-octets (to-octets n 2 true) false))))))

(defn- hex [x {:keys [size] :as node} _ _]
  (if (bytes/byte-view? x)
    (text/hex-bytes (bytes/->array x))
    (some-> (number-of x node) (text/hex size))))

(defn- octal [x {:keys [size] :as node} _ _]
  (some-> (number-of x node) (text/octal size)))

(defn- size [x node _ _]
  (when-let [n (number-of x node)]
    (cond-> (amount/human-size n) (< -1024 n 1024) (str "B"))))

(defn- duration [nanoseconds]
  (fn [x node _ _] (some-> (number-of x node) (*' nanoseconds) text/duration)))

(defn- time-of [clock]
  (fn [x node _ host]
    (when-let [n (unsigned-of x node)]
      (if-let [offset ((:clock-offset host) clock)]
        (text/instant (+' n offset))
        (str n " (no clock)")))))

(defn- process [n host]
  (let [{:keys [name missing]} ((:command host) n)]
    (if name (str name "[" n "]") (str n " (" missing ")"))))

(defn- pid [x node _ host]
  (some-> (unsigned-of x node) (process host)))

(defn- pid-tgid [x node _ host]
  (when-let [n (unsigned-of x node)]
    (let [tgid (quot n 0x100000000)
          thread (rem n 0x100000000)]
      (str (process tgid host) (when (not= tgid thread) (str " thread " thread))))))

(defn- errno [x node _ host]
  (when-let [n (number-of x node)]
    (if (zero? n)
      "0"
      (named n ((:errno host) (if (neg? n) (-' n) n))))))

(defn- cpus [x node _ _]
  (cond
    (bytes/byte-view? x) (text/number-list (text/bits (from-octets (octets-of x nil nil) false)))
    (vector? x) (let [octets (octets-of x node 8)
                      octets (if octets
                               octets
                               (mapcat #(to-octets (unsigned-of % {:size 8}) 8 false) x))]
                  (text/number-list (text/bits (from-octets octets false))))
    :else (some-> (unsigned-of x node) text/bits text/number-list)))

(defn- flags [x node values _]
  (when-let [n (unsigned-of x node)]
    (text/flags n values)))

(defn- enum [x node values _]
  (if (keyword? x)
    x
    (when-let [n (number-of x node)]
      (or (some (fn [[k v]] (when (= n v) (name k))) (sort-by (comp str key) values))
          (str n " (no such name)")))))

(defn- kernel-symbol [x node _ host]
  (when-let [n (unsigned-of x node)]
    (named (text/hex n nil) ((:kernel-symbol host) n))))

(defn- file-parameter?
  "Returns true for the parameter of a hint that is the path of a file."
  [x]
  (and (string? x) (str/includes? x "/")))

(defn- user-symbol
  "Shows an address of code; `process` is a pid, the path of a file, or nil."
  [x node process host]
  (if (map? x)
    (let [{:keys [status build-id offset]} x]
      (case status
        :valid (let [id (str/replace (str build-id) " " "")]
                 (named (str "build id " id "+" (text/hex offset nil))
                        (let [of-file (when (file-parameter? process)
                                        ((:file-symbol host) process id offset))]
                          (if (:name of-file) of-file ((:build-id-symbol host) id offset)))))
        :ip (user-symbol offset nil process host)
        nil))
    (when-let [n (unsigned-of x node)]
      (named (text/hex n nil)
             (cond
               (nil? process) {:missing "no process given"}
               (file-parameter? process) ((:file-symbol host) process nil n)
               :else ((:user-symbol host) process n))))))

;; --- the table

(def table
  "All hints, by name.

  | key          | meaning                                                                  |
  |--------------|--------------------------------------------------------------------------|
  | `:meaning`   | what the value is, as a phrase                                           |
  | `:of`        | the values that it fits, as a phrase                                     |
  | `:parameter` | `:required` or `:optional`, if it has one; `:parameter-is` says what     |
  | `:fits`      | true for the nodes of types that it fits                                 |
  | `:whole`     | true if an array is one value, rather than a value for each element      |
  | `:enum` `:pid`   | true if the parameter is an enum, or a process                       |
  | `:show`      | the function of value, node, parameter and host that shows a value       |"
  (into
   (sorted-map)
   (for [[name row]
         {:ipv4 {:meaning "an IPv4 address" :of "4 bytes in network byte order"
                 :fits (or-already (octets 4) :ipv4) :whole true :show (address-of 4)}
          :ipv4-host {:meaning "an IPv4 address that the program has converted to host byte order"
                      :of "an integer of 4 bytes"
                      :fits (integer-of 4) :show host-order-address}
          :ipv6 {:meaning "an IPv6 address" :of "16 bytes"
                 :fits (or-already (octets 16) :ipv6) :whole true :show (address-of 16)}
          :ip {:meaning "an IPv4 or IPv6 address, by its length"
               :of "4 or 16 bytes in network byte order"
               :fits (or-already (octets 4 16) :ipv4 :ipv6) :whole true :show (address-of nil)}
          :mac {:meaning "an Ethernet address" :of "6 bytes"
                :fits (or-already (octets 6) :mac) :whole true :show mac}
          :port {:meaning "a port in host byte order" :of "an integer of 2 or 4 bytes"
                 :fits (integer-of 2 4) :show (port (not little?))}
          :port-be {:meaning "a port in network byte order" :of "an integer of 2 or 4 bytes"
                    :fits (integer-of 2 4) :show (port true)}
          :hex {:meaning "a hexadecimal number" :of "an integer or bytes"
                :fits #(or (integer %) (= :bytes (:kind %))) :show hex}
          :octal {:meaning "an octal number, such as a file mode" :of "an integer"
                  :fits integer :show octal}
          :size {:meaning "a number of bytes, in units of 1024" :of "an integer"
                 :fits integer :show size}
          :ns {:meaning "a duration in nanoseconds" :of "an integer"
               :fits integer :show (duration 1)}
          :us {:meaning "a duration in microseconds" :of "an integer"
               :fits integer :show (duration 1000)}
          :ms {:meaning "a duration in milliseconds" :of "an integer"
               :fits integer :show (duration 1000000)}
          :s {:meaning "a duration in seconds" :of "an integer"
              :fits integer :show (duration 1000000000)}
          :ktime {:meaning "a time of bpf_ktime_get_ns, as wall-clock time in UTC"
                  :of "an integer of 8 bytes"
                  :fits (integer-of 8) :show (time-of :monotonic)}
          :ktime-boot {:meaning "a time of bpf_ktime_get_boot_ns, as wall-clock time in UTC"
                       :of "an integer of 8 bytes"
                       :fits (integer-of 8) :show (time-of :boottime)}
          :ifname {:meaning "a network interface, by its index" :of "an integer"
                   :fits id :show (by-number :interface)}
          :cgroup {:meaning "a cgroup, by its id: its path" :of "an integer of 8 bytes"
                   :fits (integer-of 8) :show (by-number :cgroup)}
          :user {:meaning "a user, by number: the name in /etc/passwd" :of "an integer"
                 :fits id :show (by-number :user)}
          :group {:meaning "a group, by number: the name in /etc/group" :of "an integer"
                  :fits id :show (by-number :group)}
          :pid {:meaning "a process or thread: its command and number" :of "an integer"
                :fits id :show pid}
          :pid-tgid {:meaning "a result of bpf_get_current_pid_tgid" :of "an integer of 8 bytes"
                     :fits (integer-of 8) :show pid-tgid}
          :cpus {:meaning "a set of CPUs, a bit for each"
                 :of "an integer, bytes or an array of integers"
                 :fits bit-set? :whole true :show cpus}
          :syscall {:meaning "a system call of this machine, by number" :of "an integer"
                    :fits id :show (by-number :syscall)}
          :errno {:meaning "an errno, with or without a minus" :of "an integer"
                  :fits id :show errno}
          :flags {:meaning "a combination of the values of an enum" :of "an integer"
                  :parameter :optional :parameter-is "an enum" :enum true
                  :fits id :show flags}
          :enum {:meaning "a value of an enum" :of "an integer"
                 :parameter :required :parameter-is "an enum" :enum true
                 :fits id :show enum}
          :ksym {:meaning "an address in the kernel, by /proc/kallsyms"
                 :of "an integer or pointer of 8 bytes"
                 :fits (integer-of 8) :show kernel-symbol}
          :usym {:meaning "an address in a process, by the symbols of its ELF files"
                 :of "an integer or pointer of 8 bytes, or a frame with a build id"
                 :parameter :optional
                 :parameter-is "the process: a pid, the field that has it, or a file"
                 :pid true
                 :fits code-address :show user-symbol}}]
     [name row])))

;; --- reading hints

(defn- invalid [message hint path]
  (error/error :invalid-value message {:bpfmap/op :display :bpfmap/path path
                                       :bpfmap/hint hint}))

(defn- text-of [x] (if (ident? x) (subs (str (symbol x)) 0) (error/printed x)))

(defn hint-text
  "Returns a hint as the command line takes it.

      (hint-text [:usym 4711]) ;=> \"[usym 4711]\""
  [hint]
  (str/replace (error/printed hint) #"(?<=^|[\[{ ]):" ""))

(defn- enum-parameter?
  "Returns true for the parameter of a hint about an enum.

  It is the name of an enum, a type, or a map of names to numbers."
  [x]
  (or (ident? x) (string? x) (vector? x)
      (and (map? x) (every? ident? (keys x)) (every? integer? (vals x)))))

(defn- pid-parameter? [x]
  (if (integer? x) (pos? x) (or (file-parameter? x) (some? (field-path/path-of x)))))

(defn parse
  "Returns a hint as `[name parameter]`; throws `:invalid-value` if it is none.

      (parse :ipv4)           ;=> [:ipv4 nil]
      (parse [:usym :key.pid]) ;=> [:usym :key.pid]"
  [hint]
  (let [[hint-name & parameters] (if (sequential? hint) hint [hint])
        hint-name (if (or (string? hint-name) (symbol? hint-name)) (keyword hint-name) hint-name)
        {:keys [parameter parameter-is] enum? :enum pid? :pid :as row}
        (when (keyword? hint-name)
          (get table hint-name))
        [given] parameters
        needs (fn [what]
                (invalid (str "The hint " (text-of hint-name) " must have " what ", got "
                              (error/printed hint))
                         (cond enum? "such as [flags {SYN 1 ACK 2}] or [flags BPF_F_NO_PREALLOC]"
                               pid? (str "such as [usym 4711], [usym key.pid] or"
                                         " [usym \"/usr/bin/app\"]"))
                         []))]
    (cond
      (or (not (keyword? hint-name)) (nil? row))
      (throw (invalid (str "Unknown hint " (error/printed (if (keyword? hint-name)
                                                            (name hint-name)
                                                            hint)))
                      (or (nearest/did-you-mean (text-of hint-name) (map name (keys table)))
                          (str "the hints are " (str/join ", " (map name (keys table)))))
                      []))
      (and (nil? parameter) parameters) (throw (needs "no parameter"))
      (or (next parameters) (and (= :required parameter) (nil? given)))
      (throw (needs (str "one parameter, " parameter-is)))
      (and enum? (some? given) (not (enum-parameter? given))) (throw (needs parameter-is))
      (and pid? (some? given) (not (pid-parameter? given))) (throw (needs parameter-is))
      :else [hint-name given])))

;; --- fields of types

(defn- fields-of
  "Returns the fields of a node as `[name key node]`, in order; nil if it has none."
  [{:keys [kind members]}]
  (when (#{:struct :union} kind)
    (mapcat (fn [{:keys [name node]}]
              (cond
                (#{:private :pad} (:kind node)) nil
                name [[(subs (str name) 1) name node]]
                :else (fields-of node)))
            members)))

(defn- fold-case [text] (str/lower-case (str/replace text #"[ _]" "-")))

(defn- at
  "Returns `[keys node]` for a path below a node; nil if there is no such field.

  An array has the fields of its elements. Below a node of an unknown type there is any field."
  [node path exact? fold keys]
  (cond
    (empty? path) [keys node]
    (unknown? node) [(into keys path) nil]
    (= :array (:kind node)) (if (re-matches #"[0-9]{1,9}" (first path))
                              (at (:element node) (rest path) exact? fold
                                  (conj keys (parse-long (first path))))
                              (at (:element node) path exact? fold keys))
    :else
    (some (fn [n]
            (let [wanted (fold (str/join "." (take n path)))]
              (some (fn [[name key below]]
                      (when (= wanted (fold name))
                        (at below (drop n path) exact? fold (conj keys key))))
                    (fields-of node))))
          (if exact? [1] (range (count path) 0 -1)))))

(def ^:private of-references
  "The types of values that are read as references.

  By `:refers` of the row of the map type."
  {:map-id [:struct [:map-id :u32]]
   :program-id [:struct [:program-id :u32]]
   :socket-cookie [:struct [:socket-cookie :u64]]})

(defn sides
  "Returns the nodes of keys and values of a spec, as they are read.

      (sides {:type :hash :key :u32 :value :u64}) ;=> {:key {…} :value {…}}"
  [{:keys [type] :as spec}]
  (into {}
        (for [side [:key :value]
              :let [out (get-in map-types/types [type :refers side :out])
                    node (cond
                           (of-references out) (node/node (of-references out) nil [side])
                           (= :functions out) {:kind :via}
                           :else (node/node-of spec side))]
              :when node]
          [side node])))

(defn- leaves
  "Returns the leaves below a node, as `[path node]` with the path as text."
  [so-far {:keys [kind element] :as node}]
  (let [fields (fields-of node)]
    (cond
      (seq fields) (mapcat (fn [[name _ below]] (leaves (conj so-far name) below)) fields)
      (and (= :array kind) (fields-of element)) (leaves so-far element)
      (seq so-far) [[(field-path/path-text so-far) node]])))

(defn fields
  "Returns all fields that hints can name, as `[path node]` with the path as text.

  `sides` are the nodes of keys and values, such as `{:key node :value node}`. For values that are
  not of an entry, it is `{:only node}`.

      (fields {:key (node/node :u32 nil [])}) ;=> ([\"key\" {…}])"
  [{:keys [key value only]}]
  (concat (when key (leaves ["key"] key))
          (when value (leaves ["value"] value))
          (when only (leaves [] only))))

(defn- unknown-field [path names]
  (invalid (str "Unknown field " (field-path/path-text path))
           (or (nearest/did-you-mean (str/join "." path) names)
               (when (seq names)
                 (str "the fields are " (str/join ", " (take 8 names))
                      (when (next (drop 7 names)) ", …"))))
           path))

(defn find-field
  "Returns `[side keys node]` for a path in entries; throws for an unknown field.

  A field of the value, and then of the key, is found without its side. Case counts only if both
  spellings exist.

      (find-field {:key (node/node :u32 nil [])} [\"key\"]) ;=> [:key [] {…}]"
  [{:keys [key value only] :as sides} path]
  (let [exact? (:exact (meta path))
        sides-of (remove (comp nil? second) [[:value value] [:key key]])
        in-side (fn [fold [side node]]
                  (when-let [[keys found] (at node path exact? fold [])] [side keys found]))]
    (or (some (fn [fold]
                (some (fn [[side node]]
                        (when (= (fold (name side)) (fold (first path)))
                          (when-let [[keys found] (at node (rest path) exact? fold [])]
                            [side keys found])))
                      sides-of))
              [identity fold-case])
        (some (fn [fold]
                (if only
                  (in-side fold [:only only])
                  (some #(when-not (unknown? (second %)) (in-side fold %)) sides-of)))
              [identity fold-case])
        (throw (unknown-field path (map first (fields sides)))))))

;; --- values at a path

(defn- key-of
  "Returns the key of a map that a name can stand for, as `[key]`, or nil."
  [x name]
  (some #(when (contains? x %) [%])
        (if (string? name) [(keyword name) name (symbol name) (parse-long name)] [name])))

(defn- step
  "Returns the key in a map or vector for a path, and the other steps; or nil.

  The path of a value without a type has names, of which several can be one name with dots."
  [x path]
  (cond
    (map? x) (some (fn [n]
                     (when-let [[k] (key-of x (if (= 1 n) (first path) (str/join "." (take n path))))]
                       [k (drop n path)]))
                   (if (every? string? path) (range (count path) 0 -1) [1]))
    (vector? x) (let [i (if (string? (first path)) (parse-long (first path)) (first path))]
                  (when (and (int? i) (< -1 (long i) (count x)))
                    [i (rest path)]))))

(defn update-at
  "Returns a value with f applied at a path, in every element of vectors.

  Where the value lacks a step of the path, it stays as it is.

      (update-at {:a [{:b 1} {:b 2}]} [:a :b] inc) ;=> {:a [{:b 2} {:b 3}]}"
  [x path f]
  (if (empty? path)
    (f x)
    (let [[k more :as found] (step x path)]
      (cond
        found (assoc x k (update-at (get x k) more f))
        (vector? x) (mapv #(update-at % path f) x)
        :else x))))

(defn- value-at
  "Returns the first value at a path, or nil."
  [x path]
  (if (empty? path)
    x
    (let [[k more :as found] (step x path)]
      (cond
        found (value-at (get x k) more)
        (vector? x) (some #(value-at % path) x)))))

(defn present?
  "Returns true if a value has something, or nil, at a path.

      (present? {:a nil} [:a :b]) ;=> true"
  [x path]
  (boolean
   (or (empty? path)
       (nil? x)
       (let [[k more :as found] (step x path)]
         (cond
           found (present? (get x k) more)
           (vector? x) (or (empty? x) (some #(present? % path) x)))))))

;; --- hints for the fields of entries

(defn- element-hint?
  "Returns true if a hint is for the elements of an array, not for the whole."
  [{fits? :fits whole? :whole} {:keys [kind element] :as node}]
  (and (= :array kind)
       (not (and whole? (fits? node)))
       (or (fits? element) (= :array (:kind element)))))

(defn- target
  "Returns the node that a hint is for: of a field, or of an array's elements.

  Returns ::misfit if it fits neither."
  [{fits? :fits :as row} node]
  (cond
    (unknown? node) nil
    (element-hint? row node) (recur row (:element node))
    (fits? node) node
    :else ::misfit))

(defn type-text
  "Returns the type of a node as the command line takes it.

      (type-text (node/node [:string 8] nil [])) ;=> \"[string 8]\""
  [{:keys [type]}]
  (hint-text type))

(defn- field-text [path]
  (if (seq path) (str "The field " (field-path/path-text path)) "The value"))

(defn- values-of-type
  "Returns the names and numbers of an enum that is given as a type, or nil."
  [type types]
  (:values (node/node type types [])))

(defn- enum-values
  "Returns the names and numbers of the enum of a hint; throws if there is none.

  Looks for a name in the named types, in the BTF objects, and in the kernel."
  [given node {:keys [types enum-in host]} path]
  (let [text (when (or (ident? given) (string? given)) (name given))]
    (or (cond
          (nil? given) (:values node)
          (map? given) (into {} (map (fn [[k n]] [(keyword k) n])) given)
          (vector? given) (values-of-type given types)
          :else (or (when-let [type (get types (keyword text))] (values-of-type type types))
                    (when enum-in (enum-in text))
                    ((:enum host) text)))
        (throw (if (nil? given)
                 (invalid (str (field-text path) " must be an enum for the hint flags without a "
                               "parameter, got " (if node (type-text node) "an unknown type"))
                          "name an enum, such as [flags BPF_F_NO_PREALLOC], or give {SYN 1 ACK 2}"
                          path)
                 (invalid (str "Unknown enum " (error/printed (or text given)))
                          (str "the types of the map and of the kernel have no enum of this name, "
                               "and none with such a value")
                          path))))))

(defn- pid-getter
  "Returns a function from an entry to the pid or file of a hint, or nil."
  [given sides]
  (cond
    (nil? given) nil
    (or (integer? given) (file-parameter? given)) (constantly given)
    :else (let [[side keys _] (find-field sides (field-path/path-of given))]
            (fn [entry]
              (when-let [n (number-of (value-at (get entry side) keys) nil)]
                ;; A result of bpf_get_current_pid_tgid has the process in its upper half.
                (if (<= 0x100000000 n) (quot n 0x100000000) n))))))

(defn- shower
  "Returns a function of a value and its entry that shows the value."
  [{:keys [show] whole? :whole enum? :enum pid? :pid} given node
   {:keys [host] :as context} sides path]
  (when (and pid? (file-parameter? given) (empty? ((:elf-files host) given)))
    (throw (invalid (str "The file of the hint usym must be an ELF file, or a directory with ELF"
                         " files, got " (error/printed given))
                    nil path)))
  (let [values (when enum? (enum-values given node context path))
        pid-of (when pid? (pid-getter given sides))
        one (fn [x entry]
              (let [shown (when (some? x)
                            (show x node (cond enum? values pid-of (pid-of entry)) host))]
                (if (nil? shown) x shown)))]
    (fn all [x entry]
      (if (and (vector? x)
               (not (and whole? (seq x) (not-any? coll? x)
                         (or (= :array (:kind node)) (nil? node)))))
        (mapv #(all % entry) x)
        (one x entry)))))

(defn compile
  "Returns hints as functions, checked against the nodes of keys and values.

  `hints` are `[path hint]` pairs, whose paths are as `field-path/path-of` returns them. The result
  is `{:key places :value places}`; a place is `{:keys path :show function}`, for [[show-side]].
  `:collapses` of a place is true if an array is shown as one value.
  Throws `:invalid-value` for an unknown field or hint, for a hint that does not fit its field, and
  for a field with two hints. `context` has the resolvers under `:host`, named types under `:types`,
  and under `:enum-in` a function from a name to the values of an enum of the map's BTF."
  [hints sides context]
  (let [places
        (for [[path hint] hints
              :let [[hint-name given] (parse hint)
                    row (table hint-name)
                    [side keys node] (find-field sides path)
                    for-node (target row node)]]
          (if (= ::misfit for-node)
            (throw (invalid (str (field-text path) " must be " (:of row)
                                 " for the hint " (name hint-name) ", got "
                                 (if (fields-of node)
                                   (str "a " (name (:kind node)))
                                   (type-text node)))
                            (when-let [inside (seq (map #(field-path/path-text
                                                          (conj (vec path) (first %)))
                                                        (fields-of node)))]
                              (str "name one of its fields, such as "
                                   (error/list-of (take 3 inside))))
                            path))
            {:side side :keys keys :path path
             :collapses (= :array (:kind for-node))
             :show (shower row given for-node context sides path)}))
        twice (some (fn [[_ same]] (when (next same) same))
                    (group-by (juxt :side :keys) places))]
    (when twice
      (throw (invalid (str (field-text (:path (first twice))) " must have one hint, got "
                           (count twice))
                      nil (:path (first twice)))))
    (group-by :side places)))

(defn show-side
  "Returns the key or value of an entry with its fields shown.

  `places` are those of one side of the result of [[compile]].

      (show-side (:value compiled) 16777226 {:key 7 :value 16777226}) ;=> \"10.0.0.1\""
  [places x entry]
  (reduce (fn [x {:keys [keys show]}] (update-at x keys #(show % entry))) x places))
