(ns bpfmap.pod.bencode-test
  "Bencode against the test's own, and against that of nREPL, which Babashka uses too. What is
  refused, and how, is in `bpfmap.pod.server-test`."
  (:require [bpfmap.fixture :as fixture :refer [error-of]]
            [bpfmap.pod-client :as client]
            [bpfmap.pod.bencode :as bencode]
            [clojure.java.io :as io]
            [clojure.test :refer [deftest is testing]]
            [clojure.test.check :as check]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :refer [for-all]]
            [clojure.walk :as walk])
  (:import (java.io ByteArrayInputStream ByteArrayOutputStream PushbackInputStream)))

(set! *warn-on-reflection* true)

(def ^:private text (gen/one-of [gen/string gen/string-ascii (gen/return "") (gen/return "ä€😀")]))

(defn- message-of
  "A generator of messages, with such keys and such numbers."
  [key number]
  (gen/map key (gen/recursive-gen #(gen/one-of [(gen/vector %) (gen/map key %)])
                                  (gen/one-of [text number]))))

(def ^:private message
  (message-of text (gen/one-of [gen/large-integer (gen/elements [Long/MAX_VALUE Long/MIN_VALUE])])))

(def ^:private plain-message
  "What nREPL has no trouble with: it sorts keys that are not ASCII by signed bytes, and cannot
  read the lowest number."
  (message-of gen/string-ascii gen/large-integer))

(defn- written ^bytes [message]
  (let [out (ByteArrayOutputStream.)]
    (bencode/write-message out message)
    (.toByteArray out)))

(defn- in ^PushbackInputStream [^bytes bytes]
  (PushbackInputStream. (ByteArrayInputStream. bytes)))

(defspec written-message-round-trip {:num-tests 100 :max-size 40}
  (for-all [message message]
           (and (= message (bencode/read-message (in (written message))))
                (= message (client/decode (in (written message)))))))

(defspec messages-of-other-encoder {:num-tests 50 :max-size 20}
  (for-all [messages (gen/vector message)]
           (let [stream (in (.getBytes ^String (apply str (map client/encode messages))
                                       "ISO-8859-1"))]
             (= (conj messages nil)
                (vec (repeatedly (inc (count messages)) #(bencode/read-message stream)))))))

(defspec any-bytes-or-error {:num-tests 300 :max-size 40}
  (for-all [bytes (gen/fmap (fn [[text at b]]
                              (let [bytes (.getBytes ^String text "ISO-8859-1")]
                                (doto bytes
                                  (aset (int (mod at (alength bytes))) (unchecked-byte b)))))
                            (gen/tuple (gen/fmap client/encode message) gen/nat
                                       (gen/choose 0 255)))]
           (try
             (map? (bencode/read-message (in bytes)))
             (catch clojure.lang.ExceptionInfo e
               (= :invalid-message (:bpfmap/error (ex-data e)))))))

(deftest same-as-nrepl-bencode
  (testing "agrees with the bencode of nREPL"
    (if-not (io/resource "nrepl/bencode.clj")
      (fixture/skip! "nREPL is not on the class path")
      (let [write (requiring-resolve 'nrepl.bencode/write-bencode)
            read (requiring-resolve 'nrepl.bencode/read-bencode)
            texts (fn [x] (walk/postwalk #(if (bytes? %) (String. ^bytes % "UTF-8") %) x))
            as-theirs (fn [message]
                        (let [out (ByteArrayOutputStream.)]
                          (write out message)
                          (.toByteArray out)))]
        (is (:pass? (check/quick-check
                     100 (for-all [message plain-message]
                                  (and (= (seq (as-theirs message)) (seq (written message)))
                                       (= message (texts (read (in (written message)))))
                                       (= message (bencode/read-message (in (as-theirs message))))))
                     :max-size 40)))))))

(deftest unsupported-values
  (testing "rejects values that bencode lacks"
    (is (= "Nothing that bencode has: 1.5" (:message (error-of (written {"a" 1.5})))))
    (is (= "Nothing that bencode has: nil" (:message (error-of (written {"a" [nil]})))))))
