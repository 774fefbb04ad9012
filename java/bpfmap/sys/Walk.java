package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/**
 * Reads entries key by key, two system calls for each: for kernels and map types without batches.
 *
 * <p>The kernel answers "the key after this one" from the beginning again once this one was deleted. So the
 * walk always knows the key after the chunk before it hands the chunk out; and it gives up after as many keys as the
 * map can hold, since under constant deletion by others it might never come to an end.
 */
public final class Walk implements Reader {
    /** A chunk is at most this many entries, and about this many bytes. */
    private static final int MOST = 128;

    private static final long CHUNK_BYTES = 256 << 10;

    /** What {@link #read} answers when the walk was thrown back to the beginning too often. */
    public static final int ABORTED = Integer.MIN_VALUE;

    private final Elements elements;
    private final long keySize;
    private final long valueSize;
    private final long maxEntries;
    private final long flags;

    private final Arena arena = Arena.ofConfined();
    private final int chunk;
    private final MemorySegment keys;
    private final MemorySegment values;
    private final MemorySegment next;
    private long seen;
    private boolean begun;
    private boolean ended;

    /**
     * @param elements the operations of the map
     * @param keySize bytes of a key
     * @param valueSize bytes of a value; see {@link Elements}
     * @param maxEntries the map's limit
     * @param flags of every lookup, such as {@link Abi#BPF_F_LOCK}
     */
    public Walk(Elements elements, long keySize, long valueSize, long maxEntries, long flags) {
        this.elements = elements;
        this.keySize = keySize;
        this.valueSize = valueSize;
        this.maxEntries = maxEntries;
        this.flags = flags;
        this.chunk = Math.clamp(CHUNK_BYTES / (keySize + valueSize), 1, MOST);
        this.keys = arena.allocate(chunk * keySize, 8);
        this.values = arena.allocate(chunk * valueSize, 8);
        this.next = arena.allocate(Math.max(keySize, 1), 8);
    }

    @Override
    public int read() {
        Scratch s = elements.take();
        try {
            if (!begun) {
                begun = true;
                int result = advance(s, true);
                if (result < 0) {
                    return result;
                }
            }
            int count = 0;
            while (count < chunk && !ended) {
                if (seen++ >= maxEntries) {
                    return ABORTED;
                }
                MemorySegment.copy(next, 0, s.memory, Scratch.KEY, keySize);
                int found = elements.lookup(s, flags);
                if (found == 0) {
                    MemorySegment.copy(next, JAVA_BYTE, 0, keys, JAVA_BYTE, count * keySize, keySize);
                    MemorySegment.copy(s.memory, JAVA_BYTE, elements.valueOffset(),
                        values, JAVA_BYTE, count * valueSize, valueSize);
                    count++;
                } else if (found != -Abi.ENOENT) {
                    return found;
                }
                int result = advance(s, false);
                if (result < 0) {
                    return result;
                }
            }
            return count;
        } finally {
            s.give();
        }
    }

    /** Puts the key after {@code next} into {@code next}, or ends the walk. */
    private int advance(Scratch s, boolean first) {
        MemorySegment.copy(next, 0, s.memory, Scratch.KEY, keySize);
        int result = elements.nextKey(s, first);
        if (result == 0) {
            MemorySegment.copy(s.memory, elements.valueOffset(), next, 0, keySize);
        } else if (result == -Abi.ENOENT) {
            ended = true;
            return 0;
        }
        return result;
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
        arena.close();
    }
}
