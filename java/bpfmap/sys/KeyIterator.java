package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/**
 * Reads entries key by key, two or three system calls for each: for kernels and map types without batches.
 *
 * <p>Asked for the key after one that was deleted, the kernel begins anew with the first, or says that there is none. So the
 * walk always knows the key after the chunk before it hands the chunk out: the caller may delete what it was given. When
 * others delete the key at which the walk stands, it goes back to the nearest one that is still there, or, where keys have an
 * {@link KeyOrder}, past those it has seen. Only when all of a chunk are gone does it begin anew, and a key may be seen
 * again; and it gives up after twice as many keys as the map can hold, since under constant deletion by others it might never end.
 */
public final class KeyIterator implements Reader {
    /** A chunk is at most this many entries, and about this many bytes. */
    private static final int MOST = 128;

    private static final long CHUNK_BYTES = 256 << 10;

    /** A hash's lookup may miss a key that is there, while its value is being replaced. It is asked this often. */
    private static final int LOOKUPS = 3;

    /** How often the kernel may name a key that is not there. */
    private static final int TRIES = 8;

    /** No errno: the key that something was to follow is gone. */
    private static final int LOST = Integer.MIN_VALUE + 1;

    /** How often a walk may begin anew where a map has no limit. */
    private static final int RESTARTS = 1000;

    private final Elements elements;
    private final long keySize;
    private final long valueSize;
    private final long maxEntries;
    private final long flags;
    private final KeyOrder order;
    private final boolean keysStay;

    private final Arena arena = Arena.ofConfined();
    private final int chunk;
    private final MemorySegment keys;
    private final MemorySegment values;
    private final MemorySegment first;
    private final MemorySegment next;
    private final MemorySegment candidate;
    private int held;
    private long seen;
    private int restarts;
    private boolean begun;
    private boolean ended;

    /**
     * @param elements the operations of the map
     * @param keySize bytes of a key
     * @param valueSize bytes of a value; see {@link Elements}
     * @param maxEntries the map's limit
     * @param flags of every lookup, such as {@link Abi#BPF_F_LOCK}
     * @param order of the keys
     * @param keysStay whether keys are indices, of which each is there, though its place may be empty
     */
    public KeyIterator(
            Elements elements, long keySize, long valueSize, long maxEntries, long flags, KeyOrder order, boolean keysStay) {
        this.elements = elements;
        this.keySize = keySize;
        this.valueSize = valueSize;
        this.maxEntries = maxEntries;
        this.flags = flags;
        this.order = order;
        this.keysStay = keysStay;
        this.chunk = Math.clamp(CHUNK_BYTES / (keySize + valueSize), 1, MOST);
        this.keys = arena.allocate(chunk * keySize, 8);
        this.values = arena.allocate(chunk * valueSize, 8);
        this.first = arena.allocate(Math.max(keySize, 1), 8);
        this.next = arena.allocate(Math.max(keySize, 1), 8);
        this.candidate = arena.allocate(Math.max(keySize, 1), 8);
    }

    @Override
    public int read() {
        CallBuffer s = elements.take();
        try {
            if (!begun) {
                begun = true;
                int result = restart(s);
                if (result < 0) {
                    return result;
                }
                first.copyFrom(next);
            }
            int count = 0;
            while (count < chunk && !ended) {
                if (seen++ / 2 >= maxEntries || restarts > RESTARTS) {
                    return ABORTED;
                }
                int found = lookup(s);
                if (found == 0) {
                    MemorySegment.copy(next, JAVA_BYTE, 0, keys, JAVA_BYTE, count * keySize, keySize);
                    MemorySegment.copy(s.memory, JAVA_BYTE, elements.valueOffset(),
                        values, JAVA_BYTE, count * valueSize, valueSize);
                    held = ++count;
                } else if (found != -Abi.ENOENT) {
                    return found;
                }
                int result = advance(s, found == 0);
                if (result < 0) {
                    return result;
                }
            }
            return count;
        } finally {
            s.give();
        }
    }

    /** Looks the next key up, more than once where others may be replacing its value. */
    private int lookup(CallBuffer s) {
        int found = -Abi.ENOENT;
        for (int i = 0; i < (keysStay || order != KeyOrder.NONE ? 1 : LOOKUPS) && found == -Abi.ENOENT; i++) {
            found = lookup(s, next, 0);
        }
        return found;
    }

    private int lookup(CallBuffer s, MemorySegment from, long at) {
        MemorySegment.copy(from, at, s.memory, CallBuffer.KEY, keySize);
        return elements.lookup(s, flags);
    }

    /** Puts the key after {@code next} into {@code next}, or ends the walk. */
    private int advance(CallBuffer s, boolean there) {
        if (keysStay || order != KeyOrder.NONE) {
            int result = follow(s, next, 0);
            // Of a key that is gone the next is the first: go on to what is after it.
            for (long i = 0; result == 0 && !order.after(candidate, 0, next, 0, keySize); i++) {
                if (i / 2 > maxEntries) {
                    return ABORTED;
                }
                result = follow(s, candidate, 0);
            }
            return step(result);
        }
        int result = there ? successor(s, next, 0) : LOST;
        return result == LOST ? goBack(s) : step(result);
    }

    /** Goes on from the nearest key of the chunk, or of the one before, that is still there. */
    private int goBack(CallBuffer s) {
        int tries = 0;
        for (int i = held - 1; i >= 0; i--) {
            int result = successor(s, keys, i * keySize);
            if (result == LOST) {
                continue;
            }
            if (result != 0 || !isCandidate(next)) {
                return step(result);
            }
            if (lookup(s, next, 0) == 0) {
                return 0; // it is back
            }
            // Named and not there: it comes and goes, or is none; some kernels name one at the end of a list.
            if (++tries == TRIES) {
                return step(-Abi.ENOENT);
            }
            i++;
        }
        restarts++;
        return restart(s);
    }

    /** The key after one that is there, as {@code candidate}; {@link #LOST} where that one is gone, and the answer means nothing. */
    private int successor(CallBuffer s, MemorySegment from, long at) {
        int result = follow(s, from, at);
        boolean answered = result == 0 || result == -Abi.ENOENT;
        // What comes after a key is never the first, unless the key was gone and is back.
        return answered && (result == 0 && isCandidate(first) || lookup(s, from, at) == -Abi.ENOENT) ? LOST : result;
    }

    /** Asks for the key after one and keeps it as {@code candidate}. */
    private int follow(CallBuffer s, MemorySegment from, long at) {
        MemorySegment.copy(from, at, s.memory, CallBuffer.KEY, keySize);
        return keep(s, elements.nextKey(s, false));
    }

    private int restart(CallBuffer s) {
        return step(keep(s, elements.nextKey(s, true)));
    }

    private int keep(CallBuffer s, int result) {
        if (result == 0) {
            MemorySegment.copy(s.memory, elements.valueOffset(), candidate, 0, keySize);
        }
        return result;
    }

    private boolean isCandidate(MemorySegment key) {
        return candidate.mismatch(key) == -1;
    }

    /** Takes the candidate for the next key, or ends the walk. */
    private int step(int result) {
        if (result == 0) {
            next.copyFrom(candidate);
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
