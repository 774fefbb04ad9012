package bpfmap.sys;

import java.lang.foreign.MemorySegment;

/**
 * Remembers the keys that a reader has seen of a map whose keys have a {@link KeyOrder}: all up to
 * one key.
 */
final class SeenKeys {
    private final KeyOrder order;
    private final long keySize;
    private final long valueSize;
    private final MemorySegment last;
    private boolean lastKnown;

    /**
     * @param last memory for a key
     */
    SeenKeys(KeyOrder order, long keySize, long valueSize, MemorySegment last) {
        this.order = order;
        this.keySize = keySize;
        this.valueSize = valueSize;
        this.last = last;
    }

    /** Moves entries that were not seen before to the front of a chunk; returns their number. */
    int fresh(MemorySegment keys, MemorySegment values, int count) {
        if (order == KeyOrder.NONE || count == 0) {
            return count;
        }
        int fresh = 0;
        MemorySegment seen = last;
        long seenAt = 0;
        if (order.unbroken(keys, count, keySize)
                && (!lastKnown || order.after(keys, 0, last, 0, keySize))) {
            fresh = count;
        }
        for (int i = fresh; i < count; i++) {
            if (lastKnown && !order.after(keys, i * keySize, seen, seenAt, keySize)) {
                continue;
            }
            if (fresh < i) {
                MemorySegment.copy(keys, i * keySize, keys, fresh * keySize, keySize);
                MemorySegment.copy(values, i * valueSize, values, fresh * valueSize, valueSize);
            }
            lastKnown = true;
            seen = keys;
            seenAt = fresh * keySize;
            fresh++;
        }
        if (fresh > 0) {
            MemorySegment.copy(keys, (fresh - 1) * keySize, last, 0, keySize);
            lastKnown = true;
        }
        return fresh;
    }
}
