(ns ^:no-doc bpfmap.impl.options
  "The options of functions that take a map of them: one table, and one check."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.nearest :as nearest]))

(set! *warn-on-reflection* true)

(def ^:private flag [boolean? "true or false"])
(def ^:private anything [any? nil])
(def ^:private seconds
  [#(or (nil? %) (and (number? %) (<= 0 %))) "a number of seconds, 0 or more"])
(def ^:private positive
  [#(and (int? %) (<= 1 (long %) 0xffffffff)) "a positive 32-bit integer"])
(def ^:private function [#(or (nil? %) (fn? %) (var? %)) "a function"])
(def ^:private events
  "Options of all that read events."
  {:type anything :types anything :raw flag :timeout seconds :seconds seconds
   :on-error function :on-lost function})
(def ^:private picture
  "Options of all that return a picture."
  {:title [#(or (nil? %) (string? %)) "a string"] :width positive :height positive})
(def ^:private options-of
  "Options by operation: option to predicate, constraint and hint.

  The operation is the `:bpfmap/op` of errors. The order is the order in messages."
  {:create {:pin-path anything :mapped flag}
   :simulate {:cpus [#(and (int? %) (<= 1 (long %) 8192)) "an integer from 1 to 8192"]
              :pin-path anything :mapped flag}
   :open {:access [#{:read-write :read-only :write-only} ":read-write, :read-only or :write-only"]
          :key anything :value anything :key-type anything :value-type anything
          :types anything :mapped flag}
   :lookup {:cpu anything :lock flag}
   :lookup-all {:cpu anything :lock flag}
   :entries {:cpu anything :lock flag}
   :snapshot {:cpu anything :lock flag}
   :take! {:lock flag}
   :drain! {:lock flag}
   :drain-into! {:lock flag}
   :put! {:cpu anything :cpus [#{:all} ":all"] :lock flag}
   :insert! {:cpu anything :cpus [#{:all} ":all"] :lock flag}
   :replace! {:cpu anything :cpus [#{:all} ":all"] :lock flag}
   :put-all! {:cpus [#{:all} ":all"] :lock flag}
   :push! {:overwrite anything}
   :list {:brief flag}
   :relocations {:kernel-btf anything}
   :test-run {:data anything :context anything
              :repeat [#(or (nil? %) (and (int? %) (<= 1 (long %) 0x7fffffff)))
                       "a positive 32-bit integer"]}
   :load {:maps [#(or (nil? %) (map? %)) "a map of names to open maps"]
          :pin-path anything
          :only [#(or (nil? %) (and (coll? %) (every? string? %))) "a collection of program names"]
          :attach-to [#(or (nil? %) (map? %)) "a map of names to open programs"]
          :kernel-btf anything
          :log [#{nil :stats :full} ":stats or :full"]}
   :watch {:interval anything}
   :plot-histogram (assoc picture :unit [#(or (nil? %) (string? %)) "a string"])
   :plot-heat-map (assoc picture :unit [#(or (nil? %) (string? %)) "a string"])
   :plot-rates (assoc picture :field anything :limit positive)
   :plot-top (assoc picture :field anything :limit positive)
   :display {:type anything :spec [#(or (nil? %) (map? %)) "the spec of a map"] :types anything
             :btf anything}
   :reader (assoc events
                  :steal flag
                  :pages [#(and (int? %) (pos? (long %)) (= 1 (Long/bitCount %)))
                          "a power of two, in pages"]
                  :wakeup-events positive
                  :wakeup-bytes positive
                  :with-cpu flag
                  :overwrite flag)
   :peek (assoc events :from [#{:oldest :now} ":oldest or :now"] :with-cpu flag)
   :emit! {:type anything :types anything}
   :writer {:type anything :types anything :steal flag}
   :send! {:timeout seconds}
   :reserve {:timeout seconds}
   :subscribe {:on-error function :on-lost function}
   :nrepl {:socket anything :port anything :trust-all-local-users anything}})

(def ^:private renamed
  "Hints about options that were renamed."
  (let [mapped {:via "use {:mapped true}"}]
    {:create mapped :open mapped}))

(defn- invalid [op path message hint]
  (error/error :invalid-value message
               (cond-> {:bpfmap/op op :bpfmap/path path}
                 hint (assoc :bpfmap/hint hint))))

(defn check
  "Returns the options of an operation, or nil; throws for invalid ones.

  They must be a map of options that the operation accepts, with accepted values. Otherwise
  `:invalid-value` is thrown.

      (check :take! {:lock true}) ;=> {:lock true}
      (check :take! {:lok true})  ; throws: Unknown option :lok: did you mean :lock?"
  [op options]
  (when-not (or (nil? options) (map? options))
    (throw (invalid op [] (str "Options must be a map, got " (error/printed options)) nil)))
  (let [known (options-of op)]
    (reduce-kv (fn [_ k value]
                 (let [[good? text hint :as row] (get known k)]
                   (when-not row
                     (throw (invalid op [(error/shown k)]
                                     (str "Unknown option " (error/printed k))
                                     (or (get-in renamed [op k])
                                         (nearest/alternatives k (sort (keys known)))))))
                   (when-not (good? value)
                     (throw (invalid op [k]
                                     (str k " must be " text ", got "
                                          (error/printed value))
                                     hint)))))
               nil options))
  options)
