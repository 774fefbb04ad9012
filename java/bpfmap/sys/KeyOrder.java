package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;

import java.lang.foreign.MemorySegment;

/**
 * Defines the order in which the kernel iterates over the keys of a map.
 *
 * <p>If a key was deleted, the kernel returns the first key as the one after it. If keys have an
 * order that can be computed from the keys, a reader can recognize keys that it has seen.
 */
public enum KeyOrder {
    /** The order of a hash map, which cannot be computed from keys. */
    NONE {
        @Override
        public boolean after(MemorySegment a, long atA, MemorySegment b, long atB, long size) {
            return true;
        }
    },

    /** Ascending indices of four bytes, as in arrays. */
    INDEX {
        @Override
        public boolean after(MemorySegment a, long atA, MemorySegment b, long atB, long size) {
            return Bytes.getU32(a, atA, false) > Bytes.getU32(b, atB, false);
        }

        // If the kernel had restarted in between, the last index would be smaller.
        @Override
        boolean unbroken(MemorySegment keys, int count, long size) {
            return Bytes.getU32(keys, (count - 1) * size, false) - Bytes.getU32(keys, 0, false) ==
                count - 1;
        }
    },

    /**
     * The order of an LPM trie, whose keys are a number of bits in four bytes, then the bits. A
     * prefix with a 0 comes before one with a 1 in the same position, and after all prefixes that
     * it covers. Source: trie_get_next_key in kernel/bpf/lpm_trie.c.
     */
    PREFIX {
        @Override
        public boolean after(MemorySegment a, long atA, MemorySegment b, long atB, long size) {
            long bitsOfA = Bytes.getU32(a, atA, false);
            long bitsOfB = Bytes.getU32(b, atB, false);
            long common = Math.min(bitsOfA, bitsOfB);
            for (long i = 0; 8 * i < common; i++) {
                int x = a.get(JAVA_BYTE, atA + 4 + i) & 0xff;
                int y = b.get(JAVA_BYTE, atB + 4 + i) & 0xff;
                int compared = 0xff00 >> Math.min(8, common - 8 * i) & 0xff;
                if ((x & compared) != (y & compared)) {
                    return (x & compared) > (y & compared);
                }
            }
            return bitsOfA < bitsOfB;
        }
    };

    /** Returns true if {@code count} keys are known to be consecutive without comparing each. */
    boolean unbroken(MemorySegment keys, int count, long size) {
        return false;
    }

    /** Returns true if key a comes after key b. Both have {@code size} bytes. */
    public abstract boolean after(MemorySegment a, long atA, MemorySegment b, long atB, long size);
}
