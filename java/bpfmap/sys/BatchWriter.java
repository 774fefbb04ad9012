package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_INT_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_LONG;
import static java.lang.foreign.ValueLayout.JAVA_LONG_UNALIGNED;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.BitSet;
import java.util.function.IntPredicate;
import java.util.function.IntUnaryOperator;

/**
 * Collects entries to write, or keys to delete, and then writes or deletes many with one call.
 *
 * <p>{@code BPF_MAP_UPDATE_BATCH} and {@code BPF_MAP_DELETE_BATCH}, since Linux 5.6. All entries
 * are collected before the first call, so nothing is written if one of them cannot be encoded. For
 * use by one thread; closing frees the memory.
 *
 * <pre>{@code
 * int i = writer.add();
 * ... write key and value i into writer.keys() and writer.values() ...
 * int outcome = writer.writeAll(elements, true, Abi.BPF_ANY);
 * int written = writer.completed();
 * }</pre>
 */
public final class BatchWriter implements AutoCloseable {
    /** The largest number of entries in one call. */
    private static final int MOST = 0x10000;

    private final Fd fd;
    private final long keySize;
    private final long valueSize;

    private final Arena arena = Arena.ofConfined();
    private final MemorySegment capture = arena.allocate(Native.CAPTURE_SIZE, 8);
    private final MemorySegment attr = arena.allocate(Abi.BATCH_SIZE, 8);

    private Arena entriesArena = Arena.ofConfined();
    private MemorySegment keys;
    private MemorySegment values;
    private int capacity = 64;
    private int size;
    private int completed;
    private BitSet skipped;

    /**
     * @param fd the open map
     * @param keySize size of a key in bytes
     * @param valueSize size in bytes that the kernel reads for a value, see {@link Elements}; 0 to
     *     collect only keys
     */
    public BatchWriter(Fd fd, long keySize, long valueSize) {
        this.fd = fd;
        this.keySize = keySize;
        this.valueSize = valueSize;
        keys = entriesArena.allocate(capacity * keySize, 8);
        values = entriesArena.allocate(capacity * valueSize, 8);
    }

    /** Makes room for one more entry and returns its index. May move the memory of all entries. */
    public int add() {
        if (size == capacity) {
            grow();
        }
        return size++;
    }

    private void grow() {
        int larger = Math.multiplyExact(capacity, 2);
        Arena old = entriesArena;
        entriesArena = Arena.ofConfined();
        keys = entriesArena.allocate(larger * keySize, 8).copyFrom(keys);
        values = entriesArena.allocate(larger * valueSize, 8).copyFrom(values);
        capacity = larger;
        old.close();
    }

    /** Returns the number of entries. */
    public int size() {
        return size;
    }

    /** Returns the keys, at multiples of the key size; valid until the next {@link #add}. */
    public MemorySegment keys() {
        return keys;
    }

    /** Returns the values, at multiples of the value size; valid until the next {@link #add}. */
    public MemorySegment values() {
        return values;
    }

    /**
     * Writes all entries. With {@code batches}, writes many with one call, and one by one if the
     * kernel has no batches. Skips entries for which the kernel returns ENOENT.
     *
     * @return 0 or the negated errno that ended it; in both cases {@link #completed} returns the
     *     number of entries written
     */
    public int writeAll(Elements elements, boolean batches, long flags) {
        return forAll(batches, Abi.BPF_MAP_UPDATE_BATCH, flags & Abi.BPF_F_LOCK,
            i -> one(elements, i, true, flags));
    }

    /**
     * Deletes all keys; see {@link #writeAll}. Skips keys that are missing.
     *
     * @param missing returns true for a negated errno that also means that a key is missing
     */
    public int deleteAll(Elements elements, boolean batches, IntPredicate missing) {
        return forAll(batches, Abi.BPF_MAP_DELETE_BATCH, 0, i -> {
            int outcome = one(elements, i, false, 0);
            return missing.test(outcome) ? -Abi.ENOENT : outcome;
        });
    }

    /** Returns how many entries the last {@link #writeAll} or {@link #deleteAll} processed. */
    public int completed() {
        return completed;
    }

    private int forAll(boolean batches, int command, long flags, IntUnaryOperator one) {
        completed = 0;
        int i = 0;
        while (batches && i < size) {
            int count = Math.min(MOST, size - i);
            int outcome = call(command, i, count, flags);
            int done = attr.get(JAVA_INT, Abi.BATCH_COUNT);
            if (outcome == 0) {
                completed += count;
                i += count;
            } else if (done == count) {
                // Rejected before it began: the count is still the one given.
                if (i > 0 || !isUnsupported(outcome)) {
                    return outcome;
                }
                batches = false;
            } else {
                completed += done;
                if (outcome != -Abi.ENOENT) {
                    return outcome;
                }
                skip(i + done); // the kernel stopped at a missing key
                i += done + 1;
            }
        }
        for (; i < size; i++) {
            int outcome = one.applyAsInt(i);
            if (outcome == 0) {
                completed++;
            } else if (outcome == -Abi.ENOENT) {
                skip(i);
            } else {
                return outcome;
            }
        }
        return 0;
    }

