(ns bpfmap.impl.map.lifecycle-test
  "Pins, identity and access on the running kernel."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.kernel.map :as map]
            [bpfmap.prog :as prog]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are is testing]])
  (:import (bpfmap.sys Abi Attr Fd)
           (java.io Closeable File)))

(set! *warn-on-reflection* true)

(def ^:private spec {:name "t_pins" :type :hash :key :u32 :value :u64 :max-entries 8})

(defn- create ^Closeable [] (bpf/create spec))
(defn- open-map ^Closeable [& args] (apply bpf/open args))

(kernel-test p1-pin-keeps-map
  (testing "a pin keeps the map and its values"
    (let [path (fixture/new-pin)]
      (with-open [m (create)]
        (bpf/put! m 1 10)
        (is (nil? (bpf/pinned-path m)))
        (is (identical? m (bpf/pin! m path)))
        (is (= path (bpf/pinned-path m))))
      (with-open [m (open-map path {:key :u32 :value :u64})]
        (is (= 10 (m 1)))
        (is (= path (bpf/pinned-path m)))
        (bpf/unpin! m)
        (is (nil? (bpf/pinned-path m)))
        (is (not (.exists (io/file path))))))))

(defn- there? [path] (.exists (io/file path)))

(kernel-test p1-second-pin-is-added
  (testing "a second pin is added to the first"
    (let [a (fixture/new-pin) b (fixture/new-pin)]
      (with-open [m (create)]
        (bpf/pin! m a)
        (bpf/pin! m a)
        (is (there? a) "the same place again changes nothing")
        (bpf/pin! m (io/file b))
        (is (= [true true] (map there? [a b])))
        (is (= b (bpf/pinned-path m)) "the latest")
        (is (= [a b] (bpf/pinned-paths m)))
        (testing "also of a map that was opened by its pin"
          (let [c (fixture/new-pin)]
            (with-open [again (bpf/open a)]
              (bpf/pin! again c)
              (is (= [[a c] true true] [(bpf/pinned-paths again) (there? a) (there? c)]))
              (bpf/unpin! again c)
              (is (= [[a] true false] [(bpf/pinned-paths again) (there? a) (there? c)])))))
        (testing "a pin that another process removed is created again"
          (.delete (io/file b))
          (bpf/pin! m (.toPath (io/file b)))
          (is (there? b)))
        (testing "one is removed, then the others"
          (bpf/unpin! m b)
          (is (= [[a] true false] [(bpf/pinned-paths m) (there? a) (there? b)]))
          (bpf/pin! m b)
          (bpf/unpin! m)
          (is (= [[] nil false false]
                 [(bpf/pinned-paths m) (bpf/pinned-path m) (there? a) (there? b)]))
          (is (= [:not-found
                  (str b " is not a pin of map " (:id (bpf/info m))
                       " (t_pins): nothing is there, or something else is pinned there")]
                 ((juxt :bpfmap/error :message) (error-of (bpf/unpin! m b))))))))))

