(ns bpfmap.host-test
  (:require [bpfmap.btf :as btf]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.prog :as prog]
            [bpfmap.since :as since]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (java.io Closeable File)
           (java.nio.file Files Path)
           (java.nio.file.attribute FileAttribute)
           (java.util.concurrent.atomic AtomicBoolean)))

(set! *warn-on-reflection* true)

(def ^:private spec {:name "t_host" :type :array :key :u32 :value :u64 :max-entries 1})

(kernel-test all-maps-by-id
  (testing "lists all maps by ascending id"
    (with-open [a ^Closeable (bpf/create spec)
                b ^Closeable (bpf/create (assoc spec :type :hash))]
      (let [maps (host/maps)
            ids (map :id maps)]
        (is (vector? maps))
        (is (= ids (sort ids)))
        (doseq [m [a b]]
          (is (= [(dissoc (bpf/info m) :key :value)]
                 (filter #(= (:id (bpf/info m)) (:id %)) maps))))))))

(deftest list-options-checked
  (testing "rejects invalid options of a list"
    (are [options message] (= [:invalid-value message]
                              ((juxt :bpfmap/error :message) (error-of (host/maps options))))
      [:brief] "Options must be a map, got [:brief]"
      {:breif true} "Unknown option :breif: did you mean :brief?"
      {:brief 1} ":brief must be true or false, got 1")))

(kernel-test brief-list-without-files
  (testing "the brief list omits only data that is read from files"
    (with-open [a ^Closeable (bpf/create spec)
                b ^Closeable (bpf/create (assoc spec :type :hash :freeze true))]
      (let [ids (set (map (comp :id bpf/info) [a b]))
            ours (fn [maps] (filter (comp ids :id) maps))]
        (is (= (map #(dissoc % :memlock :frozen) (ours (host/maps)))
               (ours (host/maps {:brief true}))))
        (is (= 2 (count (ours (host/maps {:brief true})))))
        (is (every? #(contains? % :frozen) (ours (host/maps {:brief false}))))))))

(kernel-test p8-vanishing-maps-skipped
  (testing "skips and reports maps that disappear during the listing"
    (let [over (AtomicBoolean.)
          churns (doall (repeatedly 4 (fn [] (fixture/thread #(while (not (.get over))
                                                                (bpf/close (bpf/create spec)))))))
          deadline (+ (System/nanoTime) (* 1000000 (long fixture/patience)))]
      (try
        (let [skipped (first (filter #(or (seq %) (< deadline (System/nanoTime)))
                                     (repeatedly #(:skipped (meta (host/maps))))))]
          (is (seq skipped) "one vanished between being named and being opened")
          (is (every? #(= :not-found (:error %)) skipped))
          (is (every? #(str/includes? (:message %) "no map has that id") skipped)))
        (finally
          (.set over true)
          (run! fixture/join churns))))))

(kernel-test p8-list-names-capability
  (testing "listing maps reports the missing capability"
    (let [{:keys [message] :bpfmap/keys [error op]} (fixture/unprivileged #(error-of (host/maps)))]
      (is (= [:permission :list] [error op]))
      (is (str/includes? message "list needs CAP_SYS_ADMIN")))))

(kernel-test list-leaves-no-descriptor
  (testing "a listing leaves no descriptor open"
    (with-open [_ ^Closeable (bpf/create spec)]
      (let [before (fixture/settled-descriptors)]
        (dotimes [_ 20] (holders/map-infos :list (fn [_ _])))
        (is (= before (fixture/open-descriptors)))))))

;; --- programs and links

(def ^:private nothing [[:mov64 :r0 0] [:exit]])

(defn- filter-program
  "A loaded packet program that names the maps."
  ^Closeable [name & maps]
  (prog/load {:type :socket-filter :name name
              :insns (concat (for [m maps] [:lddw :r1 m]) nothing)}))

(kernel-test programs-and-links
  (testing "lists all programs and links by ascending id"
    (with-open [p (filter-program "t_first")
                q ^Closeable (prog/load {:type :raw-tracepoint :name "t_second" :insns nothing})
                a ^Closeable (prog/attach-raw-tracepoint q "sys_enter")]
      (doseq [[objects of] [[(host/programs) [p q]] [(host/links) [a]]]
              :let [ids (map :id objects)]]
        (is (vector? objects))
        (is (= ids (sort ids) (distinct ids)))
        ;; Another process may have the kernel count their runs.
        (doseq [object of :let [lasting #(dissoc % :run-count :run-time-ns)
                                info (lasting (prog/info object))]]
          (is (= [info]
                 (map lasting (filter #(= (:id info) (:id %)) objects)))))))))

(kernel-test p8-vanishing-programs
  (testing "skips and reports programs that disappear during the listing"
    (let [over (AtomicBoolean.)
          churns (doall (repeatedly 4 (fn [] (fixture/thread #(while (not (.get over))
                                                                (.close
                                                                 (filter-program "t_churn")))))))
          deadline (+ (System/nanoTime) (* 1000000 (long fixture/patience)))]
      (try
        (let [skipped (first (filter #(or (seq %) (< deadline (System/nanoTime)))
                                     (repeatedly #(:skipped (meta (host/programs))))))]
          (is (seq skipped) "one vanished between being named and being opened")
          (is (every? #(= :not-found (:error %)) skipped))
          (is (every? #(str/includes? (:message %) "no program has that id") skipped)))
        (finally
          (.set over true)
          (run! fixture/join churns))))))

(kernel-test lists-name-capability
  (testing "listing programs and links reports the missing capability"
    (doseq [f [host/programs host/links #(host/programs-using 1)]
            :let [{:keys [message] :bpfmap/keys [error op]} (fixture/unprivileged #(error-of (f)))]]
      (is (= [:permission :list] [error op]))
      (is (str/includes? message "list needs CAP_SYS_ADMIN")))))

;; --- pins

(defn- directory
  "A new directory on a BPF file system."
  ^String [parent & attributes]
  (str (Files/createDirectory (Path/of (str parent "/dir" (System/nanoTime)) (make-array String 0))
                              (into-array FileAttribute attributes))))

(defn- delete-all [directory]
  (run! #(.delete ^File %) (reverse (file-seq (io/file directory)))))

(defn- own-skips
  "Returns skipped objects, except the iterators that some kernels put into each new BPF file
  system."
  [found]
  (remove #(re-find #"/(maps|progs)\.debug$" (:path %)) (:skipped (meta found))))

(kernel-test every-kind-of-pin
  (testing "finds every kind of pinned object"
    (let [top (directory (fixture/bpffs))
          below (directory top)]
      (try
        (with-open [m ^Closeable (bpf/create spec)
                    p (filter-program "t_pinned")
                    q ^Closeable (prog/load {:type :raw-tracepoint :insns nothing})
                    a ^Closeable (prog/attach-raw-tracepoint q "sys_enter")]
          (bpf/pin! m (str top "/a map"))
          (is (identical? p (prog/pin! p (str below "/program"))))
          (is (identical? a (prog/pin! a (io/file top "z"))))
          (doseq [[link to] {"loop" top, "again" (str top "/z")}]
            (Files/createSymbolicLink (.toPath (io/file top link)) (.toPath (io/file to))
                                      (make-array FileAttribute 0)))
          (let [expected [{:path (str top "/a map") :kind :map :id (:id (bpf/info m)) :name "t_host"
                           :type :array}
                          {:path (str below "/program") :kind :program :id (:id (prog/info p))
                           :name "t_pinned" :type :socket-filter}
                          {:path (str top "/z") :kind :link :id (:id (prog/info a))
                           :type :raw-tracepoint}]
                before (fixture/settled-descriptors)
                found (host/pins top)]
            (is (= expected found))
            (is (vector? found))
            (is (= [] (:skipped (meta found))))
            (is (= expected (filter #(str/starts-with? (:path %) top) (host/pins))))
            (is (= expected (host/pins (io/file top "loop"))) "a link leads to the directory given")
            (is (= [(second expected)] (host/pins below)))
            (is (= before (fixture/open-descriptors)))))
        (finally (delete-all top))))))

(kernel-test ^{:needs [[:kernel :bpf-of-the-unprivileged]]} p8-unreadable-pins
  (testing "skips and reports pins that cannot be opened"
    (let [top (directory (fixture/bpffs))
          closed (directory top)]
      (try
        (.setReadable (io/file closed) false false)
        (.setExecutable (io/file closed) false false)
        (with-open [m ^Closeable (bpf/create spec)]
          (bpf/pin! m (str top "/m"))
          (let [found (fixture/unprivileged #(host/pins top))
                [in-closed at-m & more] (sort-by :path (:skipped (meta found)))]
            (is (= [] found))
            (is (nil? more))
            (is (= [closed :permission] [(:path in-closed) (:error in-closed)]))
            (is (= [(str top "/m") :permission] [(:path at-m) (:error at-m)]))
            (is (str/includes? (:message in-closed) "this user must have the permission to read it"))
            (is (str/includes? (:message at-m) (str "the file mode of " top "/m")))))
        (finally (delete-all top))))))

(kernel-test p8-vanishing-pins-skipped
  (testing "skips and reports pins that disappear during the listing"
    (let [top (directory (fixture/bpffs))
          over (AtomicBoolean.)
          churns (mapv (fn [i]
                         (fixture/thread #(with-open [m ^Closeable (bpf/create spec)]
                                            (while (not (.get over))
                                              (bpf/pin! m (str top "/churn" i))
                                              (bpf/unpin! m)))))
                       (range 4))
          deadline (+ (System/nanoTime) (* 1000000 (long fixture/patience)))]
      (try
        (let [skipped (first (filter #(or (seq %) (< deadline (System/nanoTime)))
                                     (repeatedly #(:skipped (meta (host/pins top))))))]
          (is (seq skipped) "one vanished between being named and being opened")
          (is (every? #(= :not-found (:error %)) skipped))
          (is (every? #(str/starts-with? (:path %) (str top "/churn")) skipped)))
        (finally
          (.set over true)
          (run! fixture/join churns)
          (delete-all top))))))

(defn- mount [type dir]
  (let [{:keys [exit err]} (fixture/run ["mount" "-t" type type (str dir)])]
    (when-not (zero? exit)
      (throw (ex-info (str "mount failed: " err) {})))))

(kernel-test hidden-mounts
  (testing "does not list pins that another mount hides"
    (let [root (fixture/temporary-directory)
          ;; The kernel writes the blank, the newline and the backslash of this name in octal.
          dir (doto (io/file root "b p\nf\\040s") .mkdir)
          pinned (fn [path]
                   (with-open [m ^Closeable (bpf/create spec)] (bpf/pin! m path) (str path)))
          paths #(map :path (host/pins root))]
      (try
        (is (= :not-bpffs (:bpfmap/error (error-of (host/pins root)))))
        (mount "bpf" dir)
        (let [below (directory dir)
              first-pin (pinned (io/file dir "hidden"))
              second-pin (pinned (io/file below "deep"))]
          (is (= [second-pin first-pin] (paths)))
          (testing "below a directory of a BPF file system in which another is mounted"
            (mount "tmpfs" below)
            (is (= [first-pin] (paths)))
            (mount "bpf" below)
            (is (= [first-pin] (paths)))
            (let [third-pin (pinned (io/file below "top"))]
              (is (= [third-pin first-pin] (sort (paths))) "once, although two mounts lead to it")
              (testing "and everything is under one more"
                (mount "bpf" dir)
                (is (= [] (paths)))
                (is (= [] (filter #(str/starts-with? (:path %) (str root)) (host/pins))))
                (let [visible (pinned (io/file dir "visible"))]
                  (is (= [visible] (paths)))
                  (is (= [] (own-skips (host/pins root)))))))))
        (finally
          (dotimes [_ 2] (fixture/run ["umount" "-l" (str dir)]))
          (.delete dir)
          (.delete root))))))

(kernel-test directory-without-pins
  (testing "a directory that can have no pins is an error"
    (are [dir kind words]
         (let [{:keys [message] :bpfmap/keys [error op]} (error-of (host/pins dir))]
           (and (= [kind :pins] [error op]) (str/includes? message words)))
      "/proc" :not-bpffs "it is not on a BPF file system, and none is mounted below it"
      "/no/such/directory" :not-found "/no/such/directory cannot be read"
      "/proc/self/comm" :not-found "it is not a directory"
      "" :invalid-value "A path must not be empty, got "
      "a\u0000b" :invalid-value "A path must not have a NUL character, got "
      nil :invalid-value "A path must be a string, a File or a Path, got nil"
      7 :invalid-value "A path must be a string, a File or a Path, got 7")))

;; --- who uses what

(def ^:private me (.pid (java.lang.ProcessHandle/current)))

(kernel-test holders-of-an-object
  (testing "lists the processes that hold an object"
    (with-open [m ^Closeable (bpf/create spec)
                same ^Closeable (bpf/clone m)
                p (filter-program "t_held" m)
                q ^Closeable (prog/load {:type :raw-tracepoint :insns nothing})
                a ^Closeable (prog/attach-raw-tracepoint q "sys_enter")]
      (let [id (:id (bpf/info m))
            [{:keys [pid command fds]} & more :as held] (host/holders m)]
        (is (nil? more))
        (is (= [me (procfs/command me)] [pid command]))
        (is (= 2 (count fds)) "the program uses the map, but is not a descriptor of it")
        (is (= fds (sort fds)))
        (doseq [fd fds]
          (is (= "anon_inode:bpf-map"
                 (str (Files/readSymbolicLink (Path/of (str "/proc/self/fd/" fd)
                                                       (make-array String 0)))))))
        (is (= held (host/holders id) (host/holders {:map-id id})))
        (is (vector? (:skipped (meta held)))))
      (doseq [[object ref] [[p {:program-id (:id (prog/info p))}]
                            [q {:program-id (:id (prog/info q))}]
                            [a {:link-id (:id (prog/info a))}]]
              :let [held (host/holders object)]]
        (is (= [[me 1]] (map (juxt :pid (comp count :fds)) held))
            "a link is not a descriptor of its program")
        (is (= held (host/holders ref))))
      (is (= [] (host/holders 0x7ffffff0))))))

(kernel-test all-holders-and-objects
  (testing "lists all holders with the objects that they hold"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u32 :max-entries 1})
                m2 ^Closeable (bpf/clone m)
                p ^Closeable (filter-program "held")]
      (let [held (host/holders)
            {:keys [command holds]} (first (filter #(= me (:pid %)) held))]
        (is (= (procfs/command me) command))
        (is (apply < (map :pid held)))
        (is (= 1 (count (filter #{{:kind :map :id (:id (bpf/info m2))}} holds)))
            "two handles of one map are one")
        (is (some #{{:kind :program :id (:id (prog/info p))}} holds))
        (is (vector? (:skipped (meta held))))))))

(kernel-test unreadable-processes
  (testing "skips and reports processes that cannot be inspected"
    (with-open [m ^Closeable (bpf/create spec)]
      (testing "denied"
        (let [held (fixture/unprivileged #(host/holders m))
              denied (first (filter #(= :permission (:error %)) (:skipped (meta held))))]
          (is (pos-int? (:pid denied)))
          (is (= (str "Process " (:pid denied) " cannot be read: this user must have the permission to read it")
                 (:message denied)))))
      (testing "ended"
        (with-redefs [procfs/processes (constantly [0 me])]
          (let [held (host/holders m)]
            (is (= [me] (map :pid held)))
            (is (= [{:pid 0 :error :not-found
                     :message "Process 0 cannot be read: it does not exist (any more)"}]
                   (:skipped (meta held))))))))))

(kernel-test programs-using-a-map
  (testing "lists the programs that use a map"
    (with-open [m ^Closeable (bpf/create spec)
                other ^Closeable (bpf/create spec)
                both (filter-program "t_both" m other)
                one (filter-program "t_one" other)
                _ (filter-program "t_none")]
      (is (= [(prog/info both)] (host/programs-using m)))
      (is (= [(prog/info both) (prog/info one)]
             (host/programs-using (:id (bpf/info other)))
             (host/programs-using {:map-id (:id (bpf/info other))})))
      (is (vector? (:skipped (meta (host/programs-using m)))))
      (is (= [] (host/programs-using 0x7ffffff0))))))

(kernel-test meaningless-references
  (testing "rejects references that mean nothing"
    (are [expr words] (let [{:keys [message] :bpfmap/keys [error]} (error-of expr)]
                        (and (= :invalid-value error) (str/includes? message words)))
      (host/holders "x")
      "A reference must be the id of a map, {:map-id n}, {:program-id n}, {:link-id n} or an open object, got \"x\""
      (host/holders -1) "got -1"
      (host/holders {:id 3}) "got {:id 3}"
      (host/holders {:map-id "3"}) "got {:map-id \"3\"}"
      (host/holders {:map-id 3 :link-id 4}) "A reference must be"
      (host/programs-using {:program-id 3})
      "The map must be an id, {:map-id n} or an open map, got {:program-id 3}"
      (host/programs-using nil)
      "A reference must be the id of a map, {:map-id n}, {:program-id n}, {:link-id n} or an open object, got nil")
    (let [p (filter-program "t_closed")]
      (.close p)
      (is (= :closed (:bpfmap/error (error-of (host/holders p))))))))

;; --- BTF

(kernel-test btf-of-the-kernel
  (testing "reads the BTF of the kernel"
    (is (= [:struct {:name "list_head"} [:next [:ptr "struct list_head"]]
            [:prev [:ptr "struct list_head"]]]
           (btf/type-named (host/kernel-btf) "list_head")))
    (testing "also as an object, whose id the kernel gives"
      (since/needing [[:kernel :vmlinux-btf-object]]
        (let [id (first (filter #(= (str (host/kernel-btf))
                                    (try (str (host/btf-by-id %))
                                         (catch clojure.lang.ExceptionInfo _ nil)))
                                (range 1 5)))]
          (is (some? id) "vmlinux is among the first"))))))

(kernel-test map-btf-by-id
  (testing "reads the BTF of a map by its id"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32
                                          :value [:struct {:name "v"} [:ip :ipv4]] :max-entries 1})]
      (let [{:keys [btf-id btf-value-type-id]} (bpf/info m)]
        (is (= [:struct {:name "v"} [:ip :ipv4]]
               (btf/type-of (host/btf-by-id btf-id) btf-value-type-id)))))))

(kernel-test load-btf-without-map
  (testing "loads types without a map"
    (let [before (fixture/settled-descriptors)
          b (host/load-btf [[:struct {:name "flow"} [:src :ipv4]] :my-int] {:my-int :s64})]
      (is (= "#<bpf-btf>" (pr-str b)))
      (is (= (inc before) (fixture/open-descriptors)))
      (.close ^Closeable b)
      (is (= "#<bpf-btf closed>" (pr-str b)))
      (is (= before (fixture/open-descriptors))))))

(kernel-test missing-btf-object
  (testing "a missing BTF object is an error"
    (are [expr kind words] (let [{:keys [message] :bpfmap/keys [error op]} (error-of expr)]
                             (and (= kind error) (keyword? op) (str/includes? message words)))
      (host/btf-by-id 0x7ffffff0) :not-found "no BTF object has that id"
      (host/btf-by-id "x") :invalid-value "An id must be an integer from 0 to 4294967295, got \"x\""
      (host/module-btf "no_such_module") :not-found "The kernel has no BTF of no_such_module"
      (host/module-btf "../x") :invalid-value
      "The name of a module must be letters, digits and `_`, got"
      (host/load-btf :u32) :invalid-value "The types must be a sequence, got :u32"
      (host/load-btf [[:struct {:name (str/join (repeat 1000 "a"))} [:a :u8]]]) :invalid-value
      "this kernel does not accept these types"
      (fixture/unprivileged #(host/load-btf [:u32])) :permission "CAP_BPF"
      (fixture/unprivileged #(host/btf-by-id 1)) :permission "CAP_SYS_ADMIN")))
