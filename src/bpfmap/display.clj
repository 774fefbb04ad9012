(ns bpfmap.display
  "Shows fields of keys, values and events as what they mean, without another type for them.

      (require '[bpfmap.display :as display])

      (display/apply-hints {:src :ipv4, :flags [:flags {:SYN 1 :ACK 2}]} {:src 16777226, :flags 3})
      ;=> {:src \"10.0.0.1\", :flags \"SYN|ACK\"}

  *Hints* are a map from fields to hints. A field is a name or a path, as everywhere in bpfmap:
  `:src`, `\"value.src\"` or `[:value :src]`. A hint is a keyword, such as `:ipv4`, or a vector with
  a parameter, such as `[:usym 4711]`. [[hints]] lists all of them. In a field that is an array, a
  hint for one value is for each element.

  A shown value is a string, or an integer for a port. The original does not change. A number that
  refers to nothing on this host is shown as the number, with the reason:

      (display/apply-hints {:ifindex :ifname} {:ifindex 99})
      ;=> {:ifindex \"99 (no such interface)\"}

  A value that is not what its type says, such as bytes in place of a text, stays as it is.

  Names of interfaces, cgroups, users, processes and symbols are read from this host when they are
  first needed, once for each [[formatter]] and each call of [[apply-hints]]. Interfaces are those
  of the network namespace in which /sys was mounted, users those in /etc/passwd, processes those of
  the pid namespace of /proc. What is read has a bound: 100,000 cgroups, 65,536 processes and addresses, 4,096 ELF files. A number beyond it is
  shown as the number and says so."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.display.hints :as hints]
            [bpfmap.impl.display.host :as host]
            [bpfmap.impl.field-path :as field-path]
            [bpfmap.impl.options :as options]
            [bpfmap.impl.type.node :as node]))

(set! *warn-on-reflection* true)

(def hints
  "All hints: name to `{:meaning :of}`, with `:parameter` if it takes one.

  `:meaning` is what a field is shown as, `:of` which fields the hint fits, `:parameter` what the
  parameter is.

      (:meaning (hints :ktime))
      ;=> \"a time of bpf_ktime_get_ns, as wall-clock time in UTC\""
  (into (sorted-map)
        (for [[name {:keys [meaning of parameter parameter-is]}] hints/table]
          [name (cond-> {:meaning meaning :of of}
                  parameter (assoc :parameter (cond-> parameter-is
                                                (= :optional parameter) (str " (optional)"))))])))

(defn- pairs
  "Returns hints as `[path hint]` pairs; throws for malformed ones."
  [given]
  (when-not (map? given)
    (throw (error/error :invalid-value
                        (str "Hints must be a map of fields to hints, got " (error/printed given))
                        {:bpfmap/op :display :bpfmap/hint "such as {:src :ipv4}"})))
  (for [[field hint] given]
    [(or (field-path/path-of field)
         (throw (error/error :invalid-value
                             (str "A field must be a name or a path, got " (error/printed field))
                             {:bpfmap/op :display
                              :bpfmap/hint "such as :src, \"value.src\" or [:value :src]"})))
     hint]))

(defn- entry-formatter
  "Returns the function that shows entries of a spec."
  [given spec context]
  (let [compiled (hints/compile (pairs given) (hints/sides spec) context)
        show (fn [side x entry] (hints/show-side (get compiled side) x entry))]
    (fn [entry]
      (if (map? entry)
        (reduce (fn [shown side]
                  (if (contains? entry side)
                    (assoc shown side (show side (get entry side) entry))
                    shown))
                entry [:key :value])
        (let [[k v] entry
              entry {:key k :value v}]
          [(show :key k entry) (show :value v entry)])))))

(defn- check-present
  "Throws `:invalid-value` if a value without a type lacks a field."
  [value paths]
  (doseq [path paths :when (not (hints/present? value path))]
    (throw (error/error :invalid-value (str "Unknown field " (field-path/path-text path))
                        {:bpfmap/op :display :bpfmap/path path
                         :bpfmap/hint "the value has no such field"}))))

(defn- value-formatter
  "Returns the function that shows values of a type, which may be nil."
  [given type types context]
  (let [whole? (not (map? given))
        node (when type (node/node type types []))
        all (if whole? [[[] given]] (pairs given))
        ;; A type of which nothing is known
        compiled (hints/compile all {:only (or node {:kind :via})} context)
        paths (when-not node (map first all))]
    (fn [value]
      (check-present value paths)
      (hints/show-side (:only compiled) value {:only value}))))

(defn formatter
  "Returns a function that shows values by hints, checked before any value is read.

  Without options it shows values of an unknown type: integers are as this machine has them in
  memory, and `[:usym field]` names a field of the value. A hint in place of the map is for the
  whole value.

  | option   | meaning                                                                        |
  |----------|--------------------------------------------------------------------------------|
  | `:type`  | the type of the values; hints are checked against it                           |
  | `:spec`  | the spec of a map: the function shows its entries, `[key value]` or `{:key :value}` |
  | `:types` | named types for `:type`; enums of `:flags` and `:enum` are looked up there      |
  | `:btf`   | BTF, as `bpfmap.btf/parse` returns it, in which enums are looked up             |

  With a type, byte orders follow from it: `:ipv4` takes the four bytes as they are in memory.

  Throws `:invalid-value` for an unknown hint or field, for a hint that does not fit its field, and
  for a field with two hints; `:invalid-spec` for a malformed type. The function throws
  `:invalid-value` for a value without type that lacks the field. Several threads may use it.

      (into {} (map (formatter {:src :ipv4, :value :size} {:spec (bpf/spec m)})) m)
      ;=> {{:src \"10.0.0.1\"} \"87.9K\"}"
  ([hints] (formatter hints nil))
  ([hints options]
   (let [{:keys [type spec types btf]} (options/check :display options)
         context {:host (host/resolvers)
                  :types (or types (:types spec))
                  :enum-in (when btf
                             (blob/check btf)
                             #(host/enum-in btf %))}]
     (if spec
       (entry-formatter hints spec context)
       (value-formatter hints type types context)))))

(defn apply-hints
  "Returns a value with its fields shown by hints.

  The options are those of [[formatter]]: use it for more than one value, because each call of this
  function reads the host anew.

      (apply-hints {:started :ktime} {:pid 4711 :started 8123456789012})
      ;=> {:pid 4711, :started \"2026-11-30T17:02:11.123456Z\"}
      (apply-hints :hex 255) ;=> \"0xff\""
  ([hints value] (apply-hints hints value nil))
  ([hints value options] ((formatter hints options) value)))