(kernel-test p1-pin-moved-on-request
  (testing "moves a pin on request"
    (let [[a b c] (repeatedly fixture/new-pin)
          refusal (juxt :bpfmap/error :bpfmap/op :message)]
      (with-open [m (create) other (create)]
        (is (= [:not-found :move-pin! (str "This handle has no pin of map " (:id (bpf/info m))
                                           " (t_pins): give the path of the pin to move, "
                                           "(move-pin! m from to)")]
               (refusal (error-of (bpf/move-pin! m a)))))
        (bpf/pin! m a)
        (is (identical? m (bpf/move-pin! m b)))
        (is (= [[b] false true] [(bpf/pinned-paths m) (there? a) (there? b)]))
        (bpf/pin! m a)
        (is (= [:ambiguous :move-pin! (str "This handle has 2 pins of map " (:id (bpf/info m))
                                           " (t_pins): give the one to move, (move-pin! m from "
                                           "to): " b ", " a)]
               (refusal (error-of (bpf/move-pin! m c)))))
        (bpf/move-pin! m b c)
        (is (= [[a c] true false true] [(bpf/pinned-paths m) (there? a) (there? b) (there? c)]))
        (bpf/move-pin! m c c)
        (is (there? c) "to where it is, which changes nothing")
        (bpf/pin! other b)
        (testing "refused, the pin stays where it was"
          (is (= [:exists :move-pin!] (take 2 (refusal (error-of (bpf/move-pin! m c b))))))
          (is (= [:not-found :move-pin!]
                 (take 2 (refusal (error-of (bpf/move-pin! m b (fixture/new-pin))))))
              "the file is not a pin of this map")
          (is (= [:invalid-value :move-pin!]
                 (take 2 (refusal (error-of (bpf/move-pin! m c (str b ".x")))))))
          (is (= [:not-found :move-pin!]
                 (take 2 (refusal (error-of (bpf/move-pin! m c (str b "_no/such")))))))
          (is (= [[a c] true true true] [(bpf/pinned-paths m) (there? a) (there? b) (there? c)])))
        (testing "a handle that did not make the pin moves it by its path"
          (with-open [again (bpf/open (:id (bpf/info m)))]
            (bpf/move-pin! again c (str c "_moved"))
            (is (= [(str c "_moved")] (bpf/pinned-paths again)))
            (bpf/unpin! again)
            (is (not (there? (str c "_moved"))))))
        (bpf/unpin! m)
        (bpf/unpin! other)
        (is (= [false false false] (map there? [a b c])))))))

