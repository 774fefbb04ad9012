(ns ^:volume bpfmap.pod.process-test
  "bin/pod-bpfmap as a client has it: another process, whose stdout is the protocol and nothing
  else."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.pod-client :as client]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io Closeable OutputStream)
           (java.lang Process)))

(set! *warn-on-reflection* true)

(defn- descriptors [{:keys [^Process process]}]
  (count (.list (io/file "/proc" (str (.pid process)) "fd"))))

(kernel-test started-by-babashka
  (testing "runs as Babashka starts it"
    (let [elsewhere (fixture/temporary-directory)
          {:keys [^Process process err] :as c} (client/start
                                                :dir elsewhere :env
                                                {"JAVA_TOOL_OPTIONS" "-Dbpfmap.nothing=1"})
          call (fn [var-name & args]
                 (client/invoke c (symbol "pod.bpfmap.core" (name var-name)) args {}))
          spec {:name "pod_process" :type :hash :key :u32 :value :u64 :max-entries 64}]
      (try
        (testing "two processes, one map"
          (let [m (call 'create spec)
                id (:id (:form m))]
            (call 'put! m 7 42)
            (with-open [here ^Closeable (bpf/open id)]
              (is (= {7 42} (into {} here)))
              (bpf/put! here 8 1)
              (is (= {7 42, 8 1} (call 'snapshot m))))))
        (testing "paths are meant from where the client is"
          (let [pin (io/file (fixture/new-pin))
                {:keys [out]} (fixture/run ["realpath" (str "--relative-to=" elsewhere) (str pin)])]
            (with-open [m ^Closeable (bpf/create spec)]
              (bpf/pin! m pin)
              (is (= (:id (bpf/info m)) (:id (:form (call 'open (str/trim out))))))
              (bpf/unpin! m))))
        (testing "what the JVM prints, here its threads, goes to stderr"
          (fixture/run ["kill" "-QUIT" (str (.pid process))])
          (is (= 4 (client/invoke c 'pod.bpfmap.type/size [:u32] {})))
          (is (fixture/eventually #(str/includes? (slurp err) "Full thread dump"))))
        (testing "objects that are opened and closed leave no descriptor"
          (let [m (call 'create spec)
                round #(call 'close (call 'clone m))]
            (round)
            (let [before (descriptors c)]
              (dotimes [_ 500] (round))
              (is (< (descriptors c) (+ before 50))))))
        (testing "open objects are closed at shutdown"
          (let [id (:id (:form (call 'create spec)))]
            (is (= 0 (client/stop c)))
            (is (= :end (deref (:ended c) fixture/patience :not-ended))
                "and all that it wrote were whole messages")
            (is (= :not-found (:bpfmap/error (error-of (bpf/open id)))))))
        (finally
          (.destroyForcibly process)
          (.delete elsewhere))))))

(defn- names-in
  "The names in a directory in hexadecimal, as find and od have them."
  [directory]
  (:out (fixture/run ["bash" "-c"
                      (str "find " directory
                           " -type f -printf '%f' | od -An -v -tx1 | tr -d ' \\n'")])))

(kernel-test pod-in-every-locale
  (testing "handles file names the same in every locale"
    (doseq [before [["env" "LC_ALL=C"] ["env" "-i"]]]
      (testing before
        (let [directory (doto (io/file (fixture/new-pin)) (.mkdir))
              files (fixture/temporary-directory)
              pin (str directory "/café")
              file (str files "/café.edn")
              {:keys [^Process process err] :as c} (client/start :before before)
              core (fn [var-name & args]
                     (client/invoke c (symbol "pod.bpfmap.core" (name var-name)) args {}))
              exec (fn [var-name options]
                     (client/invoke c (symbol "pod.bpfmap.exec" (name var-name)) [options] {}))]
          (try
            (let [m (core 'create
                          {:name "pod_locale" :type :hash :key :u32 :value [:string 8]
                           :max-entries 4})
                  id (:id (:form m))]
              (with-open [raw ^Closeable (bpf/open id {:value [:bytes 8]})]
                (core 'put! m 1 "café")
                (is (= (bytes/->bytes "63 61 66 c3 a9 00 00 00") (raw 1)))
                (is (= "café" (core 'lookup m 1)))
                (exec 'put {:ref m :key 2 :value "é" :yes true})
                (is (= (bytes/->bytes "c3 a9 00 00 00 00 00 00") (raw 2)))
                (is (= {:key 2 :value "é"} (exec 'get {:ref m :key 2})))
                (is (= [{:key 1 :value "café"}] (exec 'dump {:ref m :where "value=café"}))))
              (testing "names of pins"
                (core 'pin! m pin)
                (is (= "636166c3a9" (names-in directory)))
                (is (= pin (core 'pinned-path m)))
                (is (= id (:id (:form (core 'open pin)))))
                (is (= {:key 1 :value "café"} (exec 'get {:ref pin :key 1})))
                (is (= [pin]
                       (map :path (client/invoke c 'pod.bpfmap.host/pins [(str directory)] {}))))
                (exec 'unpin {:path pin})
                (is (= "" (names-in directory)))
                (exec 'pin {:ref m :path pin})
                (is (= "636166c3a9" (names-in directory))))
              (testing "names of files"
                (is (= file (:file (exec 'save {:ref m :file file}))))
                (is (= "636166c3a92e65646e" (names-in files)))
                (is (= [] (exec 'diff {:old file :new pin})))
                (exec 'unpin {:path pin}))
              (testing "errors"
                (is (str/includes? (:message (error-of (core 'open (str directory "/no_café"))))
                                   (str "the file " directory "/no_café does not exist")))))
            (is (= 0 (client/stop c)))
            (is (= "" (slurp err)))
            (finally
              (.destroyForcibly process)
              (fixture/run ["bash" "-c"
                            (str "rm -f " directory "/*; rmdir " directory "; rm -r "
                                 files)]))))))))

(deftest ends-with-its-input
  (testing "ends with its input or at an invalid message"
    (let [started (mapv (fn [[input _ _]]
                          (let [{:keys [^Process process] :as pod} (client/start-process)]
                            (with-open [out (.getOutputStream process)]
                              (.write out (.getBytes ^String input)))
                            pod))
                        [[""] ["hello\n"]])]
      (is (= [[0 "" ""]
              [1 "" "bpfmap pod: Invalid bencode: a message must begin with `d`, got `h`\n"]]
             (mapv (fn [{:keys [^Process process err] :as pod}]
                     [(client/exit pod) (slurp (.getInputStream process)) (slurp err)])
                   started))))))

(deftest ends-without-a-client
  (testing "ends if its client is gone"
    (let [{:keys [^Process process err] :as pod} (client/start-process)]
      (.close (.getInputStream process))
      (doto ^OutputStream (.getOutputStream process)
        (.write (.getBytes (client/encode {"op" "describe" "id" "1"})))
        (.flush))
      (is (= [1 "bpfmap pod: The output cannot be written: Broken pipe\n"]
             [(client/exit pod) (slurp err)])))))

(deftest started-by-hand
  (testing "explains itself if it is started by hand"
    (let
     [ends "; it is a Babashka pod: (babashka.pods/load-pod \"bin/pod-bpfmap\")\n"]
      (is (= {:exit 2 :out "" :err (str "bpfmap pod: It accepts no arguments" ends)}
             (fixture/run [client/script "--help"])))
      (is (= {:exit 2 :out "" :err (str "bpfmap pod: It has no socket, only stdin and stdout" ends)}
             (fixture/run [client/script] :env {"BABASHKA_POD_TRANSPORT" "socket"}))))))
