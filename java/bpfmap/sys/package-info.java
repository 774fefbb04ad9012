/**
 * Calls the Linux kernel through the foreign function interface, for bpfmap only.
 *
 * <p>This package is internal: its classes may change in any release. Java programs use
 * {@link bpfmap.maps}, and Clojure programs the namespaces listed in doc/api.md. Members are public
 * only if one of these needs them.
 *
 * <ul>
 *   <li>System calls: Native, Attr, Abi, Info, Errno, FileSyscalls, MemlockLimit, PossibleCpus.
 *   <li>Descriptors and memory: Fd, MappedMemory, CallBuffer, ChunkBufferPool.
 *   <li>Elements of a map: Elements, ElementOps, Reader, BatchReader, KeyIterator, KeyOrder,
 *       SeenKeys, BatchWriter.
 *   <li>Events: EventSource, RingBuffer, RingFollower, UserRingBuffer, PerfBuffer, RawEvent,
 *       Waiter.
 *   <li>All maps of a host: MapScanner, Fdinfo.
 *   <li>Access to memory: Bytes, Blocks, AtomicType, Padding, Streams, Codec, TypeCodec,
 *       StructWords.
 * </ul>
 */
package bpfmap.sys;
