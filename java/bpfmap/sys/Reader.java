package bpfmap.sys;

import java.lang.foreign.MemorySegment;

/**
 * Reads the entries of a map a chunk at a time.
 *
 * <p>After {@link #read} returned a count n, entries 0 to n-1 lie in {@link #keys} and {@link #values} at multiples of
 * the key and value size. They are copies: what happens to the map meanwhile does not change them, and deleting any
 * of them does not disturb the reading. Used by one thread; closing frees the memory.
 */
public sealed interface Reader extends AutoCloseable permits BatchReader, KeyIterator {
    /** What {@link #read} answers when it was thrown back to the beginning too often to come to an end. */
    int ABORTED = Integer.MIN_VALUE;

    /**
     * Reads the next chunk.
     *
     * @return how many entries were read; 0 when there are no more; {@link #ABORTED}, or the negated errno on failure
     */
    int read();

    /** The keys of the last chunk; another chunk may lie elsewhere. */
    MemorySegment keys();

    /** The values of the last chunk; another chunk may lie elsewhere. */
    MemorySegment values();

    @Override
    void close();
}
