(ns ^:no-doc bpfmap.impl.prog.function
  "Finds functions of open programs in their BTF."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.host.kernel-btf :as kernel-btf]
            [bpfmap.impl.kernel.prog :as kernel.prog]
            [bpfmap.impl.nearest :as nearest])
  (:import (bpfmap.sys Fd)))

(set! *warn-on-reflection* true)

(defn id-of
  "Returns the id of a function in the BTF of a program.

  `fd` is the program's descriptor. Throws `:not-found` with similar names; `data` is added to the
  data of the error."
  [^Fd fd function {:keys [op]} data]
  (let [{:keys [name btf-id]} (kernel.prog/brief-info fd {:op op :object :program})
        b (when btf-id (kernel-btf/by-id btf-id))
        functions (when b
                    (for [id (range 1 (inc (long (blob/type-count b))))
                          :when (= :func (blob/kind b id))]
                      [(blob/name-of b id) id]))]
    (or (some (fn [[found id]] (when (= function found) id)) functions)
        (throw (error/error :not-found (str "The program " name " has no function " function)
                            (merge {:bpfmap/op op
                                    :bpfmap/hint (if b
                                                   (nearest/alternatives function
                                                                         (map first functions))
                                                   "it was loaded without BTF")}
                                   data))))))
