(ns ^:no-doc bpfmap.impl.object.references
  "Resolves the references of a linked program: to maps, to the kernel, and of CO-RE.

  The instructions are changed in place. `fds` collects the descriptors that are written to them
  during the call, and `poison` by slot why an instruction must not run."
  (:require [bpfmap.impl.kernel.btf :as kernel.btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.object.core :as core]
            [bpfmap.impl.object.externs :as externs]
            [bpfmap.impl.object.load-error :refer [in-path]]
            [bpfmap.impl.object.selection :as selection]
            [bpfmap.impl.object.undo :as undo])
  (:import (bpfmap.sys Fd)
           (java.nio ByteBuffer ByteOrder)))

(set! *warn-on-reflection* true)

(defn- set-source!
  "Sets the source register of an instruction.

  It decides what the immediate means."
  [^ByteBuffer code slot src]
  (let [at (int (inc (* 8 (long slot))))
        registers (bit-and 0xff (.get code at))]
    (.put code at (unchecked-byte
                   (if (= ByteOrder/BIG_ENDIAN (.order code))
                     (bit-or (bit-and 0xf0 registers) (long src))
                     (bit-or (bit-and 0x0f registers) (bit-shift-left (long src) 4)))))))

(defn- immediate ^long [^ByteBuffer code slot]
  (.getInt code (int (+ 4 (* 8 (long slot))))))

(defn- set-immediate! [^ByteBuffer code slot n]
  (.putInt code (int (+ 4 (* 8 (long slot)))) (unchecked-int (long n))))

(defn- set-offset! [^ByteBuffer code slot n]
  (.putShort code (int (+ 2 (* 8 (long slot)))) (short n)))

(defn- set-wide! [code slot n]
  (set-immediate! code slot n)
  (set-immediate! code (inc (long slot)) (bit-shift-right (long n) 32)))

(defn- poison! [{:keys [poison]} ^ByteBuffer code slot reason]
  (core/patch! (.array code) slot {:poison reason} (.order code))
  (vswap! poison assoc slot reason))

(defn- use-map!
  "Makes an instruction refer to a map, at an offset in its value."
  [{:keys [maps fds] :as ctx} code {:keys [slot]} map-name offset]
  (if-let [m (get maps map-name)]
    (do (vswap! fds conj {:slot slot :fd (bpf-map/descriptor m)})
        (when offset
          (set-immediate! code (inc (long slot))
                          (+ (immediate code (inc (long slot))) (long offset)))))
    (poison! ctx code slot (str "map " map-name " was not created, because its :autoload is "
                                "false"))))

(defn module-fd
  "Returns a descriptor of the BTF of a module, opened once for a load."
  ^Fd [{:keys [temporary module-fds]} module]
  (or (@module-fds module)
      (let [fd (or (kernel.btf/open-named module {:op :load})
                   (throw (externs/missing [] "module" module)))]
        (undo/push! temporary fd #(call/close fd))
        (vswap! module-fds assoc module fd)
        fd)))

(defn- module-index
  "Returns the index of a module in the array of descriptors of a program, from 1."
  [{:keys [fd-array] :as ctx} module]
  (let [fd (module-fd ctx module)
        index (.indexOf ^java.util.List @fd-array fd)]
    (if (neg? index)
      (count (vswap! fd-array conj fd))
      (inc index))))

(defn- use-kernel-function!
  "Makes a call or an address refer to a function of the kernel.

  A weak function that this kernel does not have must not be called, and has the address 0."
  [{:keys [object fds] :as ctx} code {:keys [slot ref path kind]}]
  (let [wanted (val (first ref))
        weak? (:weak (get-in object [:ksyms wanted]))
        {:keys [id module]} (externs/find-type (core/essential-name wanted) :func)]
    (cond
      id (do (set-immediate! code slot id)
             (when module
               (if (= :kfunc kind)
                 (set-offset! code slot (module-index ctx module))
                 (vswap! fds conj {:slot (inc (long slot)) :fd (module-fd ctx module)}))))
      (not weak?) (throw (externs/missing path "function" wanted))
      (= :kfunc kind) (poison! ctx code slot (str "this kernel has no function " wanted))
      :else (do (set-source! code slot 0)
                (set-wide! code slot 0)))))

(defn- use-symbol!
  "Makes an instruction load the address of a symbol of the kernel."
  [{:keys [object addresses fds] :as ctx} code {:keys [slot ref path]}]
  (let [wanted (val (first ref))
        {:keys [weak] type :type} (get-in object [:ksyms wanted])
        {:keys [id module]} (when type (externs/find-type (core/essential-name wanted) :var))]
    ;; The BTF may have variables of which the kernel does not know the address.
    (if (and id (or (not weak) (@addresses wanted)))
      (do (set-source! code slot 3) ; BPF_PSEUDO_BTF_ID
          (set-immediate! code slot id)
          (when module
            (vswap! fds conj {:slot (inc (long slot)) :fd (module-fd ctx module)})))
      (let [address (when-not type (get @addresses wanted))]
        (when-not (or address weak)
          (throw (externs/missing path "variable" wanted)))
        (set-wide! code slot (or address 0))))))

(defn resolve-reference!
  "Makes an instruction refer to what its relocation names.

      (resolve-reference! ctx code {:slot 3 :ref {:map \"flows\"}})"
  [{:keys [object config-layout fds] :as ctx} code {:keys [kind ref slot] :as relocation}]
  (cond
    (bpf-map/bpf-map? ref) (vswap! fds conj {:slot slot :fd (bpf-map/descriptor ref)})
    (#{:kfunc :btf-id} kind) (use-kernel-function! ctx code relocation)
    (= :ksym kind) (use-symbol! ctx code relocation)
    :else
    (let [[k named] (first ref)]
      (use-map! ctx code relocation (selection/map-of-reference object (first ref))
                (case k
                  :variable (get-in object [:variables named :offset])
                  :kconfig (get-in config-layout [:offsets named])
                  nil)))))

(defn relocate-core!
  "Applies the CO-RE relocations of a linked program."
  [{:keys [local targets poison]} ^ByteBuffer code parts]
  (doseq [{base :slot :keys [program]} parts
          {:keys [slot] :as relocation} (:core program)
          :let [at (+ (long base) (long slot))]]
    (in-path [:programs (:name program) :core slot]
      (let [resolved (core/resolve @local @targets relocation)]
        (core/patch! (.array code) at resolved (.order code))
        (when-let [reason (or (:poison resolved) (:misfit resolved))]
          (vswap! poison assoc at reason))))))
