(ns bpfmap.codec
  "Compiles a type to a codec: an object that writes a value into memory and reads it back.

  A codec either writes every byte of its size, padding as zero, or throws
  `:invalid-value` with the path, the type and the value. It holds no state and
  may be shared between threads. What it reads holds no reference to the
  memory.

  Writing what was read gives the same bytes, whatever the bytes are. What no
  natural value stands for (a NaN with a payload, a text with something behind its
  NUL, a bool of 7) reads as a byte view, which every type takes; a struct or union
  whose unused bits are not zero has them under `:bpfmap/padding`. Functions of
  the user's in a `[:via …]` are the only exception."
  (:require [bpfmap.codec.compound :as compound]
            [bpfmap.codec.network :as network]
            [bpfmap.codec.scalar :as scalar]
            [bpfmap.type.node :as node])
  (:import (bpfmap.sys Codec Integers)))

(set! *warn-on-reflection* true)

(def ^:private makers
  "Kind of node to what makes its codec from the node, the path, and the function that compiles its parts."
  (let [without-parts (fn [make] (fn [node path _codec] (make node path)))]
    {:integer (without-parts scalar/integer)
     :float (without-parts scalar/floating)
     :bool (without-parts scalar/bool)
     :char (without-parts scalar/character)
     :pointer (without-parts scalar/pointer)
     :bytes (without-parts scalar/fixed-bytes)
     :string (without-parts scalar/text)
     :private (without-parts scalar/nothing)
     :pad (without-parts scalar/nothing)
     :ipv4 (without-parts network/ipv4)
     :ipv6 (without-parts network/ipv6)
     :mac (without-parts network/mac)
     :prefix network/prefix
     :array compound/array
     :struct compound/struct
     :union compound/union
     :enum compound/enum
     :via compound/via}))

(defn- compiler
  "The function that compiles a node at a path, parts and all, by a table of makers."
  [makers]
  (fn of-node [node path]
    ((makers (:kind node)) node path of-node)))

(def ^:private of-value (compiler makers))

(def ^:private of-key
  (compiler (assoc makers
                   :float (fn [node path _codec] (scalar/floating-key node path))
                   :via compound/via-key)))

(deftype ^:private TypeCodec [^Codec compiled ^long integers type]
  Codec
  (size [_] (.size compiled))
  (total [_] (.total compiled))
  (integers [_] (int integers))
  (encode [_ value memory offset] (Integers/write (int integers) compiled value memory offset))
  (decode [_ memory offset] (Integers/read (int integers) compiled memory offset))
  Object
  (toString [_] (str "codec of " (pr-str type) ", " (.size compiled) " bytes")))

(defn- compiled ^Codec [of-node type types path]
  (let [^Codec compiled (of-node (node/node type types path) path)]
    (TypeCodec. compiled (.integers compiled) type)))

(defn codec
  "Compiles a type to a `bpfmap.sys.Codec`.

  `types` maps names to types. `path` is where the type stands, for error
  messages. Throws `:invalid-spec` for a malformed type.

      (.size (codec [:struct [:a :u8] [:b :u32]])) ;=> 8"
  (^Codec [type] (codec type nil []))
  (^Codec [type path] (codec type nil path))
  (^Codec [type types path] (compiled of-value type types path)))

(defn key-codec
  "Compiles a type to a codec of keys: as [[codec]], and different bytes read as values that are not `=`.

  That takes one thing more: a floating-point number that is -0.0, which is `=` to 0.0, or NaN, which is `=` to nothing,
  reads as a byte view.

      (.decode (key-codec :f32 nil [:key]) memory 0) ;=> #bpfmap/bytes \"00 00 00 80\""
  ^Codec [type types path]
  (compiled of-key type types path))
