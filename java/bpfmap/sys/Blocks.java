package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_DOUBLE_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_FLOAT_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_INT_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_LONG_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_SHORT_UNALIGNED;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * Copies many numbers between memory and primitive arrays. Does not call the kernel.
 *
 * <p>The distance between numbers is the stride, which is their size or more. {@code swap} is true
 * if their byte order differs from this machine's. A number that is aligned to its size is read or
 * written with one access.
 */
public final class Blocks {
    private Blocks() {}

    /**
     * Reads integers of 1, 2, 4 or 8 bytes. An unsigned integer of eight bytes above 2^63-1 becomes
     * negative.
     */
    public static void longs(
            MemorySegment m, long offset, long stride, int size, boolean signed, boolean swap,
            long[] out, int at, int n) {
        switch (size) {
            case 1 -> {
                long mask = signed ? -1 : 0xff;
                for (int i = 0; i < n; i++) {
                    out[at + i] = m.get(JAVA_BYTE, offset + i * stride) & mask;
                }
            }
            case 2 -> {
                long mask = signed ? -1 : 0xffff;
                for (int i = 0; i < n; i++) {
                    short x = m.get(JAVA_SHORT_UNALIGNED, offset + i * stride);
                    out[at + i] = (swap ? Short.reverseBytes(x) : x) & mask;
                }
            }
            case 4 -> {
                long mask = signed ? -1 : 0xffffffffL;
                for (int i = 0; i < n; i++) {
                    int x = m.get(JAVA_INT_UNALIGNED, offset + i * stride);
                    out[at + i] = (swap ? Integer.reverseBytes(x) : x) & mask;
                }
            }
            case 8 -> {
                if (stride == 8 && !swap) {
                    MemorySegment.copy(m, JAVA_LONG_UNALIGNED, offset, out, at, n);
                } else {
                    for (int i = 0; i < n; i++) {
                        long x = m.get(JAVA_LONG_UNALIGNED, offset + i * stride);
                        out[at + i] = swap ? Long.reverseBytes(x) : x;
                    }
                }
            }
            default -> throw new IllegalArgumentException("not the size of an integer: " + size);
        }
    }

    /** Reads IEEE 754 numbers of 4 or 8 bytes. */
    public static void doubles(MemorySegment m, long offset, long stride, int size, boolean swap,
            double[] out, int at, int n) {
        if (size == 8 && stride == 8 && !swap) {
            MemorySegment.copy(m, JAVA_DOUBLE_UNALIGNED, offset, out, at, n);
            return;
        }
        for (int i = 0; i < n; i++) {
            long place = offset + i * stride;
            out[at + i] = size == 8 ? Bytes.getF64(m, place, swap) : Bytes.getF32(m, place, swap);
        }
    }

    /**
     * Copies elements unchanged to an array whose elements have the same size.
     *
     * @param array an array of any primitive type except boolean
     * @throws IllegalArgumentException for any other object
     */
    public static void copyOut(MemorySegment m, long offset, long stride, Object array, int at,
            int n) {
        ValueLayout layout = layout(array);
        if (stride == layout.byteSize()) {
            MemorySegment.copy(m, layout, offset, array, at, n);
        } else {
            for (int i = 0; i < n; i++) {
                MemorySegment.copy(m, layout, offset + i * stride, array, at + i, 1);
            }
        }
    }

    /**
     * Copies elements unchanged from an array; see {@link #copyOut}. Bytes between them do not
     * change.
     */
    public static void copyIn(Object array, int at, int n, MemorySegment m, long offset,
            long stride) {
        ValueLayout layout = layout(array);
        if (stride == layout.byteSize()) {
            MemorySegment.copy(array, at, m, layout, offset, n);
        } else {
            for (int i = 0; i < n; i++) {
                MemorySegment.copy(array, at + i, m, layout, offset + i * stride, 1);
            }
        }
    }

    /** Returns the size in bytes of an element of a primitive array; 0 for any other object. */
    public static long elementSize(Object array) {
        ValueLayout layout = layoutOrNull(array);
        return layout == null ? 0 : layout.byteSize();
    }

    private static ValueLayout layout(Object array) {
        ValueLayout layout = layoutOrNull(array);
        if (layout == null) {
            throw new IllegalArgumentException("not an array of numbers");
        }
        return layout;
    }

    private static ValueLayout layoutOrNull(Object array) {
        return switch (array) {
            case byte[] a -> JAVA_BYTE;
            case short[] a -> JAVA_SHORT_UNALIGNED;
            case int[] a -> JAVA_INT_UNALIGNED;
            case long[] a -> JAVA_LONG_UNALIGNED;
            case float[] a -> JAVA_FLOAT_UNALIGNED;
            case double[] a -> JAVA_DOUBLE_UNALIGNED;
            case char[] a -> ValueLayout.JAVA_CHAR_UNALIGNED;
            case null, default -> null;
        };
    }

    /** Result of {@link #sum} if a number is outside the supported range. */
    public static final long TOO_LARGE = Long.MIN_VALUE;

    /**
     * Returns the sum of at most 512 numbers, or {@link #TOO_LARGE} if one is outside the supported
     * range, so that the sum cannot overflow. The range is 0 to 2^52, or -2^52 to 2^52 if signed.
     * The JIT vectorizes this loop, but not one that checks each addition for overflow.
     */
    public static long sum(long[] numbers, int n, boolean signed) {
        long sum = 0;
        long bits = 0;
        if (signed) {
            for (int i = 0; i < n; i++) {
                long x = numbers[i];
                sum += x;
                bits |= x ^ x >> 63;
            }
        } else {
            for (int i = 0; i < n; i++) {
                long x = numbers[i];
                sum += x;
                bits |= x;
            }
        }
        return bits >>> 52 == 0 ? sum : TOO_LARGE;
    }
}
