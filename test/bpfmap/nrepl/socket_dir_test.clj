(ns ^:volume bpfmap.nrepl.socket-dir-test
  "Where a socket may lie, and whose its name is. As root the tests make files of other users;
  without, some are skipped."
  (:require [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.nrepl.listener :as listener]
            [bpfmap.nrepl.socket-dir :as socket-dir]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io Closeable File)
           (java.lang ProcessHandle)
           (java.net StandardProtocolFamily UnixDomainSocketAddress)
           (java.nio.channels ServerSocketChannel)
           (java.nio.file Files LinkOption Path)
           (java.nio.file.attribute FileAttribute PosixFilePermissions)))

(set! *warn-on-reflection* true)

(def ^:private no-links (into-array LinkOption [LinkOption/NOFOLLOW_LINKS]))

(defn- path ^Path [file] (socket-dir/java-path file))

(defn- mode [file]
  (PosixFilePermissions/toString (Files/getPosixFilePermissions (path file) no-links)))

(defn- set-mode [file text]
  (Files/setPosixFilePermissions (path file) (PosixFilePermissions/fromString text)))

(defn- link [file target]
  (Files/createSymbolicLink (path file) (path target) (make-array FileAttribute 0)))

(defn- own
  "Gives a file, a link itself, to nobody."
  [file]
  (fixture/run ["chown" "-h" "65534" (str file)]))

(defn- with-home*
  "Calls f with a directory that only this user can write, below one that all can, as /tmp;
  deletes it afterwards."
  [f]
  (let [home (fixture/temporary-directory)]
    (try
      (f home)
      (finally
        (run! #(Files/deleteIfExists (.toPath ^File %)) (reverse (file-seq home)))))))

(defmacro ^:private with-home [[home] & body]
  `(with-home* (fn [~(with-meta home {:tag `File})] ~@body)))

(defn- refusal
  "Returns the kind and message of the error for a path, with ~ for the home."
  [home socket]
  (let [{:keys [message]
         :bpfmap/keys [error]} (error-of (socket-dir/in-private-directory socket true))]
    [error (.replace (str message) (str home) "~")]))

;; --- the directory

(deftest new-directory-private
  (testing "creates a missing directory as private"
    (with-home [home]
      (let [socket (io/file home "new" "nrepl.sock")]
        (is (= (path socket) (socket-dir/in-private-directory (str socket) true)))
        (is (= "rwx------" (mode (io/file home "new"))))
        (is (= (path socket) (socket-dir/in-private-directory (str socket) true))
            "and is good the next time")))))

(deftest client-directory
  (testing "does not create the directory for a client"
    (with-home [home]
      (let [{:keys [message]
             :bpfmap/keys [error]} (error-of
                                     (socket-dir/in-private-directory
                                       (str home "/new/nrepl.sock") false))]
        (is (= [:not-found (str "No directory " home "/new")] [error message]))
        (is (empty? (.list home)))))))

(deftest open-directory-rejected
  (testing "rejects a directory that others can access"
    (with-home [home]
      (let [open (doto (io/file home "open") (.mkdir))]
        (doseq [permissions ["rwxr-xr-x" "rwx--x---" "rwx-----x" "rwx---rwx"]]
          (set-mode open permissions)
          (let [[error message] (refusal home (str open "/nrepl.sock"))]
            (is (= :permission error) permissions)
            (is
             (re-find
              #"^~/open is open to other users \(mode 0\d+\): use a directory of its own with mode 0700"
              message)))
          (is (= permissions (mode open)) "and left as it is"))))))

(kernel-test other-owner-rejected
  (testing "rejects a directory of another user"
    (with-home [home]
      (let [theirs (doto (io/file home "theirs") (.mkdir) (set-mode "rwx------") own)]
        (is (= [:permission
                "~/theirs belongs to another user (65534): use a directory that belongs to this user"]
               (refusal home (str theirs "/nrepl.sock"))))
        (is (= [:permission
                (str
                 "~/theirs belongs to another user (65534), who could replace ~/theirs/own: "
                 "use another directory")]
               (refusal home (str theirs "/own/nrepl.sock"))))))))

(deftest writable-parent
  (testing "rejects a directory below one that others can write"
    (with-home [home]
      (let [shared (doto (io/file home "shared") (.mkdir) (set-mode "rwxrwxrwx"))]
        (is (= [:permission
                (str
                 "~/shared can be written by other users (mode 0777), who could replace "
                 "~/shared/own: use another directory")]
               (refusal home (str shared "/own/nrepl.sock"))))
        (is (empty? (.list shared)))
        (testing "unless it is sticky, as /tmp is"
          (fixture/run ["chmod" "+t" (str shared)])
          (is (socket-dir/in-private-directory (str shared "/own/nrepl.sock") true)))))))

(deftest directory-link
  (testing "rejects a symbolic link in place of the directory"
    (with-home [home]
      (let [real (doto (io/file home "real") (.mkdir) (set-mode "rwx------"))]
        (link (io/file home "link") real)
        (is (= [:permission "~/link is not a directory: use a directory for the socket alone"]
               (refusal home (str home "/link/nrepl.sock"))))))))

