(ns bpfmap.bench.page
  "doc/performance.md: prose by hand, and between it what the commands have measured.

  A command owns what stands between `<!-- measured: COMMAND -->` and the next `<!-- /measured
  -->`."
  (:require [clojure.java.io :as io]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def file
  "The page, from the root of the checkout."
  "doc/performance.md")

(def ^:private end "<!-- /measured -->")

(defn replaced
  "The text of a page with the lines in place of what a command had written before.

  Throws an ex-info with a message for the user where the page has no place for the command."
  [text command lines]
  (let [begin (str "<!-- measured: " command " -->")
        from (str/index-of text begin)
        to (when from (str/index-of text end from))]
    (when-not to
      (throw (ex-info (str file " has no place for `" command "`: it lacks " begin " with " end
                           " after it") {})))
    (str (subs text 0 (+ from (count begin))) "\n\n"
         (str/join "\n" lines) "\n\n"
         (subs text to))))

(defn write
  "Puts what a command has measured into the page."
  [command lines]
  (spit (io/file file) (replaced (slurp (io/file file)) command lines)))
