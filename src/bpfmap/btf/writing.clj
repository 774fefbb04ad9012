(ns bpfmap.btf.writing
  "From types as data to BTF records: what other tools print of a map made here."
  (:require [bpfmap.btf.semantic :as semantic]
            [bpfmap.type.node :as node]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

;; A writer is an atom {:records [...] :ids {what it was made from, id}}, with the named types, and the types `within` which
;; a pointer's target is being added. Ids count from 1.

(defn- add! [writer record]
  (count (:records (swap! writer update :records conj record))))

(defn- once!
  "The id of what `key` stands for, which `make` adds at the first time."
  [writer key make]
  (or (get-in @writer [:ids key])
      (let [id (make)]
        (swap! writer assoc-in [:ids key] id)
        id)))

(defn identifier
  "The C identifier that a name passes through the kernel as: what is no letter, digit or `_` becomes `_`.

      (identifier :tx-bytes) ;=> \"tx_bytes\""
  [k]
  (let [text (str/replace (name k) #"[^A-Za-z0-9_]" "_")]
    (if (re-find #"^[0-9]|^$" text) (str "_" text) text)))

(defn- distinct-identifiers
  "The identifiers of names, made different where two names became one: a_b, a_b_2."
  [names]
  (first (reduce (fn [[identifiers used] k]
                   (let [text (some-> k identifier)
                         text (when text
                                (first (remove used (cons text (map #(str text "_" %) (iterate inc 2))))))]
                     [(conj identifiers text) (conj used text)]))
                 [[] #{}]
                 names)))

(def ^:private integer-names
  {[1 false] "unsigned char" [1 true] "signed char" [2 false] "unsigned short" [2 true] "short" [4 false] "unsigned int"
   [4 true] "int" [8 false] "unsigned long long" [8 true] "long long" [16 false] "unsigned __int128" [16 true] "__int128"})

(defn- integer! [writer size signed?]
  (once! writer [:int size signed?]
         #(add! writer {:kind :int :name (integer-names [size signed?]) :size size :bits (* 8 (long size)) :offset 0
                        :signed? signed? :char? false :bool? false})))

(defn- char! [writer]
  (once! writer :char #(add! writer {:kind :int :name "char" :size 1 :bits 8 :offset 0
                                     :signed? true :char? false :bool? false})))

(defn- bool! [writer]
  (once! writer :bool #(add! writer {:kind :int :name "_Bool" :size 1 :bits 8 :offset 0
                                     :signed? false :char? false :bool? true})))

(defn- float! [writer size]
  (once! writer [:float size] #(add! writer {:kind :float :name ({4 "float" 8 "double"} size) :size size})))

(defn- array! [writer element n]
  (let [index (integer! writer 4 false)]
    (once! writer [:array element n] #(add! writer {:kind :array :element element :index index :count n}))))

(defn- typedef! [writer name target]
  (once! writer [:typedef name target] #(add! writer {:kind :typedef :name name :type target})))

(declare type!)

(defn- pointer-to! [writer id]
  (once! writer [:ptr id] #(add! writer {:kind :ptr :type id})))

(def ^:private integers-by-name
  "The names that compilers give to integers: to size and sign."
  (into (into {} (map (fn [[k v]] [v k])) integer-names)
        {"short unsigned int" [2 false] "short int" [2 true]
         "long unsigned int" [8 false] "unsigned long" [8 false] "long int" [8 true] "long" [8 true]
         "long long unsigned int" [8 false] "long long int" [8 true]}))

(defn- text!
  "The id of a type that C spells so, as `bpfmap.btf.reading` spells the target of a pointer; 0, void, for what has no name
  of its own. Structs, unions and enums are declared, and not defined."
  [writer text]
  (let [[_ behind] (re-matches #"(?s)(.+) \*" text)
        [_ element] (re-matches #"(?s)(.+)\[\]" text)
        [_ kind tag] (re-matches #"(struct|union|enum) ([A-Za-z_][A-Za-z0-9_]*)" text)
        add-once! (fn [record] (once! writer [:text text] #(add! writer record)))]
    (cond
      (< 1000 (count text)) 0
      behind (pointer-to! writer (text! writer behind))
      element (let [id (text! writer element)] (if (= 0 id) 0 (array! writer id 0)))
      (= "enum" kind) (add-once! {:kind :enum :name tag :size 4 :signed? false :values []})
      tag (add-once! {:kind :fwd :name tag :union? (= "union" kind)})
      (= "function" text) (add-once! {:kind :func-proto :return 0 :params []})
      (= "char" text) (char! writer)
      (= "_Bool" text) (bool! writer)
      (= "float" text) (float! writer 4)
      (= "double" text) (float! writer 8)
      (integers-by-name text) (let [[size signed?] (integers-by-name text)]
                                (if (= text (integer-names [size signed?]))
                                  (integer! writer size signed?)
                                  (add-once! {:kind :int :name text :size size :bits (* 8 (long size)) :offset 0
                                              :signed? signed? :char? false :bool? false})))
      ;; What it is a name for is not known.
      (and (re-matches #"[A-Za-z_][A-Za-z0-9_]*" text) (not= "void" text)) (typedef! writer text 0)
      :else 0)))

(defn- target!
  "The id of what a pointer points to: a type, or how C spells one. A type that leads back to itself is declared there, if it
  has a tag, or void."
  [writer target]
  (cond
    (nil? target) 0
    (string? target) (text! writer target)
    :else
    (let [{:keys [named within]} @writer]
      (if-let [{:keys [kind c-name typedef] :as node} (try (node/node target named [])
                                                           (catch ExceptionInfo _ nil))]
        (if (or (contains? within target) (< 16 (count within)))
          (if (and c-name (not typedef) (#{:struct :union} kind))
            (text! writer (str (name kind) " " (identifier c-name)))
            0)
          (do (swap! writer update :within (fnil conj #{}) target)
              (try
                (type! writer node)
                (finally (swap! writer update :within disj target)))))
        0))))

(defn- pointer! [writer target]
  (pointer-to! writer (target! writer target)))

(defn- struct! [writer key record]
  (once! writer key #(add! writer record)))

(defn- private! [writer {:keys [c-name size align]}]
  (if (= "void *" c-name)
    (pointer! writer nil)
    (let [word (if (= 4 align) (integer! writer 4 false) (integer! writer 8 false))
          one? (= size align)
          inside (if one? word (array! writer word (quot (long size) (long align))))]
      (struct! writer [:private c-name]
               {:kind :struct :name c-name :size size
                :members [{:name (if (str/ends-with? c-name "spin_lock") "val" "__opaque")
                           :type inside :bit-offset 0 :bits 0}]}))))

(defn- ipv6! [writer]
  (let [words (array! writer (integer! writer 4 false) 4)]
    (struct! writer :in6_addr {:kind :struct :name "in6_addr" :size 16
                               :members [{:name "s6_addr32" :type words :bit-offset 0 :bits 0}]})))

(defn- element!
  "An array's element. A character or byte alone would read back as text or bytes."
  [writer {:keys [type] :as node}]
  (if-let [name (semantic/element-typedefs type)]
    (typedef! writer name (type! writer node))
    (type! writer node)))

(defn- enum! [writer {:keys [size order base values c-name]}]
  (if order
    (type! writer base)
    (let [signed? (boolean (:signed? base))
          record {:kind (if (= 8 size) :enum64 :enum) :size size :signed? signed?
                  :values (mapv vector (distinct-identifiers (keys values)) (vals values))}]
      (once! writer [:enum record c-name] #(add! writer (cond-> record c-name (assoc :name (identifier c-name))))))))

(defn- members [writer {:keys [members]}]
  (mapv (fn [{:keys [node offset bits bit-offset]} name]
          (cond-> {:type (type! writer node)
                   :bit-offset (if bits bit-offset (* 8 (long offset)))
                   :bits (or bits 0)}
            name (assoc :name name)))
        members
        (distinct-identifiers (map :name members))))

(defn- compound! [writer {:keys [kind size c-name] :as node}]
  (let [members (vec (sort-by :bit-offset (members writer node)))] ; the kernel wants them in order
    (struct! writer [kind c-name size members]
             (cond-> {:kind kind :size size :members members} c-name (assoc :name (identifier c-name))))))

(defn- plain!
  "A node without regard to what it means beyond C."
  [writer {:keys [kind size signed? element count family layout] :as node}]
  (case kind
    :integer (integer! writer size (boolean signed?))
    :float (float! writer size)
    :bool (bool! writer)
    :char (char! writer)
    :pointer (pointer! writer (:target node))
    :ipv4 (typedef! writer "__be32" (integer! writer 4 false))
    :ipv6 (ipv6! writer)
    :mac (array! writer (integer! writer 1 false) 6)
    :bytes (array! writer (integer! writer 1 false) size)
    :pad (array! writer (integer! writer 1 false) size)
    :string (array! writer (char! writer) size)
    :array (array! writer (element! writer element) count)
    :enum (enum! writer node)
    (:struct :union) (compound! writer node)
    :prefix (compound! writer (assoc layout :c-name (semantic/prefix-structs family)))
    :private (private! writer node)
    :via (type! writer (:target node))))

(defn- type!
  "The id of a node's type, added with all that it needs."
  [writer {:keys [type typedef target] :as node}]
  (cond
    typedef (typedef! writer (identifier typedef) (type! writer target))
    (= :port type) (typedef! writer "bpfmap_port" (typedef! writer "__be16" (integer! writer 2 false)))
    (semantic/typedefs type) (typedef! writer (semantic/typedefs type) (plain! writer node))
    :else (plain! writer node)))

(defn records
  "The BTF records of types, and the id of each: `{:records [record …] :ids [id …]}`.

  A nil among the types has the id 0, void."
  [types named]
  (let [writer (atom {:records [] :ids {} :named named})
        ids (mapv #(if % (type! writer (node/node % named [])) 0) types)]
    {:records (:records @writer) :ids ids}))
