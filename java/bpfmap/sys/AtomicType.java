package bpfmap.sys;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.VarHandle;

/**
 * An integer type that the processor accesses atomically: four or eight bytes, aligned to their
 * size, in this machine's byte order. Does not call the kernel.
 *
 * <p>A read with acquire that sees a value written with release also sees all writes before that
 * one. Operations that read and write do both. Memory that is not aligned throws {@link
 * IllegalArgumentException}.
 *
 * <p>Integers are passed and returned as longs. Of {@link #U64}, a long has the 64 bits: numbers
 * above 2^63-1 are negative.
 */
public enum AtomicType {
    U32(4, false), S32(4, true), U64(8, false), S64(8, true);

    private static final VarHandle INT = ValueLayout.JAVA_INT.varHandle();
    private static final VarHandle LONG = ValueLayout.JAVA_LONG.varHandle();

    /** The operations of {@link #getAndChange} on the number in memory and an operand. */
    public enum Change { SET, ADD, OR, AND, XOR }

    private final int size;
    private final boolean signed;

    AtomicType(int size, boolean signed) {
        this.size = size;
        this.signed = signed;
    }

    /** Returns the type of an integer; null for a size that is not accessed atomically. */
    public static AtomicType of(long size, boolean signed) {
        return size == 8 ? signed ? S64 : U64 : size == 4 ? signed ? S32 : U32 : null;
    }

    /** Returns true if an address is a multiple of the size. */
    public boolean isAligned(long address) {
        return (address & size - 1) == 0;
    }

    public long getAcquire(MemorySegment m, long offset) {
        return size == 8
            ? (long) LONG.getAcquire(m, offset)
            : extend((int) INT.getAcquire(m, offset));
    }

    public void setRelease(MemorySegment m, long offset, long value) {
        if (size == 8) {
            LONG.setRelease(m, offset, value);
        } else {
            INT.setRelease(m, offset, (int) value);
        }
    }

    /** Writes the value if memory has the expected one; returns true if it did. */
    public boolean compareAndSet(MemorySegment m, long offset, long expected, long value) {
        return size == 8
            ? LONG.compareAndSet(m, offset, expected, value)
            : INT.compareAndSet(m, offset, (int) expected, (int) value);
    }

    /** Changes the number in memory, which wraps around at its size; returns the previous one. */
    public long getAndChange(MemorySegment m, long offset, Change change, long x) {
        if (size == 8) {
            return switch (change) {
                case SET -> (long) LONG.getAndSet(m, offset, x);
                case ADD -> (long) LONG.getAndAdd(m, offset, x);
                case OR -> (long) LONG.getAndBitwiseOr(m, offset, x);
                case AND -> (long) LONG.getAndBitwiseAnd(m, offset, x);
                case XOR -> (long) LONG.getAndBitwiseXor(m, offset, x);
            };
        }
        int low = (int) x;
        return extend(switch (change) {
            case SET -> (int) INT.getAndSet(m, offset, low);
            case ADD -> (int) INT.getAndAdd(m, offset, low);
            case OR -> (int) INT.getAndBitwiseOr(m, offset, low);
            case AND -> (int) INT.getAndBitwiseAnd(m, offset, low);
            case XOR -> (int) INT.getAndBitwiseXor(m, offset, low);
        });
    }

    /**
     * Adds to a number of {@link #U64}, without choosing by type and change. The row "add! a view"
     * of {@code bpfmap.bench.memory} justifies this method.
     */
    public static void addU64(MemorySegment m, long offset, long x) {
        LONG.getAndAdd(m, offset, x);
    }

    private long extend(int x) {
        return signed ? x : x & 0xffffffffL;
    }
}