    /** Returns true for a negated errno of a kernel or map type without batch commands. */
    private static boolean isUnsupported(int outcome) {
        return outcome == -Abi.EINVAL || outcome == -Abi.ENOTSUPP || outcome == -Abi.EOPNOTSUPP;
    }

    private int call(int command, int from, int count, long flags) {
        int number = fd.acquire();
        try {
            attr.fill((byte) 0);
            attr.set(JAVA_LONG, Abi.BATCH_KEYS, keys.address() + from * keySize);
            attr.set(JAVA_LONG, Abi.BATCH_VALUES,
                valueSize == 0 ? 0 : values.address() + from * valueSize);
            attr.set(JAVA_INT, Abi.BATCH_COUNT, count);
            attr.set(JAVA_INT, Abi.BATCH_MAP_FD, number);
            attr.set(JAVA_LONG, Abi.BATCH_ELEM_FLAGS, flags);
            return (int) (fd.simulated == null
                ? Native.syscall(
                    capture, Abi.SYS_BPF, command, attr.address(), Abi.BATCH_SIZE, 0, 0)
                : fd.simulated.command(command, attr.address()));
        } finally {
            fd.release();
        }
    }

    /** Writes or deletes one entry with a single call; returns 0 or the negated errno. */
    private int one(Elements elements, int i, boolean write, long flags) {
        CallBuffer buffer = elements.take();
        try {
            MemorySegment.copy(keys, i * keySize, buffer.memory, CallBuffer.KEY, keySize);
            if (!write) {
                return elements.delete(buffer);
            }
            MemorySegment.copy(values, i * valueSize, buffer.memory, elements.valueOffset(),
                valueSize);
            return elements.update(buffer, flags);
        } finally {
            buffer.give();
        }
    }

    /** Marks an entry as not written, so that {@link #present} does not count it. */
    private void skip(int i) {
        if (skipped == null) {
            skipped = new BitSet();
        }
        skipped.set(i);
    }

    /**
     * Returns the number of distinct keys among the first entries, without skipped ones.
     *
     * @param count number of entries to examine
     * @param prefixes true if keys are prefixes, of which only the leading bits differ
     * @param elements the operations of the map, to count only keys that it contains now; null to
     *     count all
     */
    public int present(int count, boolean prefixes, Elements elements) {
        // An index of an entry plus one, or 0 if the slot is free.
        int[] table = new int[Integer.highestOneBit(Math.max(1, count)) * 4];
        int found = 0;
        for (int i = 0; i < count; i++) {
            if (skipped != null && skipped.get(i)) {
                continue;
            }
            int at = hash(i, prefixes) & table.length - 1;
            while (table[at] != 0 && !sameKey(table[at] - 1, i, prefixes)) {
                at = at + 1 & table.length - 1;
            }
            if (table[at] == 0) {
                table[at] = i + 1;
                found += elements == null || holds(elements, i) ? 1 : 0;
            }
        }
        return found;
    }

    /** Returns the number of bytes of a key that are compared completely. */
    private long wholeBytes(int i, boolean prefixes) {
        return prefixes
            ? 4 + Math.min(Bytes.getU32(keys, i * keySize, false) >> 3, keySize - 4)
            : keySize;
    }

    /** Returns the mask of the compared bits in the byte after these. */
    private int lastBits(int i, boolean prefixes, long whole) {
        return prefixes && whole < keySize
            ? 0xff00 >> (keys.get(JAVA_INT_UNALIGNED, i * keySize) & 7) & 0xff
            : 0;
    }

    private int hash(int i, boolean prefixes) {
        long base = i * keySize;
        long whole = wholeBytes(i, prefixes);
        long hash = whole;
        long at = 0;
        for (; at + 8 <= whole; at += 8) {
            hash = (hash ^ keys.get(JAVA_LONG_UNALIGNED, base + at)) * 0x9e3779b97f4a7c15L;
            hash ^= hash >>> 32;
        }
        for (; at < whole; at++) {
            hash = (hash ^ keys.get(JAVA_BYTE, base + at)) * 0x9e3779b97f4a7c15L;
        }
        int bits = lastBits(i, prefixes, whole);
        if (bits != 0) {
            hash = (hash ^ keys.get(JAVA_BYTE, base + at) & bits) * 0x9e3779b97f4a7c15L;
        }
        return (int) (hash >>> 32);
    }

    private boolean sameKey(int i, int j, boolean prefixes) {
        long a = i * keySize;
        long b = j * keySize;
        long whole = wholeBytes(i, prefixes);
        if (MemorySegment.mismatch(keys, a, a + whole, keys, b, b + whole) != -1) {
            return false;
        }
        int bits = lastBits(i, prefixes, whole);
        return bits == 0
            || ((keys.get(JAVA_BYTE, a + whole) ^ keys.get(JAVA_BYTE, b + whole)) & bits) == 0;
    }

    private boolean holds(Elements elements, int i) {
        CallBuffer buffer = elements.take();
        try {
            MemorySegment.copy(keys, i * keySize, buffer.memory, CallBuffer.KEY, keySize);
            return elements.lookup(buffer, Abi.BPF_ANY) == 0;
        } finally {
            buffer.give();
        }
    }

    @Override
    public void close() {
        entriesArena.close();
        arena.close();
    }
}
