package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/**
 * Reads a whole chunk of entries with one system call, and optionally deletes them in the same
 * step: {@code BPF_MAP_LOOKUP_BATCH} and {@code BPF_MAP_LOOKUP_AND_DELETE_BATCH}, since Linux 5.6.
 *
 * <p>On a hash map the kernel returns whole buckets, and {@code ENOSPC} if the chunk is smaller
 * than the bucket at the cursor. The chunk then grows and the cursor is used again, so no entry is
 * skipped or seen twice. A failed call does not move the cursor, so {@link #read} may be called
 * again.
 *
 * <p>On other maps the cursor is the last key. If that key was deleted, the kernel restarts with
 * the first. Entries that are read again are recognized by the {@link KeyOrder} and skipped.
 */
public final class BatchReader implements Reader {
    /**
     * Size of the first chunk in bytes, small for callers that stop early. Later chunks fill a
     * buffer of {@link ChunkBufferPool}.
     */
    private static final long FIRST_BYTES = 16 << 10;

    /** Offset of the attribute, behind errno. */
    private static final long ATTR = Native.CAPTURE_SIZE + 7 & ~7L;
    private static final long CURSORS = ATTR + Abi.BATCH_SIZE;

    /**
     * Number of entries by which a hash map may exceed its limit, because CPUs that write
     * concurrently check it late.
     */
    private static final long MORE_THAN_MOST = 1024;

    /**
     * Number of chunks without a new entry after a restart, in addition to the chunks of one full
     * iteration.
     */
    private static final long PATIENCE = 64;

    /**
     * Smallest cursor in bytes. The cursor is a bucket number of four bytes on hash maps, and a key
     * on others.
     */
    private static final long SMALLEST_CURSOR = 8;

    /** Number of retries after EINTR. Some kernels return EINTR without a signal, and always. */
    private static final int ATTEMPTS = 64;

    private final Fd fd;
    private final int command;
    private final long keySize;
    private final long valueSize;
    private final long mostEntries;
    private final long flags;

    /**
     * A buffer of {@link ChunkBufferPool}, or of the arena if the pool is empty. It begins with
     * errno, the attribute and the cursors.
     */
    private final MemorySegment buffer;
    private final boolean pooled;
    private final Arena arena = Arena.ofConfined();
    private final MemorySegment capture;
    private final MemorySegment attr;
    private final SeenKeys seen;
    private long cursor;
    private long nextCursor;

    /** Only for a chunk that does not fit into the buffer. */
    private Arena chunkArena;
    private MemorySegment keys;
    private MemorySegment values;
    private long capacity;
    private long steady;
    private boolean begun;
    private boolean ended;

    /**
     * @param fd the open map
     * @param command {@link Abi#BPF_MAP_LOOKUP_BATCH} or
     *     {@link Abi#BPF_MAP_LOOKUP_AND_DELETE_BATCH}
     * @param keySize size of a key in bytes
     * @param valueSize size in bytes that the kernel writes for a value; see {@link Elements}
     * @param maxEntries the largest number of entries, which limits the growth of a chunk
     * @param flags the flags of each element, such as {@link Abi#BPF_F_LOCK}
     * @param order the order of the keys
     */
    public BatchReader(Fd fd, int command, long keySize, long valueSize, long maxEntries,
            long flags, KeyOrder order) {
        this(fd, command, keySize, valueSize, maxEntries, flags, order,
            FIRST_BYTES / (keySize + valueSize));
        steady = Math.min(steadyChunk(keySize, valueSize), maxEntries);
    }

    /**
     * @param entries number of entries to request at a time
     */
    public BatchReader(Fd fd, int command, long keySize, long valueSize, long maxEntries,
            long flags, KeyOrder order, long entries) {
        this.fd = fd;
        this.command = command;
        this.keySize = keySize;
        this.valueSize = valueSize;
        this.mostEntries = maxEntries + MORE_THAN_MOST;
        this.flags = flags;
        MemorySegment free = headSize(keySize) <= ChunkBufferPool.SIZE
            ? ChunkBufferPool.take()
            : null;
        pooled = free != null;
        buffer = pooled
            ? free
            : arena.allocate(Math.max(ChunkBufferPool.SIZE, headSize(keySize)), 64);
        capture = buffer.asSlice(0, Native.CAPTURE_SIZE);
        attr = buffer.asSlice(ATTR, Abi.BATCH_SIZE);
        cursor = buffer.address() + CURSORS;
        nextCursor = cursor + cursorSize(keySize);
        seen = new SeenKeys(order, keySize, valueSize,
            buffer.asSlice(CURSORS + 2 * cursorSize(keySize), keySize));
        allocate(Math.clamp(entries, 1, Math.max(1, maxEntries)));
    }

