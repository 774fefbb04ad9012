package bpfmap.sys;

import static bpfmap.sys.MappedMemory.READABLE;
import static bpfmap.sys.MappedMemory.WRITABLE;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_INT_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_LONG;
import static java.lang.foreign.ValueLayout.JAVA_LONG_UNALIGNED;

import java.lang.foreign.MemorySegment;
import java.lang.invoke.VarHandle;
import java.lang.ref.Reference;
import java.util.Objects;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * Consumes a {@code BPF_MAP_TYPE_RINGBUF}: takes its records, and gives their places back.
 *
 * <p>Positions count bytes since the ring was created and never shrink. The data is mapped twice in
 * a row, so a record that crosses the end is contiguous. Source: kernel/bpf/ringbuf.c.
 */
public final class RingBuffer extends EventSource {
    static final VarHandle LONG = JAVA_LONG.varHandle();
    static final VarHandle INT = JAVA_INT.varHandle();

    static final int HEADER = 8; // BPF_RINGBUF_HDR_SZ
    static final int DISCARDED = 1 << 30; // BPF_RINGBUF_DISCARD_BIT
    static final int LENGTH = DISCARDED - 1;

    private static final long ONE_EVENT = 1L << 32;

    /** Offset in the consumer page of the position up to which everything was consumed. */
    static final long CONSUMER = 0;
    /** Offset in the producer page of the position up to which everything was reserved. */
    static final long PRODUCER = 0;

    private final MemorySegment consumer;
    private final MemorySegment producer;
    private final MemorySegment data;

    // What only the end of a pass needs: as a local variable it would take a register of the loop.
    private long begin;

    /**
     * Takes ownership of two mappings and a descriptor.
     *
     * @param consumerPage the page at offset 0, writable
     * @param producerPages the page after it and the data, twice {@code size}, read-only
     * @param size size of the data in bytes, a power of two
     * @param fd a descriptor of the map, for epoll
     */
    public RingBuffer(MappedMemory consumerPage, MappedMemory producerPages, long size, Fd fd) {
        super(size, fd, consumerPage, producerPages);
        this.consumer = consumerPage.segment();
        this.producer = producerPages.segment();
        this.data = producer.asSlice(producer.byteSize() - 2 * size);
    }

    private long consumed() {
        return (long) LONG.getAcquire(consumer, CONSUMER);
    }

    private long produced() {
        return (long) LONG.getAcquire(producer, PRODUCER);
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
    public int drain(Handler handler, AtomicBoolean halt, int limit) {
        // Not an own position: another consumer may have gone on, and the producer may have
        // overwritten what it took.
        long begin = consumed();
        long end = produced();
        if (end - begin < 0 || end - begin > size || ((begin | end) & 7) != 0) {
            throw positions(begin, end, size);
        }
        busy = false;
        long consumer = this.consumer.address();
        // A pass reads at most the size of the ring, and its memory comes twice in a row. So the
        // records of a pass are at increasing addresses.
        long record = data.address() + (begin & size - 1);
        long shift = record - begin;
        long stop = end + shift;
        // Does not escape if the handler is inlined; then nothing of it remains in the loop.
        RawEvent event = new RawEvent();
        // Read here, and not by the handler: what is the same for all events remains outside of the
        // loop. The row "a map of four fields" of bpfmap.bench.events justifies it.
        StructWords.Reader structs = StructWords.reader(handler.struct());
        // The number of events, times 2^32, and of bytes, of which a ring has fewer: one local
        // variable for both, since the loop needs all registers.
        long used = 0;
        long most = limit * ONE_EVENT;
        this.begin = begin;
        Objects.requireNonNull(halt);
        try {
            while (record != stop && used < most) {
                // A pass takes the time from one header to the next. So there is no sign to extend
                // and no alignment to check here, nor at the end: fences order what a VarHandle
                // would.
                long header = Integer.toUnsignedLong(READABLE.get(JAVA_INT_UNALIGNED, record));
                VarHandle.acquireFence();
                long payload = record + HEADER;
                long next = record + (header + HEADER + 7 & ~7L);
                if (header > LENGTH || next - stop > 0) {
                    if ((int) header < 0) {
                        busy = true;
                        break;
                    }
                    int length = (int) header & LENGTH;
                    next = record + total(length);
                    if (next - stop > 0) {
                        throw header(record - shift, length, end);
                    }
                    discarded++;
                    record = next;
                    continue;
                }
                record = next;
                used += ONE_EVENT + header;
                Object value = header == structs.size() ? structs.read(READABLE, payload) : null;
                boolean more;
                if (value == null) {
                    event.begin(payload, header);
                    more = handler.accept(event);
                    event.end();
                } else {
                    more = handler.acceptStruct(value);
                }
                if (!more || halt.getOpaque()) {
                    break;
                }
                VarHandle.releaseFence();
                WRITABLE.set(JAVA_LONG_UNALIGNED, consumer, record - shift);
            }
        } finally {
            event.end();
            long at = record - shift;
            if (at != this.begin) { // or an old position would be written over a newer one
                LONG.setRelease(WRITABLE, consumer, at);
            }
            events += used >>> 32;
            bytes += used & ONE_EVENT - 1;
            Reference.reachabilityFence(this); // it keeps the memory mapped
        }
        return (int) (used >>> 32);
    }

    @Override
    public long busyPosition() {
        long at = consumed();
        boolean there = at != produced();
        return there && (int) INT.getAcquire(data, at & size - HEADER) < 0 ? at : -1;
    }

    @Override
    public long fill() {
        long consumed = consumed();
        return fill(consumed, produced(), size);
    }
}
