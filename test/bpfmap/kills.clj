(ns bpfmap.kills
  "Kills processes with SIGKILL at random moments of what they do over and over, and looks at what
  is there then.

      bin/clj -M:test:kills 1000        as root; two at a time

  Prints as EDN what was found, by operation, and ends with 1 where something was neither old nor
  new."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.backup :as backup]
            [bpfmap.exec.saved-file :as saved-file]
            [bpfmap.fixture :as fixture]
            [bpfmap.host :as host]
            [clojure.java.io :as io]
            [clojure.pprint :as pprint]
            [clojure.string :as str])
  (:import (java.io BufferedReader Closeable File)
           (java.lang ProcessBuilder$Redirect)
           (java.util List)
           (java.util.concurrent.atomic AtomicLong)
           (java.util.concurrent.locks LockSupport)))

(set! *warn-on-reflection* true)

(def ^:private longest-millis "From when a process says that it is at it until it is killed." 50)

(def ^:private four
  "A value that shows when it is half of one and half of another."
  [:array :u64 4])

(defn- entries
  "Entries of keys from `from` on, whose values say which entries they are."
  [n from version]
  (into {} (for [k (range from (+ from n))] [k (vec (repeat 4 (+ (* 1000000 version) k)))])))

(def ^:private spec {:type :hash :key :u32 :value four :max-entries 8192})

;; --- killed processes

(def ^:private again
  "Calls f with 0, 1 and so on, and says after the first time that it is at it."
  '(defn again [f]
     (loop [n 0]
       (f n)
       (when (zero? n) (println "ready") (flush))
       (recur (inc n)))))

(def ^:private of-version
  "The spec of a small map with the entries of a version."
  '(defn of-version [name version]
     {:name name :type :hash :key :u32 :value [:array :u64 4] :max-entries 512
      :contents (into {} (for [k (range 200)]
                           [k (vec (repeat 4 (+ (* 1000000 version) k)))]))}))

(def ^:private workers
  "What processes do, by operation. `args` is what the operation's set-up returned."
  {:save
   '(again (fn [n] (backup/save {:ref (if (even? n) (:old args) (:new args)) :file (:file args)})))

   :restore
   '(again
     (fn [n]
       (backup/restore {:file (if (even? n) (:new args) (:old args)) :into (:into args)
                        :exact true :yes true})
       (with-open [m (bpf/open (:path (backup/restore {:file (:old args) :pin (:pin args)})))]
         (bpf/unpin! m (:pin args)))))

   :put-all!
   '(let [m (bpf/open (:writes args) {:key :u32 :value [:array :u64 4]})]
      (again (fn [n] (bpf/put-all! m (let [v [n n n n]] (for [k (range 4000)] [k v]))))))

   :drain!
   '(let [options {:key :u32 :value [:array :u64 4]}
          m (bpf/open (:drains args) options)]
      (with-open [out (java.io.FileOutputStream. ^String (:told args))
                  other (bpf/create {:type :hash :key :u32 :value [:array :u64 4] :max-entries 64
                                     :contents {1 [1 1 1 1] 2 [2 2 2 2]}})]
        (let [tell (fn [ks]
                     (.write out (.getBytes (apply str (map (fn [k] (str k "\n")) ks)) "UTF-8")))
              one (fn [_ [k _]] (tell [k]))]
          (bpf/drain-into! other one nil)
          (bpf/drain! other)
          (.truncate (.getChannel out) 0)
          (println "ready")
          (flush)
          (if (:each args)
            (bpf/drain-into! m one nil)
            (tell (keys (bpf/drain! m))))
          (Thread/sleep 60000))))

   :pin-by-name
   '(again
     (fn [_]
       (with-open [m (bpf/create (assoc (of-version "by_name" 1) :pinning :by-name)
                                 {:pin-path (:folder args)})]
         (bpf/unpin! m))))

   :move-pin!
   '(let [m (bpf/open (:moves args))
          places (:places args)
          [from to] (if (bpf/pinned-at? m (first places)) places (rseq places))]
      (again (fn [n] (if (even? n) (bpf/move-pin! m from to) (bpf/move-pin! m to from)))))})

