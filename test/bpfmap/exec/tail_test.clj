(ns bpfmap.exec.tail-test
  "The events of rings as rows and lines: the command `tail`, and `exec/tail`."
  (:require [bpfmap.btf :as btf]
            [bpfmap.cli.calling :refer [bpfmap id-of read-edn refused]]
            [bpfmap.core :as bpf]
            [bpfmap.events :as events]
            [bpfmap.exec :as exec]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.tail :as tail]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.prog :as prog]
            [clojure.core.protocols :as protocols]
            [clojure.data.json :as json]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

;; --- a ring, and a program that sends to it

(def ^:private event
  "Sixteen bytes without padding."
  [:struct [:n :u64] [:kind [:enum :u32 {:open 1 :close 2}]] [:cpu :u32]])

(defn- ring ^Closeable [size]
  (bpf/create {:name "tail_ring" :type :ringbuf :max-entries size}))

(defn- sender
  "Returns a loaded program. Each run sends the bytes to the ring as one record."
  ^Closeable [m words]
  (prog/load
   {:type :raw-tracepoint :name "tail_sender"
    :insns [(for [[i word] (map-indexed vector words)]
              [[:lddw :r1 word]
               [:stxdw [:r10 (* -8 (- (count words) (long i)))] :r1]])
            [:lddw :r1 m]
            [:mov64 :r2 :r10]
            [:add64 :r2 (* -8 (count words))]
            [:mov64 :r3 (* 8 (count words))]
            [:mov64 :r4 0]
            [:call :ringbuf-output]
            [:mov64 :r0 0]
            [:exit]]}))

(defn- send-words!
  "Sends a record of words of eight bytes, n times."
  ([m words] (send-words! m words 1))
  ([m words n]
   (with-open [p (sender m words)]
     (dotimes [_ n]
       (prog/test-run p)))))

(defn- send-event!
  "Sends an event of the type above: its number, and a kind of 1 or 2."
  [m n kind]
  (send-words! m [n kind]))

(defn- type-text [type]
  (str/replace (pr-str type) ":" ""))

