(ns bpfmap.nrepl.wire
  "The two streams of a connection.

  A channel of Java's is closed by the interrupt of a thread that writes to it, or is about to. What writes here is a session,
  and to interrupt a session is a thing that editors do: its connection would be gone with it. So another thread writes,
  which nobody interrupts, while the session waits. Nor is the channel given to nREPL 1.0 itself, whose writer of channels takes
  a short write for a whole one."
  (:import (java.io BufferedInputStream BufferedOutputStream IOException InputStream OutputStream)
           (java.nio.channels Channels SocketChannel)
           (java.util Arrays)
           (java.util.concurrent Callable ExecutionException ExecutorService Executors Future RejectedExecutionException
                                 ThreadFactory)))

(set! *warn-on-reflection* true)

(def ^:private ^ThreadFactory daemons
  (reify ThreadFactory
    (newThread [_ runnable]
      (doto (Thread. runnable "bpfmap-nrepl-writer")
        (.setDaemon true)))))

(defn- await-done
  "Waits for what another thread does, however often this one is interrupted; throws what that threw. Returns nil."
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

(defn- written-elsewhere
  "An output stream of which a thread of its own does the writing."
  ^OutputStream [^OutputStream out]
  (let [^ExecutorService writer (Executors/newSingleThreadExecutor daemons)
        submit (fn [^Callable task]
                 (try
                   (.submit writer task)
                   (catch RejectedExecutionException _
                     (throw (IOException. "The connection is closed")))))]
    (proxy [OutputStream] []
      (write
        ([x]
         (let [^OutputStream this this]
           (if (bytes? x)
             (.write this ^bytes x 0 (alength ^bytes x))
             (.write this (byte-array [(unchecked-byte x)]) 0 1))))
        ([bytes off len]
         (let [copy (Arrays/copyOfRange ^bytes bytes (int off) (int (+ (int off) (int len))))]
           (await-done (submit #(.write out copy))))))
      (close []
        (.shutdown writer)
        (.close out)))))

(defn streams
  "A channel's input and output, buffered: `[in out]`. Closing either closes the channel.

      (let [[in out] (streams channel)] …)"
  [^SocketChannel channel]
  [(BufferedInputStream. ^InputStream (Channels/newInputStream channel))
   (BufferedOutputStream. (written-elsewhere (Channels/newOutputStream channel)))])
