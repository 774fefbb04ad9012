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
 * twice.
 */
public final class Batch implements Reader {
    /** A chunk is about this many bytes to begin with; growth stops where it holds the whole map. */
    private static final long CHUNK_BYTES = 256 << 10;

    /** The cursor is a bucket number of four bytes on hash maps, and a key on the others. */
    private static final long SMALLEST_CURSOR = 8;

    /** How often a call is made again that a signal interrupted. Some kernels answer EINTR without one, and for ever. */
    private static final int ATTEMPTS = 64;

    private final Fd fd;
    private final int command;
    private final long keySize;
    private final long valueSize;
    private final long maxEntries;
    private final long flags;

    private final Arena arena = Arena.ofConfined();
    private final MemorySegment capture = arena.allocate(Native.CAPTURE_SIZE, 8);
    private final MemorySegment attr = arena.allocate(Abi.BATCH_SIZE, 8);
    private long cursor;
    private long nextCursor;

    private Arena chunkArena;
    private MemorySegment keys;
    private MemorySegment values;
    private long capacity;
    private boolean begun;
    private boolean ended;

    /**
     * @param fd the open map
     * @param command {@link Abi#BPF_MAP_LOOKUP_BATCH} or {@link Abi#BPF_MAP_LOOKUP_AND_DELETE_BATCH}
     * @param keySize bytes of a key
     * @param valueSize bytes that the kernel writes for one value; see {@link Elements}
     * @param maxEntries the map's limit, beyond which no chunk need grow
     * @param flags for every element, such as {@link Abi#BPF_F_LOCK}
     */
    public Batch(Fd fd, int command, long keySize, long valueSize, long maxEntries, long flags) {
        this(fd, command, keySize, valueSize, maxEntries, flags, steadyChunk(keySize, valueSize));
    }

    /**
     * @param entries how many entries to ask for at a time, to begin with
     */
    public Batch(Fd fd, int command, long keySize, long valueSize, long maxEntries, long flags, long entries) {
        this.fd = fd;
        this.command = command;
        this.keySize = keySize;
        this.valueSize = valueSize;
        this.maxEntries = maxEntries;
        this.flags = flags;
        this.cursor = arena.allocate(Math.max(keySize, SMALLEST_CURSOR), 8).address();
        this.nextCursor = arena.allocate(Math.max(keySize, SMALLEST_CURSOR), 8).address();
        allocate(Math.min(entries, maxEntries));
    }

    /** How many entries are asked for at a time, if nothing else is said. */
    public static long steadyChunk(long keySize, long valueSize) {
        return Math.max(1, CHUNK_BYTES / (keySize + valueSize));
    }

    private void allocate(long entries) {
        if (chunkArena != null) {
            chunkArena.close();
        }
        chunkArena = Arena.ofConfined();
        capacity = entries;
        keys = chunkArena.allocate(entries * keySize, 8);
        values = chunkArena.allocate(entries * valueSize, 8);
    }

    @Override
    public int read() {
        int attempts = 0;
        while (!ended) {
            int result = call();
            int count = attr.get(JAVA_INT, Abi.BATCH_COUNT);
            if (result == -Abi.EINTR && ++attempts < ATTEMPTS) {
                continue; // the kernel may have written the count; it is set anew
            }
            if (result == -Abi.ENOSPC && capacity < maxEntries) {
                allocate(Math.min(capacity * 2, maxEntries));
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
            if (count > 0) {
                return count;
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
        ended = true;
        chunkArena.close();
        arena.close();
    }
}
