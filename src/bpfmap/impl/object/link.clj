(ns ^:no-doc bpfmap.impl.object.link
  "Links a program of an object with the functions that it calls, as instructions in bytes.

  A program for the kernel is one sequence of instructions: the program, then each function that it
  reaches, once. The order is that of libbpf, so that the kernel computes the same tag: a function
  follows at its first use, and before what follows in its caller. References to anything but
  functions stay open; see [[linked]]."
  (:require [bpfmap.asm :as asm]
            [bpfmap.error :as error]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.impl.object.load-error :refer [invalid]]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.io ByteArrayOutputStream)
           (java.nio ByteBuffer ByteOrder)))

(set! *warn-on-reflection* true)

(defn place
  "Returns the key of an object below which a function or program is: `[key f]`.

  Returns nil for an unknown name.

      (place o \"count\") ;=> [:programs {:name \"count\" …}]"
  [{:keys [programs functions]} function-name]
  (if-let [found (get functions function-name)]
    [:functions found]
    (when-let [found (get programs function-name)]
      [:programs found])))

;; --- one function

(defn- assembled-new [[k f] function-name]
  (let [insns (:insns f)
        {:keys [relocations functions] :as assembled}
        (try
          (asm/assemble insns)
          (catch ExceptionInfo e
            (let [data (ex-data e)]
              (throw (ex-info (ex-message e)
                              (assoc data
                                     :bpfmap/op :load
                                     :bpfmap/path (into [k function-name :insns]
                                                        (:bpfmap/path data)))
                              e)))))]
    (when (or (seq functions) (some #(= :call-local (when (vector? %) (first %))) insns))
      (throw (invalid [k function-name :insns]
                      (str "The functions that " function-name
                           " calls must be functions of the object, got a label")
                      "add the function under :functions, and call it by {:function name}")))
    (assoc assembled
           :name function-name
           :part f
           ;; In the order of their places, which is the order of functions.
           :calls (filterv #(#{:call :function} (:kind %)) relocations)
           :relocations (filterv #(not (#{:call :function} (:kind %))) relocations))))

(defn assembler
  "Returns a function of a name that assembles a function or program of an object.

  Each is assembled once. The result has `:bytes :relocations :calls :part`; nil for an unknown
  name. Throws `:invalid-program` with the path in the object."
  [object]
  (let [known (volatile! {})]
    (fn [function-name]
      (or (@known function-name)
          (when-let [found (place object function-name)]
            (let [assembled (assembled-new found function-name)]
              (vswap! known assoc function-name assembled)
              assembled))))))

;; --- reachable functions

(def ^:private most-functions
  "The kernel accepts no more in one program.

  Source: BPF_MAX_SUBPROGS in include/linux/bpf_verifier.h."
  256)

(def ^:private callback-tag "exception_callback:")

(defn- exception-callback
  "Returns the function that a program names for its exceptions, or nil."
  [{:keys [tags]}]
  (some #(when (and (string? %) (str/starts-with? % callback-tag))
           (subs % (count callback-tag)))
        tags))

(defn- unknown-function [{:keys [programs functions]} path wanted]
  (invalid path (str "The object has no function " wanted)
           (or (nearest/did-you-mean wanted (concat (keys functions) (keys programs)))
               "link the objects that define it with `bpftool gen object`")))

(defn reachable
  "Returns the names of a program and all functions that it reaches, in order.

  `assembler` is a result of [[assembler]]. Throws for a function that the object lacks."
  [object assembler program-name]
  (let [order (java.util.LinkedHashSet.)
        add (fn add [function-name path]
              (when (.add order function-name)
                (when (< (long most-functions) (.size order))
                  (throw (invalid [:programs program-name :insns]
                                  (str "A program must have at most " most-functions
                                       " functions"))))
                (let [{:keys [calls]} (or (assembler function-name)
                                          (throw (unknown-function object path function-name)))
                      [k] (place object function-name)]
                  (doseq [{:keys [ref slot]} calls]
                    (add (:function ref) [k function-name :slot slot])))))]
    (add program-name nil)
    (when-let [callback (exception-callback (:part (assembler program-name)))]
      (add callback [:programs program-name :tags]))
    (vec order)))

;; --- the whole

(defn linked
  "Returns a program linked with its functions.

  | key            | value                                                                 |
  |----------------|-----------------------------------------------------------------------|
  | `:code`        | the instructions, a new byte array                                    |
  | `:parts`       | `{:slot n :program f}` for each function, in order                    |
  | `:callbacks`   | the slots of all functions but the first, if one is passed by address |
  | `:relocations` | `{:slot :kind :ref :path}` for all references that are left           |"
  [object assembler program-name]
  (let [names (reachable object assembler program-name)
        parts (mapv assembler names)
        slots (reductions + 0 (map #(quot (alength ^bytes (:bytes %)) 8) parts))
        start (zipmap names slots)
        out (ByteArrayOutputStream.)
        _ (doseq [{:keys [^bytes bytes]} parts] (.write out bytes 0 (alength bytes)))
        code (.toByteArray out)
        buffer (.order (ByteBuffer/wrap code) (ByteOrder/nativeOrder))]
    (doseq [[{:keys [calls]} ^long base] (map vector parts slots)
            {:keys [slot ref]} calls
            :let [at (+ base (long slot))
                  target (long (start (:function ref)))]]
      ;; Distances count from the next slot, also behind a load of two slots.
      (.putInt buffer (int (+ 4 (* 8 at))) (int (- target at 1))))
    {:code code
     :callbacks (when (some #(= :function (:kind %)) (mapcat :calls parts)) (vec (rest slots)))
     :parts (mapv (fn [{:keys [part]} slot] {:slot slot :program part}) parts slots)
     :relocations (into []
                        (mapcat (fn [[{:keys [relocations] f :name} ^long base]]
                                  (let [[k] (place object f)]
                                    (map (fn [{:keys [slot] :as relocation}]
                                           (assoc relocation
                                                  :slot (+ base (long slot))
                                                  :path [k f :slot slot]))
                                         relocations))))
                        (map vector parts slots))}))

(defn part-at
  "Returns the function of a linked program at a slot, and the slot in it: `[f n]`.

      (part-at parts 40) ;=> [{:name \"twice\" …} 3]"
  [parts slot]
  (let [{start :slot :keys [program]} (last (take-while #(<= (long (:slot %)) (long slot)) parts))]
    (when program [program (- (long slot) (long start))])))

(defn line-at
  "Returns the source line of a slot of a linked program, or nil."
  [parts slot]
  (when-let [[{:keys [lines]} n] (part-at parts slot)]
    (last (take-while #(<= (long (:slot %)) (long n)) lines))))
