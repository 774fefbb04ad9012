/**
 * Creates, opens, reads, writes and iterates over eBPF maps from Java, without Clojure.
 *
 * <p>All public classes of this package are API. Begin with {@link bpfmap.maps.BpfMap}:
 *
 * <pre>{@code
 * MapSpec spec = MapSpec.of(MapType.HASH, 4, 8, 1024);
 * try (BpfMap map = BpfMap.create(spec)) {
 *     map.put(key, value);
 *     byte[] found = map.lookup(key);
 * }
 * }</pre>
 *
 * <p>Keys and values are bytes in the layout of the C types that programs use, in the byte order of
 * the machine. The package requires Linux 4.13, JDK 22, the capabilities that the kernel demands
 * for maps (root has them), and native access: {@code --enable-native-access=ALL-UNNAMED}.
 *
 * <p>The package is called {@code maps} because Clojure compiles a namespace to classes in the
 * package of the same name. A test checks that no namespace of bpfmap has this name.
 */
package bpfmap.maps;
