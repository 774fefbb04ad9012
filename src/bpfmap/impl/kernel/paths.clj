(ns ^:no-doc bpfmap.impl.kernel.paths
  "Converts paths between bytes, as the kernel has them, and text.

  The text of a path is its UTF-8. If it is not UTF-8, or would be misread when printed, `\\xHH`
  stands for a byte and `\\\\` for a backslash. [[bytes-of]] returns the bytes of a text, and of a
  text as [[printable]] returns it; neither depends on the locale. [[resolve]] reads a path that a
  user gave: the path itself, or as it was printed."
  (:refer-clojure :exclude [resolve])
  (:require [bpfmap.impl.escape :as escape]
            [clojure.string :as str])
  (:import (bpfmap.sys Fd FileSyscalls Native)
           (java.io ByteArrayOutputStream File)
           (java.net URI)
           (java.nio ByteBuffer)
           (java.nio.charset CharacterCodingException StandardCharsets)
           (java.nio.file Path)
           (java.util Arrays)
           (java.util.function ObjIntConsumer)))

(set! *warn-on-reflection* true)

;; --- bytes to text and back

(defn utf-8
  "Returns the text of bytes in UTF-8, or nil if they are not UTF-8.

      (utf-8 (byte-array [0xc3 0xa9])) ;=> \"é\""
  [^bytes bytes]
  (try
    (str (.decode (.newDecoder StandardCharsets/UTF_8) (ByteBuffer/wrap bytes)))
    (catch CharacterCodingException _ nil)))

