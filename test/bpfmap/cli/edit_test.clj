(ns bpfmap.cli.edit-test
  "Entries that are edited as a text: with a function in place of the editor, and on a terminal."
  (:require [bpfmap.cli.calling :refer [bpfmap id-of]]
            [bpfmap.cli.edit :as edit]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.kernel.call :as call]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable File StringWriter)))

(set! *warn-on-reflection* true)

(defn- a-map ^Closeable [spec]
  (bpf/create (merge {:name "edited" :type :hash :max-entries 2000} spec)))

(defn- edited
  "Edits entries with functions of the text in turn; returns the view, the texts shown, the files and
  stderr. Each answer is to one question."
  [m options answers & editors]
  (let [shown (atom [])
        files (atom #{})
        questions (atom [])
        editors (atom editors)
        answers (atom answers)
        err (StringWriter.)
        view (binding [*err* err]
               (edit/edited {:keep identity
                             :ask (fn [question]
                                    (swap! questions conj question)
                                    (let [answer (first @answers)] (swap! answers rest) answer))
                             :edit (fn [file]
                                     (let [editor (first @editors)
                                           text (slurp file)]
                                       (swap! editors rest)
                                       (swap! shown conj text)
                                       (swap! files conj file)
                                       (let [changed (editor text)]
                                         (if (string? changed)
                                           (do (spit file changed) 0)
                                           changed))))}
                            m options))]
    (is (empty? @editors))
    (is (empty? @answers))
    (let [file (first @files)]
      {:view (dissoc view :keep) :shown @shown :questions @questions
       :kept (when (and file (.exists (io/file file)))
               (let [text (slurp file)] (.delete (io/file file)) text))
       :file file :err (str err)})))

(def ^:private stats [:struct [:n :u64] [:comm [:string 8]] [:f :f32]])

(kernel-test edits-one-entry
  (testing "shows the entry as EDN, and writes it if its text changes"
    (with-open [m (a-map {:key :u32 :value stats :contents {7 {:n 1 :comm "a b" :f 0.5}}})]
      (let [{:keys [view shown kept]}
            (edited m {:key 7} [] #(str/replace % ":n 1" ":n 2"))]
        (is (= [(str ";; Map " (id-of m) " (edited), hash.\n"
                     ";; Change the value, save, and end the editor. The key must stay.\n"
                     ";; Without a change, nothing is written.\n"
                     ";; key: :u32\n"
                     ";; value: [:struct [:n :u64] [:comm [:string 8]] [:f :f32]]\n"
                     "{:key 7\n"
                     " :value {:n 1\n"
                     "         :comm \"a b\"\n"
                     "         :f 0.5}}\n")]
               shown))
        (is (= ["7  {:n 2, :comm \"a b\", :f 0.5}  (was {:n 1, :comm \"a b\", :f 0.5})"]
               (:lines view)))
        (is (= 2 (:n (m 7))))
        (is (nil? kept) "the file is gone"))
      (testing "a float that is printed with more digits than it has stays the same"
        (bpf/put! m 8 {:n 1 :comm "" :f 0.1})
        (is (= {:lines [] :notes ["nothing was changed"]}
               (:view (edited m {:key 8} [] #(str/replace % ":f 0.10000000149011612" ":f 0.1")))))
        (bpf/delete! m 8))
      (testing "and nothing if it stays, or if the value does"
        (doseq [editor [identity #(str % "\n;; a comment")]]
          (is (= {:view {:lines [] :notes ["nothing was changed"]} :kept nil}
                 (select-keys (edited m {:key 7} [] editor) [:view :kept])))))
      (testing "a missing key"
        (is (= {:lines [] :notes ["no such entry"] :exit 1} (:view (edited m {:key 8} []))))))))

(kernel-test edits-all-entries
  (testing "changes, adds and deletes entries of a whole map"
    (with-open [m (a-map {:key :u32 :value stats
                          :contents {1 {:n 1 :comm "a" :f 0.5} 2 {:n 2 :comm "b" :f 0.25}}})
                array (a-map {:type :array :value :u32 :max-entries 3})
                large (a-map {:key :u32 :value :u32 :contents (zipmap (range 1001) (range))})]
      (is (= #{"1  {:n 9, :comm \"a\", :f 0.5}  (was {:n 1, :comm \"a\", :f 0.5})"
               "3  {:n 3, :comm \"c\", :f 0}  (new)"
               "2  (was {:n 2, :comm \"b\", :f 0.25})  (deleted)"}
             (set (:lines (:view (edited m {} []
                                         (fn [text]
                                           (-> text
                                               (str/replace ":n 1," ":n 9,")
                                               (str/replace #"(?m)^ \[2 .*\n" "")
                                               (str/replace #"(?m)^\]" " [3 {n 3 comm c f 0}]\n]")))))))))
      (is (= #{1 3} (set (map key m))))
      (testing "an array's entries stay"
        (let [{:keys [view kept err]}
              (edited array {} [false] #(str/replace % #"(?m)^ \[2 .*\n" ""))]
          (is (re-find #"line 1: the entry of 2 is missing, and entries of this map cannot be deleted"
                       err))
          (is (= 1 (:exit view)))
          (is (string? kept)))
        (is (= ["1  5  (was 0)"]
               (:lines (:view (edited array {} [] #(str/replace % "[1 0]" "[1 5]")))))))
      (testing "too many for an editor"
        (is (= (str "Map " (id-of large) " (edited) has too many entries for an editor: give a KEY,"
                    " or dump it to a file and put that: at most 1000 can be edited")
               (:message (fixture/error-of (edited large {} [])))))))))

(kernel-test u4-text-that-cannot-be-written
  (testing "is reported and edited again, or kept"
    (with-open [m (a-map {:key :u32 :value :u8 :contents {7 1}})]
      (let [{:keys [view shown questions err kept]}
            (edited m {:key 7} [true] #(str/replace % ":value 1" ":value 300")
                    #(str/replace % ":value 300" ":value 30"))]
        (is (= ["7  30  (was 1)"] (:lines view)))
        (is (str/includes? (second shown) ":value 300") "the text is as it was left")
        (is (= ["Edit it again?"] questions))
        (is (str/includes? err "  line 6: value: 300 is not a u8"))
        (is (nil? kept)))
      (doseq [[changed pattern] [["{:key 8 :value 1}" #"it must have the one entry with the same key"]
                                 ["{:key 7 :value 1}{:key 7 :value 2}"
                                  #"line 1: the key is the same as in line 1"]
                                 ["" #"it must have the one entry with the same key"]
                                 ["{:key 7" #"line 1: EOF while reading"]]]
        (let [{:keys [view file kept err]} (edited m {:key 7} [false] (constantly changed))]
          (is (re-find pattern err))
          (is (= changed kept))
          (is (= {:lines [] :exit 1
                  :notes [(str "nothing was written; the text is kept in " file)]}
                 view))))
      (is (= 30 (m 7))))))

(kernel-test editor-that-fails
  (testing "nothing is written if the editor fails; a changed text is kept"
    (with-open [m (a-map {:key :u32 :value :u8 :contents {7 1}})]
      (is (= {:view {:lines [] :exit 1
                     :notes ["the editor ended with exit code 3; nothing was written"]}
              :kept nil}
             (select-keys (edited m {:key 7} [] (constantly 3)) [:view :kept])))
      (is (= 1 (m 7))))))

(kernel-test u4-changes-of-others-meanwhile
  (testing "an entry that others changed is written only after a question"
    (with-open [m (a-map {:key :u32 :value :u8 :contents {7 1 8 1}})]
      (let [edit (fn [options answer n]
                   (edited m options [answer]
                           (fn [text]
                             (bpf/put! m 7 n)
                             (str/replace text #"(7 |:value )\d+" "$199"))))]
        (bpf/put! m 7 1)
        (let [{:keys [view questions kept err file]} (edit {:key 7} false 50)]
          (is (= ["Write yours anyway?"] questions))
          (is (= "bpfmap: The entry of 7 changed meanwhile: it is 50 now\n" err))
          (is (= [(str "nothing was written; the text is kept in " file)] (:notes view)))
          (is (str/includes? kept ":value 99"))
          (is (= 50 (m 7))))
        (let [{:keys [view]} (edit {} true 51)]
          (is (= ["7  99  (was 51)"] (:lines view)))
          (is (= {7 99 8 1} (bpf/snapshot m))))
        (is (= "bpfmap: The entry of 7 changed meanwhile: it was deleted\n"
               (:err (edited m {:key 7} [false] (fn [text]
                                                  (bpf/delete! m 7)
                                                  (str/replace text ":value 99" ":value 98"))))))))))

(kernel-test edits-values-of-cpus
  (testing "the values of all CPUs are edited together"
    (with-open [m (a-map {:type :percpu-hash :key :u32 :value :u32})]
      (let [cpus (count (call/possible-cpus))]
        (bpf/put! m 1 1 {:cpus :all})
        (edited m {:key 1} [] #(str/replace % (str (vec (repeat cpus 1)))
                                            (str (vec (range cpus)))))
        (is (= (vec (range cpus)) (m 1)))))))

(kernel-test refuses-without-terminal
  (testing "edit requires a terminal, and a map whose entries can be read"
    (with-open [m (a-map {:key :u32 :value :u8})]
      (let [{:keys [exit out err]} (bpfmap "edit" (id-of m))]
        (is (= [1 ""] [exit out]))
        (is (= (str "bpfmap: edit requires a terminal: use put, or dump the map to a file and put"
                    " --file it\n")
               err))))))
