package bpfmap.sys;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.VarHandle;

/**
 * Accesses four or eight bytes of memory atomically, in this machine's byte order. Does not call
 * the kernel.
 *
 * <p>A read with acquire that sees a value written with release also sees all writes before that
 * one. Operations that read and write do both. The memory must be aligned to its size; otherwise
 * they throw {@link IllegalArgumentException}.
 */
public final class Atomics {
    private Atomics() {}

    private static final VarHandle INT = ValueLayout.JAVA_INT.varHandle();
    private static final VarHandle LONG = ValueLayout.JAVA_LONG.varHandle();

    public static int getAcquire32(MemorySegment m, long offset) {
        return (int) INT.getAcquire(m, offset);
    }

    public static long getAcquire64(MemorySegment m, long offset) {
        return (long) LONG.getAcquire(m, offset);
    }

    public static void setRelease32(MemorySegment m, long offset, int value) {
        INT.setRelease(m, offset, value);
    }

    public static void setRelease64(MemorySegment m, long offset, long value) {
        LONG.setRelease(m, offset, value);
    }

    /** Adds and returns the previous value, like the next methods. */
    public static int getAndAdd32(MemorySegment m, long offset, int delta) {
        return (int) INT.getAndAdd(m, offset, delta);
    }

    public static long getAndAdd64(MemorySegment m, long offset, long delta) {
        return (long) LONG.getAndAdd(m, offset, delta);
    }

    public static int getAndSet32(MemorySegment m, long offset, int value) {
        return (int) INT.getAndSet(m, offset, value);
    }

    public static long getAndSet64(MemorySegment m, long offset, long value) {
        return (long) LONG.getAndSet(m, offset, value);
    }

    public static int getAndOr32(MemorySegment m, long offset, int mask) {
        return (int) INT.getAndBitwiseOr(m, offset, mask);
    }

    public static long getAndOr64(MemorySegment m, long offset, long mask) {
        return (long) LONG.getAndBitwiseOr(m, offset, mask);
    }

    public static int getAndAnd32(MemorySegment m, long offset, int mask) {
        return (int) INT.getAndBitwiseAnd(m, offset, mask);
    }

    public static long getAndAnd64(MemorySegment m, long offset, long mask) {
        return (long) LONG.getAndBitwiseAnd(m, offset, mask);
    }

    public static int getAndXor32(MemorySegment m, long offset, int mask) {
        return (int) INT.getAndBitwiseXor(m, offset, mask);
    }

    public static long getAndXor64(MemorySegment m, long offset, long mask) {
        return (long) LONG.getAndBitwiseXor(m, offset, mask);
    }

    /** Writes the value if memory has the expected one; returns true if it did. */
    public static boolean compareAndSet32(MemorySegment m, long offset, int expected, int value) {
        return INT.compareAndSet(m, offset, expected, value);
    }

    public static boolean compareAndSet64(MemorySegment m, long offset, long expected, long value) {
        return LONG.compareAndSet(m, offset, expected, value);
    }
}