(defn- program [operation args]
  (pr-str
   (list 'do
         (list* 'require
                (for [lib (cond-> '[[bpfmap.core :as bpf]]
                            (#{:save :restore} operation) (conj '[bpfmap.exec.backup :as backup]))]
                  (list 'quote lib)))
         again
         of-version
         (list 'let ['args args] (workers operation)))))

;; --- how it is started

(def ^:private jar "target/bpfmap.jar")

(defn- class-path
  "The jar of the command line, which starts fastest; where it is not to be had, that of this
  process."
  []
  (let [{:keys [exit]} (fixture/run ["bin/bpfmap" "--version"])
        file (io/file jar)
        newest (reduce max 0 (for [dir ["src" "java" "resources"], ^File f (file-seq (io/file dir))
                                   :when (.isFile f)]
                               (.lastModified f)))]
    (if (and (= 0 exit) (.exists file) (<= (long newest) (.lastModified file)))
      jar
      (System/getProperty "java.class.path"))))

(defn- command [class-path options program]
  (-> [(str (System/getProperty "java.home") "/bin/java") "--enable-native-access=ALL-UNNAMED"
       "-XX:+UseSerialGC" "-XX:TieredStopAtLevel=1" "-Xlog:disable"]
      (into options)
      (into ["-cp" class-path "clojure.main" "-e" program])))

(defn- with-cache
  "The options that make a JVM start faster, from a cache made in a folder; none where it cannot
  be made."
  [dir class-path]
  (let [cache (str dir "/start")
        trained '(do (require '[bpfmap.core :as bpf] '[bpfmap.exec.backup])
                     (with-open [m (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 8
                                                :contents {1 2}})]
                       (bpf/drain! m)))
        {:keys [exit]} (when (= jar class-path)
                         (fixture/run (command class-path [(str "-XX:AOTCacheOutput=" cache)]
                                               (pr-str trained))))]
    (if (and (= 0 exit) (.exists (io/file cache))) [(str "-XX:AOTCache=" cache)] [])))

(defn- kill-one
  "Starts a process, kills it at a random moment after it is at it; returns its id. Throws where
  it ended by itself."
  [command dir]
  (let [said (io/file dir "said")
        process (.start (doto (ProcessBuilder. ^List command)
                          (.redirectError (ProcessBuilder$Redirect/to said))))]
    (try
      (with-open [^BufferedReader reader (io/reader (.getInputStream process))]
        (when-not (= "ready" (.readLine reader))
          (throw (ex-info "A process ended by itself" {:said (slurp said)})))
        (LockSupport/parkNanos (long (* 1e6 (rand longest-millis))))
        (when-not (.isAlive process)
          (throw (ex-info "A process ended by itself" {:said (slurp said)})))
        (.pid process))
      (finally
        (.waitFor (.destroyForcibly process))))))

;; --- what there may be afterwards

(defn- id [m] (:id (bpf/info m)))

(defn- pinned
  "What a map at a path holds; nil where nothing is pinned."
  [path]
  (when (.exists (io/file path))
    (with-open [^Closeable m (bpf/open path {:key :u32 :value four})]
      (bpf/snapshot m))))

(defn- judged
  "Which of the permitted, by name, x is; fails with what else it is."
  [permitted x]
  (or (some (fn [[name y]] (when (= x y) name)) permitted)
      (throw (ex-info "Neither old nor new"
                      {:is (if (coll? x) (take 5 x) x) :count (when (coll? x) (count x))}))))

(defn- of-values
  "Which entries are in a map of which each may be old or new, as a name; fails for any other."
  [old new found]
  (let [kinds (into #{}
                    (map (fn [[k v]]
                           (cond (= v (get old k)) :old
                                 (= v (get new k)) :new
                                 :else (throw (ex-info "Neither old nor new" {:key k :value v})))))
                    found)]
    (cond (= found old) :old
          (= found new) :new
          (next kinds) :some-of-both
          :else :part)))

(defn- with-maps
  "Calls f with open maps of specs; closes them."
  [specs f]
  (let [maps (mapv bpf/create specs)]
    (try (apply f maps) (finally (run! bpf/close maps)))))

(defn- part-files [dir]
  (filterv #(str/ends-with? % ".part") (.list (io/file dir))))

(defmulti ^:private rounds
  "Calls `kill`, with the arguments for the process, n times, and after each checks the state;
  returns the observed states as `{name count}`."
  (fn [operation _dir _n _kill] operation))

(defmethod rounds :save [_ dir n kill]
  (let [old (entries 2000 0 1)
        new (entries 2000 1000 2)
        file (str dir "/a.edn")]
    (with-maps [(assoc spec :name "kills_old" :contents old)
                (assoc spec :name "kills_new" :contents new)]
      (fn [a b]
        (let [found (into []
                          (mapcat (fn [_]
                                    (let [before (part-files dir)
                                          pid (kill {:old (id a) :new (id b) :file file})
                                          parts (part-files dir)
                                          own (re-pattern (str "a\\.edn|\\.a\\.edn\\." pid
                                                               "-\\d+\\.part"))
                                          others (remove #(re-matches own %)
                                                         (.list (io/file dir)))]
                                      (when (seq others)
                                        (throw
                                         (ex-info "Left behind" {:files others :before before})))
                                      (cond-> [(->> (saved-file/read-file file)
                                                    :entries
                                                    (into {})
                                                    (judged {:old old :new new}))]
                                        (seq parts) (conj :temporary-file)))))
                          (range n))]
          (exec/save {:ref (id a) :file file})
          (when (seq (part-files dir))
            (throw (ex-info "Left behind by the last" {:files (part-files dir)})))
          (frequencies found))))))

(defmethod rounds :restore [_ dir n kill]
  (let [old (entries 2000 0 1)
        new (entries 2000 1000 2)
        [old-file new-file] [(str dir "/old.edn") (str dir "/new.edn")]
        pin (fixture/new-pin)]
    (with-maps [(assoc spec :name "kills_old" :contents old)
                (assoc spec :name "kills_new" :contents new)
                (assoc spec :name "kills_into" :contents old)]
      (fn [a b into-map]
        (exec/save {:ref (id a) :file old-file})
        (exec/save {:ref (id b) :file new-file})
        (frequencies
         (into []
               (mapcat (fn [_]
                         (kill {:old old-file :new new-file :into (id into-map) :pin pin})
                         (let [at-pin (judged {:no-pin nil :whole-pin old} (pinned pin))]
                           (.delete (io/file pin))
                           [(of-values old new (bpf/snapshot into-map)) at-pin])))
               (range n)))))))

(defmethod rounds :put-all! [_ _ n kill]
  (with-maps [(assoc spec :name "kills_hash")
              (assoc spec :name "kills_array" :type :array :max-entries 4000)]
    (fn [hash array]
      (frequencies
       (for [i (range n)
             :let [m (if (even? i) hash array)
                   _ (kill {:writes (id m)})
                   found (bpf/snapshot m)
                   versions (set (vals found))
                   numbers (sort (map first versions))]]
         (if (and (= (set (range 4000)) (set (keys found)))
                  (every? #(apply = %) versions)
                  (<= 1 (count numbers) 2)
                  (<= (- (long (last numbers)) (long (first numbers))) 1))
           (if (= 1 (count numbers)) :one-version :old-and-new)
           (throw (ex-info "Neither old nor new" {:versions versions :count (count found)}))))))))

(def ^:private drained "How many entries there are to drain." 40000)

(defmethod rounds :drain! [_ dir n kill]
  (let [all (entries drained 0 1)
        told (str dir "/told")
        most-lost (AtomicLong.)]
    (with-maps [(assoc spec :name "kills_drains" :max-entries (* 2 (long drained)))]
      (fn [m]
        (let [found (into []
                          (map (fn [i]
                                 (bpf/delete-all! m (keys (bpf/snapshot m)))
                                 (bpf/put-all! m all)
                                 (kill {:drains (id m) :told told :each (even? (long i))})
                                 (let [left (bpf/snapshot m)
                                       taken (mapv parse-long (str/split-lines (slurp told)))
                                       taken (if (= [nil] taken) [] taken)
                                       lost (- (count all) (count left) (count taken))]
                                   (doseq [[k v] left :when (not= v (all k))]
                                     (throw (ex-info "Neither old nor new" {:key k :value v})))
                                   (when-not (and (apply distinct? -1 taken) (not-any? left taken)
                                                  (every? all taken))
                                     (throw (ex-info "Taken twice" {:taken (count taken)})))
                                   (if (even? (long i))
                                     (case lost
                                       0 (if (seq left) :each-part-way :each-all)
                                       1 :each-one-lost
                                       (throw (ex-info "Lost" {:lost lost})))
                                     (do (.set most-lost (max lost (.get most-lost)))
                                         (cond
                                           (zero? lost) (if (seq left) :whole-none-taken :whole-all)
                                           (seq taken) (throw (ex-info "Lost" {:lost lost}))
                                           :else :whole-lost))))))
                          (range n))]
          (assoc (frequencies found) :most-lost (.get most-lost)))))))

(defmethod rounds :pin-by-name [_ _ n kill]
  (let [folder (io/file (fixture/bpffs) (str "names" (System/nanoTime)))
        pin (io/file folder "by_name")]
    (.mkdir folder)
    (try
      (frequencies
       (into []
             (map (fn [_]
                    (kill {:folder (str folder)})
                    (let [others (remove #{"by_name"} (.list folder))]
                      (when (seq others) (throw (ex-info "Left behind" {:files others}))))
                    (judged {:no-pin nil :whole-pin (entries 200 0 1)} (pinned (str pin)))))
             (range n)))
      (finally
        (.delete pin)
        (.delete folder)))))

(defmethod rounds :move-pin! [_ _ n kill]
  (let [[a b :as places] [(fixture/new-pin) (fixture/new-pin)]]
    (with-maps [(assoc spec :name "kills_moved" :contents (entries 200 0 1))]
      (fn [m]
        (bpf/pin! m a)
        (try
          (frequencies
           (for [_ (range n)]
             (do (kill {:moves (id m) :places places})
                 (judged {:at-first [true false] :at-second [false true]}
                         (mapv #(bpf/pinned-at? m %) places)))))
          (finally
            (.delete (io/file a))
            (.delete (io/file b))))))))

;; --- all of it

(def ^:private shares
  "How many of each thousand kills hit which operation."
  [[:save 200] [:restore 200] [:put-all! 200] [:drain! 200] [:pin-by-name 100] [:move-pin! 100]])

(defn- delete-folder [dir]
  (run! #(.delete ^File %) (reverse (file-seq dir))))

(defn- maps-left
  "Maps of the processes that are still there a while after the last of them died."
  []
  (let [left #(filterv (fn [{:keys [name]}] (= "by_name" name)) (host/maps))]
    (if (fixture/eventually #(empty? (left))) [] (left))))

(defn run
  "Kills n processes, and some more where n is not a multiple of ten; returns `{:rounds :seconds
  :found {operation {name count}} :wrong}`, where `:wrong` is what was neither old nor new."
  [n]
  (let [base (fixture/temporary-directory)
        began (System/nanoTime)]
    (try
      (let [class-path (class-path)
            options (with-cache base class-path)
            wrong (atom [])
            jobs (for [[operation share] shares]
                   [operation (long (Math/ceil (/ (* n (long share)) 1000.0)))])
            work (fn [[operation n]]
                   (let [dir (io/file base (clojure.core/name operation))
                         work-dir (doto (io/file dir "work") (.mkdirs))]
                     [operation
                      (try
                        (rounds operation work-dir n
                                #(kill-one (command class-path options (program operation %)) dir))
                        (catch Throwable e
                          (swap! wrong conj [operation (ex-message e) (ex-data e)])
                          nil))]))
            lanes (mapv #(future (mapv work %)) [(take-nth 2 jobs) (take-nth 2 (rest jobs))])
            found (into {} (mapcat deref) lanes)
            left (maps-left)]
        {:rounds (reduce + (map second jobs))
         :seconds (quot (- (System/nanoTime) began) 1000000000)
         :found found
         :wrong (cond-> @wrong (seq left) (conj [:maps left]))})
      (finally (delete-folder base)))))

(defn -main
  "Kills the given number of processes, and prints the observed states."
  [& [n]]
  (let [result (run (or (some-> n parse-long) 1000))]
    (pprint/pprint result)
    (shutdown-agents)
    (System/exit (if (seq (:wrong result)) 1 0))))