(kernel-test own-link-in-path
  (testing "follows a link in the path unless another user created it"
    (with-home [home]
      (let [real (doto (io/file home "real") (.mkdir))
            sticky (doto (io/file home "sticky") (.mkdir))]
        (fixture/run ["chmod" "1777" (str sticky)])
        (link (io/file home "mine") real)
        (is (= (path (io/file real "own" "nrepl.sock"))
               (socket-dir/in-private-directory (str home "/mine/own/nrepl.sock") true)))
        (own (link (io/file sticky "theirs") real))
        (is (= [:permission
                (str
                 "~/sticky/theirs belongs to another user (65534), who could replace "
                 "~/sticky/theirs/own: use another directory")]
               (refusal home (str sticky "/theirs/own/nrepl.sock"))))
        (testing "also where a link of this user's leads through another's"
          (link (io/file home "through") (io/file sticky "theirs"))
          (is (= :permission (first (refusal home (str home "/through/own/nrepl.sock"))))))
        (testing "relative links, and links that lead upwards"
          (Files/createSymbolicLink (path (io/file real "up"))
                                    (socket-dir/java-path "../mine/../real/.")
                                    (make-array FileAttribute 0))
          (is (= (path (io/file real "own" "nrepl.sock"))
                 (socket-dir/in-private-directory (str home "/mine/up/own/nrepl.sock") true))))
        (testing "not links in a circle"
          (link (io/file home "a") (io/file home "b"))
          (link (io/file home "b") (io/file home "a"))
          (is (= [:invalid-value "Too many symbolic links on the way to ~/a/own"]
                 (refusal home (str home "/a/own/nrepl.sock")))))))))

(deftest file-not-directory
  (testing "rejects a file in place of the directory"
    (with-home [home]
      (spit (io/file home "file") "x")
      (is (= [:permission "~/file is not a directory: use a directory for the socket alone"]
             (refusal home (str home "/file/nrepl.sock"))))
      (is (= [:not-found "~/file is not a directory"]
             (refusal home (str home "/file/own/nrepl.sock")))))))

(deftest impossible-socket-paths
  (testing "rejects a path that a socket cannot have"
    (with-home [home]
      (doseq [bad ["nrepl.sock" "" "/" "/nrepl.sock" (str home "/../x/nrepl.sock")
                   (str home "/x/..") (str home "/x\u0000/y")]]
        (is (= :invalid-value (first (refusal home bad))) bad))
      (is (re-find #"^The path of the socket is longer than 107 bytes: "
                   (second (refusal home (str home "/" (apply str (repeat 60 "ü")) "/s")))))
      (is (= [:not-found "No directory ~/a"]
             (refusal home (str home "/a/b/c/nrepl.sock")))))))

;; --- the name

(defn- socket-in ^Path [home]
  (socket-dir/in-private-directory (str home "/own/nrepl.sock") true))

(defn- bound
  "A server that listens, as another program's would."
  ^ServerSocketChannel [socket]
  (doto (ServerSocketChannel/open StandardProtocolFamily/UNIX)
    (.bind (UnixDomainSocketAddress/of ^Path socket))))

(deftest name-claimed-once
  (testing "only one server can claim a socket"
    (with-home [home]
      (let [socket (socket-in home)
            claim (socket-dir/claim socket)]
        (is (= [:exists
                (str "An nREPL server uses " socket
                     ": connect to it, stop it, or use another --socket")]
               ((juxt :bpfmap/error :message) (error-of (socket-dir/claim socket)))))
        (socket-dir/release claim)
        (socket-dir/release (socket-dir/claim socket))))))

(defn- locked?
  "Returns true if this process holds the lock of a socket's name, as the kernel lists locks."
  [socket]
  (let [inode (Files/getAttribute (path (str socket ".lock")) "unix:ino" no-links)
        pid (.pid (ProcessHandle/current))]
    (boolean (some #(re-find (re-pattern (str " POSIX .* " pid " \\S+:" inode " ")) %)
                   (str/split-lines (Files/readString (path "/proc/locks")))))))

(deftest refused-claim-keeps-lock
  (testing "a second claim in the same process does not release the lock of the first"
    (with-home [home]
      (let [socket (socket-in home)
            other-name (io/file home "link")
            claim (socket-dir/claim socket)]
        (link other-name (.getParent socket))
        (is (locked? socket))
        (doseq [name [socket (.resolve (path other-name) (.getFileName socket))]]
          (is (= :exists (:bpfmap/error (error-of (socket-dir/claim name)))))
          (is (locked? socket)))
        (socket-dir/release claim)
        (is (not (locked? socket)))
        (testing "and after the first, the name is free again, even if a claim fails half-way"
          (spit (str socket) "mine")
          (dotimes [_ 2]
            (is (str/includes? (:message (error-of (socket-dir/claim socket)))
                               "is not a socket")))
          (Files/delete socket)
          (socket-dir/release (socket-dir/claim socket)))))))

