(ns bpfmap.impl.user-file-test
  "Every place that reads a file that a user names: the same errors, and no wait without end."
  (:require [bpfmap.cli.edit :as edit]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.hints :as hints]
            [bpfmap.exec.remembered :as remembered]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.user-file :as user-file]
            [bpfmap.metrics.config-file :as config-file]
            [bpfmap.metrics.credentials :as credentials]
            [bpfmap.object :as object]
            [bpfmap.since :as since]
            [clojure.java.io :as io]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io ByteArrayInputStream Closeable File RandomAccessFile)
           (java.net StandardProtocolFamily UnixDomainSocketAddress)
           (java.nio.channels ServerSocketChannel)))

(set! *warn-on-reflection* true)

(def ^:private mib (* 1024 1024))

(defn- places
  "What reads a file, as `{:what :read :most :binary}`; m is an open map.

  `:calls` is true if it calls bpf(2) first."
  [m]
  (let [spec {:name "flows" :type :hash :key :u32 :value :u32}]
    [{:what "the file of hints" :most (* 4 mib) :read #(hints/shower {:hints %} spec spec {})}
     {:what "the file of types" :most (* 4 mib)
      :read #(remembered/find-types {:name "flows" :key-size 4 :value-size 4} %)}
     {:what "the config" :most (* 4 mib) :read config-file/read-data}
     {:what "the file of the password" :most mib :read credentials/password}
     {:what "the key store" :most mib :binary true
      :read #(#'credentials/stored-keys % (char-array 0))}
     {:what "the certificate" :most mib :read #(#'credentials/certificates %)}
     {:what "the key" :most mib :read #(#'credentials/private-key %)}
     {:what "the object" :most (* 64 mib) :binary true :read object/read}
     {:what "the object" :most (* 64 mib) :binary true :read #(exec/inspect {:file %})}
     {:what "the saved map" :read #(exec/restore {:file % :pin "/nonexistent/pin"})}
     {:what "the saved map" :read #(exec/diff {:old m :new (str %)}) :ends ".edn" :calls true}
     {:what "the entries in" :read #(exec/put {:ref m :file % :yes true})}
     {:what "the text in" :read #(#'edit/read-text %)}]))

(defn- make
  "Makes a file of a kind; returns the reason why it cannot be read, or nil if that does not apply."
  [kind ^File file {:keys [most binary calls]}]
  (case kind
    :missing "there is no such file"
    :dangling (do (fixture/run ["ln" "-s" "/nonexistent" (str file)]) "there is no such file")
    :directory (do (.mkdir file) "it is a directory")
    :fifo (do (fixture/run ["mkfifo" (str file)])
              "it is a FIFO; pass its contents as /dev/stdin")
    :device (do (fixture/run ["mknod" "-m" "600" (str file) "c" "1" "5"]) "it is a device")
    :socket (do (with-open [s (ServerSocketChannel/open StandardProtocolFamily/UNIX)]
                  (.bind s (UnixDomainSocketAddress/of (str file))))
                "it is a socket")
    ;; An old kernel denies the calls of bpf(2) that come before.
    :unreadable (when (or (not calls) (since/has? [:kernel :bpf-of-the-unprivileged]))
                  (spit file "{}")
                  (fixture/run ["chmod" "0" (str file)])
                  "permission denied")
    :not-utf-8 (when-not binary
                 (io/copy (byte-array [0x7b 0xff 0x7d]) file)
                 (fixture/run ["chmod" "600" (str file)])
                 "it is not UTF-8 text")
    :too-large (when most
                 (with-open [f (RandomAccessFile. file "rw")] (.setLength f (inc (long most))))
                 (fixture/run ["chmod" "600" (str file)])
                 (str "it must have at most " most " bytes"))))

(kernel-test ^:volume same-errors-everywhere
  (testing "each place rejects each kind of file with the same kind of error and sentence"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u32 :max-entries 8})]
      (doseq [{:keys [what read ends] :as place} (places m)
              kind [:missing :dangling :directory :fifo :device :socket :unreadable :not-utf-8
                    :too-large]
              :let [dir (fixture/temporary-directory)
                    file (io/file dir (str "x" ends))]]
        (try
          (fixture/run ["chmod" "755" (str dir)])
          (when-let [reason (make kind file place)]
            (let [attempt #(error-of (read (str file)))
                  {:keys [message] :bpfmap/keys [error hint]}
                  (if (= :unreadable kind) (fixture/unprivileged attempt) (attempt))]
              (is (= [:io (str "Cannot read " what " " (pr-str (str file)) ": " reason) reason]
                     [error message hint])
                  (str what " " kind))))
          (finally (run! #(.delete ^File %) (reverse (file-seq dir)))))))))

(deftest sources-read
  (testing "a stream is read up to the limit, and is not closed"
    (let [bytes (.getBytes "né")]
      (is (= "né" (user-file/text-in {:in (ByteArrayInputStream. bytes) :what "it" :most 3})))
      (is (= [:io "Cannot read it: it must have at most 2 bytes"]
             ((juxt :bpfmap/error :message)
              (error-of (user-file/bytes-in {:in (ByteArrayInputStream. bytes) :what "it"
                                             :most 2})))))))
  (testing "a file with exactly the limit"
    (let [dir (fixture/temporary-directory)
          path (io/file dir "x")]
      (try
        (spit path "123")
        (is (= "123" (user-file/text-in {:file path :what "it" :most 3})))
        (finally (run! #(.delete ^File %) (reverse (file-seq dir))))))))
