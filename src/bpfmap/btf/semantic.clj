(ns bpfmap.btf.semantic
  "Types that mean more than their C type, and the names under which they pass through the kernel.

  BTF has no word for an IPv4 address. It is written as a typedef with a name of
  its own around the C type, which other tools print and this library
  recognises. A prefix of addresses is a struct in C too, so that struct has
  the name; the kernel takes no other kind of type for the key of an LPM trie.")

(set! *warn-on-reflection* true)

(def ^:private byte-orders
  (into {}
        (for [order [:be :le] bits [16 32 64]]
          [(keyword (str "u" bits (name order))) (str "__" (name order) bits)])))

(def typedefs
  "Type to the name of its typedef. `__be16` and their like are the kernel's own, the rest this library's."
  (merge
   byte-orders
   {:ipv4 "bpfmap_ipv4" :ipv6 "bpfmap_ipv6" :mac "bpfmap_mac" :port "bpfmap_port" :ktime "bpfmap_ktime"}
   (into {} (for [k [:s16be :s16le :s32be :s32le :s64be :s64le :u128be :u128le :s128be :s128le
                     :f32be :f32le :f64be :f64le]]
              [k (str "bpfmap_" (name k))]))))

(def by-typedef
  "Name of a typedef to the type that it means."
  (into {} (map (fn [[k v]] [v k])) typedefs))

(def prefix-structs
  "Family of addresses to the name of the struct that a prefix of them is."
  {:ipv4 "bpfmap_ipv4_prefix" :ipv6 "bpfmap_ipv6_prefix"})

(def by-prefix-struct
  "Name of a struct to the family of which it is a prefix, if it has the members of one."
  (into {} (map (fn [[k v]] [v k])) prefix-structs))

(def element-typedefs
  "Elements of arrays that would otherwise read back as text or as bytes."
  {:char "bpfmap_char" :u8 "bpfmap_u8"})

(def plain-typedefs
  "Names that say no more than the width of the integer behind them: they read as the integer."
  (into #{"size_t" "ssize_t" "bool" "uchar" "ushort" "uint" "ulong" "__kernel_size_t"}
        (for [bits [8 16 32 64 128] [before after] [["u" ""] ["s" ""] ["__u" ""] ["__s" ""] ["uint" "_t"] ["int" "_t"]
                                                    ["u_int" "_t"]]]
          (str before bits after))))
