(ns ^:no-doc bpfmap.impl.escape
  "Makes text from anywhere safe to show on a terminal.

  Names of maps, pins, processes and fields, and what a map holds, come from other programs.
  Characters that steer a terminal, reorder a line or cannot be seen are written as `\\uXXXX`:
  controls (C0, DEL and C1, so every escape sequence), format characters (bidirectional overrides,
  zero-width and tag characters), line and paragraph separators, and surrogates without a partner.
  Every edge of bpfmap escapes with this namespace alone."
  (:import (java.lang Character StringBuilder)))

(set! *warn-on-reflection* true)

(defn- unsafe?
  "Returns true if the character at a code point must not be printed as it is."
  [^long code-point]
  (if (< code-point 0x7f)
    (< code-point 0x20)
    (let [type (Character/getType (int code-point))]
      (or (= type Character/CONTROL) (= type Character/FORMAT) (= type Character/LINE_SEPARATOR)
          (= type Character/PARAGRAPH_SEPARATOR) (= type Character/SURROGATE)))))

(defn- first-unsafe
  "Returns the index of the first unsafe character from `start`, or -1."
  ^long [^String text ^long start]
  (let [n (.length text)]
    (loop [i start]
      (if (<= n i)
        -1
        (let [c (int (.charAt text (unchecked-int i)))]
          (if (and (<= 0x20 c) (< c 0x7f)) ; most texts have nothing else
            (recur (unchecked-inc i))
            (let [code-point (.codePointAt text (int i))]
              (if (unsafe? code-point) i (recur (+ i (Character/charCount code-point)))))))))))

(defn- append-code [^StringBuilder out character]
  (let [digits (Integer/toHexString (int character))]
    (.append out "\\u")
    (dotimes [_ (- 4 (count digits))] (.append out \0))
    (.append out digits)))

(defn- replace-unsafe
  "Returns the text with each unsafe character from index `at` on escaped.

  `(before out)` is called first, with the text written so far."
  [^String text at before keep?]
  (let [out (StringBuilder. (+ 16 (.length text)))]
    (loop [done 0 at (long at)]
      (if (neg? at)
        (str (.append out text (int done) (.length text)))
        (let [code-point (.codePointAt text (int at))
              after (+ at (Character/charCount code-point))]
          (.append out text (int done) (int at))
          (if (keep? code-point)
            (.appendCodePoint out code-point)
            (do
              (before out)
              (run! #(append-code out %) (Character/toChars code-point))))
          (recur after (first-unsafe text after)))))))

(defn- never [_] false)

(defn- escape-with [text before keep?]
  (let [text (str text)
        at (first-unsafe text 0)]
    (if (neg? at) text (replace-unsafe text at before keep?))))

(defn escape
  "Returns a text with each unsafe character written as `\\uXXXX`.

  Safe text is returned unchanged, so escaping twice changes nothing.

      (escape \"two\\nlines\") ;=> \"two\\\\u000alines\""
  ^String [text]
  (escape-with text (fn [_]) never))

(defn escape-lines
  "Escapes a message of several lines, like [[escape]], but keeps line feeds.

      (escape-lines \"two\\nlines\\u001b\") ;=> \"two\\nlines\\\\u001b\""
  ^String [text]
  (escape-with text (fn [_]) #(= 10 (long %))))

(defn- backslashes-before
  "Returns the number of backslashes that end a buffer."
  ^long [^StringBuilder out]
  (loop [i (.length out)]
    (if (and (pos? i) (= \\ (.charAt out (dec i)))) (recur (dec i)) (- (.length out) i))))

(defn- add-backslashes [^StringBuilder out ^long n]
  (dotimes [_ n] (.append out \\)))

(defn escape-text
  "Escapes a separate value, such as a table's cell, like [[escape]].

  Different texts stay different: backslashes before what looks like an escape, and before an
  escape, are doubled. [[unescape-text]] is the inverse.

      (escape-text \"a\\nb\")      ;=> \"a\\\\u000ab\"
      (escape-text \"a\\\\u000ab\") ;=> \"a\\\\\\\\u000ab\"
      (escape-text \"C:\\\\temp\")  ;=> \"C:\\\\temp\""
  ^String [text]
  (let [text (str text)
        doubled (if (neg? (.indexOf text "\\u"))
                  text
                  (.replaceAll text "(\\\\+)(?=u[0-9a-f]{4})" "$1$1"))]
    (escape-with doubled #(add-backslashes % (backslashes-before %)) never)))

(defn unescape-text
  "Returns the text that [[escape-text]] was given.

      (unescape-text \"a\\\\u000ab\") ;=> \"a\\nb\""
  ^String [text]
  (let [matcher (re-matcher #"(\\+)u([0-9a-f]{4})" (str text))
        out (StringBuilder.)]
    (loop [done 0]
      (if (.find matcher)
        (let [n (count (.group matcher 1))]
          (.append out ^String text (int done) (.start matcher))
          (add-backslashes out (quot n 2))
          (if (odd? n)
            (.append out (char (Integer/parseInt (.group matcher 2) 16)))
            (.append out (str "u" (.group matcher 2))))
          (recur (long (.end matcher))))
        (str (.append out ^String text (int done) (.length ^String text)))))))

(defn escape-edn
  "Escapes a result of `pr-str`, like [[escape]], so that it reads back unchanged.

      (escape-edn (pr-str \"a\\u001b\")) ;=> \"\\\"a\\\\u001b\\\"\""
  ^String [printed]
  ;; An unsafe character in a string follows an even number of backslashes; one that is a
  ;; character literal follows one.
  (escape-with printed
               #(when (odd? (backslashes-before %))
                  (.setLength ^StringBuilder % (dec (.length ^StringBuilder %)))) never))