(deftest concurrent-claims
  (testing "only one of several concurrent claims succeeds"
    (with-home [home]
      (let [socket (socket-in home)]
        (with-open [dead (bound socket)]
          (.close dead)
          (is (Files/exists socket no-links) "left by one that is gone")
          (let [claims (fixture/in-threads 8
                         (fn [_]
                           (try (socket-dir/claim socket)
                                (catch clojure.lang.ExceptionInfo _ nil))))]
            (is (= 1 (count (remove nil? claims))))
            (is (not (Files/exists socket no-links)))
            (run! socket-dir/release (remove nil? claims))))))))

(deftest live-socket-not-taken
  (testing "does not take a socket that answers"
    (with-home [home]
      (let [socket (socket-in home)]
        (with-open [_ ^Closeable (bound socket)]
          (is (= :exists (:bpfmap/error (error-of (socket-dir/claim socket)))))
          (is (socket-dir/answers? socket)))
        (is (not (socket-dir/answers? socket)))))))

(deftest regular-file-not-removed
  (testing "does not remove a file that is not a socket"
    (with-home [home]
      (let [socket (socket-in home)]
        (spit (str socket) "mine")
        (is (= (str socket
                    " already exists and is not a socket: remove it, or use another --socket")
               (:message (error-of (socket-dir/claim socket)))))
        (is (= "mine" (slurp (str socket))))
        (Files/delete socket)
        (link socket (io/file home "elsewhere"))
        (is (= :exists (:bpfmap/error (error-of (socket-dir/claim socket)))))
        (is (Files/isSymbolicLink socket))))))

(deftest lock-link-not-followed
  (testing "does not follow a symbolic link in place of the lock"
    (with-home [home]
      (let [socket (socket-in home)]
        (link (str socket ".lock") (io/file home "elsewhere"))
        (is (= :permission (:bpfmap/error (error-of (socket-dir/claim socket)))))
        (is (not (.exists (io/file home "elsewhere"))))))))

(deftest replaced-socket
  (testing "removes its socket unless another replaced it"
    (with-home [home]
      (let [socket (socket-in home)
            claim (socket-dir/claim socket)]
        (with-open [_ ^Closeable (bound socket)]
          (let [marked (socket-dir/mark claim)]
            (is (= "rw-------" (mode (str socket))))
            (Files/move socket (.resolveSibling socket "moved")
                        (make-array java.nio.file.CopyOption 0))
            (with-open [_ ^Closeable (bound socket)]
              (socket-dir/release marked)
              (is (socket-dir/answers? socket) "a socket that another process bound in the meantime stays")))))
      (let [socket (.resolveSibling (socket-in home) "second")
            claim (socket-dir/claim socket)]
        (with-open [_ ^Closeable (bound socket)]
          (let [marked (socket-dir/mark claim)]
            (socket-dir/release marked)
            (is (not (Files/exists socket no-links)))
            (socket-dir/release marked)))))))

(deftest a-place-is-bytes-whatever-its-text
  (with-home [home]
    (try
      (doseq [name ["café" "odd\\xff" "two words" "a\\\\b" "tab\\x09"]
              :let [given (str home "/" name "/" name ".sock")
                    socket (socket-dir/in-private-directory (paths/->java given) true)]]
        (testing given
          (is (= (vec (paths/bytes-of given)) (vec (paths/of-java socket))))
          (let [claim (socket-dir/claim socket)]
            (with-open [_ ^Closeable (bound socket)]
              (is (socket-dir/answers? socket))
              (is (= socket (socket-dir/in-private-directory (socket-dir/text socket) false))
                  "the printed path names the socket again")
              (let [marked (socket-dir/mark claim)]
                (is (= :socket (:kind (#'socket-dir/status socket))))
                (socket-dir/release marked)))
            (is (nil? (#'socket-dir/status socket)))
            (is (= :file (:kind (#'socket-dir/status (socket-dir/sibling socket ".lock"))))))))
      (is (= :invalid-value
             (:bpfmap/error
              (error-of (socket-dir/in-private-directory (str home "/half\ud800/s") true)))))
      (finally
        (fixture/run ["find" (str home) "-mindepth" "1" "-delete"])))))

(deftest a-listener-is-at-the-bytes-of-its-place
  (with-home [home]
    (try
      (doseq [name ["plain" "café" "odd\\xff"]
              :let [socket
                    (socket-dir/in-private-directory
                      (paths/->java (str home "/" name "/" name ".sock")) true)]]
        (testing name
          (with-open [_ (listener/unix socket {:serve (fn [_]) :complain (fn [_])})]
            (is (socket-dir/answers? socket))
            (is (= :socket (:kind (#'socket-dir/status socket))))
            (is (= 2 (count (paths/entries (str home "/" name))))
                "the socket and its lock, and nothing beside"))
          (is (nil? (#'socket-dir/status socket)))))
      (finally
        (fixture/run ["find" (str home) "-mindepth" "1" "-delete"])))))
