(ns ^:no-doc bpfmap.nrepl.wire
  "nREPL's messages over a channel.

  A channel of Java's is closed by the interrupt of a thread that writes to it, or is about to.
  What writes here is a session, and to interrupt a session is a thing that editors do: its
  connection would be gone with it. So another thread writes, which nobody interrupts, while the
  session waits. Nor is the channel given to nREPL itself, whose writer of channels (in 1.0) takes
  a short write for a whole one."
  (:require [nrepl.transport :as transport])
  (:import (java.io BufferedInputStream BufferedOutputStream Closeable IOException)
           (java.nio.channels Channels SocketChannel)
           (java.util.concurrent Callable ExecutionException ExecutorService Executors
                                 Future RejectedExecutionException ThreadFactory)))

(set! *warn-on-reflection* true)

(def ^:private ^ThreadFactory daemons
  (reify ThreadFactory
    (newThread [_ runnable]
      (doto (Thread. runnable "bpfmap-nrepl-writer")
        (.setDaemon true)))))

(defn- await-done
  "Waits for what another thread does, however often this one is interrupted; throws what that
  threw."
  [^Future future]
  (loop [interrupted? false]
    (if (try
          (.get future)
          true
          (catch InterruptedException _ false)
          (catch ExecutionException e
            (when interrupted? (.interrupt (Thread/currentThread)))
            (throw (ex-cause e))))
      (when interrupted? (.interrupt (Thread/currentThread)))
      (recur true))))

(defn- elsewhere
  "Calls f on another thread, and waits for it."
  [^ExecutorService writer f]
  (await-done (try
                (.submit writer ^Callable f)
                (catch RejectedExecutionException _
                  (throw (IOException. "The connection is closed"))))))

(defn over
  "A transport of nREPL's over a channel, also a Closeable: closing it closes the channel.

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
          (catch IOException _)) ; with an answer that nobody is there for
        (.close channel)))))
