package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;

import java.lang.foreign.MemorySegment;

/**
 * The order in which the kernel goes through the keys of a map.
 *
 * <p>Asked for what comes after a key that is gone, the kernel begins anew with the first one. Where keys come in an order
 * that can be told from the keys themselves, a reader knows what it has seen already; where they do not, it does not.
 */
public enum KeyOrder {
    /** A hash map's: none that can be told. */
    NONE {
        @Override
        public boolean after(MemorySegment a, long atA, MemorySegment b, long atB, long size) {
            return true;
        }
    },

    /** Ascending indices of four bytes, as of arrays. */
    INDEX {
        @Override
        public boolean after(MemorySegment a, long atA, MemorySegment b, long atB, long size) {
            return Bytes.getU32(a, atA, false) > Bytes.getU32(b, atB, false);
        }

        // Had the kernel begun anew in between, the last would be smaller.
        @Override
        boolean unbroken(MemorySegment keys, int count, long size) {
            return Bytes.getU32(keys, (count - 1) * size, false) - Bytes.getU32(keys, 0, false) == count - 1;
        }
    },

    /**
     * An LPM trie's: a number of bits in four bytes, then the bits. Prefixes that begin with 0 where others begin with 1 come
     * first, and each comes after all those that it covers. Source: trie_get_next_key in kernel/bpf/lpm_trie.c.
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

    /** Whether so many keys are known to come one after the other, without looking at each. */
    boolean unbroken(MemorySegment keys, int count, long size) {
        return false;
    }

    /** Whether one key comes after another: both of {@code size} bytes, at an offset of a segment. */
    public abstract boolean after(MemorySegment a, long atA, MemorySegment b, long atB, long size);
}