(defmacro ^:private with-ring
  "Runs body with a ring that has the events 1 to 3."
  [[m] & body]
  `(with-open [~m (ring fixture/page-size)]
     (doseq [n# [1 2 3]]
       (send-event! ~m n# (if (odd? n#) 1 2)))
     ~@body))

(defn- rows [options]
  (into [] (exec/tail options)))

(defn- event-row [n]
  {:value {:n n :kind (if (odd? n) :open :close) :cpu 0}})

;; --- rows

(kernel-test takes-events
  (testing "takes the events of a ring that nobody else has, and leaves those beyond the limit"
    (with-ring [m]
      (is (= [(event-row 1) (event-row 2)] (rows {:ref m :value-type event :limit 2})))
      (is (= {:fill 24 :capacity fixture/page-size} (events/stats m)))
      (is (= [] (rows {:ref m :value-type event :limit 0})))
      (is (= [(event-row 3)] (rows {:ref (id-of m) :value-type event :seconds 0.2})))
      (is (= [] (rows {:ref m :value-type event :seconds 0.1}))))))

(kernel-test copies-from-oldest-or-now
  (testing "with :from it takes nothing"
    (with-ring [m]
      (is (= (map event-row [1 2 3]) (rows {:ref m :value-type event :from :oldest :limit 3})))
      (is (= [] (rows {:ref m :value-type event :from "now" :seconds 0.1})))
      (is (= {:fill 72 :capacity fixture/page-size} (events/stats m)))
      (let [next-one (future (rows {:ref m :value-type event :from :now :limit 1}))]
        (while (not (realized? next-one))
          (send-event! m 9 1)
          (Thread/sleep 20))
        (is (= [(event-row 9)] @next-one))))))

(kernel-test copies-beside-a-reader
  (testing "copies events if somebody reads the ring, unless :steal is given"
    (with-ring [m]
      (with-open [^Closeable r (events/reader m {:type event})]
        (is (= (map event-row [1 2 3]) (rows {:ref m :value-type event :limit 3})))
        (is (= (map :value (map event-row [1 2 3])) (into [] (take 3) r)) "nothing was taken")
        (send-event! m 4 2)
        (is (= [(event-row 4)] (rows {:ref m :value-type event :steal true :limit 1})))
        (is (= 0 (:fill (events/stats m))) "it was taken")))))

(kernel-test frozen-ring
  (testing "copies the events of a frozen ring, which nobody can take"
    (with-ring [m]
      (bpf/freeze! m)
      (is (= (map event-row [1 2 3]) (rows {:ref m :value-type event :limit 3})))
      (is (= :permission
             (:bpfmap/error (error-of (rows {:ref m :steal true :seconds 0.1}))))))))

(kernel-test reducible-of-options
  (testing "the result prints as its options and opens the map for each reduction"
    (with-ring [m]
      (let [xs (exec/tail {:ref (str (id-of m)) :value-type "event" :from "oldest" :limit 1})]
        (is (= (str "#bpfmap.exec/tail {:ref {:id " (id-of m) "}, :value-type \"event\", :limit 1, "
                    ":from :oldest}")
               (pr-str xs)))
        (is (= {:command "tail"
                :options {:ref {:id (id-of m)} :value-type "event" :limit 1 :from :oldest}}
               (protocols/datafy xs))))
      (let [xs (exec/tail {:ref m :from :oldest :limit 1 :value-type event})]
        (is (= [(event-row 1)] (into [] xs) (into [] xs)))
        (is (= (event-row 1) (reduce (fn [_ row] (reduced row)) nil xs)))))))

(kernel-test conditions-on-events
  (testing ":where selects events by their fields"
    (with-ring [m]
      (are [where found] (= (map event-row found)
                            (rows {:ref m :value-type event :from :oldest :seconds 0.1
                                   :where where}))
        "n>1" [2 3]
        "value.kind=open" [1 3]
        ["n>1" "kind=open"] [3]
        "kind=close" [2])
      (is (= [(event-row 3)] (rows {:ref m :value-type event :where "n>2" :limit 1}))))))

(kernel-test events-of-another-length
  (testing "an event that is longer or shorter than its type says so"
    (with-ring [m]
      (send-words! m [5])
      (is (= [{:n 3 :kind :open :cpu 0} {:n 5 :bpfmap/missing 8}]
             (map :value (rows {:ref m :value-type event :from :oldest :seconds 0.1
                                :where "n>2"})))
          "conditions find the fields that are there")
      (is (= [8] (map #(count (:bpfmap/extra (:value %)))
                      (rows {:ref m :value-type [:struct [:n :u64]] :limit 1})))))))

(kernel-test undecodable-event
  (testing "an event that its type cannot decode is a row with its bytes"
    (with-ring [m]
      (let [refusing [:via :u64 identity #(if (= 2 %) (throw (ex-info "not 2" {})) %)]
            type [:struct [:n refusing] [:rest :u64]]
            [a b c] (rows {:ref m :value-type type :from :oldest :limit 3})]
        (is (= [1 3] (map (comp :n :value) [a c])))
        (is (= 16 (count (:value b))))
        (is (str/includes? (:error b) "not 2"))))))

(kernel-test padding-left-out
  (testing "bytes between the fields are not part of a row"
    (with-open [m (ring fixture/page-size)]
      (send-words! m [0x1122334455667788 7])
      (is (= [{:value {:a 0x88 :b 7}}]
             (rows {:ref m :value-type [:struct [:a :u8] [:b :u64]] :limit 1}))))))

(kernel-test overtaken-is-said
  (testing "a peek that is overtaken says how much it missed"
    (with-open [m (ring fixture/page-size)
                p (sender m [1 1])
                ^Closeable r (events/reader m {:type event})]
      (let [state (atom :begin)
            found (reduce (fn [found row]
                            (when (= :begin @state)
                              ;; Three times the ring, while the peek stands at its second record.
                              (reset! state :lapped)
                              (dotimes [_ (quot (* 4 fixture/page-size) 24)]
                                (prog/test-run p)
                                (events/drain! r identity)))
                            (let [found (conj found row)]
                              (if (:missed row) (reduced found) found)))
                          [] (do (dotimes [_ 3] (prog/test-run p))
                                 (tail/tail {:ref m :value-type event :from :oldest
                                             :seconds 10})))]
        (is (= :lapped @state))
        (is (< fixture/page-size (:missed (peek found))))
        (is (= 1 (:overtaken (peek found))))))))

;; --- the type of events

(def ^:private named-type
  [:struct {:name "event"} [:n :u64] [:kind :u32] [:cpu :u32]])

(def ^:private source
  "A program with a struct that its BTF has, because a variable points to it."
  "typedef unsigned int u32; typedef unsigned long long u64;
struct event { u64 n; u32 kind; u32 cpu; };
struct other { u64 a[2]; };
const struct event *first __attribute__((unused));
const struct other *second __attribute__((unused));
struct { int (*type)[27]; int (*max_entries)[4096]; } tail_c_ring __attribute__((section(\".maps\"), used));
static long (*output)(void *, void *, u64, u64) = (void *) 130;
__attribute__((section(\"raw_tracepoint/sys_enter\"), used)) int tail_c(void *ctx) {
  struct event e = {7, 1, 0};
  output(&tail_c_ring, &e, sizeof e, 0);
  return 0;
}
char LICENSE[] __attribute__((section(\"license\"), used)) = \"GPL\";
")

(defn- with-c-program
  "Loads the program above from its object file, and calls f with the id of its ring."
  [f]
  (let [clang (fixture/executable "clang")
        bpftool (fixture/executable "bpftool")]
    (if-not (and clang bpftool)
      (fixture/skip! "there is no clang or no bpftool to load a program with BTF")
      (let [dir (fixture/temporary-directory)
            [c object pin] [(io/file dir "e.c") (io/file dir "e.o") (fixture/new-pin)]]
        (try
          (spit c source)
          (let [run (fn [& words]
                      (let [{:keys [exit err]} (fixture/run words)]
                        (is (= 0 exit) err)))]
            (run clang "-g" "-O2" "-target" "bpf" "-c" (str c) "-o" (str object))
            (run bpftool "prog" "load" (str object) pin))
          (with-open [^Closeable p (prog/open pin)]
            (f p (first (:map-ids (prog/info p)))))
          (finally
            (run! io/delete-file [c object])
            (.delete (io/file pin))
            (.delete ^java.io.File dir)))))))

(kernel-test struct-of-a-program
  (testing "a struct is found in the BTF of the program that uses the ring"
    (with-c-program
      (fn [p id]
        (dotimes [_ 3] (prog/test-run p))
        (let [row {:value {:n 7 :kind 1 :cpu 0}}]
          (is (= [row] (rows {:ref id :value-type "event" :limit 1})))
          (is (= [row] (rows {:ref id :value-type "struct event" :limit 1 :where "n=7"}))))
        (is (= [["event" 16] ["other" 16]] (tail/structs id)))
        (is (= "event\nother\n" (:out (bpfmap "completion" "zsh" "tail" id))))
        (is (= [2 (str "bpfmap: --value-type must be a type, or the name of a struct in the BTF of "
                       "the programs that use map " id " (tail_c_ring), got \"evnt\": did you mean "
                       "event? See `bpfmap help tail`")]
               (refused "tail" id "--value-type" "evnt")))
        (is (= (str "bpfmap: events are shown as bytes; structs of 16 bytes in the programs that "
                    "use the map: event, other; try --value-type event\n1 event\n")
               (:err (bpfmap "tail" id "--limit" "1"))))))))

(deftest type-or-name
  (testing "a type is data, or the name of a struct"
    (let [read #(:value-type (arguments/checked (commands/command-named "tail")
                                                {:ref "1" :value-type %}))]
      (are [given type] (= type (read given))
        "u32" :u32
        "event" "event"
        'event "event"
        :event "event"
        "struct event" "event"
        "[struct [pid u32]]" [:struct [:pid :u32]]
        [:struct [:pid :u32]] [:struct [:pid :u32]]))
    (doseq [given ["[struct [pid u99]]" "a b" "7" "{}" "struct 7"]]
      (is (= :usage (:bpfmap/error (error-of (exec/tail {:ref "1" :value-type given}))))
          given))))

(kernel-test unknown-struct
  (testing "a name that no program has in its BTF is a usage error"
    (with-ring [m]
      (is (= [2 (str "bpfmap: --value-type must be a type, or the name of a struct in the BTF of "
                     "the programs that use map " (id-of m) " (tail_ring), got \"evnt\": there is "
                     "no such BTF; write the type as '[struct [pid u32]]'; see `bpfmap help tail`")]
             (refused "tail" (id-of m) "--value-type" "evnt")))
      (is (= [2 (str "bpfmap: --value-type must be a type, or the name of a struct in the BTF of "
                     "the programs that use map " (id-of m) " (tail_ring), got \"u23\": did you "
                     "mean u32? See `bpfmap help tail`")]
             (refused "tail" (id-of m) "--value-type" "u23")))
      (is (= (:fill (events/stats m)) 72) "nothing was taken"))))

;; --- lines

(defn- out-of [& args]
  (let [{:keys [exit out err]} (apply bpfmap "tail" args)]
    (is (= 0 exit) err)
    (str/split-lines out)))

(kernel-test lines-of-typed-events
  (testing "prints a heading and a line for each event"
    (with-ring [m]
      (is (= ["     n  kind         cpu"
              "     1  open           0"
              "     2  close          0"
              "     3  open           0"]
             (out-of (id-of m) "--value-type" (type-text event) "--from" "oldest" "--limit" "3")))
      (is (= {:exit 0 :out "     n  kind         cpu\n     2  close          0\n" :err "1 event\n"}
             (bpfmap "tail" (id-of m) "--value-type" (type-text event) "--seconds" "0.1"
                     "--where" "kind=close"))))))

(kernel-test lines-of-bytes
  (testing "without a type, prints bytes and how to get more"
    (with-ring [m]
      (let [{:keys [exit out err]} (bpfmap "tail" (id-of m) "--limit" "1")]
        (is (= 0 exit))
        (is (= (str "BYTES  DATA\n"
                    "   16  01 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00  |................|\n")
               out))
        (is (= (str "bpfmap: events are shown as bytes; set --value-type, such as '[struct [pid "
                    "u32] [comm [string 16]]]'\n1 event\n")
               err))))))

(kernel-test lines-of-other-lengths
  (testing "a line says what an event has beyond its type, or lacks"
    (with-ring [m]
      (send-words! m [5])
      (is (= ["     n  kind         cpu" "     5  -              -  (8 bytes missing)"]
             (out-of (id-of m) "--value-type" (type-text event) "--from" "oldest" "--limit" "1"
                     "--where" "n=5")))
      (is (= [" VALUE" "     1  (8 more bytes: 01 00 00 00 00 00 00 00)"]
             (out-of (id-of m) "--value-type" "u64" "--limit" "1"))))))

(kernel-test growing-columns
  (testing "a column grows with its values"
    (with-open [m (ring fixture/page-size)]
      (send-event! m 1 1)
      (send-event! m 123456789012 1)
      (send-event! m 2 1)
      (is (= ["     n" "     1" "123456789012" "           2"]
             (map #(first (str/split % #"  (open|kind)"))
                  (out-of (id-of m) "--value-type" (type-text event) "--limit" "3")))))))

(kernel-test data-formats
  (testing "prints one row of data a line"
    (with-ring [m]
      (let [of (fn [format]
                 (let [{:keys [exit out err]}
                       (bpfmap "tail" (id-of m) "--value-type" (type-text event)
                               "--from" "oldest" "--limit" "3" format)]
                   (is (= [0 ""] [exit err]))
                   (str/split-lines out)))]
        (is (= (map event-row [1 2 3]) (map read-edn (of "--edn"))))
        (is (= (for [n [1 2 3]] {"value" {"n" n "kind" (if (odd? n) "open" "close") "cpu" 0}})
               (map json/read-str (of "--json"))))
        (is (= ["value.n,value.kind,value.cpu,extra,missing,error,lost,missed,status" "1,open,0,,,,,,"
                "2,close,0,,,,,," "3,open,0,,,,,,"]
               (of "--csv")))))))

(kernel-test csv-without-events
  (testing "CSV has its header also without events"
    (with-open [m (ring fixture/page-size)]
      (is (= ["value.n,extra,missing,error,lost,missed,status"]
             (out-of (id-of m) "--value-type" "[struct [n u64]]" "--seconds" "0.05" "--csv"))))))

(kernel-test csv-of-other-lengths
  (testing "CSV has columns for what an event has beyond its type, or lacks"
    (with-open [m (ring fixture/page-size)]
      (send-words! m [5])
      (send-words! m [6 1 0xabcd])
      (is (= ["value.n,value.kind,value.cpu,extra,missing,error,lost,missed,status"
              "5,,,,8,,,," "6,open,0,cd ab 00 00 00 00 00 00,,,,,"]
             (out-of (id-of m) "--value-type" (type-text event) "--from" "oldest" "--limit" "2"
                     "--csv")))
      (is (= ["value,extra,missing,error,lost,missed,status" "5,,,,,,"
              "6,01 00 00 00 00 00 00 00 cd ab 00 00 00 00 00 00,,,,,"]
             (out-of (id-of m) "--value-type" "u64" "--limit" "2" "--csv"))))))

(kernel-test printed-by-functions
  (testing "exec/tail prints as the command line does"
    (with-ring [m]
      (are [format text] (= text (with-out-str
                                   (exec/tail {:ref m :value-type event :from :oldest :limit 1
                                               :print format})))
        :table "     n  kind         cpu\n     1  open           0\n"
        :edn "{:value {:n 1, :kind :open, :cpu 0}}\n"
        :json "{\"value\":{\"n\":1,\"kind\":\"open\",\"cpu\":0}}\n"
        :csv "value.n,value.kind,value.cpu,extra,missing,error,lost,missed,status\n1,open,0,,,,,,\n"))))

(kernel-test hostile-bytes
  (testing "events cannot control the terminal"
    (with-open [m (ring fixture/page-size)]
      (send-words! m [0x6d31335b1b07]) ; bell, and a colour
      (is (= ["BYTES  DATA" "    8  07 1b 5b 33 31 6d 00 00  |..[31m..|"]
             (out-of (id-of m) "--from" "oldest" "--limit" "1")))
      (is (not (str/includes? (str (out-of (id-of m) "--value-type" "[string 8]" "--limit" "1"))
                              "\u001b"))))))

;; --- refusals

(kernel-test other-types-refused
  (testing "a map without events is refused with the types that have some"
    (with-open [m ^Closeable (bpf/create {:name "tail_hash" :type :hash :key :u32 :value :u32
                                          :max-entries 1})]
      (is (= [1 (str "bpfmap: Map " (id-of m) " (tail_hash) has no events: its type is hash; events "
                     "come from maps of type ringbuf and perf-event-array")]
             (refused "tail" (id-of m)))))))

(kernel-test refused-options
  (testing "options that cannot be used are usage errors, before anything is taken"
    (with-ring [m]
      (are [args message] (= [2 (str "bpfmap: " message "; see `bpfmap help tail`")]
                             (apply refused "tail" (id-of m) args))
        ["--from" "later"] "--from must be oldest or now, got \"later\""
        ["--from" "now" "--steal"] (str "--from cannot be combined with --steal: it reads copies, "
                                        "and takes nothing")
        ["--limit" "x"] "--limit must be a non-negative integer, got \"x\""
        ["--seconds" "0"] "--seconds must be a positive number, got \"0\"")
      (is (= [2 "bpfmap: Unknown field size: the fields are value.n, value.kind, value.cpu"]
             (refused "tail" (id-of m) "--value-type" (type-text event) "--where" "size>1")))
      (is (= {:fill 72 :capacity fixture/page-size} (events/stats m))))))

(kernel-test without-privileges
  (testing "a user without privileges gets the reason"
    (with-ring [m]
      (let [e (fixture/unprivileged #(error-of (rows {:ref (id-of m) :seconds 0.1})))]
        (is (= :permission (:bpfmap/error e)))
        (is (str/includes? (:message e) "CAP_SYS_ADMIN"))))))

;; --- structs of programs

(kernel-test no-structs-without-btf
  (testing "programs without BTF have no structs"
    (with-ring [m]
      (with-open [_ (sender m [1])]
        (is (= [] (tail/structs (id-of m))))
        (is (= "" (:out (bpfmap "completion" "bash" "tail" (id-of m)))))))))

(deftest structs-by-name
  (testing "structs and typedefs of unnamed structs have a name and a size"
    (let [b (btf/parse (:bytes (btf/->btf [named-type [:typedef "pair" [:struct [:a :u32] [:b :u32]]]
                                           [:typedef "number" :u32]]
                                          nil)))]
      (is (= [["event" 16] ["pair" 8]] (sort (#'tail/structs-in b)))))))

;; --- perf event arrays

(defn- perf-sender
  "Returns a program that sends 12 bytes to a perf event array: n and a kind of 1."
  ^Closeable [m n]
  (prog/load {:type :raw-tracepoint :name "tail_perf"
              :insns [[:lddw :r6 n]
                      [:stxdw [:r10 -16] :r6]
                      [:stw [:r10 -8] 1]
                      [:lddw :r2 m]
                      [:lddw :r3 0xffffffff] ; BPF_F_CURRENT_CPU
                      [:mov64 :r4 :r10]
                      [:add64 :r4 -16]
                      [:mov64 :r5 12]
                      [:call :perf-event-output]
                      [:mov64 :r0 0]
                      [:exit]]}))

(kernel-test perf-events
  (testing "events of a perf event array have their CPU"
    (with-open [m ^Closeable (bpf/create {:name "tail_perf" :type :perf-event-array :max-entries 0
                                          :key :u32 :value :u32})
                p (perf-sender m 7)]
      (let [type [:struct [:n :u32] [:zero :u32] [:kind :u32]]
            sending (fn [f]
                      (let [running (future (f))]
                        (while (not (realized? running))
                          (prog/test-run p)
                          (Thread/sleep 5))
                        @running))
            [row] (sending #(rows {:ref m :value-type type :limit 1}))]
        (is (= {:n 7 :zero 0 :kind 1} (:value row)))
        (is (nat-int? (:cpu row)))
        (let [{:keys [exit out]} (sending #(bpfmap "tail" (id-of m) "--limit" "1" "--value-type"
                                                   (type-text type)))]
          (is (= 0 exit))
          (is (re-matches #"CPU       n    zero    kind\n +\d+       7       0       1\n" out)))
        (is (re-matches #"cpu,value.n,value.zero,value.kind,extra.*\n\d+,7,0,1,.*\n"
                        (:out (sending #(bpfmap "tail" (id-of m) "--limit" "1" "--csv"
                                                "--value-type" (type-text type))))))
        (is (= [2 (str "bpfmap: --from requires a ring buffer: a perf event array keeps no events "
                       "that were read; see `bpfmap help tail`")]
               (refused "tail" (id-of m) "--from" "oldest")))))))

(kernel-test ends-in-time
  (testing "tail ends without an error even if its time is over while it looks at the clock"
    (with-open [m (ring 4096)]
      (dotimes [_ 10]
        (is (= [] (into [] (exec/tail {:ref m :seconds 1e-6}))))))))
