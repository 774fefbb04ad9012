(ns bpfmap.object
  "Reads compiled BPF objects as data, and loads them into the kernel.

      (def o (read \"flows.bpf.o\")) ; of `clang -target bpf -g -O2 -c flows.bpf.c`
      (get-in o [:maps \"flows\"])
      ;=> {:name \"flows\" :type :hash :key :u32 :value [:struct {:name \"flow\"} …] :max-entries 1024}

      (with-open [x (load (assoc-in o [:variables \"limit\" :value] 500))]
        @(get-in x [:variables \"limit\"]) ;=> 500
        (into {} (get-in x [:maps \"flows\"])))

  What [[read]] returns is one plain map, without any open resource: change it with `assoc-in`,
  `update-in` and `dissoc`, print it, compare it, or write it to a file. Reading needs no privileges
  and works on any system. [[load]] loads the value, as it is then, into the running kernel. See
  doc/objects.md."
  (:refer-clojure :exclude [load read])
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.host.kernel-btf :as kernel-btf]
            [bpfmap.impl.object.core :as core]
            [bpfmap.impl.object.core-relocation :as core-relocation]
            [bpfmap.impl.object.load :as load]
            [bpfmap.impl.object.reader :as reader]
            [bpfmap.impl.options :as options]
            [bpfmap.impl.user-file :as user-file]
            [clojure.core.protocols :as protocols]
            [clojure.string :as str])
  (:import (bpfmap.impl.object.loaded LoadedObject)
           (java.io Closeable File InputStream)
           (java.nio.file Path)))

(set! *warn-on-reflection* true)

;; The data that clojure.datafy shows is made by a namespace that is loaded on first use.
(extend-type LoadedObject
  protocols/Datafiable
  (datafy [x] ((requiring-resolve 'bpfmap.impl.host.explore/of-object) x)))

(def ^:private most-bytes
  "The bytes of the largest object that is read.

  With debug information, objects have a few MB."
  0x4000000)

(defn- object-name
  "Returns the name of a file up to the first dot.

  The names of maps in the kernel begin with it."
  [path]
  (first (str/split (.getName (File. (str path))) #"\." 2)))

(defn read
  "Reads a compiled BPF object from a path, a stream or bytes; returns it as data.

  `source` is a path (a string, a `java.io.File` or a `java.nio.file.Path`), an
  `java.io.InputStream`, which is read to its end and not closed, a byte array or a byte view. The
  object is a 64-bit ELF file of either byte order. The result is a plain map:

  | key               | value                                                                   |
  |-------------------|-------------------------------------------------------------------------|
  | `:name`           | the file's name up to the first dot; only for a path                    |
  | `:license`        | the license, \"\" if the object has none                                |
  | `:kernel-version` | the number of the section `version`, if there is one                    |
  | `:byte-order`     | `:little-endian` or `:big-endian`                                       |
  | `:maps`           | name to spec, as `bpfmap.core/create` takes it, see below               |
  | `:programs`       | name to program: functions that can be attached                         |
  | `:functions`      | name to function: what programs call                                    |
  | `:variables`      | name to variable: `:section :type :offset :size :value`                 |
  | `:kconfig`        | name to `:type`, and `:weak`: values of the kernel's configuration      |
  | `:ksyms`          | name to `:kind :type :weak`: functions and variables of the kernel      |
  | `:btf`            | the BTF as a byte view, for `bpfmap.btf/parse`; missing without `-g`    |

  Map specs may have more than `create` takes: `:contents` refer to other parts of the object as
  `{:map name}` and `{:program name}`, and a map of a section `?.struct_ops` has `:autoload false`.
  A section of data is a map too, under its name: its `:contents` are bytes that belong to no
  variable.

  A program or function has:

  | key            | value                                                                      |
  |----------------|----------------------------------------------------------------------------|
  | `:section`     | the name of its section                                                    |
  | `:type`        | the program type, a name of `bpfmap.prog/types`; missing if the section's name says none |
  | `:attach-type` | a name of `bpfmap.prog/attach-types`, if it is loaded with one             |
  | `:target`      | the text behind the section's name, such as the name of a function         |
  | `:flags`       | `:sleepable`, `:xdp-has-frags`                                             |
  | `:autoload`    | false if its section begins with `?`                                       |
  | `:insns`       | instructions, see `bpfmap.asm`, which refer to parts of the object by name |
  | `:lines`       | source lines: `{:slot :file :line :column :text}`                          |
  | `:core`        | CO-RE relocations: `{:slot :kind :type :type-id :access}` and `:path` or `:enumerator` |
  | `:linkage`     | of a function: `:static` or `:global`                                      |
  | `:weak`, `:visibility` | from the symbol, unless they are the default                       |
  | `:btf-id`, `:tags` | the function in the BTF, and its declaration tags                      |

  A slot is the number of an eight-byte unit of the instructions, from 0. A value is data of its
  type; it is bytes if the type is unknown or the value very large, and missing for variables of more
  than 4 KiB that are zero. Names that occur twice, such as `static` variables of two files, get their offset
  behind them: `seen` and `seen#24`.

  A variable that the compiler initialised with addresses has `:pointers`: offset in the variable to
  a reference, such as `{8 {:variable \"x\"} 16 {:function \"f\"}}`. Programs do not see these
  addresses, because no loader can know them.

  Throws `:malformed-object` if the bytes are not such an object, with the place under
  `:bpfmap/path`, such as `[:section \"xdp\" :offset 24]`; `:io` for a file or stream that cannot
  be read or has more than 64 MiB; and `:invalid-value` for any other source.

      (read \"flows.bpf.o\")
      (update-in (read \"flows.bpf.o\") [:maps \"flows\" :max-entries] * 2)"
  [source]
  (cond
    (or (string? source) (instance? File source) (instance? Path source))
    (merge {:name (object-name source)}
           (reader/of-bytes (user-file/bytes-in {:file source :what "the object" :most most-bytes
                                                 :op :read})))
    (instance? InputStream source)
    (reader/of-bytes (user-file/bytes-in {:in source :what "the object from the stream"
                                          :most most-bytes :op :read}))
    (bytes/byte-count source) (reader/of-bytes (bytes/->array source))
    :else (throw (error/error :invalid-value
                              (str "The source must be a path, a stream or bytes, got "
                                   (error/printed source))
                              {:bpfmap/op :read}))))

(defn relocations
  "Returns the CO-RE relocations of an object, with what a kernel has for each.

  The result is a vector of maps, for the programs and then for the functions, in the order of their
  names and slots. It has the keys of `:core` (see [[read]]), and:

  | key          | meaning                                                                |
  |--------------|------------------------------------------------------------------------|
  | `:function`  | the name of the program or function                                    |
  | `:satisfied` | false if the kernel has no value: the instruction must not be reached  |
  | `:value`     | the offset, size, id or other number that the instruction gets         |
  | `:reason`    | if it is not satisfied: a text that names the type and the field       |

  Questions (`:field-exists`, `:type-exists`, `:type-matches`, `:enumval-exists`) are always
  satisfied, with the value 0 or 1. The size and the id of a type that the kernel does not have are
  0.

  | option        | meaning                                                              |
  |---------------|----------------------------------------------------------------------|
  | `:kernel-btf` | the BTF of a kernel, as `bpfmap.btf/parse` returns it; default: the BTF of the running kernel and its modules |

  With `:kernel-btf` no kernel is needed. Throws `:not-found` if the running kernel has no BTF, and
  `:invalid-value` for relocations that do not fit the object's BTF.

      (relocations o)
      ;=> [{:function \"on_enter\" :slot 24 :kind :field-byte-offset :type \"struct task_struct\"
      ;     :path [:pid] … :satisfied true :value 1264} …]
      (remove :satisfied (relocations o {:kernel-btf (btf/parse bytes)}))"
  ([o]
   (relocations o nil))
  ([{:keys [programs functions] b :btf} options]
   (options/check :relocations options)
   (let [all (for [parts [programs functions]
                   [function-name part] (sort-by key parts)
                   :when (seq (:core part))]
               [function-name part])]
     (if (empty? all)
       []
       (let [_ (when-not (bytes/byte-count b)
                 (throw (error/error :invalid-value
                                     (str "The :btf of an object with relocations must be bytes, got "
                                          (error/printed b))
                                     {:bpfmap/op :relocations})))
             local (core/local (blob/parse (bytes/->array b)))
             targets (if-let [kernel-btf (:kernel-btf options)]
                       (core/targets kernel-btf)
                       (kernel-btf/targets))]
         (into []
               (mapcat (fn [[function-name part]]
                         (map #(assoc % :function function-name)
                              (core-relocation/explained-relocations local targets part))))
               all))))))

(defn load
  "Loads an object into the running kernel; returns it open.

  `object` is a result of [[read]], changed or not. In order, its BTF, its maps, and its programs are
  loaded, then the contents of maps that refer to programs. If a step fails, everything is given
  back: no map, program, pin or descriptor is left. If the kernel refuses the BTF, the object is
  loaded without it; programs that need BTF are rejected then.

  | option        | meaning                                                                     |
  |---------------|-----------------------------------------------------------------------------|
  | `:maps`       | open maps by name, to use instead of new ones; the caller closes them       |
  | `:pin-path`   | where maps with `:pinning :by-name` are pinned, or taken from; default: /sys/fs/bpf |
  | `:only`       | the names of the programs to load, also of those with `:autoload false`     |
  | `:attach-to`  | open programs by name: what a `freplace`, `fentry` or `fexit` program of that name is for |
  | `:kernel-btf` | the types of the kernel for CO-RE, a result of `bpfmap.btf/parse`; default: those of the running kernel |
  | `:log`        | `:stats`: the verifier's statistics of each program; `:full`: its whole log |

  All programs are loaded, except those with `:autoload false` and those of struct_ops that no map
  refers to. All maps are created, except those that only other programs need. A section of
  constants is frozen before programs are loaded.

  The result is closed with `with-open`, which closes its programs and maps. Programs that are
  attached and maps that are pinned stay in the kernel. It has these keys, and makes no system call
  to print:

  | key           | value                                                                       |
  |---------------|-----------------------------------------------------------------------------|
  | `:maps`       | name to open map, as from `bpfmap.core/create`; `\".bss\"` and others are sections |
  | `:programs`   | name to open program, as from `bpfmap.prog/load`                            |
  | `:variables`  | name to a view (`bpfmap.memory`) of the variable in the map's memory: `@` reads it, `write!` writes it |
  | `:struct-ops` | name to the value of a struct_ops map; one without `:link` is registered by `(bpf/put! m 0 value)` |
  | `:stats`      | with `:log :stats`, program name to `{:insns n :total-states n …}`          |
  | `:logs`       | with `:log :full`, program name to text                                     |
  | `:name` `:license` | as in the object                                                       |

  Throws `:program-rejected` if the verifier rejects a program: the message and the data have its
  reason, the source line and a hint, `:bpfmap/log` the whole log. Throws `:invalid-value`,
  `:invalid-spec`, `:invalid-program` or `:incompatible` for a value that cannot be loaded, before
  the kernel sees it, with the place under `:bpfmap/path`; `:not-found` for what this kernel does
  not have, such as the function that a program attaches to; `:not-supported` for programs that it
  cannot have, with the release or the kernel option that has them, and for an object of the other
  byte order; `:permission` without CAP_BPF and the capabilities of the program types.

      (with-open [x (load (read \"flows.bpf.o\") {:only [\"count\"]})]
        (bpfmap.prog/test-run (get-in x [:programs \"count\"]) {:data (byte-array 64)})
        @(get-in x [:variables \"total\"])) ;=> 1"
  (^Closeable [object] (load object nil))
  (^Closeable [object options] (load/load-object object options)))
