package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_DOUBLE_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_FLOAT_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_INT_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_LONG_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_SHORT_UNALIGNED;

import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;

/**
 * Leaf accessors: one field of memory to a Java primitive and back. Memory only, no kernel.
 *
 * <p>They are here because a layout in a static final field is folded into the machine code, where one that Clojure
 * holds in a var is not. {@code swap} says that the field's byte order is not this machine's.
 */
public final class Bytes {
    private Bytes() {}

    private static final boolean BIG = ByteOrder.nativeOrder() == ByteOrder.BIG_ENDIAN;

    /** Whether a field of the given order has to be swapped on this machine. */
    public static boolean swapped(boolean bigEndian) {
        return bigEndian != BIG;
    }

    /** Reads one byte, 0 to 255. */
    public static long getU8(MemorySegment m, long offset) {
        return m.get(JAVA_BYTE, offset) & 0xffL;
    }

    /** Reads one byte, -128 to 127. */
    public static long getS8(MemorySegment m, long offset) {
        return m.get(JAVA_BYTE, offset);
    }

    /** Writes the low byte. */
    public static void put8(MemorySegment m, long offset, long value) {
        m.set(JAVA_BYTE, offset, (byte) value);
    }

    /** Reads two bytes, 0 to 65535. */
    public static long getU16(MemorySegment m, long offset, boolean swap) {
        return getS16(m, offset, swap) & 0xffffL;
    }

    /** Reads two bytes, signed. */
    public static long getS16(MemorySegment m, long offset, boolean swap) {
        short value = m.get(JAVA_SHORT_UNALIGNED, offset);
        return swap ? Short.reverseBytes(value) : value;
    }

    /** Writes the low two bytes. */
    public static void put16(MemorySegment m, long offset, long value, boolean swap) {
        m.set(JAVA_SHORT_UNALIGNED, offset, swap ? Short.reverseBytes((short) value) : (short) value);
    }

    /** Reads four bytes, 0 to 2^32-1. */
    public static long getU32(MemorySegment m, long offset, boolean swap) {
        return getS32(m, offset, swap) & 0xffffffffL;
    }

    /** Reads four bytes, signed. */
    public static long getS32(MemorySegment m, long offset, boolean swap) {
        int value = m.get(JAVA_INT_UNALIGNED, offset);
        return swap ? Integer.reverseBytes(value) : value;
    }

    /** Writes the low four bytes. */
    public static void put32(MemorySegment m, long offset, long value, boolean swap) {
        m.set(JAVA_INT_UNALIGNED, offset, swap ? Integer.reverseBytes((int) value) : (int) value);
    }

    /** Reads eight bytes; what is above 2^63-1 comes out negative. */
    public static long get64(MemorySegment m, long offset, boolean swap) {
        long value = m.get(JAVA_LONG_UNALIGNED, offset);
        return swap ? Long.reverseBytes(value) : value;
    }

    /** Writes eight bytes. */
    public static void put64(MemorySegment m, long offset, long value, boolean swap) {
        m.set(JAVA_LONG_UNALIGNED, offset, swap ? Long.reverseBytes(value) : value);
    }

    /** Reads an IEEE 754 number of four bytes. */
    public static double getF32(MemorySegment m, long offset, boolean swap) {
        return swap ? Float.intBitsToFloat((int) getS32(m, offset, true)) : m.get(JAVA_FLOAT_UNALIGNED, offset);
    }

    /** Writes an IEEE 754 number of four bytes, rounded to what it can hold. */
    public static void putF32(MemorySegment m, long offset, double value, boolean swap) {
        put32(m, offset, Float.floatToRawIntBits((float) value), swap);
    }

    /** Reads an IEEE 754 number of eight bytes. */
    public static double getF64(MemorySegment m, long offset, boolean swap) {
        return swap ? Double.longBitsToDouble(get64(m, offset, true)) : m.get(JAVA_DOUBLE_UNALIGNED, offset);
    }

    /** Writes an IEEE 754 number of eight bytes. */
    public static void putF64(MemorySegment m, long offset, double value, boolean swap) {
        put64(m, offset, Double.doubleToRawLongBits(value), swap);
    }

    /** Copies bytes out of memory into a new array. */
    public static byte[] copyOut(MemorySegment m, long offset, int size) {
        byte[] bytes = new byte[size];
        MemorySegment.copy(m, JAVA_BYTE, offset, bytes, 0, size);
        return bytes;
    }

    /** Copies a whole array into memory. */
    public static void copyIn(byte[] bytes, MemorySegment m, long offset) {
        MemorySegment.copy(bytes, 0, m, JAVA_BYTE, offset, bytes.length);
    }
}
