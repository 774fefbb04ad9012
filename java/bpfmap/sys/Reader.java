package bpfmap.sys;

import java.lang.foreign.MemorySegment;

/**
 * Reads the entries of a map in chunks.
 *
 * <p>After {@link #read} has returned a count n, entries 0 to n-1 are in {@link #keys} and
 * {@link #values} at multiples of the key and value size. They are copies: later changes to the map
 * do not affect them, and deleting any of them does not disturb the iteration. For use by one
 * thread; closing frees the memory.
 */
public sealed interface Reader extends AutoCloseable permits BatchReader, KeyIterator {
    /** Result of {@link #read} if concurrent deletions restarted the iteration too often. */
    int ABORTED = Integer.MIN_VALUE;

    /**
     * Reads the next chunk.
     *
     * @return the number of entries read; 0 at the end; {@link #ABORTED}; or the negated errno
     */
    int read();

    /** Returns the keys of the last chunk. The next chunk may be in other memory. */
    MemorySegment keys();

    /** Returns the values of the last chunk. The next chunk may be in other memory. */
    MemorySegment values();

    @Override
    void close();
}
