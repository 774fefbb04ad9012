(ns ^:no-doc bpfmap.impl.object.reader
  "Reads a whole object from its bytes, as one value."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.object.code :as code]
            [bpfmap.impl.object.context :as context]
            [bpfmap.impl.object.data :as data]
            [bpfmap.impl.object.extension :as extension]
            [bpfmap.impl.object.malformed :refer [malformed of-btf]]
            [bpfmap.impl.object.maps :as maps])
  (:import (clojure.lang ExceptionInfo)
           (java.nio ByteBuffer ByteOrder)
           (java.nio.charset StandardCharsets)))

(set! *warn-on-reflection* true)

(defn- license
  "Returns the text of the section `license`, empty if there is none."
  [ctx]
  (if-let [section (context/section-named ctx "license")]
    (let [contents (context/contents ctx section)
          end (first (keep-indexed #(when (zero? (long %2)) %1) (take 1024 contents)))]
      (when-not end
        (throw (malformed [:section "license"] "the text must end with a NUL")))
      (String. contents 0 (int end) StandardCharsets/UTF_8))
    ""))

(defn- kernel-version [{:keys [order] :as ctx}]
  (when-let [section (context/section-named ctx "version")]
    (let [contents (context/contents ctx section)]
      (when-not (= 4 (alength contents))
        (throw (malformed [:section "version"] (str "it must have 4 bytes, got "
                                                    (alength contents)))))
      (bit-and 0xffffffff (.getInt (.order (ByteBuffer/wrap contents) order))))))

(defn- btf-bytes
  "Returns the bytes of the BTF, with the places of variables filled in.

  A compiler leaves out these places, and the sizes of the data sections."
  [{:keys [btf order datasecs] :as ctx}]
  (when btf
    (let [raw (blob/with-sections btf nil)
          contents (context/contents ctx (context/section-named ctx ".BTF"))
          buffer (.order (ByteBuffer/wrap contents) order)]
      (doseq [id datasecs
              :let [{:keys [size vars]} (blob/record btf id)
                    places (into {} (map (juxt :type :offset)) vars)
                    at (blob/entries-at raw id)]]
        (.putInt buffer (int (- at 4)) (unchecked-int size))
        (doseq [[i {:keys [type]}] (map-indexed vector (:vars (blob/record raw id)))
                :let [offset (places type)]
                :when offset]
          (.putInt buffer (int (+ at (* 12 (long i)) 4)) (unchecked-int offset))))
      (bytes/wrap contents))))

(defn- extension-of [{:keys [btf] :as ctx}]
  (when-let [section (and btf (context/section-named ctx ".BTF.ext"))]
    (extension/parse (context/contents ctx section) btf)))

(defn- assembled [ctx]
  (let [extension (extension-of ctx)
        functions (code/functions ctx)
        function-names (into {} (map (fn [{:keys [section value unique]}]
                                       [[(:index section) value] unique]))
                             functions)
        {:keys [map-names map-sections] :as of-maps} (maps/maps ctx function-names)
        {:keys [variables places] :as of-data} (data/variables (data/decoder ctx))
        {:keys [kconfig ksyms]} (data/kernel-symbols ctx)
        {:keys [programs functions]}
        (code/read-code (assoc ctx
                               :map-names map-names
                               :map-sections map-sections
                               :places places
                               :externs (into (zipmap (keys kconfig) (repeat :kconfig))
                                              (map (juxt key (comp :kind val)))
                                              ksyms))
                        functions extension)
        version (kernel-version ctx)
        b (btf-bytes ctx)]
    (cond-> {:license (license ctx)
             :byte-order (if (= ByteOrder/BIG_ENDIAN (:order ctx)) :big-endian :little-endian)
             :maps (merge (:maps of-data) (:maps of-maps))
             :programs programs
             :functions functions
             :variables (data/with-pointers (assoc ctx
                                                   :map-names map-names
                                                   :function-names function-names
                                                   :places places)
                          variables)
             :kconfig kconfig
             :ksyms ksyms}
      version (assoc :kernel-version version)
      b (assoc :btf b))))

(defn of-bytes
  "Reads the bytes of an object, as `bpfmap.object/read` describes.

  The array is not copied, so nobody may write to it any more. Throws `:malformed-object`.

      (:license (of-bytes bytes)) ;=> \"GPL\""
  [^bytes bytes]
  (try
    (assembled (context/of bytes))
    (catch ExceptionInfo e
      (throw (of-btf e)))))
