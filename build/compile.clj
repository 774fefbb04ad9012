;; Compiles namespaces for the command line, whose start it makes faster. Run by build/launcher.clj, as
;;
;;   java -cp … clojure.main build/compile.clj FOLDER NAMESPACE…
;;
;; When a namespace is loaded, Clojure puts all names of clojure.core into a table of its own, for each of some sixty
;; namespaces, which takes half of the time until a command begins. Only the compiler looks there. So `ns` is changed here:
;; the names are put there while its form is expanded, and the compiled namespace does without.

(require '[clojure.java.io :as io]
         '[clojure.string :as str]
         '[clojure.walk :as walk])
(import 'java.io.StringReader)

(def clojure-namespaces
  "Namespaces of Clojure's own that every start loads, and that are compiled again in this way. Those of clojure.spec are
  not: the compiler is using them."
  '[clojure.string clojure.edn clojure.walk clojure.set clojure.java.io clojure.instant clojure.uuid
    clojure.main])

(def server
  "What stands in for clojure.core.server, which Clojure loads at every start with clojure.main and clojure.spec, for the
  socket servers that system properties ask for. The command line has none."
  "(ns clojure.core.server) (defn start-servers [_])")

(defn refers-to-core?
  "Returns true if a form refers to all of clojure.core."
  [form]
  (and (seq? form)
       (or (= 'clojure.core/refer-clojure (first form))
           (= '(clojure.core/refer 'clojure.core) form))))

(defn refer-at-expansion
  "Evaluates each reference to clojure.core in an expansion of `ns`, and removes it."
  [expansion ns-name]
  (walk/postwalk
   (fn [form]
     (if (and (seq? form) (some refers-to-core? form))
       (do
         (binding [*ns* (create-ns ns-name)] (run! eval (filter refers-to-core? form)))
         (apply list (remove refers-to-core? form)))
       form))
   expansion))

(alter-var-root #'clojure.core/ns
  (fn [expand]
    (fn [form env ns-name & clauses]
      (refer-at-expansion (apply expand form env ns-name clauses) ns-name))))

(defn compile-again
  "Compiles a namespace that is loaded already."
  [ns-name]
  (let [path (str (str/replace (str ns-name) "." "/") ".clj")]
    (with-open [reader (io/reader (io/resource path))]
      (clojure.lang.Compiler/compile reader path (last (str/split path #"/"))))))

(let [[folder & namespaces] *command-line-args*]
  (binding [*compile-path* folder
            *compiler-options* {:direct-linking true :elide-meta [:file :line :column]}]
    (run! compile (map symbol namespaces))
    (binding [*compile-files* true]
      (run! compile-again clojure-namespaces)
      (clojure.lang.Compiler/compile (StringReader. server) "clojure/core/server.clj" "server.clj"))))
