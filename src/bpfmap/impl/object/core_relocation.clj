(ns ^:no-doc bpfmap.impl.object.core-relocation
  "Decodes CO-RE relocations (compile once, run everywhere): what an instruction wants to know of a
  type of the kernel.

  The record of the compiler has the type of the object's BTF, a kind, and a text that says what in
  the type is meant: \"0:4:1\" is member 4 of the first of an array of the type, and in it member 1.
  Here that becomes a path of names."
  (:require [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.types :as types]
            [bpfmap.impl.object.context :as context]
            [bpfmap.impl.object.malformed :refer [malformed]]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def kinds
  "Kinds of relocations by number: the kernel's `enum bpf_core_relo_kind`."
  [:field-byte-offset :field-byte-size :field-exists :field-signed :field-lshift-u64
   :field-rshift-u64 :type-id-local :type-id-target :type-exists :type-size :enumval-exists
   :enumval-value :type-matches])

(def ^:private longest "The kernel takes 64 steps." 64)

(defn- indices [path access]
  (let [parts (str/split access #":" -1)]
    (when-not (and (<= (count parts) (long longest))
                   (every? #(re-matches #"[0-9]{1,9}" %) parts))
      (throw (malformed path (str "the access string must be numbers with colons, got "
                                  (pr-str (subs access 0 (min 80 (count access))))))))
    (mapv parse-long parts)))

(defn- step
  "Returns the name of a step into a type, and the id of the type that it reaches.

  The name is in a vector, which is empty or nil for an anonymous member."
  [ctx path id i]
  (let [id (blob/resolve (:btf ctx) id)
        {:keys [kind members element count]} (context/record ctx id)]
    (case kind
      (:struct :union)
      (if-let [{:keys [name type]} (get members i)]
        [(when name [(keyword name)]) type]
        (throw (malformed path (str "it names member " i ", and the type has "
                                    (clojure.core/count members)))))
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
