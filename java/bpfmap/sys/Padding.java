package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_INT_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_LONG_UNALIGNED;

import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;

/**
 * Checks and copies the unused bits of a struct or union: padding, and bits outside bit-fields.
 *
 * <p>For each value that is read, the unused bits must be zero. The check is one load and one mask
 * for most structs. The bytes with unused bits can be copied out and back in; bits of fields in
 * these bytes are zero in the copy.
 */
public final class Padding {
    private static final boolean BIG = ByteOrder.nativeOrder() == ByteOrder.BIG_ENDIAN;

    /** Largest padding in bytes that is checked by words. Larger padding is checked by ranges. */
    private static final int MOST_MASKED = 256;

    /**
     * Ranges of bytes with the same mask, ascending: the first byte, the byte after the last, and
     * the mask of the unused bits.
     */
    private final long[] from;
    private final long[] to;
    private final byte[] mask;
    private final int ranges;
    private final int count;

    /** Words of {@code width} bytes that contain all unused bits; null for large padding. */
    private final long[] wordAt;
    private final long[] wordMask;
    private final int width;

    /** Offset and mask of padding within one word of eight bytes, the usual case; otherwise 0. */
    private final long onlyAt;
    private final long onlyMask;

    /**
     * @param size size of the struct in bytes
     * @param bits the unused bits as ranges: alternately the first bit and the bit after the last,
     *     ascending, numbered as by {@link Bytes#getBits}
     */
    public Padding(long size, long[] bits) {
        int most = 3 * bits.length;
        from = new long[most];
        to = new long[most];
        mask = new byte[most];
        int n = 0;
        long bytes = 0;
        for (int i = 0; i < bits.length; i += 2) {
            long at = bits[i];
            long end = bits[i + 1];
            while (at < end) {
                long first = at >> 3;
                long next = (at & 7) == 0 && end - at >= 8
                    ? end & -8
                    : Math.min(end, (first + 1) << 3);
                byte used = (byte) 0xff;
                if (next - at < 8) {
                    int low = (int) (at & 7);
                    int length = (int) (next - at);
                    used = (byte) (((1 << length) - 1) << (BIG ? 8 - low - length : low));
                }
                if (n > 0 && to[n - 1] == first + 1 && from[n - 1] == first) {
                    mask[n - 1] |= used;
                } else {
                    from[n] = first;
                    to[n] = next + 7 >> 3;
                    mask[n] = used;
                    bytes += to[n] - from[n];
                    n++;
                }
                at = next;
            }
        }
        ranges = n;
        count = Math.toIntExact(bytes);
        width = size >= 8 ? 8 : size >= 4 ? 4 : 1;
        if (count > MOST_MASKED) {
            wordAt = null;
            wordMask = null;
            onlyAt = 0;
            onlyMask = 0;
            return;
        }
        long[] places = new long[count];
        long[] masks = new long[count];
        int words = 0;
        for (int i = 0; i < n; i++) {
            for (long at = from[i]; at < to[i]; at++) {
                long word = Math.min(at - at % width, size - width);
                if (words == 0 || places[words - 1] != word) {
                    places[words++] = word;
                }
                int shift = (int) (8 * (BIG ? width - 1 - (at - word) : at - word));
                masks[words - 1] |= (mask[i] & 0xffL) << shift;
            }
        }
        wordAt = java.util.Arrays.copyOf(places, words);
        wordMask = java.util.Arrays.copyOf(masks, words);
        boolean one = words == 1 && width == 8;
        onlyAt = one ? places[0] : 0;
        onlyMask = one ? masks[0] : 0;
    }

    /** Returns the number of bytes with unused bits. */
    public int count() {
        return count;
    }

    /** Returns true if all unused bits of the struct at an offset are zero. */
    public boolean isZero(MemorySegment m, long offset) {
        if (onlyMask != 0) {
            return (m.get(JAVA_LONG_UNALIGNED, offset + onlyAt) & onlyMask) == 0;
        }
        return isZeroByWords(m, offset);
    }

    private boolean isZeroByWords(MemorySegment m, long offset) {
        long[] at = wordAt;
        if (at == null) {
            return isZeroByRanges(m, offset);
        }
        long set = 0;
        for (int i = 0; i < at.length; i++) {
            long place = offset + at[i];
            long word = width == 8
                ? m.get(JAVA_LONG_UNALIGNED, place)
                : width == 4 ? m.get(JAVA_INT_UNALIGNED, place)
                : m.get(JAVA_BYTE, place);
            set |= word & wordMask[i];
        }
        return set == 0;
    }

    private boolean isZeroByRanges(MemorySegment m, long offset) {
        for (int i = 0; i < ranges; i++) {
            long at = from[i];
            if (mask[i] == -1) {
                for (; at + 8 <= to[i]; at += 8) {
                    if (m.get(JAVA_LONG_UNALIGNED, offset + at) != 0) {
                        return false;
                    }
                }
            }
            for (; at < to[i]; at++) {
                if ((m.get(JAVA_BYTE, offset + at) & mask[i]) != 0) {
                    return false;
                }
            }
        }
        return true;
    }

    /** Copies the bytes with unused bits, with zeros for the bits of fields. */
    public byte[] read(MemorySegment m, long offset) {
        byte[] out = new byte[count];
        int next = 0;
        for (int i = 0; i < ranges; i++) {
            for (long at = from[i]; at < to[i]; at++) {
                out[next++] = (byte) (m.get(JAVA_BYTE, offset + at) & mask[i]);
            }
        }
        return out;
    }

    /** Returns true if {@link #count} bytes have no bit set that belongs to a field. */
    public boolean fits(byte[] bytes) {
        int next = 0;
        for (int i = 0; i < ranges; i++) {
            for (long at = from[i]; at < to[i]; at++) {
                if ((bytes[next++] & ~mask[i]) != 0) {
                    return false;
                }
            }
        }
        return true;
    }

    /** Sets the unused bits as returned by {@link #read}. The bits of fields do not change. */
    public void write(byte[] bytes, MemorySegment m, long offset) {
        int next = 0;
        for (int i = 0; i < ranges; i++) {
            for (long at = from[i]; at < to[i]; at++) {
                byte old = m.get(JAVA_BYTE, offset + at);
                m.set(JAVA_BYTE, offset + at, (byte) (old & ~mask[i] | bytes[next++] & mask[i]));
            }
        }
    }
}
