package bpfmap.sys;

import static bpfmap.sys.MappedMemory.READABLE;
import static bpfmap.sys.MappedMemory.WRITABLE;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.MemorySegment;
import java.lang.invoke.VarHandle;
import java.lang.ref.Reference;

/**
 * Consumes a {@code BPF_MAP_TYPE_RINGBUF}: takes its records, and gives their places back.
 *
 * <p>Positions count bytes since the ring was created and never shrink. The data is mapped twice in
 * a row, so a record that crosses the end is contiguous. Source: kernel/bpf/ringbuf.c.
 */
public final class RingBuffer implements EventSource {
    static final VarHandle LONG = JAVA_LONG.varHandle();
    static final VarHandle INT = JAVA_INT.varHandle();

    static final int HEADER = 8; // BPF_RINGBUF_HDR_SZ
    static final int DISCARDED = 1 << 30; // BPF_RINGBUF_DISCARD_BIT
    static final int LENGTH = DISCARDED - 1;

    /** Offset in the consumer page of the position up to which everything was consumed. */
    static final long CONSUMER = 0;
    /** Offset in the producer page of the position up to which everything was reserved. */
    static final long PRODUCER = 0;

    private final MappedMemory consumerPage;
    private final MappedMemory producerPages;
    private final MemorySegment consumer;
    private final MemorySegment producer;
    private final MemorySegment data;
    private final long size;
    private final Fd fd;

    private long position;
    private boolean busy;
    private long events;
    private long bytes;
    private long discarded;

    /**
     * Takes ownership of two mappings and a descriptor.
     *
     * @param consumerPage the page at offset 0, writable
     * @param producerPages the page after it and the data, twice {@code size}, read-only
     * @param size size of the data in bytes, a power of two
     * @param fd a descriptor of the map, for epoll
     */
    public RingBuffer(MappedMemory consumerPage, MappedMemory producerPages, long size, Fd fd) {
        this.consumerPage = consumerPage;
        this.producerPages = producerPages;
        this.consumer = consumerPage.segment();
        this.producer = producerPages.segment();
        this.data = producer.asSlice(producer.byteSize() - 2 * size);
        this.size = size;
        this.fd = fd;
        position = (long) LONG.getAcquire(consumer, CONSUMER);
    }

    /** Returns the distance to the next record, for a header's length: header, payload, padding. */
    static long total(int length) {
        return length + HEADER + 7L & ~7L;
    }

    /**
     * Returns the number of bytes in use in a ring, headers included, from its two pages of
     * positions. Both kinds of rings have the same pages.
     *
     * @param positions the consumer page and the producer page
     * @param pageSize size of a page in bytes
     * @param size size of the data in bytes
     */
    public static long fill(MappedMemory positions, long pageSize, long size) {
        MemorySegment pages = positions.segment();
        long consumed = (long) LONG.getAcquire(pages, CONSUMER);
        long whole = (long) LONG.getAcquire(pages, pageSize + RingFollower.OVERWRITE);
        long produced = (long) LONG.getAcquire(pages, pageSize + PRODUCER);
        return fill(Math.max(consumed, whole), produced, size);
    }

    /**
     * Returns the number of bytes in use, from two positions of which the consumer's was read
     * first. Both go on in between, so the difference may be more than there is room for.
     */
    static long fill(long consumed, long produced, long size) {
        return Math.clamp(produced - consumed, 0, size);
    }

    static CorruptEventsException corrupt(long position, String what) {
        return new CorruptEventsException(what, position);
    }

    /** Returns the error of positions of which one is misaligned, or which are too far apart. */
    static CorruptEventsException positions(long position, long end, long size) {
        if (((position | end) & 7) != 0) {
            return corrupt(position, "the consumer's position " + Long.toUnsignedString(position)
                + " and the producer's position " + Long.toUnsignedString(end)
                + " are not both multiples of 8");
        }
        return corrupt(position, "the producer's position " + Long.toUnsignedString(end)
            + " is not within " + size + " bytes after the consumer's position "
            + Long.toUnsignedString(position));
    }

    static CorruptEventsException header(long position, int length, long end) {
        return corrupt(position, "the record at position " + Long.toUnsignedString(position)
            + " has " + length + " bytes, which is more than the " + (end - position - HEADER)
            + " bytes up to the producer's position");
    }

    @Override
    public int drain(Handler handler, int limit) {
        // Not the own position: another consumer may have gone on, and the producer may have
        // overwritten what it took.
        long begin = (long) LONG.getAcquire(consumer, CONSUMER);
        long end = (long) LONG.getAcquire(producer, PRODUCER);
        position = begin;
        if (end - begin < 0 || end - begin > size || ((begin | end) & 7) != 0) {
            throw positions(begin, end, size);
        }
        busy = false;
        long before = events;
        long last = events + limit;
        try {
            // The loop ends at a record that it does not handle.
            while (loop(handler, end, last) && position != end && events != last) {
                long at = position;
                int header = (int) INT.getAcquire(READABLE, data.address() + (at & size - 1));
                if (header < 0) {
                    busy = true;
                    break;
                }
                long next = at + total(header & LENGTH);
                if (next - end > 0) {
                    throw header(at, header & LENGTH, end);
                }
                if ((header & DISCARDED) != 0) {
                    discarded++;
                    position = next;
                }
            }
        } finally {
            if (position != begin) { // or an old position would be written over a newer one
                LONG.setRelease(WRITABLE, consumer.address(), position);
            }
            Reference.reachabilityFence(this); // it keeps the memory mapped
        }
        return (int) (events - before);
    }

    /**
     * Passes events on until there is something else, and returns false if the handler ends it.
     *
     * <p>The time of an iteration is the time from one header to the next, if all its values are in
     * registers. So this has no more than it needs, and what an exception must not lose is stored
     * at once.
     */
    private boolean loop(Handler handler, long end, long last) {
        long data = this.data.address();
        long consumer = this.consumer.address();
        long mask = size - 1;
        long at = position;
        long n = events;
        long sum = bytes;
        while (at != end && n != last) {
            long record = data + (at & mask);
            long length = (int) INT.getAcquire(READABLE, record);
            long next = at + (length + HEADER + 7L & ~7L);
            if ((length & ~LENGTH) != 0 || next - end > 0) {
                return true;
            }
            at = next;
            position = at;
            events = ++n;
            bytes = sum += length;
            if (!handler.accept(READABLE, record + HEADER, (int) length)) {
                return false;
            }
            LONG.setRelease(WRITABLE, consumer, at);
        }
        return true;
    }

    @Override
    public boolean isBusy() {
        return busy;
    }

    @Override
    public boolean isReady() {
        return position != (long) LONG.getAcquire(producer, PRODUCER);
    }

    @Override
    public long busyPosition() {
        long at = position;
        boolean there = at != (long) LONG.getAcquire(producer, PRODUCER);
        return there && (int) INT.getAcquire(data, at & size - HEADER) < 0 ? at : -1;
    }

    @Override
    public long events() {
        return events;
    }

    @Override
    public long bytes() {
        return bytes;
    }

    @Override
    public long discarded() {
        return discarded;
    }

    @Override
    public long fill() {
        long consumed = (long) LONG.getAcquire(consumer, CONSUMER);
        return fill(consumed, (long) LONG.getAcquire(producer, PRODUCER), size);
    }

    @Override
    public long capacity() {
        return size;
    }

    @Override
    public Fd pollable() {
        return fd;
    }

    @Override
    public void close() {
        fd.close();
        consumerPage.close();
        producerPages.close();
    }
}
