package bpfmap.sys;

import java.lang.foreign.MemorySegment;
import java.lang.ref.Reference;
import java.util.List;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * A stream of records that the kernel writes: a ring buffer, or one CPU's part of a perf event
 * array.
 *
 * <p>The loop is inside the source, and not around it, so that it is compiled with the layout of
 * one kind of record and makes a single call for each event. One thread at a time may call
 * {@link #drain}; the reader ensures that. Any thread may read the counters, which may lag behind
 * a pass in progress on another thread.
 *
 * <p>A source owns mapped memory and may own a descriptor. {@link #close} gives both back, and must
 * not run during {@code drain}.
 */
public abstract class EventSource implements AutoCloseable {

    /** Receives each event. */
    @FunctionalInterface
    public interface Handler {
        /**
         * Uses one event. It is valid only during this call: afterwards the kernel may write there.
         * If this throws, the event still counts as used.
         *
         * @return false to end the pass after this event
         */
        boolean accept(RawEvent event);

        /**
         * Returns the struct that events of its size are read as. They go to {@link #acceptStruct}.
         * Null for none. Only sources that need no copy of an event ask for it.
         */
        default StructWords struct() {
            return null;
        }

        /** Does the same as {@link #accept} with the value of {@link #struct}. */
        default boolean acceptStruct(Object value) {
            throw new UnsupportedOperationException();
        }
    }

    final long size;
    long events;
    long bytes;
    long discarded;
    long lost;
    long overtaken;
    long missed;
    boolean busy;

    private final Fd fd;
    private final List<MappedMemory> mappings;

    /**
     * Takes ownership of mappings and of a descriptor.
     *
     * @param size size of the data in bytes, a power of two
     * @param fd the descriptor to wait for; null for none
     */
    EventSource(long size, Fd fd, MappedMemory... mappings) {
        this.size = size;
        this.fd = fd;
        this.mappings = List.of(mappings);
    }

    /**
     * Passes each event that is there now to the handler, and gives its place back. A pass is
     * bounded: it reads what was committed when it began, and never waits.
     *
     * @param halt ends the pass after the current event, when another thread sets it
     * @param limit the most events to pass on
     * @return the number of events passed on
     * @throws CorruptEventsException if positions or headers are invalid; the source stays where
     *     it is
     */
    public abstract int drain(Handler handler, AtomicBoolean halt, int limit);

    /** Returns the number of bytes in use now, headers included. */
    public abstract long fill();

    /** Returns the CPU whose programs write to this source; negative if it is unknown. */
    public int cpu() {
        return -1;
    }

    /**
     * Returns the position of the next record if it is reserved but not committed now, otherwise a
     * negative number. Any thread may call it.
     */
    public long busyPosition() {
        return -1;
    }

    /**
     * Returns true if the last pass ended at a record that a producer has reserved but not
     * committed. The records behind it have to wait.
     */
    public final boolean isBusy() {
        return busy;
    }

    /** Returns the number of events passed on so far. */
    public final long events() {
        return events;
    }

    /** Returns the number of bytes in the payloads passed on so far. */
    public final long bytes() {
        return bytes;
    }

    /** Returns the number of discarded records that were skipped so far. */
    public final long discarded() {
        return discarded;
    }

    /** Returns the number of records that the kernel reported as lost so far. */
    public final long lost() {
        return lost;
    }

    /** Returns how often the producer overtook this source, which then skipped records. */
    public final long overtaken() {
        return overtaken;
    }

    /** Returns the number of bytes that were skipped because the producer overtook this source. */
    public final long missed() {
        return missed;
    }

    /** Returns the number of bytes that records may use, headers included. */
    public final long capacity() {
        return size;
    }

    /**
     * Returns the descriptor to wait for with epoll, or null if nobody may wait for it, and the
     * reader has to look again by time. It belongs to the source.
     */
    public final Fd pollable() {
        return fd;
    }

    /**
     * Passes on an event that was copied, and counts it.
     *
     * @return false to end the pass after this event
     */
    final boolean passOn(RawEvent event, MemorySegment copy, long from, long length,
            Handler handler, AtomicBoolean halt) {
        events++;
        bytes += length;
        try {
            event.begin(copy.address() + from, length);
            return handler.accept(event) && !halt.getOpaque();
        } finally {
            event.end();
            Reference.reachabilityFence(copy);
        }
    }

    @Override
    public final void close() {
        if (fd != null) {
            fd.close();
        }
        mappings.forEach(MappedMemory::close);
    }
}
