package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_DOUBLE_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_INT_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_LONG_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_SHORT_UNALIGNED;

import java.lang.foreign.MemorySegment;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;

/**
 * Reads and writes one field of memory as a Java primitive. Does not call the kernel.
 *
 * <p>The JIT folds a layout in a static final field into the machine code, but not one in a Clojure
 * var. {@code swap} is true if the byte order of the field differs from this machine's.
 */
public final class Bytes {
    private Bytes() {}

    private static final boolean BIG = ByteOrder.nativeOrder() == ByteOrder.BIG_ENDIAN;

    /** Returns true if a field of the given order must be swapped on this machine. */
    public static boolean swapped(boolean bigEndian) {
        return bigEndian != BIG;
    }

    /** Reads one byte, 0 to 255. */
    public static long getU8(MemorySegment m, long offset) {
        return m.get(JAVA_BYTE, offset) & 0xffL;
    }

    /** Writes the low byte. */
    public static void put8(MemorySegment m, long offset, long value) {
        m.set(JAVA_BYTE, offset, (byte) value);
    }

    /** Reads two bytes, 0 to 65535. */
    static long getU16(MemorySegment m, long offset, boolean swap) {
        return getS16(m, offset, swap) & 0xffffL;
    }

    /** Reads two bytes, signed. */
    private static long getS16(MemorySegment m, long offset, boolean swap) {
        short value = m.get(JAVA_SHORT_UNALIGNED, offset);
        return swap ? Short.reverseBytes(value) : value;
    }

    /** Writes the low two bytes. */
    public static void put16(MemorySegment m, long offset, long value, boolean swap) {
        m.set(JAVA_SHORT_UNALIGNED, offset,
            swap ? Short.reverseBytes((short) value) : (short) value);
    }

    /** Reads four bytes, 0 to 2^32-1. */
    public static long getU32(MemorySegment m, long offset, boolean swap) {
        return getS32(m, offset, swap) & 0xffffffffL;
    }

    /** Reads four bytes, signed. */
    private static long getS32(MemorySegment m, long offset, boolean swap) {
        int value = m.get(JAVA_INT_UNALIGNED, offset);
        return swap ? Integer.reverseBytes(value) : value;
    }

    /** Writes the low four bytes. */
    public static void put32(MemorySegment m, long offset, long value, boolean swap) {
        m.set(JAVA_INT_UNALIGNED, offset, swap ? Integer.reverseBytes((int) value) : (int) value);
    }

    /** Reads eight bytes. A number above 2^63-1 becomes negative. */
    public static long get64(MemorySegment m, long offset, boolean swap) {
        long value = m.get(JAVA_LONG_UNALIGNED, offset);
        return swap ? Long.reverseBytes(value) : value;
    }

    /** Writes eight bytes. */
    public static void put64(MemorySegment m, long offset, long value, boolean swap) {
        m.set(JAVA_LONG_UNALIGNED, offset, swap ? Long.reverseBytes(value) : value);
    }

    /** Reads an IEEE 754 number of four bytes; every bit of a NaN is kept. */
    public static double getF32(MemorySegment m, long offset, boolean swap) {
        int bits = (int) getS32(m, offset, swap);
        float value = Float.intBitsToFloat(bits);
        // The conversion of the processor would make a signaling NaN quiet.
        return value == value
            ? value
            : Double.longBitsToDouble(
                (bits & 0x80000000L) << 32 | 0x7ffL << 52 | (bits & 0x7fffffL) << 29);
    }

    /**
     * Writes an IEEE 754 number of four bytes, rounded. Every NaN is written as the canonical NaN
     * of Java.
     */
    public static void putF32(MemorySegment m, long offset, double value, boolean swap) {
        put32(m, offset, Float.floatToIntBits((float) value), swap);
    }

    /** Reads an IEEE 754 number of eight bytes. */
    public static double getF64(MemorySegment m, long offset, boolean swap) {
        return swap
            ? Double.longBitsToDouble(get64(m, offset, true))
            : m.get(JAVA_DOUBLE_UNALIGNED, offset);
    }

    /**
     * Writes an IEEE 754 number of eight bytes. Every NaN is written as the canonical NaN of Java.
     */
    public static void putF64(MemorySegment m, long offset, double value, boolean swap) {
        put64(m, offset, Double.doubleToLongBits(value), swap);
    }

