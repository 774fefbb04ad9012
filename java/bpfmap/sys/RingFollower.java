package bpfmap.sys;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.invoke.VarHandle;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * Copies the records of a {@code BPF_MAP_TYPE_RINGBUF} whose places it cannot hold: of a ring that
 * somebody else consumes, or of a ring that overwrites its oldest records.
 *
 * <p>Each record is copied first, and believed only if the producer has not come round to it
 * meanwhile. The kernel writes the header of a record before it publishes the position behind it,
 * so in a ring that is followed a record may be lost 8 bytes earlier than the positions show. In an
 * overwriting ring, the position of the oldest whole record is published before it is overwritten.
 */
public final class RingFollower extends EventSource {
    /** Offset in the producer page of the position of the oldest record that is not committed. */
    static final long PENDING = 8;
    /** Offset in the producer page of the oldest whole record. Moves in overwriting rings only. */
    static final long OVERWRITE = 16;

    private static final int SMALLEST = 4096;

    private final MemorySegment consumer;
    private final MemorySegment producer;
    private final MemorySegment data;
    private final boolean overwrites;
    private final boolean consumes;

    private MemorySegment copy = Arena.ofAuto().allocate(SMALLEST, 8);
    private long position;

    /**
     * Takes ownership of two mappings and a descriptor.
     *
     * @param consumerPage the page at offset 0. If it is read-only, nothing is consumed
     * @param producerPages the page after it and the data, twice {@code size}, read-only
     * @param size size of the data in bytes, a power of two
     * @param overwrites true for a ring that overwrites its oldest records
     * @param now true to begin with the next record that is reserved, false with the oldest one
     * @param fd a descriptor of the map, for epoll; null to look by time
     */
    public RingFollower(MappedMemory consumerPage, MappedMemory producerPages, long size,
            boolean overwrites, boolean now, Fd fd) {
        super(size, fd, consumerPage, producerPages);
        this.consumer = consumerPage.segment();
        this.producer = producerPages.segment();
        this.data = producer.asSlice(producer.byteSize() - 2 * size);
        this.overwrites = overwrites;
        this.consumes = !consumerPage.isReadOnly();
        long end = produced();
        // While a ring has not been filled once, all of its history is still there.
        boolean whole = !overwrites && Long.compareUnsigned(end, size - RingBuffer.HEADER) <= 0;
        position = now ? end : whole && !consumes ? 0 : oldest();
    }

    private long produced() {
        return (long) RingBuffer.LONG.getAcquire(producer, RingBuffer.PRODUCER);
    }

    private long consumed() {
        return (long) RingBuffer.LONG.getAcquire(consumer, RingBuffer.CONSUMER);
    }

    /** Returns the position of the oldest record that is known to be whole. */
    private long oldest() {
        long consumed = consumed();
        if (overwrites) {
            long whole = (long) RingBuffer.LONG.getAcquire(producer, OVERWRITE);
            return whole - consumed > 0 ? whole : consumed;
        }
        return consumed;
    }

    /** Returns true if the record at a position may be overwritten already. */
    private boolean isOvertaken(long at) {
        return overwrites
            ? (long) RingBuffer.LONG.getAcquire(producer, OVERWRITE) - at > 0
            : produced() - at > size - RingBuffer.HEADER;
    }

    /** Goes to the oldest whole record, and counts the bytes in between. */
    private long skip(long at) {
        long end = produced();
        long to = oldest();
        // The owner's position is no help if the owner lags behind as well, or is gone.
        if (!overwrites && (end - to > size - RingBuffer.HEADER || to - at <= 0)
                || (to & 7) != 0) {
            to = end;
        }
        overtaken++;
        missed += to - at;
        position = to;
        return to;
    }

    private void room(int length) {
        if (copy.byteSize() < length) {
            copy = Arena.ofAuto().allocate(Math.max(length, 2 * copy.byteSize()), 8);
        }
    }

    private void consume(long to) {
        if (consumes) {
            RingBuffer.LONG.setRelease(consumer, RingBuffer.CONSUMER, to);
        }
    }

    @Override
    public int drain(Handler handler, AtomicBoolean halt, int limit) {
        RawEvent event = new RawEvent();
        long mask = size - 1;
        long at = position;
        long end = produced();
        if (end - at < 0 || ((at | end) & 7) != 0) {
            throw RingBuffer.positions(at, end, size);
        }
        int n = 0;
        busy = false;
        while (end - at > 0 && n < limit) {
            if (isOvertaken(at)) {
                at = skip(at);
                continue;
            }
            int header = (int) RingBuffer.INT.getAcquire(data, at & mask);
            int length = header & RingBuffer.LENGTH;
            // Within the ring, whatever the header is: it is checked after the copy.
            boolean fits = RingBuffer.total(length) <= size;
            boolean take = header >= 0 && (header & RingBuffer.DISCARDED) == 0 && fits;
            if (take) {
                room(length);
                MemorySegment.copy(data, (at & mask) + RingBuffer.HEADER, copy, 0, length);
            }
            VarHandle.loadLoadFence();
            if (isOvertaken(at)) {
                at = skip(at);
                continue;
            }
            if (header < 0) {
                busy = true;
                break;
            }
            long next = at + RingBuffer.total(length);
            if (!fits || next - produced() > 0) {
                throw RingBuffer.header(at, length, produced());
            }
            position = next;
            consume(next);
            at = next;
            if (!take) {
                discarded++;
                continue;
            }
            n++;
            if (!passOn(event, copy, 0, length, handler, halt)) {
                break;
            }
        }
        return n;
    }

    @Override
    public long busyPosition() {
        long at = position;
        boolean there = at != produced();
        long index = at & size - RingBuffer.HEADER;
        return there && (int) RingBuffer.INT.getAcquire(data, index) < 0 ? at : -1;
    }

    @Override
    public long fill() {
        long oldest = oldest();
        return RingBuffer.fill(oldest, produced(), size);
    }
}