(kernel-test p1-existing-target
  (testing "rejects an existing target"
    (let [a (fixture/new-pin) b (fixture/new-pin)]
      (with-open [m (create) other (create)]
        (bpf/pin! m a)
        (doseq [pin! [#(bpf/pin! other a) #(do (bpf/pin! other b) (bpf/pin! other a))]]
          (let [{:keys [message] :bpfmap/keys [error errno file]} (error-of (pin!))]
            (is (= [:exists :EEXIST a] [error errno file]))
            (is (str/includes? message
                               (str a " exists already; unpin it, or pin somewhere else")))))
        (is (= b (bpf/pinned-path other)) "a refused pin leaves the other where it was")
        (is (.exists (io/file b)))
        (run! bpf/unpin! [m other])))))

(kernel-test p1-bad-pin-paths
  (testing "rejects paths where nothing can be pinned"
    (with-open [m (create)]
      (are [path kind words]
           (let [{:keys [message] :bpfmap/keys [error op]} (error-of (bpf/pin! m path))]
             (and (= kind error) (= :pin! op) (str/includes? message words)))
        "" :invalid-value "A path must not be empty, got \"\""
        " " :invalid-value "A path must not be empty, got \" \""
        ;; sysfs and proc refuse in words of their own.
        "/sys/kernel/bpfmap-pin" :not-bpffs
        "is not on a BPF file system; mount one with `mount -t bpf"
        "/proc/bpfmap-pin" :not-bpffs "is not on a BPF file system"
        "/tmp/bpfmap-pin" :not-bpffs
        "/tmp/bpfmap-pin is not on a BPF file system; mount one with `mount -t bpf"
        "/nowhere/at/all" :not-found "the directory of /nowhere/at/all does not exist"
        (str (fixture/bpffs) "/a.b") :invalid-value "The name of a pin must not have a dot"
        (str (fixture/bpffs) "/no/such") :not-found "does not exist")
      (is (nil? (bpf/pinned-path m)))
      (is (not (.exists (io/file "/tmp/bpfmap-pin")))))))

(kernel-test p1-other-file-system
  (testing "a pin cannot move to another file system"
    (let [path (fixture/new-pin)
          dir (fixture/temporary-directory)]
      (with-open [m (create)]
        (try
          (bpf/pin! m path)
          (let [{:keys [message] :bpfmap/keys [error]} (error-of (bpf/move-pin! m (str dir "/x")))]
            (is (= :invalid-value error))
            (is (str/includes? message "a pin can only move within one BPF file system")))
          (is (= path (bpf/pinned-path m)))
          (finally
            (bpf/unpin! m)
            (.delete dir)))))))

(kernel-test foreign-pin-kept
  (testing "leaves a pin that now holds another map"
    (let [a (fixture/new-pin) b (fixture/new-pin)
          holds (fn [path] (with-open [m (open-map path)] (:id (bpf/info m))))]
      (with-open [m (create) other (create)]
        (bpf/pin! m a)
        (.delete (io/file a))
        (bpf/pin! other a)
        (testing "by moving"
          (bpf/pin! m b)
          (is (= [(:id (bpf/info other)) (:id (bpf/info m))] [(holds a) (holds b)])))
        (testing "by unpinning"
          (.delete (io/file b))
          (bpf/pin! other b)
          (bpf/unpin! m)
          (is (nil? (bpf/pinned-path m)))
          (is (= (:id (bpf/info other)) (holds b))))
        (testing "and a pin that is gone is made again at its own place"
          (bpf/unpin! other)
          (bpf/pin! m b)
          (.delete (io/file b))
          (bpf/pin! m b)
          (is (= (:id (bpf/info m)) (holds b))))
        (run! bpf/unpin! [m other])))))

(kernel-test p2-unpin-without-pin
  (testing "unpinning a map that is not pinned is not an error"
    (let [path (fixture/new-pin)]
      (with-open [m (create)]
        (is (identical? m (bpf/unpin! m)))
        (bpf/pin! m path)
        (with-open [other (open-map path)]
          (bpf/unpin! m)
          (bpf/unpin! m)
          (bpf/unpin! other)
          (is (nil? (bpf/pinned-path other))))))))

(kernel-test unpin-reports-obstacle
  (testing "unpin! reports why it cannot remove the pin"
    (let [dir (io/file (fixture/bpffs) "locked")
          path (str dir "/pin")]
      (.mkdir dir)
      (with-open [m (create)]
        (bpf/pin! m path)
        (let [{:keys [message]
               :bpfmap/keys [error file op]} (fixture/unprivileged #(error-of (bpf/unpin! m)))]
          (is (= [:permission path :unpin!] [error file op]))
          (is (str/includes? message (str "the file mode of " path))))
        (is (= path (bpf/pinned-path m)) "a failure leaves it pinned")
        (bpf/unpin! m))
      (.delete dir))))

(kernel-test p6-requested-access
  (testing "a handle has the access that it was opened with"
    (let [path (fixture/new-pin)]
      (with-open [m (create)]
        (bpf/put! m 1 10)
        (bpf/pin! m path)
        (let [id (:id (bpf/info m))]
          (doseq [ref [id path {:id id} {:path path} {:name "t_pins"}]]
            (testing (str "read-only by " ref)
              (with-open [r (open-map ref {:access :read-only :key :u32 :value :u64})]
                (is (= 10 (r 1)))
                (is (= 10 (get (into {} r) 1)))
                (doseq [write [#(bpf/put! r 1 1) #(bpf/insert! r 2 1) #(bpf/replace! r 1 1)
                               #(bpf/delete! r 1)
                               #(bpf/take! r 1) #(bpf/freeze! r)]]
                  (let [{:keys [message] :bpfmap/keys [error map]} (error-of (write))]
                    (is (= [:read-only id] [error (:id map)]))
                    (is (str/includes? message "opened read-only"))))
                (testing "and so is a clone of it"
                  (with-open [c ^Closeable (bpf/clone r)]
                    (is (= :read-only (:bpfmap/error (error-of (bpf/put! c 1 1)))))))))
            (testing (str "write-only by " ref)
              (with-open [w (open-map ref {:access :write-only :key :u32 :value :u64})]
                (bpf/put! w 2 20)
                (doseq [read [#(w 1) #(bpf/take! w 1) #(bpf/next-key w) #(seq w)]]
                  (let [{:keys [message] :bpfmap/keys [error]} (error-of (read))]
                    (is (= :write-only error))
                    (is (str/includes? message "opened write-only")))))))
          (is (= {1 10 2 20} (into {} m)))
          (bpf/unpin! m))))))

(kernel-test p6-descriptor-access
  (testing "the kernel rejects operations that the descriptor does not allow"
    ;; The handle refuses first; here the descriptor's own restriction is seen through a handle
    ;; that believes otherwise.
    (with-open [m (create)]
      (let [id (:id (bpf/info m))
            fd (map/open-id id :read-only {:op :open})
            handle ((requiring-resolve
                     'bpfmap.impl.map.lifecycle/make-map) fd (bpf/info m) (bpf/spec m) :read-write
                                                          nil)]
        (with-open [handle ^Closeable handle]
          (is (= [:permission :EPERM]
                 ((juxt :bpfmap/error :bpfmap/errno) (error-of (bpf/put! handle 1 1))))))))))

(kernel-test p6-one-direction-maps
  (testing "maps created for one direction reject the other"
    (with-open [r ^Closeable (bpf/create (assoc spec :flags #{:rdonly}))
                w ^Closeable (bpf/create (assoc spec :flags #{:wronly}))]
      (is (= :read-only (:bpfmap/error (error-of (bpf/put! r 1 1)))))
      (is (= :write-only (:bpfmap/error (error-of (w 1)))))
      (bpf/put! w 1 1))))

(defn- pin-descriptor [^Fd fd path]
  (with-open [attr (Attr.)]
    (.string attr Abi/OBJ_PATHNAME path)
    (.fd attr Abi/OBJ_BPF_FD fd)
    (assert (zero? (.call attr Abi/BPF_OBJ_PIN)))))

(kernel-test p7-program-or-link-pin
  (testing "opening the pin of a program or link names its kind"
    (let [program-path (fixture/new-pin) link-path (fixture/new-pin)]
      (with-open [p ^Closeable (prog/load {:type :raw-tracepoint :insns [[:mov64 :r0 0] [:exit]]})
                  a ^Closeable (prog/attach-raw-tracepoint p "sys_enter")]
        (pin-descriptor (.-fd ^bpfmap.impl.prog.program.Program p) program-path)
        (prog/pin! a link-path)
        (let [before (fixture/settled-descriptors)]
          (doseq [[path what] [[program-path "it is a program"] [link-path "it is a link"]]
                  access [:read-write :read-only :write-only]]
            (let [{:keys [message]
                   :bpfmap/keys [error file]} (error-of (bpf/open path {:access access}))]
              (is (= [:not-a-map path] [error file]))
              (is (= (str path " is not a map: " what) message))))
          (is (= before (fixture/open-descriptors))))
        (run! #(.delete (io/file %)) [program-path link-path])))))

(kernel-test files-not-pins
  (testing "rejects files that are not pins"
    (are [path kind words] (let [{:keys [message] :bpfmap/keys [error]} (error-of (bpf/open path))]
                             (and (= kind error) (str/includes? message words)))
      "/no/such/pin" :not-found "the file /no/such/pin does not exist"
      "flows" :not-found "to open a map by its name: (open {:name \"flows\"})"
      "/etc/passwd" :not-bpffs "/etc/passwd is not on a BPF file system, so it cannot be a pin"
      "/etc/passwd/x" :not-found "the file /etc/passwd/x does not exist")))

(kernel-test ^{:needs [[:kernel :bpf-of-the-unprivileged]]} pin-denied-by-mode
  (testing "reports a pin whose mode denies access"
    (let [path (fixture/new-pin)]
      (with-open [m (create)]
        (bpf/pin! m path)
        (let [{:keys [message]
               :bpfmap/keys [error errno]} (fixture/unprivileged #(error-of (bpf/open path)))]
          (is (= :permission error))
          (is (#{:EACCES :EPERM} errno))
          (is (str/includes? message (str "the file mode of " path))))
        (bpf/unpin! m)))))

(kernel-test p9-unknown-id-not-found
  (testing "an unknown id throws :not-found"
    (let [{:keys [message] :bpfmap/keys [error errno op]} (error-of (bpf/open 0x7ffffff0))]
      (is (= [:not-found :ENOENT :open] [error errno op]))
      (is (str/includes? message "no map has that id")))))

(kernel-test p9-clone-outlives-original
  (testing "a clone stays open without its original and is not pinned"
    (let [path (fixture/new-pin)
          m (create)]
      (bpf/pin! m path)
      (bpf/put! m 1 10)
      (with-open [c ^Closeable (bpf/clone m)]
        (is (nil? (bpf/pinned-path c)))
        (bpf/unpin! c)
        (is (.exists (io/file path)) "unpinning the clone does not touch the original's pin")
        (bpf/unpin! m)
        (bpf/close m)
        (is (= 10 (c 1)))
        (is (= (bpf/spec m) (bpf/spec c))))
      (is (= :closed (:bpfmap/error (error-of (bpf/clone m))))))))

(kernel-test ambiguous-names
  (testing "rejects names of no map or of several maps"
    (let [{:keys [message] :bpfmap/keys [error]} (error-of (bpf/open {:name "no_such_name"}))]
      (is (= :not-found error))
      (is (str/includes? message "No map named")))
    (with-open [a ^Closeable (bpf/create (assoc spec :name "t_twice"))
                b ^Closeable (bpf/create (assoc spec :name "t_twice"))]
      (let [ids (sort (map (comp :id bpf/info) [a b]))
            {:keys [message]
             :bpfmap/keys [error candidates]} (error-of (bpf/open {:name "t_twice"}))]
        (is (= :ambiguous error))
        (is (= (map #(hash-map :id % :name "t_twice" :type :hash :pinned []) ids)
               (map #(dissoc % :held) candidates)))
        (is (every? #(some #{(.pid (java.lang.ProcessHandle/current))} (map :pid (:held %)))
                    candidates))
        (is (str/includes? message
                           (str "it is the name of maps " (first ids) ", " (second ids))))))))

(kernel-test descriptor-copy
  (testing "opening a descriptor duplicates it and leaves the original open"
    (with-open [m (create)]
      (let [fd (.-fd ^bpfmap.impl.map.bpf_map.BpfMap m)
            number (.acquire ^Fd fd)]
        (try
          (with-open [same (open-map {:fd number})]
            (is (= (:id (bpf/info m)) (:id (bpf/info same)))))
          (finally (.release ^Fd fd)))
        (is (nil? (m 1)) "the first is still open")))
    (testing "a value that is not a map"
      (with-open [file (java.io.RandomAccessFile. "/dev/null" "r")]
        (let [before (fixture/settled-descriptors)
              number (some (fn [^File link]
                             (when (= "/dev/null"
                                      (try
                                        (str (java.nio.file.Files/readSymbolicLink (.toPath link)))
                                        (catch java.io.IOException _)))
                               (parse-long (.getName link))))
                           (.listFiles (io/file "/proc/self/fd")))
              {:keys [message] :bpfmap/keys [error]} (error-of (bpf/open {:fd number}))]
          (is (some? file))
          (is (= :not-a-map error))
          (is (= (str "Descriptor " number " is not a map: it is something else") message))
          (is (= before (fixture/open-descriptors)))))
      (is (= [:not-found :EBADF]
             ((juxt :bpfmap/error :bpfmap/errno) (error-of (bpf/open {:fd 0x7ffffff}))))))))

(kernel-test pinned-at-compares-maps
  (testing "pinned-at? compares the pinned map with the handle"
    (let [pin (fixture/new-pin)]
      (with-open [m (create)
                  other (create)]
        (is (false? (bpf/pinned-at? m pin)) "nothing is there")
        (is (false? (bpf/pinned-at? m "/dev/null")) "the file is not a pin")
        (bpf/pin! m pin)
        (is (true? (bpf/pinned-at? m pin)))
        (is (true? (bpf/pinned-at? m (java.io.File. ^String pin))))
        (is (false? (bpf/pinned-at? other pin)))
        (is (= :invalid-value (:bpfmap/error (error-of (bpf/pinned-at? m "")))))
        (is (= :invalid-value (:bpfmap/error (error-of (bpf/pinned-at? {:id 1} pin)))))
        (bpf/unpin! m)))))
