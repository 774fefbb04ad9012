(ns ^:no-doc bpfmap.metrics.credentials
  "Reads the keys, certificates and passwords of the exporter from files.

  The files are read at the start and again on SIGHUP, so that a renewed certificate is used without
  a restart."
  (:refer-clojure :exclude [load])
  (:require [bpfmap.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.user-file :as user-file]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.io ByteArrayInputStream IOException)
           (java.nio.file Files LinkOption)
           (java.nio.file.attribute PosixFilePermission)
           (java.security GeneralSecurityException KeyFactory KeyStore KeyStoreException PrivateKey
                          PublicKey Signature)
           (java.security.cert Certificate CertificateFactory)
           (java.security.spec InvalidKeySpecException PKCS8EncodedKeySpec)
           (java.util Base64)
           (javax.net.ssl KeyManagerFactory SSLContext)))

(set! *warn-on-reflection* true)

;; --- files with secrets

(def ^:private largest-file "The largest file with keys or a password, in bytes." (* 1024 1024))

(defn- source [what file]
  {:file file :what what :most largest-file :op :metrics})

(defn- secret-text
  "Returns the text of a file, which only its owner and group may read."
  [{:keys [what file] :as source}]
  (let [text (user-file/text-in source)
        path (paths/->java (call/path-text file :metrics))]
    (when (contains? (Files/getPosixFilePermissions path (make-array LinkOption 0))
                     PosixFilePermission/OTHERS_READ)
      (throw (error/error :permission (str "Other users can read " what " " (error/printed file))
                          {:bpfmap/op :metrics :bpfmap/file file
                           :bpfmap/hint (str "chmod o= " file)})))
    text))

