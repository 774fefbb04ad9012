package bpfmap.maps;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;

import bpfmap.sys.Abi;
import bpfmap.sys.Attr;
import bpfmap.sys.BatchWriter;
import bpfmap.sys.Bytes;
import bpfmap.sys.CallBuffer;
import bpfmap.sys.Elements;
import bpfmap.sys.Fd;
import bpfmap.sys.FileSyscalls;
import bpfmap.sys.KeyOrder;
import bpfmap.sys.MappedMemory;
import bpfmap.sys.MemlockLimit;
import bpfmap.sys.PossibleCpus;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.MemorySegment;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;
import java.util.Objects;
import java.util.function.BiConsumer;

/**
 * Represents an open eBPF map, as a handle that any number of threads can use.
 *
 * <p>Closing the handle does not delete the map. The kernel deletes a map when no process, program
 * or pin uses it.
 *
 * <p>Keys must have {@link #keySize} bytes and values {@link #valueSize} bytes. A map without keys,
 * such as a queue, has keys of zero bytes: there {@link #put} pushes, {@link #lookup} peeks and
 * {@link #take} pops.
 *
 * <p>Every method throws:
 *
 * <ul>
 *   <li>{@link BpfMapException} if the kernel rejects the operation,
 *   <li>{@link IllegalStateException} if the map is closed,
 *   <li>{@link IllegalArgumentException} if a key or a value has another size,
 *   <li>{@link UnsupportedOperationException} if this is not Linux, or native access is denied.
 * </ul>
 */
public final class BpfMap implements AutoCloseable {
    private final Fd fd;
    private final MapInfo opened;
    private final int valueSize;
    private final Elements elements;

    /** Mapped on demand; guarded by this. */
    private MappedMemory memory;

    private BpfMap(Fd fd) {
        this.fd = fd;
        opened = MapInfo.read(fd, "open");
        MapType type = opened.type();
        valueSize = type != null && type.isPerCpu()
            ? Math.multiplyExact(roundUp(opened.valueSize()), possibleCpus())
            : opened.valueSize();
        elements = new Elements(fd, opened.keySize(), valueSize);
    }

    /** Returns a map with ownership of a descriptor, which is closed if that fails. */
    private static BpfMap own(Fd fd) {
        try {
            return new BpfMap(fd);
        } catch (Throwable t) {
            fd.close();
            throw t;
        }
    }

    private static int roundUp(int size) {
        return Math.addExact(size, 7) & ~7;
    }

