package bpfmap.sys;

import java.lang.foreign.MemorySegment;

/**
 * A stream of records that the kernel writes: a ring buffer, or one CPU's part of a perf event
 * array.
 *
 * <p>The loop is inside the source, and not around it, so that it is compiled with the layout of
 * one kind of record and makes a single call for each event. One thread at a time may call
 * {@link #drain}; the reader ensures that. Any thread may read the counters, which may lag behind
 * a pass in progress on another thread.
 *
 * <p>A source maps memory and may hold a descriptor. {@link #close} gives both back, and must not
 * run during {@code drain}.
 */
public interface EventSource extends AutoCloseable {

    /** Receives the payload of each event. */
    @FunctionalInterface
    interface Handler {
        /**
         * Uses one event. Its memory is valid only during this call: afterwards the kernel may
         * write there. If this throws, the event still counts as used.
         *
         * @param memory native memory with the payload; may be all addresses of this process
         * @param offset where the payload begins, a multiple of four
         * @param length size of the payload in bytes
         * @return false to end the pass after this event
         */
        boolean accept(MemorySegment memory, long offset, int length);
    }

    /**
     * Passes each event that is there now to the handler, and gives its place back. A pass is
     * bounded: it reads what was committed when it began, and never waits.
     *
     * @param limit the most events to pass on
     * @return the number of events passed on
     * @throws CorruptEventsException if positions or headers are invalid; the source stays where
     *     it is
     */
    int drain(Handler handler, int limit);

    /**
     * Returns true if the last pass ended at a record that a producer has reserved but not
     * committed. The records behind it have to wait.
     */
    boolean isBusy();

    /**
     * Returns true if a pass may find something now. A cheap look without a system call; a busy
     * record counts.
     */
    boolean isReady();

    /**
     * Returns the position of the next record if it is reserved but not committed now, otherwise a
     * negative number. Any thread may call it.
     */
    default long busyPosition() {
        return -1;
    }

    /** Returns the number of events passed on so far. */
    long events();

    /** Returns the number of bytes in the payloads passed on so far. */
    long bytes();

    /** Returns the number of discarded records that were skipped so far. */
    default long discarded() {
        return 0;
    }

    /** Returns the number of records that the kernel reported as lost so far. */
    default long lost() {
        return 0;
    }

    /** Returns how often the producer overtook this source, which then skipped records. */
    default long overtaken() {
        return 0;
    }

    /** Returns the number of bytes that were skipped because the producer overtook this source. */
    default long missed() {
        return 0;
    }

    /** Returns the number of bytes in use now, headers included. */
    long fill();

    /** Returns the number of bytes that records may use, headers included. */
    long capacity();

    /**
     * Returns the descriptor to wait for with epoll, or null if nobody may wait for it, and the
     * reader has to look again by time. It belongs to the source.
     */
    default Fd pollable() {
        return null;
    }

    @Override
    void close();
}
