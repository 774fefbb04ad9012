package bpfmap.sys;

import java.lang.foreign.MemorySegment;

/** Writes a value to memory and reads it back. Implemented in Clojure, from a type as data. */
public interface Codec {
    /** Returns the size of a value in bytes. */
    long size();

    /**
     * Writes a value: either all bytes of {@link #size}, with padding as zero, or an exception
     * reports the part of the value that does not fit.
     */
    void encode(Object value, MemorySegment memory, long offset);

    /** Reads a value. The result holds no reference to the memory. */
    Object decode(MemorySegment memory, long offset);

    /**
     * Returns true if {@link #decode} accepts all bytes. A codec with functions of the user may
     * throw.
     */
    default boolean total() {
        return true;
    }

    /**
     * Returns the words of a struct whose values are read by {@link TypeCodec} without a call of
     * {@link #decode}, or null. A struct with unused bits that are set is decoded nevertheless.
     */
    default StructWords words() {
        return null;
    }
}
