package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/**
 * Reads a whole chunk of entries with one system call, and deletes them in the same step if asked to: {@code
 * BPF_MAP_LOOKUP_BATCH} and {@code BPF_MAP_LOOKUP_AND_DELETE_BATCH}, since Linux 5.6.
 *
 * <p>On a hash map the kernel hands out whole buckets, and answers {@code ENOSPC} to a chunk smaller than the
 * bucket at the cursor. The chunk then grows and the same cursor is used again: nothing is skipped and nothing is seen
 * twice. A call that fails leaves the cursor where it was, so that {@link #read} may be called again.
 *
 * <p>On other maps the cursor is the last key. Where that was deleted meanwhile, the kernel begins anew with the first; what
 * is read again is known by the {@link KeyOrder} of the keys and left out.
 */
public final class BatchReader implements Reader {
    /** Bytes of the first chunk: who stops early has not read much. The second and all others fill a piece of {@link ChunkBufferPool}. */
    private static final long FIRST_BYTES = 16 << 10;

    /** What errno and the attribute take before the cursors. */
    private static final long ATTR = Native.CAPTURE_SIZE + 7 & ~7L;
    private static final long CURSORS = ATTR + Abi.BATCH_SIZE;

    /** A hash may hold a few entries more than its limit, which CPUs that write at once do not see in time. */
    private static final long MORE_THAN_MOST = 1024;

    /** How often the kernel may begin anew and show nothing new, beyond what it takes to read all once more. */
    private static final long PATIENCE = 64;

    /** The cursor is a bucket number of four bytes on hash maps, and a key on the others. */
    private static final long SMALLEST_CURSOR = 8;

    /** How often a call is made again that a signal interrupted. Some kernels answer EINTR without one, and for ever. */
    private static final int ATTEMPTS = 64;

    private final Fd fd;
    private final int command;
    private final long keySize;
    private final long valueSize;
    private final long mostEntries;
    private final long flags;

    /** Of {@link ChunkBufferPool}, or where there is none left, of the arena; the beginning of it is for errno, attribute and cursors. */
    private final MemorySegment piece;
    private final boolean pooled;
    private final Arena arena = Arena.ofConfined();
    private final MemorySegment capture;
    private final MemorySegment attr;
    private final SeenKeys seen;
    private long cursor;
    private long nextCursor;

    /** Only for a chunk that does not fit into the piece. */
    private Arena chunkArena;
    private MemorySegment keys;
    private MemorySegment values;
    private long capacity;
    private long steady;
    private boolean begun;
    private boolean ended;

    /**
     * @param fd the open map
     * @param command {@link Abi#BPF_MAP_LOOKUP_BATCH} or {@link Abi#BPF_MAP_LOOKUP_AND_DELETE_BATCH}
     * @param keySize bytes of a key
     * @param valueSize bytes that the kernel writes for one value; see {@link Elements}
     * @param maxEntries the map's limit, beyond which no chunk need grow
     * @param flags for every element, such as {@link Abi#BPF_F_LOCK}
     * @param order of the keys
     */
    public BatchReader(Fd fd, int command, long keySize, long valueSize, long maxEntries, long flags, KeyOrder order) {
        this(fd, command, keySize, valueSize, maxEntries, flags, order, FIRST_BYTES / (keySize + valueSize));
        steady = Math.min(steadyChunk(keySize, valueSize), maxEntries);
    }

    /**
     * @param entries how many entries to ask for at a time
     */
    public BatchReader(Fd fd, int command, long keySize, long valueSize, long maxEntries, long flags, KeyOrder order, long entries) {
        this.fd = fd;
        this.command = command;
        this.keySize = keySize;
        this.valueSize = valueSize;
        this.mostEntries = maxEntries + MORE_THAN_MOST;
        this.flags = flags;
        MemorySegment free = headSize(keySize) <= ChunkBufferPool.SIZE ? ChunkBufferPool.take() : null;
        pooled = free != null;
        piece = pooled ? free : arena.allocate(Math.max(ChunkBufferPool.SIZE, headSize(keySize)), 64);
        capture = piece.asSlice(0, Native.CAPTURE_SIZE);
        attr = piece.asSlice(ATTR, Abi.BATCH_SIZE);
        cursor = piece.address() + CURSORS;
        nextCursor = cursor + cursorSize(keySize);
        seen = new SeenKeys(order, keySize, valueSize, piece.asSlice(CURSORS + 2 * cursorSize(keySize), keySize));
        allocate(Math.clamp(entries, 1, Math.max(1, maxEntries)));
    }

    private static long cursorSize(long keySize) {
        return Math.max(keySize, SMALLEST_CURSOR) + 7 & ~7L;
    }

    private static long headSize(long keySize) {
        return CURSORS + 3 * cursorSize(keySize);
    }

    /** How many entries are asked for at a time after the first chunk, if nothing else is said. */
    public static long steadyChunk(long keySize, long valueSize) {
        return Math.max(1, (ChunkBufferPool.SIZE - headSize(keySize) - 8) / (keySize + valueSize));
    }

    /** Finds room for a chunk of so many entries: in the piece, or where it is too small, elsewhere. */
    private void allocate(long entries) {
        if (chunkArena != null) {
            chunkArena.close();
            chunkArena = null;
        }
        capacity = entries;
        long keysEnd = headSize(keySize) + entries * keySize + 7 & ~7L;
        if (keysEnd + entries * valueSize <= piece.byteSize()) {
            keys = piece.asSlice(headSize(keySize), entries * keySize);
            values = piece.asSlice(keysEnd, entries * valueSize);
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
                continue; // the kernel may have written the count; it is set anew
            }
            if (result == -Abi.ENOSPC && capacity < mostEntries) {
                allocate(Math.min(capacity * 2, mostEntries));
                continue;
            }
            if (result == -Abi.EAGAIN && begun) {
                // The key at the cursor is gone, and this type does not begin anew by itself.
                if (command != Abi.BPF_MAP_LOOKUP_AND_DELETE_BATCH || ++attempts == ATTEMPTS) {
                    return ABORTED;
                }
                begun = false;
                continue;
            }
            if (result < 0 && result != -Abi.ENOENT) {
                return result;
            }
            // ENOENT is the end, and comes with the last entries, when there are any.
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
            return (int) Native.syscall(
                capture, Abi.SYS_BPF, command, attr.address(), Abi.BATCH_SIZE, 0, 0);
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
        arena.close(); // throws where it was closed before, so that no piece is given back twice
        if (pooled) {
            ChunkBufferPool.give(piece);
        }
        ended = true;
        keys = null;
        values = null;
    }
}
