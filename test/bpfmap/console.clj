(ns bpfmap.console
  "Transcripts of a shell in Markdown: run again, and compared with what they say was printed.

  In a fenced block of `console` a line that begins with `$ bpfmap ` or `$ bin/bpfmap `, or pipes
  `printf` into it, is a command, taken apart by a real shell and called within this process; what follows is what it
  printed, on either output, or what the programs behind a pipe made of it. During that, /sys/fs/bpf is the tests' own BPF file system. To print a
  page again:

      (console/rewrite! \"doc/explore.md\")"
  (:require [bpfmap.cli.main :as main]
            [bpfmap.fixture :as fixture]
            [clojure.data.json :as json]
            [clojure.string :as str])
  (:import (java.io File StringWriter)))

(set! *warn-on-reflection* true)

(def ^:private prompt
  "The beginning of a command line of bpfmap, with the `printf` before it, if any."
  #"^\$ (?:(printf .*?) \| )?(?:bin/)?bpfmap ")

(defn words
  "Returns the words that a shell makes of the rest of a command line. Throws if the shell does
  more than that: writes a file, as `entries>=2` without quotes would, or puts names of files in
  place of a pattern."
  [line]
  (let [dir (fixture/temporary-directory)]
    (try
      (let [{:keys [exit out err]} (fixture/run ["bash" "-c" (str "set -u; printf '%s\\0' " line)]
                                                :dir dir)
            made (seq (.list dir))]
        (when-not (= [0 ""] [exit err])
          (throw (ex-info (str "The shell does not take " line ": " err) {})))
        (when made
          (throw (ex-info (str "The shell makes files of " line ": " (str/join " " made)) {})))
        (pop (str/split out #"\x00" -1)))
      (finally
        (run! #(.delete ^java.io.File %) (reverse (file-seq dir)))))))

(def ^:private pipe
  "The first pipe of a command line, and the program behind it."
  #"^(.*?) \| ((jq|sort|cut|head|tail|wc)\b.*)$")

(defn commands
  "Returns the command lines of bpfmap in the transcripts of a page, without the prompt and what
  the shell does with their output: every fenced block counts, of `console` and of `text`."
  [text]
  (for [[_ block] (re-seq #"(?ms)^```(?:console|text|sh)?\n(.*?)^```" text)
        line (str/split-lines block)
        :let [command
              (re-find
               #"^\$ (?:printf .*? \| )?(?:bin/)?bpfmap (.*)$|^bpfmap (completion .*)$|^source <\(bpfmap ([^)]*)\)"
               line)]
        :when command]
    (-> (some identity (rest command))
        (str/replace pipe "$1")
        (str/replace #"\s+(<|>|#).*$" ""))))

(defn- piped
  "What programs of a shell make of the output of a command, as lines. If there is no jq, the output
  must be JSON, and the lines are those of the page."
  [out {:keys [shell program]} shown]
  (if (and (= "jq" program) (not (fixture/executable "jq")))
    (do (json/read-str out)
        shown)
    (let [file (File/createTempFile "bpfmap" ".in")]
      (try
        (spit file out)
        (let [{:keys [exit out err]} (fixture/run ["bash" "-c" (str "cat " file " | " shell)]
                                                  :env {"LC_ALL" "C"})]
          (when-not (= [0 ""] [exit err])
            (throw (ex-info (str shell " fails: " err) {})))
          (str/split-lines out))
        (finally (.delete file))))))

(defn- run
  "What a command prints, on either output, as lines. `shown` are the lines of the page, `input` the
  command of a shell whose output it reads as /dev/stdin, or nil."
  [line input directory shown]
  (let [[_ own shell program] (re-find pipe line)
        out (StringWriter.)
        err (if own (StringWriter.) out)
        stdin (File/createTempFile "bpfmap" ".stdin")
        here #(-> % (str/replace "/sys/fs/bpf" directory) (str/replace "/dev/stdin" (str stdin)))
        there #(-> (str %) (str/replace directory "/sys/fs/bpf")
                   (str/replace (str stdin) "/dev/stdin"))]
    (try
      (when input
        (spit stdin (:out (fixture/run ["bash" "-c" input]))))
      (binding [*out* out *err* err]
        (main/run (map here (words (or own line)))))
      (finally (.delete stdin)))
    (if own
      (piped (there out) {:shell shell :program program} shown)
      (str/split-lines (str/trim-newline (there out))))))

(defn- again
  "The lines of a block, with what its commands print now."
  [lines directory]
  (loop [[line & more] lines, out []]
    (cond
      (nil? line) out
      (re-find prompt line)
      (let [[shown more] (split-with #(not (str/starts-with? % "$ ")) more)]
        (recur more
               (-> out (conj line) (into (run (str/replace line prompt "")
                                           (second (re-find prompt line)) directory shown)))))
      :else (recur more (conj out line)))))

(defn evaluate
  "Returns the text of a page with every transcript run again."
  [text]
  (let [directory (fixture/bpffs)]
    (loop [lines (str/split-lines text) inside? false block [] out []]
      (let [[line & more] lines]
        (cond
          (nil? line) (str (str/join "\n" out) "\n")
          (and (not inside?) (= "```console" line)) (recur more true [] (conj out line))
          (and inside? (= "```" line)) (recur more false []
                                              (conj (into out (again block directory)) line))
          inside? (recur more true (conj block line) out)
          :else (recur more false [] (conj out line)))))))

(defn rewrite!
  "Prints a page's transcripts again."
  [file]
  (spit file (evaluate (slurp file))))

(defn comparable
  "A page without what differs from run to run: ids, processes, sizes in memory, times, and how
  columns are set for them."
  [text]
  (-> text
      (str/replace #"\b(map|program|id|btf-id) +\d+" "$1 N")
      ;; An id in the first column has few digits after a reboot
      (str/replace #"(?m)^ *\d+(?=  [a-z])" "N")
      (str/replace #"(?m)^ *ID(?=  TYPE)" "ID")
      (str/replace #"[A-Za-z]+\[\d+\]" "PROCESS")
      (str/replace #"\[20( 20)*\]" "[20 …]") ; as many as there are CPUs
      (str/replace #"(memlock +)\d+" "$1N")
      (str/replace #"(-type-id +)\d+" "$1N")
      (str/replace #"\d+\.\d[KMG]" "SIZE")
      (str/replace #" +" " ")
      (str/replace #" +\n" "\n")))

(defn pipelines
  "Returns the lines of pages' fenced blocks that have bpfmap in a pipe, and that [[evaluate]] does
  not run."
  [text]
  (for [[_ kind block] (re-seq #"(?ms)^```(console|text|sh)\n(.*?)^```" text)
        line (str/split-lines block)
        :when (and (re-find #"^\$? ?(.* \| )?(bin/)?bpfmap .*" line)
                   (re-find #" \| " (str/replace line #"'[^']*'|#.*$" ""))
                   (not (and (= "console" kind)
                             (re-find prompt line)
                             (let [line (str/replace line prompt "")]
                               (or (re-find pipe line)
                                   (not (re-find #" \| " (str/replace line #"'[^']*'" ""))))))))]
    line))
