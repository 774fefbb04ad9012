(ns ^:no-doc bpfmap.impl.link.output
  "Reduces what an iterator prints: as lines of text, or as records of a type."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.kernel.link :as kernel.link])
  (:import (bpfmap.sys Codec)
           (clojure.lang IReduce IReduceInit)
           (java.io ByteArrayOutputStream)
           (java.lang.foreign MemorySegment)
           (java.nio.charset StandardCharsets)))

(set! *warn-on-reflection* true)

(def ^:private nothing (Object.))

;; What an iterator prints. `pass` is a function of f and an initial value that makes one pass.
(deftype Output [what link pass]
  IReduceInit
  (reduce [_ f init] (pass f init))
  IReduce
  (reduce [_ f]
    (let [result (pass (fn [acc x] (if (identical? nothing acc) x (f acc x))) nothing)]
      (if (identical? nothing result) (f) result)))
  Object
  (toString [_] (str "#<" what " of " link ">")))

(defmethod print-method Output [output ^java.io.Writer w] (.write w (str output)))

(def ^:private longest-line "Bytes of a line; a longer one is delivered in parts." 0x100000)

(defn- lines-of-chunk
  "Reduces the lines that end in a chunk.
  The rest stays in `partial-line`."
  [f acc ^ByteArrayOutputStream partial-line ^bytes chunk]
  (let [n (alength chunk)
        line (fn [] (let [text (.toString partial-line StandardCharsets/UTF_8)]
                      (.reset partial-line)
                      text))]
    (loop [acc acc, from 0, i 0]
      (cond
        (= i n)
        (do (.write partial-line chunk (int from) (int (- i from)))
            acc)

        (or (= 10 (aget chunk i)) (= (+ (.size partial-line) (- i from)) (long longest-line)))
        (let [end? (= 10 (aget chunk i))
              next-from (if end? (inc i) i)]
          (.write partial-line chunk (int from) (int (- i from)))
          (let [acc (f acc (line))]
            (if (reduced? acc)
              acc
              (recur acc (long next-from) (inc i)))))

        :else
        (recur acc from (inc i))))))

(defn lines
  "Returns the reducible of the lines of an iterator."
  ^Output [link fd]
  (Output. "lines" link
           (fn [f init]
             (let [partial-line (ByteArrayOutputStream.)
                   acc (kernel.link/reduce-output
                        fd
                        (fn [acc chunk]
                          (let [acc (lines-of-chunk f acc partial-line chunk)]
                            ;; Twice: the outer one ends the reading.
                            (if (reduced? acc) (reduced acc) acc)))
                        init {:op :lines :object :link})]
               (cond
                 (reduced? acc) @acc
                 (pos? (.size partial-line))
                 (unreduced (f acc (.toString partial-line StandardCharsets/UTF_8)))
                 :else acc)))))

(defn- cut-error ^Throwable [n size]
  (error/error :invalid-value
               (str "The type must have the size of a record of the iterator, got one of "
                    (error/plural size "byte"))
               {:bpfmap/op :records
                :bpfmap/hint (str (error/plural n "byte is" "bytes are")
                                  " left over at the end of its output")}))

(defn records
  "Returns the reducible of the records of an iterator, decoded.

  `types` maps names in the type to types."
  ^Output [link fd type types]
  (let [^Codec codec (codec/codec type types [])
        size (.size codec)]
    (when (zero? size)
      (throw (error/error :invalid-value
                          (str "The type of a record must have at least one byte, got "
                               (error/printed type))
                          {:bpfmap/op :records})))
    (Output. "records" link
             (fn [f init]
               (let [part (ByteArrayOutputStream.)
                     acc (kernel.link/reduce-output
                          fd
                          (fn [acc ^bytes chunk]
                            (.write part chunk)
                            (let [bytes (.toByteArray part)
                                  memory (MemorySegment/ofArray bytes)
                                  n (quot (alength bytes) size)]
                              (.reset part)
                              (.write part bytes (int (* n size))
                                      (int (- (alength bytes) (* n size))))
                              (loop [acc acc i 0]
                                (if (= i n)
                                  acc
                                  (let [acc (f acc (.decode codec memory (* i size)))]
                                    (if (reduced? acc)
                                      (reduced acc)
                                      (recur acc (inc i))))))))
                          init {:op :records :object :link})]
                 (cond
                   (reduced? acc) @acc
                   (pos? (.size part)) (throw (cut-error (.size part) size))
                   :else acc))))))
