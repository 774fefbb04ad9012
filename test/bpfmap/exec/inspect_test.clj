(ns bpfmap.exec.inspect-test
  "The command `inspect`, on compiled objects."
  (:require [bpfmap.cli.calling :refer [bpfmap edn-of json-of lines-of refused words]]
            [bpfmap.exec :as exec]
            [bpfmap.fixture :as fixture]
            [bpfmap.object :as object]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io File)))

(set! *warn-on-reflection* true)

(def ^:private flows "test/objects/flows-el.o")

(defn- sections
  "Returns the tables of `inspect` by their titles, as lines of words."
  [lines]
  (into {} (for [[[title] table] (partition 2 (partition-by #(str/starts-with? % "  ")
                                                            (remove #{""} (rest lines))))]
             [title (map words table)])))

(deftest object-as-data
  (testing "inspect returns the object as it is read"
    (doseq [file [flows "test/objects/flows-eb.o" "test/objects/newer-el.o"
                  "test/objects/old-el.o"]]
      (is (= (object/read file) (dissoc (exec/inspect {:file file}) :relocations)) file)
      (is (= (exec/inspect {:file file}) (edn-of "inspect" file)) file)
      (is (= 0 (:exit (bpfmap "inspect" file))) file))
    (is (= (exec/inspect {:file flows}) (exec/inspect {:file (io/file flows)})))
    (is (= {"type" "hash" "max-entries" 1024}
           (select-keys (get-in (json-of "inspect" flows) ["maps" "flows"])
                        ["type" "max-entries"])))
    (is (= (get-in (object/read flows) [:programs "on_enter"])
           (exec/inspect {:file flows :program "on_enter"})))))

(deftest object-as-tables
  (testing "inspect prints a table of each part"
    (let [[heading :as lines] (lines-of "inspect" flows)
          tables (sections lines)
          row (fn [title name] (first (filter #(= name (first %)) (tables title))))]
      (is (= "flows-el: little-endian, license Dual MIT/GPL, BTF of 6324 bytes" heading))
      (is (= ["Maps" "Programs" "Functions" "Variables" "Kernel configuration" "Kernel symbols"
              "CO-RE relocations"]
             (map str/trim (filter #(re-find #"^[A-Z]" %) lines))))
      (is (= (words "flows hash struct address struct flow 1024 no-prealloc") (row "Maps" "flows")))
      (is (= (words "jumps prog-array 4 bytes - 2 -") (row "Maps" "jumps")))
      (is (= (words "count_packets xdp xdp 48") (row "Programs" "count_packets")))
      (is (= (words "untyped something/else - 4") (row "Programs" "untyped")))
      (is (= (words "add .text 6") (row "Functions" "add")))
      (is (= (words "peer .data struct address {:ip 7, :port 443, :pad 0}")
             (row "Variables" "peer")))
      (is (= (words "LINUX_KERNEL_VERSION s32 refused")
             (row "Kernel configuration" "LINUX_KERNEL_VERSION")))
      (is (= (words "bpf_rcu_read_lock function - allowed")
             (row "Kernel symbols" "bpf_rcu_read_lock")))
      (is (some #(= (words "struct task_struct___own.links[1].next field-byte-offset 1")
                    (butlast %))
                (tables "CO-RE relocations")))
      (is (str/starts-with? (:err (bpfmap "inspect" flows)) "14 maps, 6 programs, 9 variables\n")))))

(deftest relocations-here
  (testing "relocations have their values on this kernel, without privileges"
    (if-not (.exists (io/file "/sys/kernel/btf/vmlinux"))
      (fixture/skip! "this kernel has no BTF")
      (let [rows (:relocations (exec/inspect {:file flows}))
            {:keys [out err]} (fixture/unprivileged #(bpfmap "inspect" flows))
            here (into {} (map (fn [line] [(vec (butlast line)) (last line)]))
                       ((sections (str/split-lines out)) "CO-RE relocations"))
            value (fn [path] (:value (first (filter #(= path (:path %)) rows))))]
        (is (= rows (object/relocations (object/read flows))))
        (is (pos-int? (value [:pid])))
        (is (= (str (value [:pid]))
               (here (words "struct task_struct___own.pid field-byte-offset 1"))))
        (is (= "no" (here (words "struct task_struct___own.gone field-exists 1"))))
        (is (= "missing"
               (here (words "struct task_struct___own.links[1].next field-byte-offset 1"))))
        (is (re-find #"\nthis kernel satisfies \d+ of 13 relocations\n$" err))))))

(deftest program-as-assembly
  (testing "--program prints instructions with source lines and relocations"
    (let [lines (lines-of "inspect" flows "--program" "on_enter")]
      (is (= "on_enter:" (first lines)))
      (is (some #{"   0: call bpf_get_current_task"} lines))
      (is (some #{"  24: r1 = 0  ; CO-RE field-byte-offset struct task_struct___own.pid"} lines))
      (is (some #(re-find #"^; ring_output\(&events, .*flows\.bpf\.c:\d+$" %) lines)))
    (is (= "add:" (first (lines-of "inspect" flows "--program" "add"))) "also of a function")))

(deftest inspect-errors
  (testing "files that are not objects"
    (let [directory (fixture/temporary-directory)
          ^File text (io/file directory "a.o")]
      (try
        (spit text "int main() { return 0; }\n")
        (is (= [1 "bpfmap: Cannot read the object \"/nowhere/a.o\": there is no such file"]
               (refused "inspect" "/nowhere/a.o")))
        (is (= [1 (str "bpfmap: Cannot read the object " (pr-str (str directory))
                       ": it is a directory")]
               (refused "inspect" directory)))
        (is (= [1 "bpfmap: Malformed object: it does not begin as a 64-bit ELF file does"]
               (refused "inspect" text)))
        (is (re-find #"^bpfmap: Malformed object in the machine of the ELF file: it is for machine \d+, and BPF is 247"
                     (second (refused "inspect" (str (System/getProperty "java.home")
                                                     "/bin/java")))))
        (is (= [1 "bpfmap: No program or function named \"on_entr\": did you mean on_enter?"]
               (refused "inspect" flows "--program" "on_entr")))
        (is (= [2 "bpfmap: inspect requires FILE; see `bpfmap help inspect`"]
               (refused "inspect")))
        (finally
          (.delete text)
          (.delete ^File directory))))))
