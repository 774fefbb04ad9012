package bpfmap.sys;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * Native memory for reading a map in chunks, used again by the next reading: as many pieces as there are processors.
 *
 * <p>Memory that is new is zeroed, and its pages are mapped one by one, which costs a small map as much as being read.
 */
final class ChunkBufferPool {
    private ChunkBufferPool() {}

    /** Bytes of a piece. Larger chunks are read no faster: see the measurement in doc/performance.md. */
    static final long SIZE = 64 << 10;

    private static final int MOST = Runtime.getRuntime().availableProcessors();
    private static final ArrayBlockingQueue<MemorySegment> FREE = new ArrayBlockingQueue<>(MOST);
    private static final AtomicInteger MADE = new AtomicInteger();

    /** A piece, not zeroed, to be given back; or null where all are in use. */
    static MemorySegment take() {
        MemorySegment free = FREE.poll();
        if (free != null || MADE.get() >= MOST) {
            return free;
        }
        if (MADE.incrementAndGet() > MOST) {
            return null;
        }
        return Arena.global().allocate(SIZE, 64);
    }

    /** Ends the use of a piece. */
    static void give(MemorySegment piece) {
        FREE.offer(piece);
    }
}