(def ^:private escapes
  "Matches an escape in a printed path.

  It stands for a backslash, a byte, a character, or the two halves of a character."
  #"\\\\|\\x[0-9a-fA-F]{2}|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}")

(defn printable
  "Returns the text of a path without control characters, as `\\uHHHH`.

      (printable \"/tmp/two\\nlines\") ;=> \"/tmp/two\\\\u000alines\""
  [path]
  (escape/escape path))

(defn- escape-byte [b] (format "\\x%02x" (bit-and 0xff (long b))))

(defn- utf-8-length
  "Returns the length in bytes of the character at an offset, or 0 if invalid."
  ^long [^bytes bytes ^long offset]
  (let [lead (bit-and 0xff (long (aget bytes offset)))
        n (cond (< lead 0x80) 1 (< lead 0xe0) 2 (< lead 0xf0) 3 :else 4)]
    (if (and (<= (+ offset n) (alength bytes))
             (utf-8 (Arrays/copyOfRange bytes (int offset) (int (+ offset n)))))
      n
      0)))

(defn- escape-bytes
  "Returns bytes as text with escapes.

  Backslashes are doubled, so that none is read as an escape."
  [^bytes bytes]
  (let [out (StringBuilder.)]
    (loop [i 0]
      (when (< i (alength bytes))
        (let [n (utf-8-length bytes i)
              character (when (pos? n) (utf-8 (Arrays/copyOfRange bytes (int i) (int (+ i n)))))]
          (cond
            ;; A table doubles a backslash before anything that looks like an escaped character.
            (= "\\" character) (.append out (if (= (int \u) (get bytes (inc i))) "\\x5c" "\\\\"))
            (and character (= character (escape/escape character))) (.append out ^String character)
            :else (dotimes [j (max 1 n)] (.append out ^String (escape-byte (aget bytes (+ i j))))))
          (recur (+ i (max 1 n))))))
    (str out)))

(defn- surrogate-byte
  "Returns the byte that a lone surrogate stands for, or nil.
  See [[argument]]."
  [code]
  (when (<= 0xdc80 (long code) 0xdcff)
    (- (long code) 0xdc00)))

(defn exact-bytes
  "Returns the bytes of a text in UTF-8, without reading escapes.

  A lone surrogate of [[argument]] is the byte that it stands for. Returns nil for any other lone
  surrogate, which has no bytes."
  ^bytes [^String text]
  (if (not-any? #(Character/isSurrogate %) text)
    (.getBytes text StandardCharsets/UTF_8)
    (let [out (ByteArrayOutputStream.)]
      (loop [codes (iterator-seq (.iterator (.codePoints text)))]
        (if-let [[^int code & more] (seq codes)]
          (if-let [b (surrogate-byte code)]
            (do (.write out (int b)) (recur more))
            (when-not (<= 0xd800 code 0xdfff)
              (.writeBytes out (.getBytes (Character/toString code) StandardCharsets/UTF_8))
              (recur more)))
          (.toByteArray out))))))

(defn bytes-of
  "Returns the bytes of a path given as [[text]] or [[printable]] returns it.

      (vec (bytes-of \"/a\\\\xff\")) ;=> [47 97 -1]"
  ^bytes [path]
  (if-not (str/includes? path "\\")
    (exact-bytes path)
    (let [out (ByteArrayOutputStream.)
          matcher (re-matcher escapes path)]
      (loop [from 0]
        (let [found? (.find matcher)
              to (if found? (.start matcher) (count path))]
          (.writeBytes out (exact-bytes (subs path from to)))
          (when found?
            (let [found (.group matcher)]
              (cond
                (= "\\\\" found) (.write out (int \\))
                (= \x (nth found 1)) (.write out (int (Long/parseLong (subs found 2) 16)))
                :else (.writeBytes out
                                   (exact-bytes (apply str
                                                       (map #(char (Long/parseLong (second %) 16))
                                                            (re-seq #"u(.{4})" found)))))))
            (recur (.end matcher)))))
      (.toByteArray out))))

(defn text
  "Returns the text of a path given as bytes.

  No other path has this text, or is printed as this text.

      (text (.getBytes \"/sys/fs/bpf/café\"))    ;=> \"/sys/fs/bpf/café\"
      (text (byte-array [0x2f 0x61 0xff])) ;=> \"/a\\\\xff\""
  [^bytes bytes]
  (let [plain (utf-8 bytes)]
    (if (and plain
             (or (and (not (str/includes? plain "\\")) (= plain (printable plain)))
                 (Arrays/equals bytes (bytes-of (printable plain)))))
      plain
      (escape-bytes bytes))))

(defn c-string
  "Returns the bytes of a path with a NUL at the end."
  ^bytes [path]
  (let [bytes (bytes-of path)]
    (Arrays/copyOf bytes (inc (alength bytes)))))

(defn argument
  "Returns the text of a command line argument.

  A byte that is not UTF-8 becomes a lone surrogate, U+DC80 to U+DCFF, which [[exact-bytes]]
  converts back.

      (argument (.getBytes \"café\")) ;=> \"café\""
  [^bytes bytes]
  (or (utf-8 bytes)
      (let [out (StringBuilder.)]
        (loop [i 0]
          (if (< i (alength bytes))
            (let [n (utf-8-length bytes i)]
              (if (zero? n)
                (.append out (char (+ 0xdc00 (bit-and 0xff (long (aget bytes i))))))
                (.append out ^String (utf-8 (Arrays/copyOfRange bytes (int i) (int (+ i n))))))
              (recur (+ i (max 1 n))))
            (str out))))))

;; --- a path and its parts

(defn parent
  "Returns the parent directory of a path; nil for the root and for \".\".

  The parent of a name alone is \".\".

      (parent \"/sys/fs/bpf/flows\") ;=> \"/sys/fs/bpf\""
  [path]
  (let [path (if (re-find #"[^/]" path) (str/replace path #"/+$" "") path)
        slash (str/last-index-of path "/")]
    (cond
      (re-matches #"/*" path) nil
      slash (let [above (str/replace (subs path 0 slash) #"/+$" "")] (if (= "" above) "/" above))
      (= "." path) nil
      :else ".")))

(defn file-name
  "Returns the last part of a path.

      (file-name \"/sys/fs/bpf/flows\") ;=> \"flows\""
  [path]
  (last (str/split path #"/+")))

(defn child
  "Returns the path of a name in a directory.

      (child \"/sys/fs/bpf\" \"flows\") ;=> \"/sys/fs/bpf/flows\""
  [directory name]
  (str directory (when-not (str/ends-with? directory "/") "/") name))

;; --- files

(def ^:private types
  "Types of files by the type bits of `st_mode`, which `readdir(3)` uses too.

  Source: linux/stat.h, dirent.h."
  {010 :file, 004 :directory, 012 :link})

(defn- type-of-mode [mode] (types (bit-shift-right (long mode) 12) :other))

(defn type-of
  "Returns the type of a file, or the negated errno.

  One of `:file`, `:directory`, `:link` and `:other`. A symbolic link is `:link` unless `follow?`
  is true."
  [path follow?]
  (let [mode (FileSyscalls/mode (bytes-of path) (boolean follow?))]
    (if (neg? mode) mode (type-of-mode mode))))

(defn directory?
  "Returns true if a path leads to a directory."
  [path]
  (= :directory (type-of path true)))

(defn remove-file
  "Removes a file; returns 0 or the negated errno."
  [path]
  (FileSyscalls/remove (bytes-of path)))

(defn entries
  "Returns the entries of a directory as `{:path :type}`, or the negated errno.

  They have no order."
  [directory]
  (let [number (FileSyscalls/open (bytes-of directory) 0 0)]
    (if (neg? number)
      number
      (with-open [fd (Fd/own number)]
        (let [found (volatile! (transient []))
              base (bytes-of (child directory ""))
              outcome (FileSyscalls/entries
                       fd
                       (reify ObjIntConsumer
                         (accept [_ name type]
                           (let [path (Arrays/copyOf base (+ (alength base) (alength ^bytes name)))]
                             (System/arraycopy name 0 path (alength base) (alength ^bytes name))
                             (vswap! found conj!
                                     {:path (text path)
                                      :type (types type (if (zero? type) :unknown :other))})))))]
          (if (neg? outcome)
            outcome
            (mapv (fn [{:keys [path type] :as entry}]
                    (if (= :unknown type) (assoc entry :type (type-of path false)) entry))
                  (persistent! @found))))))))

(defn real-path
  "Returns the path of a file without symbolic links, or the negated errno.

  Returns nil if /proc cannot be read."
  [path]
  (let [number (FileSyscalls/open (bytes-of path) false)]
    (if (neg? number)
      number
      (with-open [fd (Fd/own number)]
        (let [number (.acquire ^Fd fd)]
          (try
            (some-> (FileSyscalls/link (.getBytes (str "/proc/self/fd/" number))) text)
            (finally (.release ^Fd fd))))))))

;; --- paths given by a user

(defn path?
  "Returns true if x can be a path: a string, a `File` or a `java.nio.file.Path`."
  [x]
  (or (string? x) (instance? File x) (instance? Path x)))

(defn of-java
  "Returns the bytes of a `java.nio.file.Path`.

  The text of such a path has these bytes only in a locale that can encode the file's name."
  ^bytes [^Path file]
  (if-not (re-find #"[^\x00-\x7f]" (str file))
    (exact-bytes (str file))
    (let [out (ByteArrayOutputStream.)]
      (doseq [[found hex] (re-seq #"%([0-9a-fA-F]{2})|[^%]" (.getRawPath (.toUri file)))]
        (.write out (int (if hex (Long/parseLong hex 16) (int (first found))))))
      (.toByteArray out))))

(defn ->java
  "Returns a `java.nio.file.Path` that names the same file in every locale.

  A path that is not ASCII becomes absolute."
  ^Path [path]
  (if-not (re-find #"[^\x00-\x7f]|\\" path)
    (Path/of path (make-array String 0))
    (let [absolute (if (str/starts-with? path "/") path (child "/proc/self/cwd" path))
          encoded (apply str (map #(format "%%%02X" (bit-and 0xff (long %))) (bytes-of absolute)))]
      ;; A path made from a URI keeps its bytes; a string would be encoded by the locale.
      (Path/of (URI/create (str "file:///" (str/replace encoded "%2F" "/")))))))

(defn- given-bytes
  "Returns the bytes of a path given by a user, without reading escapes."
  ^bytes [file]
  (if (instance? Path file) (of-java file) (exact-bytes (str file))))

(defn- exists?
  "Returns true if a file exists, as far as this process may see."
  [path]
  (let [bytes (bytes-of path)]
    (and (not (Native/unavailable))
         (not-any? zero? bytes)
         (not (#{-2 -20} (FileSyscalls/mode bytes false)))))) ; ENOENT, ENOTDIR

(defn resolve
  "Returns the text of a path given by a user: exact, or as [[text]] prints it.

  If it contains `\\xHH`, `\\uHHHH` or `\\\\`, the file of exactly that name is preferred if it
  exists, else the file whose name is printed so. If both exist, `reject` is called with a hint.
  Returns nil for a text that has no bytes."
  [file reject]
  (when-let [given (given-bytes file)]
    (let [exact (text given)]
      (if-not (and (string? file) (re-find escapes file))
        exact
        (let [as-printed (text (bytes-of file))]
          (cond
            (= exact as-printed) exact
            (exists? exact) (if (exists? as-printed)
                              (reject (str "both exist; " (printable exact)
                                           " is the file of exactly this name, and "
                                           (str/join
                                            (map escape-byte (bytes-of (file-name as-printed))))
                                           " in "
                                           (printable (or (parent as-printed) ".")) " the other"))
                              exact)
            (exists? as-printed) as-printed
            ;; Neither exists: it may be about to be created, in a directory that was printed.

            :else (let [slash (str/last-index-of file "/")]
                    (if (and slash (re-find escapes (subs file 0 slash)))
                      (child (resolve (subs file 0 (max 1 (long slash))) reject)
                             (text (exact-bytes (subs file (inc (long slash))))))
                      exact))))))))
