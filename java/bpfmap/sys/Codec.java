package bpfmap.sys;

import java.lang.foreign.MemorySegment;

/**
 * Turns a value into bytes of memory and back. Implemented on the Clojure side, from a type as data.
 */
public interface Codec {
    /** Bytes of one value. */
    long size();

    /**
     * Writes a value. Either every byte of {@link #size} is written, padding as zero, or an exception says what does
     * not fit.
     */
    void encode(Object value, MemorySegment memory, long offset);

    /** Reads a value. What it returns holds no reference to the memory. */
    Object decode(MemorySegment memory, long offset);

    /** Whether {@link #decode} makes something of any bytes. One with functions of its user in it may throw instead. */
    default boolean total() {
        return true;
    }

    /** The kind of its values, where they are integers that {@link Integers} can read and write without it. */
    default int integers() {
        return Integers.NONE;
    }
}
