package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/**
 * Reads entries key by key, with two or three system calls each. For kernels and map types without
 * batch commands.
 *
 * <p>If a key was deleted, the kernel returns the first key as the one after it, or reports that
 * there are no more keys. So the iterator reads the key after a chunk before it returns the chunk,
 * and the caller may delete the entries of the chunk. If others delete the key at the cursor, the
 * iterator continues from the nearest preceding key that still exists. If the keys have a
 * {@link KeyOrder}, it skips seen keys. It restarts only if all keys of a chunk were
 * deleted; then a key may be seen again. It aborts after twice as many keys as the map can hold,
 * because constant deletion could prevent it from ending.
 */
public final class KeyIterator implements Reader {
    /** Largest number of entries in a chunk. */
    private static final int MOST = 128;

    private static final long CHUNK_BYTES = 256 << 10;

    /**
     * Number of lookups for a key. A lookup in a hash map may miss a key whose value is being
     * replaced.
     */
    private static final int LOOKUPS = 3;

    /** Number of times that the kernel may return a key that does not exist. */
    private static final int TRIES = 8;

    /** Not an errno: the key at the cursor was deleted. */
    private static final int LOST = Integer.MIN_VALUE + 1;

    /** Number of restarts, for maps without a limit of entries. */
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
     * @param keySize size of a key in bytes
     * @param valueSize size of a value in bytes; see {@link Elements}
     * @param maxEntries the largest number of entries
     * @param flags the flags of each lookup, such as {@link Abi#BPF_F_LOCK}
     * @param order the order of the keys
     * @param keysStay true if keys are indices, which always exist although their slots may be
     *     empty
     */
    public KeyIterator(
            Elements elements, long keySize, long valueSize, long maxEntries, long flags,
            KeyOrder order, boolean keysStay) {
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
        CallBuffer buffer = elements.take();
        try {
            if (!begun) {
                begun = true;
                int result = restart(buffer);
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
                int found = lookup(buffer);
                if (found == 0) {
                    MemorySegment.copy(next, JAVA_BYTE, 0, keys, JAVA_BYTE, count * keySize,
                        keySize);
                    MemorySegment.copy(buffer.memory, JAVA_BYTE, elements.valueOffset(),
                        values, JAVA_BYTE, count * valueSize, valueSize);
                    held = ++count;
                } else if (found != -Abi.ENOENT) {
                    return found;
                }
                int result = advance(buffer, found == 0);
                if (result < 0) {
                    return result;
                }
            }
            return count;
        } finally {
            buffer.give();
        }
    }

    /** Looks up the next key, more than once if others may be replacing its value. */
    private int lookup(CallBuffer buffer) {
        int found = -Abi.ENOENT;
        for (int i = 0;
                i < (keysStay || order != KeyOrder.NONE ? 1 : LOOKUPS) && found == -Abi.ENOENT;
                i++) {
            found = lookup(buffer, next, 0);
        }
        return found;
    }

    private int lookup(CallBuffer buffer, MemorySegment from, long at) {
        MemorySegment.copy(from, at, buffer.memory, CallBuffer.KEY, keySize);
        return elements.lookup(buffer, flags);
    }

    /** Moves {@code next} to the key after it, or ends the iteration. */
    private int advance(CallBuffer buffer, boolean there) {
        if (keysStay || order != KeyOrder.NONE) {
            int result = follow(buffer, next, 0);
            // After a deleted key the kernel returns the first key: continue to a key behind the
            // cursor.
            for (long i = 0; result == 0 && !order.after(candidate, 0, next, 0, keySize); i++) {
                if (i / 2 > maxEntries) {
                    return ABORTED;
                }
                result = follow(buffer, candidate, 0);
            }
            return step(result);
        }
        int result = there ? successor(buffer, next, 0) : LOST;
        return result == LOST ? goBack(buffer) : step(result);
    }

    /** Continues from the last key of this chunk, or of the previous one, that still exists. */
    private int goBack(CallBuffer buffer) {
        int tries = 0;
        for (int i = held - 1; i >= 0; i--) {
            int result = successor(buffer, keys, i * keySize);
            if (result == LOST) {
                continue;
            }
            if (result != 0 || !isCandidate(next)) {
                return step(result);
            }
            if (lookup(buffer, next, 0) == 0) {
                return 0; // it was inserted again
            }
            // Returned by the kernel, but missing: others insert and delete it, or it never
            // existed. Some kernels return such a key at the end of a list.
            if (++tries == TRIES) {
                return step(-Abi.ENOENT);
            }
            i++;
        }
        restarts++;
        return restart(buffer);
    }

    /**
     * Reads the key after an existing one as {@code candidate}. Returns {@link #LOST} if that key
     * was deleted, because the result is meaningless then.
     */
    private int successor(CallBuffer buffer, MemorySegment from, long at) {
        int result = follow(buffer, from, at);
        boolean answered = result == 0 || result == -Abi.ENOENT;
        // The first key never follows another, unless that was deleted and inserted again.
        return answered
            && (result == 0 && isCandidate(first) || lookup(buffer, from, at) == -Abi.ENOENT)
            ? LOST
            : result;
    }

    /** Reads the key after one and stores it as {@code candidate}. */
    private int follow(CallBuffer buffer, MemorySegment from, long at) {
        MemorySegment.copy(from, at, buffer.memory, CallBuffer.KEY, keySize);
        return keep(buffer, elements.nextKey(buffer, false));
    }

    private int restart(CallBuffer buffer) {
        return step(keep(buffer, elements.nextKey(buffer, true)));
    }

    private int keep(CallBuffer buffer, int result) {
        if (result == 0) {
            MemorySegment.copy(buffer.memory, elements.valueOffset(), candidate, 0, keySize);
        }
        return result;
    }

    private boolean isCandidate(MemorySegment key) {
        return candidate.mismatch(key) == -1;
    }

    /** Makes the candidate the next key, or ends the iteration. */
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
