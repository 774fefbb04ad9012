(ns ^:volume bpfmap.trust-test
  "The scripts, run by root where another user has laid something out: his code does not run, and
  nothing is made at his place."
  (:require [bpfmap.fixture :as fixture :refer [kernel-test]]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io File)))

(set! *warn-on-reflection* true)

(def ^:private attacker "65534")

(defn- as-attacker
  "Runs a shell command as another user, without privileges."
  [command & args]
  (let [{:keys [exit
                err]} (fixture/run (into ["setpriv" (str "--reuid=" attacker)
                                          (str "--regid=" attacker) "--clear-groups" "bash" "-c"
                                          command "bash"]
                                         (map str args)))]
    (is (= 0 exit) err)))

(defn- sh [command & args]
  (:exit (fixture/run (into ["bash" "-c" command "bash"] (map str args)))))

(def ^:private checkout (str (.getCanonicalFile (io/file "."))))

(defn- with-places
  "Calls f with a folder of root's and one of the attacker's, and a JDK whose java prints what it
  is started with."
  [f]
  (let [dir (fixture/temporary-directory)
        [own others jdk] (map #(str dir "/" %) ["own" "others" "jdk"])]
    (try
      (sh
       "chmod 755 $1; mkdir -m 700 $1/own; mkdir -p $1/others $1/jdk/bin $1/jdk/lib; chown $2 $1/others" dir attacker)
      (spit (str jdk "/release") "JAVA_VERSION=\"25.0.1\"\n")
      (spit (str jdk "/lib/modules") "")
      ;; The fake JVM creates the file that is requested as its cache, as the JVM would.
      (spit (str jdk "/bin/java")
            "#!/bin/bash\nfor a; do case $a in -XX:AOTCache=*) [[ $* != *AOTMode=create* ]] || echo made >\"${a#*=}\" ;; esac; done\necho \"java $*\"; env | grep _OPT\nexit 0\n")
      (spit (str jdk "/bin/javac") "")
      (sh "chmod +x $1/bin/*" jdk)
      (f {:dir (str dir) :own own :others others :jdk jdk})
      (finally
        ;; Root's own, which these tests have made for a JDK that is gone.
        (sh "rm -rf $1; rm -f ~/.cache/bpfmap/start/*_on_$2.* /var/cache/bpfmap/start/*_on_$2.*" dir
            (str/replace jdk "/" "_"))))))

(defn- launcher
  "Runs bin/bpfmap as root, with variables of the environment; with a checkout that counts as
  built."
  [{:keys [jdk]} env & {:keys [script] :or {script (str checkout "/bin/bpfmap")}}]
  (fixture/run [script "list"] :env (merge {"JAVA_HOME" jdk} env)))

(defn- files [dir]
  (map str (filter #(.isFile ^File %) (file-seq (io/file dir)))))

(defn- cache-used [{:keys [out]}]
  (second (re-find #"-XX:AOTCache=(\S+)" out)))

(defn- plant
  "Has the attacker lay out a cache at a place, with the state that the launcher would find right:
  a copy of one it made itself."
  [{:keys [own dir others] :as places} at]
  (launcher places {"XDG_CACHE_HOME" own})
  (sh "cp -r $1/bpfmap $2/copy && chmod -R a+rX $2/copy" own dir)
  (as-attacker "mkdir -p $2 && cp -r $1/copy $2/bpfmap && echo evil >$2/bpfmap/start/*.cache" dir
               at)
  (is (= 1 (count (filter #(str/ends-with? % ".cache") (files others))))))

(kernel-test safe-jvm-cache-only
  (testing "uses a JVM cache only if nobody else can change it"
    ;; Compiled, if it was not
    (fixture/run [(str checkout "/bin/bpfmap") "--version"] :env {"XDG_CACHE_HOME" "/dev/null"})
    (with-places
      (fn [{:keys [own others dir] :as places}]
        (testing "root's own is made and used"
          (launcher places {"XDG_CACHE_HOME" own})
          (is (str/starts-with? (str (cache-used (launcher places {"XDG_CACHE_HOME" own}))) own)))
        (testing "another user's is not, whatever names it"
          (plant places (str others "/.cache"))
          (let [before (files others)]
            (doseq [env [{"HOME" others "XDG_CACHE_HOME" ""}
                         {"XDG_CACHE_HOME" (str others "/.cache")}
                         {"HOME" others "XDG_CACHE_HOME" (str others "/new")}
                         {"XDG_CACHE_HOME" (str others "/.cache/../.cache")}]
                    :let [{:keys [exit out err] :as result} (launcher places env)]]
              (is (= [0 ""] [exit err]) env)
              (is (str/starts-with? out "java "))
              (is (not (str/includes? (str (cache-used result)) others)) env)
              (is (re-find #"^(/root/.cache|/var/cache)/bpfmap/start/" (str (cache-used result)))
                  "root has one of its own"))
            (is (= before (files others)) "nothing is made there")))
        (testing "a link from the attacker's folder into root's, and from root's to the attacker's"
          (as-attacker "ln -s $1 $2/link" own others)
          (is
           (not
            (str/includes? (str (cache-used (launcher places
                                                      {"XDG_CACHE_HOME" (str others "/link")})))
                           others)))
          (sh "ln -s $1/.cache $2/linked" others own)
          (is
           (not
            (str/includes? (str (cache-used (launcher places
                                                      {"XDG_CACHE_HOME" (str own "/linked")})))
                           others))))
        (testing "files and folders in root's that another user may write"
          (doseq [[what command] {"the folder" "chmod 777 $1/bpfmap/start"
                                  "a folder above" "chmod 777 $1"
                                  "sticky" "chmod 1777 $1/bpfmap/start"
                                  "of a group" "chgrp 65534 $1 && chmod 770 $1"
                                  "another's" "chown 65534 $1/bpfmap"}]
            (testing what
              (sh "chmod -R go-w $1; chown -R 0:0 $1; chmod 700 $1/bpfmap/start" own)
              (is (str/starts-with? (str (cache-used (launcher places {"XDG_CACHE_HOME" own})))
                                    own))
              (sh command own)
              (is (not (str/starts-with? (str (cache-used (launcher places {"XDG_CACHE_HOME" own})))
                                         own)))))
          (doseq [[what command] {"the cache" "chmod 666 $1/bpfmap/start/*.cache"
                                  "the state" "chmod 666 $1/bpfmap/start/*.state"
                                  "the cache of another" "chown 65534 $1/bpfmap/start/*.cache"
                                  "a link" "mv $1/bpfmap/start/*.cache $1/x && ln -s $1/x $(echo $1/bpfmap/start/*.state | sed s/.state$//)"}]
            (testing what
              (sh "rm -rf $1/*; chmod -R go-w $1; chown -R 0:0 $1" own)
              (launcher places {"XDG_CACHE_HOME" own})
              (sh (str command "; echo evil >>$1/bpfmap/start/*.cache") own)
              (let [used (str (cache-used (launcher places {"XDG_CACHE_HOME" own})))]
                (is (or (= "" used) (= "made\n" (slurp used))) "it is made again")))))
        (testing "a sticky folder above will do, as /tmp is"
          (sh "mkdir -m 1777 $1/sticky; mkdir -m 700 $1/sticky/own" dir)
          (let [sticky (str dir "/sticky/own")]
            (launcher places {"XDG_CACHE_HOME" sticky})
            (is (str/starts-with? (str (cache-used (launcher places {"XDG_CACHE_HOME" sticky})))
                                  sticky))))))))

(kernel-test foreign-environment
  (testing "ignores the environment of another user"
    (with-places
      (fn [{:keys [own others jdk] :as places}]
        (let [options {"JAVA_TOOL_OPTIONS" "-javaagent:evil.jar" "_JAVA_OPTIONS" "-Devil"
                       "JDK_JAVA_OPTIONS" "-Devil" "XDG_CACHE_HOME" own}
              {:keys [out err]} (launcher places (assoc options "HOME" others))]
          (is (not (str/includes? out "evil")))
          (is (= (str "bpfmap: " others
                      " is another user's home; not used: JAVA_TOOL_OPTIONS, JDK_JAVA_OPTIONS, "
                      "_JAVA_OPTIONS\n") err))
          (is (str/includes? (:out (launcher places (assoc options "HOME" "/root")))
                             "JAVA_TOOL_OPTIONS=-javaagent:evil.jar")
              "one's own is one's own"))
        (testing "nor a JDK"
          (sh "cp -r $1 $2/jdk && chown -R 65534 $2/jdk && echo 'echo evil' >>$2/jdk/bin/java" jdk
              others)
          (let [{:keys [out err]} (launcher (assoc places :jdk (str others "/jdk"))
                                            {"HOME" others "XDG_CACHE_HOME" own})]
            (is (not (str/includes? out "evil")))
            (is (str/includes? err "not used: JAVA_HOME"))))))))

(kernel-test writable-checkout
  (testing "compiles a checkout that other users can change into another directory"
    (with-places
      (fn [{:keys [own others dir] :as places}]
        ;; Scripts and sources are root's; the folder target is the attacker's, who has laid out a
        ;; jar that is newer than they are.
        (let [co (str dir "/co")
              run #(launcher places {"XDG_CACHE_HOME" own} :script (str co "/bin/bpfmap"))
              jar-of #(second (re-find #"-jar (\S+)" (:out %)))
              elsewhere (str own "/bpfmap/target/" (str/replace co "/" "%2F") "/bpfmap.jar")]
          (sh
           "mkdir -p $2/target $2/src $2/java $2/resources && cp -r $1/bin $1/script $1/build $2 && cp $1/build.clj $1/deps.edn $2 && chown 65534 $2/target" checkout co)
          ;; Compiling takes half a minute: here it makes a file of that name.
          (spit (str co "/bin/clj")
                "#!/bin/bash\nfor a; do case $a in -J-Dbpfmap.target=*) echo jar >\"${a#*=}/bpfmap.jar\" ;; esac; done\n")
          (as-attacker "echo evil >$1/target/bpfmap.jar" co)
          (let [{:keys [exit err] :as first-run} (run)]
            (is (= [0 elsewhere] [exit (jar-of first-run)]) err)
            (is (str/includes? err
                               (str "Another user can change " co "/target; using "
                                    (str own "/bpfmap/target/")))))
          (is (= [elsewhere ""] ((juxt jar-of :err) (run))) "it says so once")
          (is (= [(str co "/target/bpfmap.jar")] (files (str co "/target")))
              "nothing is written where the attacker could lay out links")
          (testing "a target that a link leads to"
            (as-attacker "mkdir $2/target; echo evil >$2/target/bpfmap.jar" co others)
            (sh "rm -rf $1/target && ln -s $2/target $1/target" co others)
            (is (= elsewhere (jar-of (run)))))
          (testing "a jar of root's is used where it is"
            (sh "rm -rf $1/target && mkdir $1/target && echo jar >$1/target/bpfmap.jar" co)
            (is (= (str co "/target/bpfmap.jar") (jar-of (run)))))
          (testing "but not one that another user can write"
            (sh "chmod 666 $1/target/bpfmap.jar" co)
            (spit (str co "/target/bpfmap.jar") "evil")
            (is (= (str co "/target/bpfmap.jar") (jar-of (run))))
            (is (= "jar\n" (slurp (str co "/target/bpfmap.jar"))) "it is built again"))
          (testing "a checkout that is another user's as a whole"
            (sh "chown -R 65534 $1; rm -rf $1/target" co)
            (is (= elsewhere (jar-of (run))))
            (is (not (.exists (io/file co "target"))))))))))

(kernel-test deps-of-other-user
  (testing "does not read class paths and deps of another user"
    (with-places
      (fn [{:keys [own others jdk dir]}]
        (let [clj (fn [env & args]
                    (fixture/run (into [(str checkout "/bin/clj")] args) :dir (env :dir own) :env
                                 (merge {"XDG_CACHE_HOME" own} (dissoc env :dir))))]
          (testing "the user's deps.edn"
            (as-attacker
             "mkdir $1/.clojure && echo '{:paths [\"/evil\"] :aliases {:e {:jvm-opts [\"-Devil=1\"]}}}' >$1/.clojure/deps.edn" others)
            (doseq [env [{"HOME" others} {"CLJ_CONFIG" (str others "/.clojure")}]
                    :let [{:keys [exit out err]} (clj env "-Spath")]]
              (is (= 0 exit) err)
              (is (not (str/includes? out "evil")) env))
            (is (str/includes? (:err (clj {"CLJ_CONFIG" (str others "/.clojure")} "-Spath"))
                               "Another user can change CLJ_CONFIG")))
          (testing "the class paths that are kept in a folder of another user"
            (sh "echo '{:paths [\"a\"]}' >$1/deps.edn && cd $1 && mkdir .cpcache" own)
            (let [{:keys [out]} (clj {} "-Spath")]
              (is (str/starts-with? out "a:"))
              (is (seq (filter #(str/ends-with? % ".cp") (files (str own "/.cpcache"))))))
            (sh
             "cp -r $1/deps.edn $1/.cpcache $2 && chown -R 65534 $2 && for f in $2/.cpcache/*.cp; do echo /evil >$f; done" own others)
            ;; The name of an entry has the folder in it: put there what that of this folder would
            ;; be called.
            (let [{:keys [out]} (clj {:dir others} "-Spath")]
              (is (str/starts-with? out "a:"))
              (doseq [kept (files (str own "/bpfmap/clj"))
                      :when (re-find #"/[0-9a-f]{40}\.cp$" kept)]
                (as-attacker
                 "echo /evil >$1/.cpcache/${2##*/}; cp $1/.cpcache/${2##*/} $1/.cpcache/x" others
                 kept))
              (is (= out (:out (clj {:dir others} "-Spath")))))
            (testing "or could be written by one"
              (sh "chmod 777 $1/.cpcache; for f in $1/.cpcache/*.cp; do echo /evil >$f; done" own)
              (is (not (str/includes? (:out (clj {} "-Spath")) "evil")))))
          (is (string? (str dir jdk))))))))

(deftest home-in-scripts
  (testing "every script checks who owns its environment"
    (doseq [script ["bin/bpfmap" "bin/clj" "bin/pod-bpfmap" "script/compile-java"]]
      (is (str/includes? (slurp script) "own_environment") script))))
