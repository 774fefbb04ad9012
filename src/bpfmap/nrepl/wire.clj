(ns ^:no-doc bpfmap.nrepl.wire
  "Transports nREPL's messages over a channel.

  An interrupt of a thread that writes to a Java channel closes the channel. A session writes here,
  and editors interrupt sessions: the connection would be closed too. Therefore another thread
  writes, while the session waits. nREPL does not get the channel itself, because its writer of
  channels (in 1.0) takes a short write for a complete one."
  (:require [bpfmap.impl.waiting :as waiting]
            [nrepl.transport :as transport])
  (:import (java.io BufferedInputStream BufferedOutputStream Closeable IOException)
           (java.nio.channels Channels SocketChannel)
           (java.util.concurrent Callable ExecutorService Executors RejectedExecutionException
                                 ThreadFactory)))

(set! *warn-on-reflection* true)

(def ^:private ^ThreadFactory daemons
  (reify ThreadFactory
    (newThread [_ runnable]
      (doto (Thread. runnable "bpfmap-nrepl-writer")
        (.setDaemon true)))))

(defn- elsewhere
  "Calls f on another thread and waits for it."
  [^ExecutorService writer f]
  (waiting/result (try
                    (.submit writer ^Callable f)
                    (catch RejectedExecutionException _
                      (throw (IOException. "The connection is closed"))))))

(defn over
  "Returns a transport of nREPL over a channel.

  It is a Closeable that closes the channel.

      (with-open [t (over channel)] (transport/recv t))"
  ^Closeable [^SocketChannel channel]
  (let [inner (transport/bencode (BufferedInputStream. (Channels/newInputStream channel))
                                 (BufferedOutputStream. (Channels/newOutputStream channel)))
        writer (Executors/newSingleThreadExecutor daemons)]
    (reify
      transport/Transport
      (recv [_] (transport/recv inner))
      (recv [_ timeout] (transport/recv inner timeout))
      (send [this message]
        (elsewhere writer #(transport/send inner message))
        this)
      Closeable
      (close [_]
        (.shutdown writer)
        (try
          (.close ^Closeable inner)
          (catch IOException _)) ; its client has gone
        (.close channel)))))
