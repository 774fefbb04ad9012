package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_INT_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_LONG_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_SHORT_UNALIGNED;

import java.lang.foreign.MemorySegment;

/**
 * Reads and writes integers of up to eight bytes, which most keys, values and fields are, by a kind
 * number instead of a call through {@link Codec}. If codecs of many classes are in use, such a call
 * takes longer than its work.
 *
 * <p>The codec handles all other types, and values that need more than a {@code Long} or do not
 * fit.
 */
public final class Integers {
    private Integers() {}

    /** Kind of a codec whose values are not integers. */
    public static final int NONE = 0;

    private static final int INTEGER = 16;
    private static final int UNSIGNED = 4;
    private static final int SWAPPED = 8;
    private static final int WIDTH = 3;

    /**
     * Returns the kind of an integer.
     *
     * @param size size in bytes: 1, 2, 4 or 8; any other returns {@link #NONE}
     * @param swapped true if its byte order differs from this machine's
     */
    public static int kind(long size, boolean signed, boolean swapped) {
        if (size != 1 && size != 2 && size != 4 && size != 8) {
            return NONE;
        }
        return INTEGER | Long.numberOfTrailingZeros(size) | (signed ? 0 : UNSIGNED)
            | (swapped ? SWAPPED : 0);
    }

    /** Reads a value of this kind, with the codec if necessary. */
    public static Object read(int kind, Codec codec, MemorySegment m, long offset) {
        if (kind == NONE) {
            return codec.decode(m, offset);
        }
        long n;
        switch (kind & WIDTH) {
            case 0: n = m.get(JAVA_BYTE, offset); break;
            case 1: n = m.get(JAVA_SHORT_UNALIGNED, offset); break;
            case 2: n = m.get(JAVA_INT_UNALIGNED, offset); break;
            default: n = m.get(JAVA_LONG_UNALIGNED, offset);
        }
        int spare = 64 - (8 << (kind & WIDTH));
        if ((kind & SWAPPED) != 0) {
            n = Long.reverseBytes(n) >> spare;
        }
        if ((kind & UNSIGNED) != 0) {
            n &= -1L >>> spare;
            if (n < 0) {
                return codec.decode(m, offset); // it is above 2^63-1
            }
        }
        return n;
    }

    /** Writes a value of this kind, with the codec if necessary. */
    public static void write(int kind, Codec codec, Object value, MemorySegment m, long offset) {
        if (kind == NONE || !(value instanceof Long)) {
            codec.encode(value, m, offset);
            return;
        }
        long n = (Long) value;
        int spare = 64 - (8 << (kind & WIDTH));
        boolean fits = (kind & UNSIGNED) != 0
            ? n >= 0 && (n & ~(-1L >>> spare)) == 0
            : n << spare >> spare == n;
        if (!fits) {
            codec.encode(value, m, offset);
            return;
        }
        if ((kind & SWAPPED) != 0) {
            n = Long.reverseBytes(n) >> spare;
        }
        switch (kind & WIDTH) {
            case 0: m.set(JAVA_BYTE, offset, (byte) n); break;
            case 1: m.set(JAVA_SHORT_UNALIGNED, offset, (short) n); break;
            case 2: m.set(JAVA_INT_UNALIGNED, offset, (int) n); break;
            default: m.set(JAVA_LONG_UNALIGNED, offset, n);
        }
    }

    /**
     * Reads the fields of a struct.
     *
     * @return names and values, alternating
     */
    public static Object[] fields(
            Object[] names, int[] kinds, Codec[] codecs, long[] offsets, MemorySegment m,
            long offset) {
        // If all values exist before their array, no write barriers are needed: a third of the
        // time.
        switch (names.length) {
            case 2: {
                Object a = read(kinds[0], codecs[0], m, offset + offsets[0]);
                Object b = read(kinds[1], codecs[1], m, offset + offsets[1]);
                return new Object[] {names[0], a, names[1], b};
            }
            case 3: {
                Object a = read(kinds[0], codecs[0], m, offset + offsets[0]);
                Object b = read(kinds[1], codecs[1], m, offset + offsets[1]);
                Object c = read(kinds[2], codecs[2], m, offset + offsets[2]);
                return new Object[] {names[0], a, names[1], b, names[2], c};
            }
            case 4: {
                Object a = read(kinds[0], codecs[0], m, offset + offsets[0]);
                Object b = read(kinds[1], codecs[1], m, offset + offsets[1]);
                Object c = read(kinds[2], codecs[2], m, offset + offsets[2]);
                Object d = read(kinds[3], codecs[3], m, offset + offsets[3]);
                return new Object[] {names[0], a, names[1], b, names[2], c, names[3], d};
            }
            default: {
                Object[] out = new Object[2 * names.length];
                for (int i = 0; i < names.length; i++) {
                    out[2 * i] = names[i];
                    out[2 * i + 1] = read(kinds[i], codecs[i], m, offset + offsets[i]);
                }
                return out;
            }
        }
    }

    /** Reads {@code count} values of one kind at equal distances. */
    public static Object[] row(int kind, Codec codec, int count, long stride, MemorySegment m,
            long offset) {
        Object[] out = new Object[count];
        for (int i = 0; i < count; i++) {
            out[i] = read(kind, codec, m, offset + i * stride);
        }
        return out;
    }
}