    private static int possibleCpus() {
        try {
            return PossibleCpus.possible().length;
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    // --- create and open

    /** Creates a map. */
    public static BpfMap create(MapSpec spec) {
        return create(spec, null);
    }

    /**
     * Creates an array or hash of maps. Each value is a map with the same type, sizes and flags as
     * {@code inner}, which is only a template: it is not stored in the map. The value size of the
     * spec must be 4.
     *
     * @see #put(byte[], BpfMap)
     */
    public static BpfMap createOfMaps(MapSpec spec, BpfMap inner) {
        return create(spec, inner.fd);
    }

    private static BpfMap create(MapSpec spec, Fd inner) {
        long outcome = create(spec, spec.name(), inner);
        if (outcome == -Abi.EPERM && chargesMemlock()) {
            MemlockLimit.raise();
            outcome = create(spec, spec.name(), inner);
        }
        if (outcome == -Abi.E2BIG && !spec.name().isEmpty()) {
            outcome = create(spec, "", inner); // before Linux 4.15 maps have no names
        }
        return own(Fd.own(checked("create", outcome)));
    }

    private static long create(MapSpec spec, String name, Fd inner) {
        try (Attr attr = new Attr()) {
            if (inner != null) {
                attr.fd(Abi.MAP_CREATE_INNER_MAP_FD, inner);
            }
            attr.int32(Abi.MAP_CREATE_MAP_TYPE, spec.type().number())
                .int32(Abi.MAP_CREATE_KEY_SIZE, spec.keySize())
                .int32(Abi.MAP_CREATE_VALUE_SIZE, spec.valueSize())
                .int32(Abi.MAP_CREATE_MAX_ENTRIES, spec.maxEntries())
                .int32(Abi.MAP_CREATE_MAP_FLAGS, spec.flags());
            if (!name.isEmpty()) {
                attr.name(Abi.MAP_CREATE_MAP_NAME, name);
            }
            return attr.call(Abi.BPF_MAP_CREATE);
        }
    }

    /** Returns true if this kernel charges maps to RLIMIT_MEMLOCK: before Linux 5.11. */
    private static boolean chargesMemlock() {
        String[] release = System.getProperty("os.version", "").split("\\D+");
        try {
            int major = Integer.parseInt(release[0]);
            return major < 5 || major == 5 && Integer.parseInt(release[1]) < 11;
        } catch (NumberFormatException | ArrayIndexOutOfBoundsException e) {
            return false;
        }
    }

    /**
     * Opens the map that is pinned at a path.
     *
     * @throws IllegalArgumentException if another kind of object is pinned there
     */
    public static BpfMap open(Path path) {
        return own(get(path, "open"));
    }

    /** Opens the map with an id. */
    public static BpfMap openById(int id) {
        try (Attr attr = new Attr().int32(Abi.ID_START_ID, id)) {
            return own(Fd.own(checked("openById", attr.call(Abi.BPF_MAP_GET_FD_BY_ID))));
        }
    }

    private static Fd get(Path path, String operation) {
        Fd fd;
        try (Attr attr = new Attr().bytes(Abi.OBJ_PATHNAME, terminated(path))) {
            fd = Fd.own(checked(operation, attr.call(Abi.BPF_OBJ_GET)));
        }
        int number = fd.acquire();
        try {
            byte[] text = FileSyscalls.readFile(
                ("/proc/self/fdinfo/" + number).getBytes(StandardCharsets.US_ASCII));
            // Without /proc the kind cannot be checked.
            if (text == null
                    || new String(text, StandardCharsets.US_ASCII).contains("map_type:")) {
                return fd;
            }
        } finally {
            fd.release();
        }
        fd.close();
        throw new IllegalArgumentException(path + " must be the pin of a map");
    }

    /** Returns the bytes of a path, also in a locale that cannot represent them, and a NUL. */
    private static byte[] terminated(Path path) {
        String text = path.toString();
        byte[] bytes;
        if (text.chars().allMatch(c -> c < 128)) {
            bytes = text.getBytes(StandardCharsets.US_ASCII);
        } else {
            // A URI has the bytes, percent-encoded.
            String encoded = path.toUri().getRawPath();
            ByteArrayOutputStream out = new ByteArrayOutputStream();
            for (int i = 0; i < encoded.length(); i++) {
                if (encoded.charAt(i) == '%') {
                    out.write(Integer.parseInt(encoded, i + 1, i + 3, 16));
                    i += 2;
                } else {
                    out.write(encoded.charAt(i));
                }
            }
            bytes = out.toByteArray();
        }
        return Arrays.copyOf(bytes, bytes.length + 1);
    }

    private static long checked(String operation, long outcome) {
        if (outcome < 0) {
            throw new BpfMapException(operation, outcome);
        }
        return outcome;
    }

    // --- the handle

    /** Reads the kernel's description of the map. */
    public MapInfo info() {
        return MapInfo.read(fd, "info");
    }

    /** Returns the size of a key in bytes. */
    public int keySize() {
        return opened.keySize();
    }

    /**
     * Returns the size in bytes of a value as methods of this class take and return it. A per-CPU
     * map has a value for each possible CPU, each padded to a multiple of eight bytes.
     */
    public int valueSize() {
        return valueSize;
    }

    /** Returns true if the handle is closed. */
    public boolean isClosed() {
        return fd.isClosed();
    }

    /**
     * Closes the handle and unmaps its memory. Calls of other threads that have begun are
     * completed. Idempotent.
     */
    @Override
    public void close() {
        fd.close();
        synchronized (this) {
            if (memory != null) {
                memory.close();
            }
        }
    }

    /** Returns the type, the id and the name of the map. */
    @Override
    public String toString() {
        return "BpfMap[" + (opened.type() == null ? opened.typeNumber() : opened.type())
            + ", id " + opened.id() + (opened.name().isEmpty() ? "" : ", " + opened.name())
            + (isClosed() ? ", closed]" : "]");
    }

    // --- elements

    /**
     * Reads the value of a key.
     *
     * @return the value, or null if the key does not exist
     */
    public byte[] lookup(byte[] key) {
        byte[] value = new byte[valueSize];
        return found("lookup", elements.lookup(key, value, Abi.BPF_ANY)) ? value : null;
    }

    /**
     * Reads the value of a key into memory, without allocation.
     *
     * @return true if the key exists
     */
    public boolean lookup(MemorySegment key, MemorySegment value) {
        require("key", key, keySize());
        require("value", value, valueSize);
        CallBuffer buffer = elements.take();
        try {
            MemorySegment.copy(key, 0, buffer.memory, CallBuffer.KEY, keySize());
            if (!found("lookup", elements.lookup(buffer, Abi.BPF_ANY))) {
                return false;
            }
            MemorySegment.copy(buffer.memory, elements.valueOffset(), value, 0, valueSize);
            return true;
        } finally {
            buffer.give();
        }
    }

    /** Writes the value of a key. */
    public void put(byte[] key, byte[] value) {
        checked("put", elements.update(key, value, Abi.BPF_ANY));
    }

    /** Writes the value of a key from memory, without allocation. */
    public void put(MemorySegment key, MemorySegment value) {
        require("key", key, keySize());
        require("value", value, valueSize);
        CallBuffer buffer = elements.take();
        try {
            MemorySegment.copy(key, 0, buffer.memory, CallBuffer.KEY, keySize());
            MemorySegment.copy(value, 0, buffer.memory, elements.valueOffset(), valueSize);
            checked("put", elements.update(buffer, Abi.BPF_ANY));
        } finally {
            buffer.give();
        }
    }

    /**
     * Writes an entry if the key does not exist.
     *
     * @return true if it was written
     */
    public boolean insert(byte[] key, byte[] value) {
        int outcome = elements.update(key, value, Abi.BPF_NOEXIST);
        return outcome != -Abi.EEXIST && checked("insert", outcome) == 0;
    }

    /**
     * Writes the value of a key if the key exists.
     *
     * @return true if it was written
     */
    public boolean replace(byte[] key, byte[] value) {
        return found("replace", elements.update(key, value, Abi.BPF_EXIST));
    }

    /**
     * Deletes a key and its value.
     *
     * @return true if the key existed
     */
    public boolean delete(byte[] key) {
        return found("delete", elements.delete(key));
    }

    /**
     * Reads the value of a key and deletes the entry, atomically. Since Linux 5.14 for hash maps.
     *
     * @return the value, or null if the key does not exist
     */
    public byte[] take(byte[] key) {
        byte[] value = new byte[valueSize];
        return found("take", elements.lookupAndDelete(key, value, Abi.BPF_ANY)) ? value : null;
    }

    /**
     * Reads the key after another in the order of the kernel. If that key does not exist, most map
     * types return the first.
     *
     * @param key a key, or null for the first
     * @return the next key, or null after the last
     */
    public byte[] nextKey(byte[] key) {
        CallBuffer buffer = elements.take();
        try {
            if (key != null) {
                MemorySegment segment = MemorySegment.ofArray(key);
                require("key", segment, keySize());
                MemorySegment.copy(segment, 0, buffer.memory, CallBuffer.KEY, keySize());
            }
            return found("nextKey", elements.nextKey(buffer, key == null))
                ? Bytes.copyOut(buffer.memory, elements.valueOffset(), keySize())
                : null;
        } finally {
            buffer.give();
        }
    }

    // --- many elements

    /**
     * Writes entries, with batches if the kernel has them. All entries are copied first, so nothing
     * is written if a key or a value has another size.
     *
     * <pre>{@code
     * map.putAll(List.of(Map.entry(key, value), Map.entry(key2, value2)));
     * }</pre>
     *
     * @return how many of the keys the map then contains, each counted once. That is fewer than
     *     the number of different keys if an LRU map has dropped some
     * @throws BpfMapException if the kernel rejects an entry; see
     *     {@link BpfMapException#completed}
     */
    public int putAll(Iterable<? extends Map.Entry<byte[], byte[]>> entries) {
        MapType type = opened.type();
        try (BatchWriter writer = new BatchWriter(fd, keySize(), valueSize)) {
            for (Map.Entry<byte[], byte[]> entry : entries) {
                MemorySegment key = segment("key", entry.getKey(), keySize());
                MemorySegment value = segment("value", entry.getValue(), valueSize);
                int i = writer.add();
                MemorySegment.copy(
                    key, 0, writer.keys(), (long) i * keySize(), keySize());
                MemorySegment.copy(
                    value, 0, writer.values(), (long) i * valueSize, valueSize);
            }
            int outcome = writer.writeAll(
                elements, type != null && type.hasWriteBatches(), Abi.BPF_ANY);
            completed("putAll", outcome, writer);
            return writer.present(
                writer.size(), type != null && type.order() == KeyOrder.PREFIX,
                type != null && type.evicts() ? elements : null);
        }
    }

    /**
     * Deletes keys, with batches if the kernel has them. All keys are copied first, so nothing is
     * deleted if one has another size.
     *
     * @return how many of the keys existed
     * @throws BpfMapException if the kernel rejects a key; see {@link BpfMapException#completed}
     */
    public int deleteAll(Iterable<byte[]> keys) {
        MapType type = opened.type();
        try (BatchWriter writer = new BatchWriter(fd, keySize(), 0)) {
            for (byte[] key : keys) {
                MemorySegment segment = segment("key", key, keySize());
                int i = writer.add();
                MemorySegment.copy(
                    segment, 0, writer.keys(), (long) i * keySize(), keySize());
            }
            int outcome = writer.deleteAll(
                elements, type != null && type.hasDeleteBatches(), errno -> false);
            completed("deleteAll", outcome, writer);
            return writer.completed();
        }
    }

    private static void completed(String operation, int outcome, BatchWriter writer) {
        if (outcome < 0) {
            throw new BpfMapException(operation, outcome, writer.completed(), writer.size());
        }
    }

    private static MemorySegment segment(String what, byte[] bytes, long size) {
        MemorySegment segment = MemorySegment.ofArray(Objects.requireNonNull(bytes, what));
        require(what, segment, size);
        return segment;
    }

    // --- maps of maps

    /**
     * Writes an inner map under a key of an array or hash of maps. The map of maps keeps the inner
     * map alive, also after the handle {@code inner} is closed.
     *
     * @throws UnsupportedOperationException if this is not a map of maps
     */
    public void put(byte[] key, BpfMap inner) {
        requireMapOfMaps();
        int number = inner.fd.acquire();
        try {
            byte[] value = new byte[Integer.BYTES];
            Bytes.put32(MemorySegment.ofArray(value), 0, number, false);
            put(key, value);
        } finally {
            inner.fd.release();
        }
    }

    /**
     * Opens the inner map of a key of an array or hash of maps. The caller closes it. {@link
     * #lookup(byte[])} returns the id of the inner map instead.
     *
     * @return the inner map, or null if the key has none
     * @throws UnsupportedOperationException if this is not a map of maps
     */
    public BpfMap lookupMap(byte[] key) {
        requireMapOfMaps();
        byte[] id = lookup(key);
        if (id == null) {
            return null;
        }
        try {
            return openById((int) Bytes.getU32(MemorySegment.ofArray(id), 0, false));
        } catch (BpfMapException e) {
            if (e.errno() == Abi.ENOENT) {
                return null; // it was replaced and freed after the lookup
            }
            throw e;
        }
    }

    private void requireMapOfMaps() {
        MapType type = opened.type();
        if (type != MapType.ARRAY_OF_MAPS && type != MapType.HASH_OF_MAPS) {
            throw new UnsupportedOperationException(
                "only an array or hash of maps has inner maps, this is of type "
                    + (type == null ? opened.typeNumber() : type));
        }
    }

    private static boolean found(String operation, int outcome) {
        return outcome != -Abi.ENOENT && checked(operation, outcome) == 0;
    }

    private static void require(String what, MemorySegment segment, long size) {
        if (segment.byteSize() != size) {
            throw new IllegalArgumentException(
                "a " + what + " of this map has " + size + " bytes, not " + segment.byteSize());
        }
    }

    // --- iteration

    /**
     * Starts an iteration over all entries, with batches if the kernel has them. Must be closed.
     *
     * @see EntryCursor
     */
    public EntryCursor cursor() {
        return new EntryCursor(fd, elements, opened, valueSize);
    }

    /**
     * Calls an action with copies of the key and the value of each entry. The action may change the
     * map. See {@link EntryCursor} for concurrent changes.
     */
    public void forEach(BiConsumer<byte[], byte[]> action) {
        try (EntryCursor cursor = cursor()) {
            while (cursor.next()) {
                action.accept(
                    cursor.key().toArray(JAVA_BYTE), cursor.value().toArray(JAVA_BYTE));
            }
        }
    }

    // --- pins

    /** Pins the map at a path of a BPF file system, such as {@code /sys/fs/bpf/counts}. */
    public void pin(Path path) {
        try (Attr attr = new Attr().bytes(Abi.OBJ_PATHNAME, terminated(path))) {
            checked("pin", attr.fd(Abi.OBJ_BPF_FD, fd).call(Abi.BPF_OBJ_PIN));
        }
    }

    /**
     * Removes a pin of this map.
     *
     * @throws IllegalArgumentException if something else is pinned at the path
     */
    public void unpin(Path path) {
        try (Fd other = get(path, "unpin")) {
            if (MapInfo.read(other, "unpin").id() != info().id()) {
                throw new IllegalArgumentException(path + " must be a pin of map " + opened.id());
            }
        }
        byte[] bytes = terminated(path);
        checked("unpin", FileSyscalls.remove(Arrays.copyOf(bytes, bytes.length - 1)));
    }

    // --- freezing and memory

    /** Makes user space unable to change the map from now on. Since Linux 5.2. */
    public void freeze() {
        try (Attr attr = new Attr().fd(Abi.ELEM_MAP_FD, fd)) {
            checked("freeze", attr.call(Abi.BPF_MAP_FREEZE));
        }
    }

    /**
     * Returns the memory of an array created with {@link MapSpec#MMAPABLE}, shared with the
     * programs that use it. Value i begins at offset i * {@link #memoryStride}. If the map is
     * frozen, the segment is read-only.
     *
     * <p>Any thread may use the segment until the map is closed. Later accesses throw
     * {@link IllegalStateException}.
     *
     * @throws UnsupportedOperationException if the map is not such an array
     */
    public synchronized MemorySegment memory() {
        if (opened.type() != MapType.ARRAY || (opened.flags() & MapSpec.MMAPABLE) == 0) {
            throw new UnsupportedOperationException(
                "only an array created with MMAPABLE has memory to map");
        }
        fd.acquire();
        try {
            if (memory == null) {
                long size = opened.maxEntries() * memoryStride();
                long address = MappedMemory.map(fd, size, true, 0);
                boolean readOnly = address == -Abi.EPERM || address == -Abi.EACCES;
                if (readOnly) {
                    address = MappedMemory.map(fd, size, false, 0);
                }
                memory = MappedMemory.own(checked("memory", address), size, readOnly);
            }
            return memory.segment();
        } finally {
            fd.release();
        }
    }

    /** Returns the distance in bytes between two values in {@link #memory}. */
    public long memoryStride() {
        return roundUp(opened.valueSize());
    }
}