(defn password
  "Returns the first line of a file with a password.

      (password \"/etc/bpfmap/password\") ;=> \"s3cret\""
  [file]
  (let [line (first (str/split-lines (secret-text (source "the file of the password" file))))]
    (when (str/blank? line)
      (throw (error/error :invalid-value (str "The file of the password " (error/printed file)
                                              " must have a password in its first line")
                          {:bpfmap/op :metrics :bpfmap/file file})))
    line))

;; --- a key store

(defn- stored-keys
  "Returns the keys of a PKCS12 key store, which `secret` opens."
  ^KeyStore [keystore ^chars secret]
  (let [source (source "the key store" keystore)
        content (user-file/bytes-in source)]
    (try
      (doto (KeyStore/getInstance "PKCS12")
        (.load (ByteArrayInputStream. content) secret))
      (catch GeneralSecurityException e
        (throw (user-file/refusal source (ex-message e) e)))
      ;; A wrong password is an IOException here.
      (catch IOException e
        (throw (user-file/refusal source (ex-message e) e))))))

;; --- PEM

(def ^:private no-password (char-array 0))

(defn- pem-blocks
  "Returns the blocks of a PEM text as `[label content]`."
  [text]
  (for [[_ label content]
        (re-seq #"-----BEGIN ([A-Z0-9 ]+)-----([^-]*(?:-(?!----)[^-]*)*)-----END \1-----" text)]
    [label content]))

(defn- decoded ^bytes [^String content]
  (.decode (Base64/getMimeDecoder) content))

(defn- certificates
  "Returns the certificates of a PEM file: the server's first, then its issuers'."
  [file]
  (let [source (source "the certificate" file)
        refuse (fn [cause]
                 (throw (user-file/refusal source "it must have certificates in PEM format" cause)))
        factory (CertificateFactory/getInstance "X.509")]
    (try
      (or (seq (for [[label content] (pem-blocks (user-file/text-in source))
                     :when (= "CERTIFICATE" label)]
                 (.generateCertificate factory (ByteArrayInputStream. (decoded content)))))
          (refuse nil))
      (catch GeneralSecurityException e (refuse e))
      (catch IllegalArgumentException e (refuse e)))))

(def ^:private signatures
  "The signature algorithms of keys, by the algorithm of the key."
  {"RSA" "SHA256withRSA", "EC" "SHA256withECDSA", "EdDSA" "EdDSA"})

(defn- private-key
  "Returns the private key of a PEM file, which must be PKCS#8 and not encrypted."
  ^PrivateKey [file]
  (let [source (source "the key" file)
        refuse (fn [reason cause] (throw (user-file/refusal source reason cause)))
        [label content] (first (filter #(str/ends-with? (first %) "PRIVATE KEY")
                                       (pem-blocks (secret-text source))))
        command (str "convert it with openssl pkcs8 -topk8 -nocrypt -in " file " -out NEW.pem")
        encrypted? (or (= "ENCRYPTED PRIVATE KEY" label)
                       (some-> content (str/includes? "ENCRYPTED")))]
    (cond
      (nil? label) (refuse "it must have a private key in PEM format" nil)
      encrypted? (refuse (str "it is encrypted; " command) nil)
      (not= "PRIVATE KEY" label) (refuse (str "it has an " label " instead of PKCS#8; " command)
                                         nil))
    (let [spec (try
                 (PKCS8EncodedKeySpec. (decoded content))
                 (catch IllegalArgumentException e (refuse "its base64 is malformed" e)))]
      (or (some (fn [algorithm]
                  (try
                    (.generatePrivate (KeyFactory/getInstance algorithm) spec)
                    (catch InvalidKeySpecException _ nil)))
                (keys signatures))
          (refuse "it must be an RSA, EC or EdDSA key in PKCS#8" nil)))))

(defn- of-one-pair?
  "Returns true if a private key belongs to a public key."
  [^PrivateKey private ^PublicKey public]
  (let [algorithm (get signatures (.getAlgorithm private))
        text (.getBytes "bpfmap")]
    (try
      (let [signed (.sign (doto (Signature/getInstance algorithm)
                            (.initSign private)
                            (.update text)))]
        (.verify (doto (Signature/getInstance algorithm)
                   (.initVerify public)
                   (.update text))
                 signed))
      (catch GeneralSecurityException _ false))))

(defn- pem-keys
  "Returns a key store with the key and the certificates of PEM files."
  ^KeyStore [certificate key]
  (let [chain (certificates certificate)
        private (private-key key)]
    (when-not (of-one-pair? private (.getPublicKey ^Certificate (first chain)))
      (throw (error/error :invalid-value
                          (str "The key " (error/printed key) " does not belong to the first "
                               "certificate in " (error/printed certificate))
                          {:bpfmap/op :metrics :bpfmap/file key
                           :bpfmap/hint "the certificate of the server must come before others"})))
    (try
      (doto (KeyStore/getInstance "PKCS12")
        (.load nil nil)
        (.setKeyEntry "bpfmap" private no-password (into-array Certificate chain)))
      (catch KeyStoreException e
        (throw (error/error :invalid-value
                            (str "The certificates in " (error/printed certificate)
                                 " must be a chain: that of the server, then its issuer's")
                            {:bpfmap/op :metrics :bpfmap/file certificate} e))))))

;; --- all of a config

(defn- ssl-context ^SSLContext [{:keys [keystore password-file certificate key]}]
  (let [^chars secret (if keystore (.toCharArray ^String (password password-file)) no-password)
        store (if keystore (stored-keys keystore secret) (pem-keys certificate key))
        managers (doto (KeyManagerFactory/getInstance (KeyManagerFactory/getDefaultAlgorithm))
                   (.init store secret))]
    (doto (SSLContext/getInstance "TLS")
      (.init (.getKeyManagers managers) nil nil))))

(def ^:private file-readers
  "The functions that read the files of `:http`, by their keys."
  {:certificate certificates
   :key private-key
   :keystore #(user-file/bytes-in (source "the key store" %))
   :password-file password})

(def ^:private readers
  "The parts of `:http` that have files, with the functions that read them."
  {:tls ssl-context
   :basic-auth (fn [{:keys [user password-file]}]
                 {:user user :password (password password-file)})})

(defn load
  "Reads the files of a checked `:http`.

  Returns `{:tls SSLContext :basic-auth {:user :password}}`. Throws `:io`, `:permission` or
  `:invalid-value` for a file that cannot be used.

      (load {:basic-auth {:user \"prom\" :password-file \"/etc/bpfmap/password\"}})
      ;=> {:basic-auth {:user \"prom\", :password \"s3cret\"}}"
  [http]
  (into {} (for [[k read] readers :when (get http k)] [k (read (get http k))])))

(defn problems
  "Returns the messages about files of a checked `:http` that cannot be used.

  Reads each file, and the files of a part together.

      (problems {:tls {:certificate \"/tmp\" :key \"/tmp/key.pem\"}})
      ;=> [\"Cannot read the certificate \\\"/tmp\\\": it is a directory\"
      ;    \"Cannot read the key \\\"/tmp/key.pem\\\": there is no such file\"]"
  [http]
  (let [parts (for [[k read-part] readers
                    :let [part (get http k)]
                    :when part
                    part-reader (concat (for [[k read-file] file-readers :when (get part k)]
                                          #(read-file (get part k)))
                                        [#(read-part part)])]
                part-reader)]
    (into []
          (comp (keep (fn [read] (try (read) nil (catch ExceptionInfo e (ex-message e)))))
                (distinct))
          parts)))
