package bpfmap.sys;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * Keeps native buffers for reading a map in chunks, as many as there are processors, and reuses
 * them.
 *
 * <p>New memory is zeroed and its pages are mapped one by one, which takes as long as reading a
 * small map.
 */
final class ChunkBufferPool {
    private ChunkBufferPool() {}

    /** Size of a buffer in bytes. Larger chunks are not faster: see doc/performance.md. */
    static final long SIZE = 64 << 10;

    private static final int MOST = Runtime.getRuntime().availableProcessors();
    private static final ArrayBlockingQueue<MemorySegment> FREE = new ArrayBlockingQueue<>(MOST);
    private static final AtomicInteger MADE = new AtomicInteger();

    /** Takes a buffer, not zeroed; returns null if all are in use. Must be given back. */
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

    /** Returns a buffer to the pool. */
    static void give(MemorySegment buffer) {
        FREE.offer(buffer);
    }
}
