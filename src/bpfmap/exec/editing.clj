(ns ^:no-doc bpfmap.exec.editing
  "Entries of a map as a text that a person edits, and the changes that the edited text asks for.

  The command `edit` shows the text in an editor: see `bpfmap.cli.edit`."
  (:require [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.exec.entry-file :as entry-file]
            [bpfmap.exec.input :as input]
            [bpfmap.impl.edn-text :refer [edn-text]]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def ^:private most-entries "The number of entries up to which a whole map can be edited." 1000)

(defn check-editable
  "Throws `:not-supported` for a map whose entries cannot be read and written back."
  [m]
  (let [{:keys [ops]} (input/row-of m)
        {:keys [id name type value-size] :as info} (bpf/info m)
        missing (first (remove #(contains? ops %) [:lookup :put!]))]
    (when missing
      (throw (error/error :not-supported
                          (str "The entries of map " (error/id-and-name info) ", "
                               (clojure.core/name type) ", cannot be edited")
                          {:bpfmap/op :edit :bpfmap/map {:id id :name name :type type}
                           :bpfmap/hint (map-types/alternative type missing value-size)})))))

(defn entries
  "Returns the entries to edit as a map: that of a key, or all.

  Returns nil for a missing key. Throws `:not-supported` for a map with more than a thousand entries.

      (entries m {:key 7}) ;=> {7 42}"
  [m {:keys [key]}]
  (if (some? key)
    (when-some [v (bpf/lookup m key)] {key v})
    (let [found (do (input/check-dumpable m {})
                    (into {} (take (inc (long most-entries))) m))]
      (when (< (long most-entries) (count found))
        (throw (error/error :not-supported
                            (str "Map " (error/id-and-name (bpf/info m))
                                 " has too many entries for an editor")
                            {:bpfmap/op :edit
                             :bpfmap/hint (str "give a KEY, or dump it to a file and put that:"
                                               " at most " most-entries " can be edited")})))
      found)))

(defn- lines-of-value
  "Returns a value as EDN; a map has a line for each field."
  [value indent]
  (if (and (map? value) (not (record? value)) (< 1 (count value)))
    (str "{" (str/join (str "\n" (.repeat " " (inc (long indent))))
                       (for [[k v] value] (str (edn-text k) " " (edn-text v))))
         "}")
    (edn-text value)))

(defn text
  "Returns entries as a text with comments, for an editor.

  `options` has the `:key` if it is one entry."
  [m entries {:keys [key]}]
  (let [{:keys [type] :as info} (bpf/info m)
        {:keys [ops]} (input/row-of m)
        spec (bpf/spec m)
        types (for [side [:key :value] :when (get spec side)]
                (str ";; " (name side) ": " (edn-text (get spec side))))]
    (str/join "\n"
              (concat [(str ";; Map " (error/id-and-name info) ", " (name type) ".")
                       (if (some? key)
                         ";; Change the value, save, and end the editor. The key must stay."
                         (str ";; Change, add" (when (:delete! ops) " or remove")
                              " entries, save, and end the editor."))
                       ";; Without a change, nothing is written."]
                      types
                      (if (some? key)
                        [(str "{:key " (edn-text key))
                         (str " :value " (lines-of-value (val (first entries)) 8) "}") ""]
                        (concat ["["]
                                (for [[k v] entries] (str " [" (edn-text k) " " (edn-text v) "]"))
                                ["]" ""]))))))

(defn- same
  "Returns a function that compares two values of a map.

  Compares bytes if that is possible. A float that was printed and read again is another number with the same bytes."
  [m]
  (let [{:keys [value-in]} (entry-file/encoders m)]
    (fn [a b]
      (if (or (nil? a) (nil? b) (nil? value-in))
        (= a b)
        (= (value-in a) (value-in b))))))

(defn changes
  "Returns the changes from entries to those in an edited text.

  A row is `{:key :old :new}`; an entry to add has no `:old`, one to delete no `:new`. Objects that
  are opened go through `keep`. Throws `:invalid-value` for a text that cannot be written.

      (changes m {7 42} \"[[7 43]]\" {:file \"/tmp/x.edn\"} identity) ;=> [{:key 7, :old 42, :new 43}]"
  [m entries text {:keys [key file]} keep]
  (let [rows (entry-file/rows-of m {:file file} text keep)
        {:keys [ops]} (input/row-of m)
        wrong (fn [line message]
                (throw (error/error :invalid-value (str "The text in " file " cannot be written")
                                    {:bpfmap/op :edit :bpfmap/file file
                                     :bpfmap/problems [{:line line :message message}]})))
        same? (same m)
        seen (volatile! {})]
    (doseq [{:keys [line key]} rows]
      (when (contains? @seen key)
        (wrong line (str "the key is the same as in line " (@seen key))))
      (vswap! seen assoc key line))
    (when (some? key)
      (when-not (and (= 1 (count rows)) (= key (:key (first rows))))
        (wrong (:line (first rows) 1) "it must have the one entry with the same key")))
    (let [gone (remove #(contains? @seen %) (keys entries))]
      (when (and (seq gone) (not (:delete! ops)))
        (wrong 1 (str "the entry of " (edn-text (first gone))
                      " is missing, and entries of this map cannot be deleted")))
      (into []
            cat
            [(for [{:keys [key value]} rows
                   :let [old (get entries key)]
                   :when (not (same? value old))]
               (cond-> {:key key :new value} (some? old) (assoc :old old)))
             (for [k gone] {:key k :old (get entries k)})]))))

(defn conflicts
  "Returns the changes of entries that others changed meanwhile.

  Each has the entry's value `:now`.

      (conflicts m [{:key 7 :old 42 :new 43}]) ;=> [{:key 7, :old 42, :new 43, :now 50}]"
  [m changes]
  (let [same? (same m)]
    (for [{:keys [key old] :as change} changes
          :let [now (bpf/lookup m key)]
          :when (not (same? now old))]
      (assoc change :now now))))

(defn write
  "Writes changes and returns them.

      (write m [{:key 7 :old 42 :new 43}])"
  [m changes]
  (let [lock (when (bpf-map/locked? m) {:lock true})]
    (doseq [{:keys [key new]} changes]
      (cond
        (nil? new) (bpf/delete! m key)
        lock (bpf/put! m key new lock)
        :else (bpf/put! m key new)))
    changes))

(defn replacing
  "Returns changes whose `:old` values are the `:now` values of conflicts.

      (replacing [{:key 7 :old 42 :new 43}] [{:key 7 :old 42 :new 43 :now 50}]) ;=> [{:key 7, :old 50, :new 43}]"
  [changes conflicts]
  (let [now (into {} (map (juxt :key :now)) conflicts)]
    (mapv (fn [{:keys [key] :as change}]
            (if (contains? now key)
              (cond-> (dissoc change :old) (some? (now key)) (assoc :old (now key)))
              change))
          changes)))
