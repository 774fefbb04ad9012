(ns ^:no-doc bpfmap.impl.object.core-relocation
  "Decodes CO-RE relocations (compile once, run everywhere): what an instruction wants to know of a
  type of the kernel.

  The record of the compiler has the type of the object's BTF, a kind, and a text that says what in
  the type is meant: \"0:4:1\" is member 4 of the first of an array of the type, and in it member 1.
  Here that becomes a path of names."
  (:require [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.types :as types]
            [bpfmap.impl.isa :as isa]
            [bpfmap.impl.object.context :as context]
            [bpfmap.impl.object.core :as core]
            [bpfmap.impl.object.malformed :refer [malformed]])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(def kinds
  "Kinds of relocations by number: the kernel's `enum bpf_core_relo_kind`."
  [:field-byte-offset :field-byte-size :field-exists :field-signed :field-lshift-u64
   :field-rshift-u64 :type-id-local :type-id-target :type-exists :type-size :enumval-exists
   :enumval-value :type-matches])

(defn- indices [path ^String access]
  (or (core/steps-of access)
      (throw (malformed path (str "the access string must be numbers with colons, got "
                                  (pr-str (subs access 0 (min 80 (count access)))))))))

(defn- step
  "Returns the name of a step into a type, and the id of the type that it reaches.

  The name is in a vector, which is empty or nil for an anonymous member."
  [ctx path id i]
  (let [id (blob/resolve (:btf ctx) id)
        {:keys [kind members element]} (context/record ctx id)]
    (case kind
      (:struct :union)
      (if-let [{:keys [name type]} (get members i)]
        [(when name [(keyword name)]) type]
        (throw (malformed path (str "it names member " i ", and the type has "
                                    (count members)))))
      ;; An array at the end of a struct may be used beyond its length.
      :array [[i] element]
      (throw (malformed path (str "it leads into a type of kind " (name kind)))))))

(defn- field-path
  "Returns the members and elements that an access string names.

  It begins with the index of the whole, which is left out if it is 0."
  [ctx path id [root & more]]
  (loop [id id, more more, names (if (zero? (long root)) [] [root])]
    (if-let [i (first more)]
      (let [[found id] (step ctx path id i)]
        (recur id (next more) (into names found)))
      names)))

(defn- enumerator [ctx path id i]
  (let [id (blob/resolve (:btf ctx) id)
        {:keys [kind values]} (context/record ctx id)]
    (when-not (and (#{:enum :enum64} kind) (contains? values i))
      (throw (malformed path (str "it names enumerator " i " of a type of kind " (name kind)))))
    (str (first (values i)))))

(defn decoded
  "Returns a record of `.BTF.ext` as data.

  The result has `:kind`, `:type` as C spells it, `:type-id` in the object's BTF and `:access`. A
  field has its `:path`, and an enumerator its name under `:enumerator`.

      (decoded ctx path {:type 12 :access \"0:1\" :kind 0})
      ;=> {:kind :field-byte-offset :type \"struct task_struct\" :type-id 12 :access \"0:1\" :path [:pid]}"
  [{:keys [btf] :as ctx} path {:keys [type access kind]}]
  (when-not (<= 1 (long type) (blob/type-count btf))
    (throw (malformed path (str "it is of type " type ", and the last one is "
                                (blob/type-count btf)))))
  (let [kind (get kinds kind kind)
        steps (indices path access)]
    (cond-> {:kind kind
             :type (types/c-text btf type 0)
             :type-id type
             :access access}
      (#{:field-byte-offset :field-byte-size :field-exists :field-signed :field-lshift-u64
         :field-rshift-u64} kind)
      (assoc :path (field-path ctx path type steps))
      (#{:enumval-exists :enumval-value} kind)
      (assoc :enumerator (enumerator ctx path type (first steps))))))

;; --- compared with a kernel

(defn- flat [x]
  (if (and (sequential? x) (not (and (vector? x) (keyword? (first x)))))
    (mapcat flat x)
    [x]))

(defn- opcodes
  "Returns the opcodes of instructions by their slots."
  [insns]
  (first
   (reduce (fn [[found slot] insn]
             (if (vector? insn)
               (let [{:keys [code slots]} (isa/mnemonics (first insn))]
                 [(assoc found slot (if (= :insn (first insn)) (:code (second insn)) code))
                  (+ (long slot) (long (or slots 1)))])
               [found slot]))
           [{} 0] (mapcat flat insns))))

(defn- explained
  "Returns a relocation with its value, or with the reason why it has none."
  [local targets codes {:keys [slot] :as relocation}]
  (let [{:keys [value poison misfit]}
        (try
          (core/resolve local targets relocation)
          (catch ExceptionInfo e
            (if (= :ambiguous (:bpfmap/error (ex-data e)))
              {:poison (ex-message e)}
              (throw e))))
        code (codes slot)
        reason (or poison
                   (when (and misfit code (<= 1 (bit-and 7 (long code)) 3)) misfit))]
    (cond-> (assoc relocation :satisfied (nil? reason))
      reason (assoc :reason reason)
      (nil? reason) (assoc :value value))))

(defn explained-relocations
  "Returns the relocations of a program, with `:satisfied` and the result.

  The result is the `:value`, or the `:reason` why there is none.

      (explained-relocations l t program)
      ;=> [{:slot 24 :kind :field-byte-offset … :satisfied true :value 1264} …]"
  [local targets {:keys [insns core]}]
  (let [codes (opcodes insns)]
    (mapv #(explained local targets codes %) core)))
