(ns bpfmap.impl.escape-test
  "Text from anywhere: nothing that steers a terminal is left, and nothing is lost."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.escape :as escape]
            [clojure.edn :as edn]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop]))

(set! *warn-on-reflection* true)

(def ^:private nasty
  "Texts of characters that need care, and of some that do not."
  (gen/fmap str/join
            (gen/vector (gen/elements ["\\" "\"" "u" "u001b" "\\u000a" "\u001b" "\u0000" "\u009b"
                                       "\u007f" "\n" "\u202e" "\u200b"
                                       "\u00ad" "\ufeff" "\u2028" "\ud800" "\udc00" "\udb40\udc41"
                                       "😀" "é" "a" " " "漢"]))))

(defn raw?
  "Whether a text has a character that must not reach a terminal; said by a regular expression,
  not by what is tested."
  [text]
  (boolean (re-find #"[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]" text)))

(deftest escaped-texts-as-shown
  (testing "escapes control and invisible characters"
    (are [text shown] (= shown (escape/escape text))
      "plain" "plain"
      "naïve 漢字 😀" "naïve 漢字 😀"
      "\u001b[31m" "\\u001b[31m"
      "\u009b31m" "\\u009b31m"
      "a\rb\n" "a\\u000db\\u000a"
      "abc\u202etxt.exe" "abc\\u202etxt.exe"
      "\udb40\udc41" "\\udb40\\udc41"
      "\ud800" "\\ud800"
      "\u007f" "\\u007f")
    (is (= "a\nb\\u001b" (escape/escape-lines "a\nb\u001b")))
    (is (= ["a\\u000ab" "a\\\\u000ab"] (map escape/escape-text ["a\nb" "a\\u000ab"]))
        "a line feed and what looks like one")))

(defspec nothing-unsafe-is-left 500
  (prop/for-all [text nasty]
                (not-any? raw?
                          [(escape/escape text) (escape/escape-text text)
                           (escape/escape-edn (pr-str text))
                           (str/replace (escape/escape-lines text) "\n" "")])))

(defspec escaping-is-idempotent 500
  (prop/for-all [text nasty]
                (= (escape/escape text) (escape/escape (escape/escape text)))))

(defspec reversible-text 1000
  (prop/for-all [text nasty]
                (= text (escape/unescape-text (escape/escape-text text)))))

(defspec escaped-edn-round-trip 500
  (prop/for-all [texts (gen/vector nasty) c (gen/fmap char (gen/choose 0 0xd7ff))]
                (let [x {:texts texts :c c}]
                  (= x (edn/read-string (escape/escape-edn (pr-str x)))))))

(deftest escaped-error-messages
  (testing "error messages are escaped"
    (is (= "No map \\u001b]0;owned\\u0007\\u000ax: \\u202e"
           (ex-message (error/error :not-found "No map \u001b]0;owned\u0007\nx"
                                    {:bpfmap/hint "\u202e"}))))))
