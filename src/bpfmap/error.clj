(ns bpfmap.error
  "Errors of this library: their data and all their kinds.

  An error is an `ex-info` whose data is EDN and nothing else, so that it can be logged, sent and
  compared. Its keys:

  | key                  | meaning                                                     |
  |----------------------|-------------------------------------------------------------|
  | `:bpfmap/error`      | the kind, a keyword such as `:map-full`; test for this      |
  | `:bpfmap/op`         | the operation, e.g. `:put!`                                 |
  | `:bpfmap/errno`      | the errno of the kernel by name, e.g. `:E2BIG`              |
  | `:bpfmap/errno-code` | the same as a number                                        |
  | `:bpfmap/map`        | `{:id :name :type}` of the map                              |
  | `:bpfmap/path`       | the path of the invalid part of an argument, e.g. `[:value]` |
  | `:bpfmap/file`       | the file, e.g. a pin path                                   |
  | `:bpfmap/hint`       | the cause and how to fix it                                 |

  [[kinds]] lists the kinds. Kinds may be added; a kind that exists keeps its meaning."
  (:require [bpfmap.impl.escape :as escape]
            [clojure.string :as str])
  (:import (clojure.lang BigInt ExceptionInfo RT)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

;; Nearly every namespace requires this one before it imports a class of the Java core. Without this
;; check, the error would be about whichever class is imported first.
(when-not (.getResource (RT/baseLoader) "bpfmap/sys/Codec.class")
  (throw
   (ex-info
    (str "The Java core of bpfmap is not compiled: run bin/clj -T:build javac in its checkout, "
         "or clojure -X:deps prep in a project that depends on it")
    {:bpfmap/error :not-supported})))

(def kinds
  "All kinds of errors: `{kind {:meaning text, :thrown-by text}}`.

      (:meaning (kinds :map-full)) ;=> \"The map has no room for another entry.\""
  (sorted-map
   :ambiguous {:meaning "A name or a path matches several objects. The error lists them."
               :thrown-by "`open`, `prog/open`, commands that take a name or a path"}
   :bug {:meaning "An internal error of bpfmap. Please report it."
         :thrown-by "the pod"}
   :busy {:meaning "The object is in use, so the call cannot be done now."
          :thrown-by "`freeze!`, `memory`, `mem/close`, `put!` on maps of sockets and struct_ops, `bpfmap.events`, `put` of one field, the nREPL server"}
   :closed {:meaning "The map, program, link or memory is closed."
            :thrown-by "all functions that take one"}
   :corrupt {:meaning "The positions or headers in a ring buffer are invalid: another process wrote to it."
             :thrown-by "`bpfmap.events`"}
   :exists {:meaning "The target exists already."
            :thrown-by "`pin!`, `move-pin!`, `put!` on struct_ops, the nREPL server"}
   :incompatible
   {:meaning "The map does not match the spec, the saved map or the given types, or the kernel does not accept the object as a value of the map."
    :thrown-by "`create` with `:pinning`, `open` with types, `put!` on maps of objects, `restore`, `object/load`"}
   :interrupted {:meaning "The thread was interrupted, or a signal ended the call."
                 :thrown-by "`test-run`, `watch`, `diff`, `demo`, the pod"}
   :invalid-edn {:meaning "The text is not EDN, or exceeds a limit."
                 :thrown-by "all that read EDN: the command line, `restore`, the pod"}
   :invalid-message {:meaning "The message does not follow the pod protocol."
                     :thrown-by "the pod"}
   :invalid-program {:meaning "The instructions of a program cannot be assembled."
                     :thrown-by "`prog/load`, `asm/assemble`, `object/load`"}
   :invalid-spec
   {:meaning "The spec breaks a rule of its map type. `:bpfmap/problems` has all problems."
    :thrown-by "`create`, `spec/complete`, `object/load`"}
   :invalid-value {:meaning "An argument, key, value or option is invalid."
                   :thrown-by "all functions"}
   :io {:meaning "A file cannot be read or written."
        :thrown-by "`save`, `restore`, `diff` with a saved map, `object/read`, `object/load`, `link/attach`"}
   :iteration-aborted
   {:meaning "The iteration read twice as many keys as the map can hold. `:bpfmap/so-far` has the result so far."
    :thrown-by "`reduce`, `entries`, `snapshot` and all that iterate"}
   :kernel {:meaning "The kernel returned an errno for which bpfmap has no explanation."
            :thrown-by "all functions that call the kernel"}
   :malformed-btf {:meaning "The bytes are not valid BTF."
                   :thrown-by "`bpfmap.btf`, `open` of a map with BTF"}
   :malformed-object {:meaning "The bytes are not a BPF object that can be read. `:bpfmap/path` has the place."
                      :thrown-by "`object/read`"}
   :map-full {:meaning "The map has no room for another entry."
              :thrown-by "`put!`, `insert!`, `push!`, `put-all!`, `create` with `:contents`, `events/send!`, `events/reserve`"}
   :no-memory {:meaning "The kernel or the JVM has no memory for it."
               :thrown-by "`create`, `put!`, `memory`, `populate!`, `restore`"}
   :not-a-link {:meaning "The object at the path or descriptor is not a link."
                :thrown-by "`link/open`"}
   :not-a-map {:meaning "The object at the path or descriptor is not a map."
               :thrown-by "`open`, `unpin!`, commands"}
   :not-a-program {:meaning "The object at the path or descriptor is not a program."
                   :thrown-by "`prog/open`"}
   :not-bpffs {:meaning "The path is not on a BPF file system."
               :thrown-by "`pin!`, `move-pin!`, `open` by path, `host/pins`"}
   :not-confirmed {:meaning "The map is in use by others. `:yes true` confirms the change."
                   :thrown-by "commands that change a map"}
   :not-found {:meaning "The map, program, pin, name or object does not exist."
               :thrown-by "`open`, `unpin!`, `put!` with a reference, `host` functions, `object/read`, `object/load`"}
   :not-saved {:meaning "The file is not a map saved by `save`."
               :thrown-by "`restore`, `diff` with a saved map"}
   :not-supported
   {:meaning "The map type or the kernel lacks the operation, type or option. The error names an alternative or the required version."
    :thrown-by "all functions"}
   :out-of-range {:meaning "An index or an offset is beyond the end."
                  :thrown-by "`put!` on arrays, `bpfmap.memory`"}
   :permission
   {:meaning "A capability, a file mode, the frozen state or a security module denies the call."
    :thrown-by "all functions that call the kernel"}
   :program-rejected
   {:meaning "The kernel rejected the program. `:bpfmap/reason` has the reason, and `:bpfmap/log` the verifier's log."
    :thrown-by "`prog/load`, `object/load`"}
   :read-only {:meaning "The map was opened read-only, or its memory is mapped read-only."
               :thrown-by "all functions that write"}
   :too-many-files {:meaning "The process or the system has reached its limit of open files."
                    :thrown-by "all functions that open a descriptor"}
   :usage {:meaning "A command got wrong arguments or options."
           :thrown-by "commands"}
   :write-only {:meaning "The map was opened write-only."
                :thrown-by "all functions that read"}))

(defn- cut [text]
  (if (< 200 (count text)) (str (subs text 0 200) "…") text))

(defn shown
  "Returns a value that is safe for error data: EDN only, and short.

  EDN scalars and collections stay. An object of this library becomes its printed text, any other
  object the name of its class. Collections are cut at 16 elements and strings at 200 characters, so
  that an error about a large value stays readable.

      (shown [1 (Object.)]) ;=> [1 \"java.lang.Object\"]"
  [x]
  (cond
    (string? x) (cut x)
    (or (nil? x) (boolean? x) (number? x) (keyword? x) (symbol? x) (char? x)
        (uuid? x) (inst? x)) x
    (map? x) (into {} (map (fn [[k v]] [(shown k) (shown v)])) (take 16 x))
    (set? x) (into #{} (map shown) (take 16 x))
    (sequential? x) (into [] (map shown) (take 16 x))
    (bytes? x) (str "byte[" (alength ^bytes x) "]")
    (str/starts-with? (.getName (class x)) "bpfmap.") (cut (str x))
    :else (.getName (class x))))

(defn unsuffixed
  "Returns data that prints without the N of large integers.

      (pr-str (unsuffixed [18446744073709551615N])) ;=> \"[18446744073709551615]\""
  [x]
  (cond
    (instance? BigInt x) (biginteger x)
    (and (map? x) (not (record? x))) (reduce-kv (fn [m k v]
                                                  (let [y (unsuffixed v)]
                                                    (if (identical? y v) m (assoc m k y))))
                                                x x)
    (vector? x) (mapv unsuffixed x)
    (set? x) (into (empty x) (map unsuffixed) x)
    :else x))

(defn printed
  "Returns the text of a value for a message.

  The value is [[shown]], and large integers have no N.

      (printed {:n 18446744073709551615N}) ;=> \"{:n 18446744073709551615}\""
  [x]
  (pr-str (unsuffixed (shown x))))

;; A REPL prints where an exception was made: for one of this library that is the function that
;; was called, not the one that makes exceptions. `ex-info` trims its own frames at the same cost.

(defn- of-library? [^String class-name] (.startsWith class-name "bpfmap."))

(defn- public?
  "Returns true if the class of a frame belongs to another public namespace."
  [^String class-name]
  (and (of-library? class-name)
       (not (.startsWith class-name "bpfmap.error$"))
       (neg? (.indexOf class-name "." 7))))

(defn- platform? [^String class-name]
  (or (.startsWith class-name "clojure.") (.startsWith class-name "java.")
      (.startsWith class-name "jdk.")))

(defn- start-of
  "Returns the index of the frame that a stack trace begins with.

  It is the public function that other code called, or that code if it called none, as in `(m 7)`.
  If neither is found, or the error points to a fault in this library, it is the function that made
  the error."
  ^long [kind ^objects trace]
  (let [n (alength trace)
        class-at (fn [i] (.getClassName ^StackTraceElement (aget trace (int i))))
        from (fn [i skipped?]
               (loop [i (long i)]
                 (if (and (< i n) (skipped? (class-at i))) (recur (inc i)) i)))
        made (long (from 0 #(.startsWith ^String % "bpfmap.error$")))
        found (long (from made #(if (of-library? %) (not (public? %)) (platform? %))))]
    (if (or (= n found) (contains? #{:bug :kernel} kind))
      made
      (loop [i found called found]
        (let [c (when (< i n) (class-at i))]
          (cond
            (or (nil? c) (not (of-library? c))) called
            ;; A function has two frames; the first has the line.
            (and (public? c) (not= c (class-at called))) (recur (inc i) i)
            :else (recur (inc i) called)))))))

(defn- from-caller
  "Returns an exception whose stack trace begins with the function that was called."
  ^Throwable [kind ^Throwable e]
  (let [trace (.getStackTrace e)]
    (.setStackTrace e (Arrays/copyOfRange trace (int (start-of kind trace)) (alength trace)))
    e))

(defn error
  "Returns the exception of a kind, with a message for people and data for code.

  `data` may have any keys of the table of this namespace; nil values are left out. A hint also ends
  the message, so that a person who sees only the message sees all of it. Control characters in the
  message are escaped, because names in it may come from other programs. The stack trace begins with
  the function of this library that was called.

      (throw (error :invalid-spec \"Invalid map spec\" {:bpfmap/path [:type]}))"
  (^Throwable [kind message data]
   (error kind message data nil))
  (^Throwable [kind message data cause]
   (let [data (into {:bpfmap/error kind} (remove (comp nil? val)) data)
         hint (:bpfmap/hint data)]
     (from-caller kind (ExceptionInfo. (escape/escape (cond-> message hint (str ": " hint)))
                                       data cause)))))

(defn id-and-name
  "Returns how messages refer to a map: its id, and its name if it has one.

  Before Linux 4.13 maps have no ids.

      (id-and-name {:id 12 :name \"counts\"}) ;=> \"12 (counts)\""
  [{:keys [id name]}]
  (cond
    (seq name) (str id (when id " ") "(" name ")")
    id (str id)
    :else "without an id"))

(defn named-map?
  "Returns true if x is a map with only keywords as keys.

  Looking up a key in it is safe, but not in a sorted map whose keys do not compare.

      (named-map? {:lock true}) ;=> true"
  [x]
  (and (map? x) (every? keyword? (keys x))))

(defn plural
  "Returns a number and its noun.

  By default, the plural of the noun ends in s.

      (plural 1 \"byte\")              ;=> \"1 byte\"
      (plural 2 \"byte\")              ;=> \"2 bytes\"
      (plural 2 \"entry\" \"entries\") ;=> \"2 entries\""
  ([n one] (plural n one (str one "s")))
  ([n one many] (str n " " (if (= 1 n) one many))))

(defn list-of
  "Returns alternatives joined for a message: `:a, :b or :c`.

  With \"and\", joins a complete list.

      (list-of [:a :b :c])       ;=> \":a, :b or :c\"
      (list-of [:a :b :c] \"and\") ;=> \":a, :b and :c\""
  ([xs] (list-of xs "or"))
  ([xs word]
   (let [xs (map str xs)]
     (if (next xs)
       (str (str/join ", " (butlast xs)) " " word " " (last xs))
       (str (first xs))))))