    /**
     * Reads a bit-field of 1 to 64 bits. The first bit of a byte is its lowest on a little-endian
     * machine, its highest on a big-endian one, as in C.
     */
    public static long getBits(MemorySegment m, long bitOffset, int bits) {
        long value = 0;
        for (int i = 0; i < bits; i++) {
            long at = bitOffset + (BIG ? i : bits - 1 - i);
            int shift = (int) (BIG ? 7 - (at & 7) : at & 7);
            value = value << 1 | m.get(JAVA_BYTE, at >> 3) >> shift & 1;
        }
        return value;
    }

    /** Writes a bit-field of 1 to 64 bits. Does not change other bits. */
    public static void putBits(MemorySegment m, long bitOffset, int bits, long value) {
        for (int i = 0; i < bits; i++) {
            long at = bitOffset + (BIG ? bits - 1 - i : i);
            int shift = (int) (BIG ? 7 - (at & 7) : at & 7);
            int old = m.get(JAVA_BYTE, at >> 3);
            m.set(JAVA_BYTE, at >> 3,
                (byte) (old & ~(1 << shift) | (int) (value >>> i & 1) << shift));
        }
    }

    /**
     * Reads the text in an array: UTF-8, followed only by zeros.
     *
     * @param terminated true if at least one zero is required
     * @return the text, or null if the bytes are not UTF-8 or a byte other than zero follows a zero
     */
    public static String text(byte[] bytes, boolean terminated) {
        int n = bytes.length;
        int end = 0;
        int all = 0;
        for (; end < n && bytes[end] != 0; end++) {
            all |= bytes[end];
        }
        if (end == n && terminated) {
            return null;
        }
        for (int i = end; i < n; i++) {
            if (bytes[i] != 0) {
                return null;
            }
        }
        if (all >= 0) {
            return new String(bytes, 0, end, StandardCharsets.ISO_8859_1); // ASCII
        }
        try {
            return StandardCharsets.UTF_8.newDecoder()
                .decode(ByteBuffer.wrap(bytes, 0, end)).toString();
        } catch (CharacterCodingException e) {
            return null;
        }
    }

    /** Writes zeros. */
    public static void zero(MemorySegment m, long offset, long size) {
        m.asSlice(offset, size).fill((byte) 0);
    }

    /** Copies bytes out of memory into a new array. */
    public static byte[] copyOut(MemorySegment m, long offset, int size) {
        byte[] bytes = new byte[size];
        fill(m, offset, bytes);
        return bytes;
    }

    // Most keys and values are a few words long. Copying them by words avoids a call of a bulk
    // copy.

    private static final int SMALL = 64;

    private static final VarHandle LONGS =
        MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.nativeOrder());
    private static final VarHandle INTS =
        MethodHandles.byteArrayViewVarHandle(int[].class, ByteOrder.nativeOrder());

    /** Copies bytes out of memory until the array is full. */
    public static void fill(MemorySegment m, long offset, byte[] bytes) {
        int n = bytes.length;
        if (n > SMALL) {
            MemorySegment.copy(m, JAVA_BYTE, offset, bytes, 0, n);
            return;
        }
        int i = 0;
        for (; i + 8 <= n; i += 8) {
            LONGS.set(bytes, i, m.get(JAVA_LONG_UNALIGNED, offset + i));
        }
        if (i + 4 <= n) {
            INTS.set(bytes, i, m.get(JAVA_INT_UNALIGNED, offset + i));
            i += 4;
        }
        for (; i < n; i++) {
            bytes[i] = m.get(JAVA_BYTE, offset + i);
        }
    }

    /** Copies a whole array into memory. */
    public static void copyIn(byte[] bytes, MemorySegment m, long offset) {
        int n = bytes.length;
        if (n > SMALL) {
            MemorySegment.copy(bytes, 0, m, JAVA_BYTE, offset, n);
            return;
        }
        int i = 0;
        for (; i + 8 <= n; i += 8) {
            m.set(JAVA_LONG_UNALIGNED, offset + i, (long) LONGS.get(bytes, i));
        }
        if (i + 4 <= n) {
            m.set(JAVA_INT_UNALIGNED, offset + i, (int) INTS.get(bytes, i));
            i += 4;
        }
        for (; i < n; i++) {
            m.set(JAVA_BYTE, offset + i, bytes[i]);
        }
    }
}