    private static long cursorSize(long keySize) {
        return Math.max(keySize, SMALLEST_CURSOR) + 7 & ~7L;
    }

    private static long headSize(long keySize) {
        return CURSORS + 3 * cursorSize(keySize);
    }

    /** Returns the default number of entries in a chunk after the first. */
    public static long steadyChunk(long keySize, long valueSize) {
        return Math.max(1, (ChunkBufferPool.SIZE - headSize(keySize) - 8) / (keySize + valueSize));
    }

    /** Provides memory for a chunk: in the buffer, or, if that is too small, in an arena. */
    private void allocate(long entries) {
        if (chunkArena != null) {
            chunkArena.close();
            chunkArena = null;
        }
        capacity = entries;
        long keysEnd = headSize(keySize) + entries * keySize + 7 & ~7L;
        if (keysEnd + entries * valueSize <= buffer.byteSize()) {
            keys = buffer.asSlice(headSize(keySize), entries * keySize);
            values = buffer.asSlice(keysEnd, entries * valueSize);
        } else {
            chunkArena = Arena.ofConfined();
            keys = chunkArena.allocate(entries * keySize, 8);
            values = chunkArena.allocate(entries * valueSize, 8);
        }
    }

    @Override
    public int read() {
        int attempts = 0;
        long patience = PATIENCE + 2 * mostEntries / capacity;
        if (begun && capacity < steady) {
            allocate(steady);
        }
        while (!ended) {
            int result = call();
            int count = attr.get(JAVA_INT, Abi.BATCH_COUNT);
            if (result == -Abi.EINTR && ++attempts < ATTEMPTS) {
                continue; // the kernel may have written the count, which is set again
            }
            if (result == -Abi.ENOSPC && capacity < mostEntries) {
                allocate(Math.min(capacity * 2, mostEntries));
                continue;
            }
            if (result == -Abi.EAGAIN && begun) {
                // The key at the cursor was deleted, and this map type does not restart by itself.
                if (command != Abi.BPF_MAP_LOOKUP_AND_DELETE_BATCH || ++attempts == ATTEMPTS) {
                    return ABORTED;
                }
                begun = false;
                continue;
            }
            if (result < 0 && result != -Abi.ENOENT) {
                return result;
            }
            // ENOENT marks the end. It may come with the last entries.
            ended = result == -Abi.ENOENT;
            begun = true;
            long used = cursor;
            cursor = nextCursor;
            nextCursor = used;
            int fresh = seen.fresh(keys, values, count);
            if (fresh > 0) {
                return fresh;
            }
            if (count > 0 && --patience == 0) {
                return ABORTED;
            }
        }
        return 0;
    }

    private int call() {
        int number = fd.acquire();
        try {
            attr.set(JAVA_LONG, Abi.BATCH_IN_BATCH, begun ? cursor : 0);
            attr.set(JAVA_LONG, Abi.BATCH_OUT_BATCH, nextCursor);
            attr.set(JAVA_LONG, Abi.BATCH_KEYS, keys.address());
            attr.set(JAVA_LONG, Abi.BATCH_VALUES, values.address());
            attr.set(JAVA_INT, Abi.BATCH_COUNT, (int) capacity);
            attr.set(JAVA_INT, Abi.BATCH_MAP_FD, number);
            attr.set(JAVA_LONG, Abi.BATCH_ELEM_FLAGS, flags);
            attr.set(JAVA_LONG, Abi.BATCH_FLAGS, 0);
            return (int) (fd.simulated == null
                ? Native.syscall(
                    capture, Abi.SYS_BPF, command, attr.address(), Abi.BATCH_SIZE, 0, 0)
                : fd.simulated.command(command, attr.address()));
        } finally {
            fd.release();
        }
    }

    @Override
    public MemorySegment keys() {
        return keys;
    }

    @Override
    public MemorySegment values() {
        return values;
    }

    @Override
    public void close() {
        if (chunkArena != null) {
            chunkArena.close();
            chunkArena = null;
        }
        arena.close(); // throws if closed before, so that no buffer is given back twice
        if (pooled) {
            ChunkBufferPool.give(buffer);
        }
        ended = true;
        keys = null;
        values = null;
    }
}
