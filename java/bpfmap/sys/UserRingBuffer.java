package bpfmap.sys;

import static bpfmap.sys.RingBuffer.CONSUMER;
import static bpfmap.sys.RingBuffer.DISCARDED;
import static bpfmap.sys.RingBuffer.HEADER;
import static bpfmap.sys.RingBuffer.INT;
import static bpfmap.sys.RingBuffer.LENGTH;
import static bpfmap.sys.RingBuffer.LONG;
import static bpfmap.sys.RingBuffer.PRODUCER;
import static bpfmap.sys.RingBuffer.total;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.ref.WeakReference;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;

/**
 * Writes records to a {@code BPF_MAP_TYPE_USER_RINGBUF}, which programs drain. For any number of
 * threads, but there must be no other writer of the same ring.
 *
 * <p>The roles are those of {@link RingBuffer} exchanged: the kernel moves the consumer's position,
 * and this class the producer's. A record is sent in one step under the lock, so that a process
 * that is killed leaves no half of one. A reservation is published first, as busy, and blocks the
 * records behind it until it ends. Source: kernel/bpf/ringbuf.c, __bpf_user_ringbuf_peek.
 */
public final class UserRingBuffer implements AutoCloseable {
    private static final int BUSY = 1 << 31; // BPF_RINGBUF_BUSY_BIT

    /**
     * The longest record that a program can get. The kernel refuses a longer one with E2BIG, and
     * never comes to the records behind it. Source: include/linux/bpf.h, DYNPTR_MAX_SIZE.
     */
    private static final int LONGEST = (1 << 24) - 1;

    private final MappedMemory consumerPage;
    private final MappedMemory producerPages;
    private final MemorySegment consumer;
    private final MemorySegment producer;
    private final MemorySegment data;
    private final long size;
    private final Fd fd;
    private final Set<Reservation> open = new HashSet<>();

    private long position;
    private boolean closed;
    private long sent;
    private long bytes;
    private long discarded;

    /**
     * Takes ownership of two mappings and a descriptor.
     *
     * @param consumerPage the page at offset 0, read-only
     * @param producerPages the page after it and the data, twice {@code size}, writable
     * @param size size of the data in bytes, a power of two
     * @param fd a descriptor of the map, for epoll
     */
    public UserRingBuffer(MappedMemory consumerPage, MappedMemory producerPages, long size, Fd fd) {
        this.consumerPage = consumerPage;
        this.producerPages = producerPages;
        this.consumer = consumerPage.segment();
        this.producer = producerPages.segment();
        this.data = producer.asSlice(producer.byteSize() - 2 * size);
        this.size = size;
        this.fd = fd;
        position = (long) LONG.getAcquire(producer, PRODUCER);
    }

    /** Returns the length in bytes of the longest record that fits into the ring. */
    public int longest() {
        return (int) Math.min(LONGEST, size - HEADER);
    }

    /**
     * Discards the reservations that an earlier writer has left. The kernel would wait for them
     * for ever.
     *
     * @return the number of discarded reservations
     * @throws CorruptEventsException if a position or a header is invalid, which the kernel would
     *     refuse for ever
     */
    public synchronized int recover() {
        long at = consumed();
        check(at);
        int n = 0;
        while (at != position) {
            long index = at & size - 1;
            int header = (int) INT.getAcquire(data, index);
            int length = header & LENGTH;
            if (length > longest() || at + total(length) - position > 0) {
                throw RingBuffer.header(at, length, position);
            }
            if (header < 0) {
                INT.setRelease(data, index, length | DISCARDED);
                n++;
            }
            at += total(length);
        }
        return n;
    }

    private long consumed() {
        return (long) LONG.getAcquire(consumer, CONSUMER);
    }

    /** Checks the positions before anything is written. Anybody can write the producer's page. */
    private void check(long consumed) {
        long produced = (long) LONG.getAcquire(producer, PRODUCER);
        if (produced != position) {
            throw RingBuffer.corrupt(position, "the producer's position is "
                + Long.toUnsignedString(produced) + ", but this writer left it at "
                + Long.toUnsignedString(position) + ": there is another writer");
        }
        if (position - consumed < 0 || position - consumed > size
                || (position & 7) != 0 || (consumed & 7) != 0) {
            throw RingBuffer.positions(consumed, position, size);
        }
    }

    /** Returns true if a record fits now. Throws if there must be no record. */
    private boolean hasRoom(long length) {
        if (closed) {
            throw new ClosedFdException();
        }
        if (length < 0 || length > longest()) {
            throw new IllegalArgumentException("a record of " + length + " bytes");
        }
        long consumed = consumed();
        check(consumed);
        return position + total((int) length) - consumed <= size;
    }

    private void publish(int length, int bits) {
        long index = position & size - 1;
        data.set(ValueLayout.JAVA_INT, index + 4, 0);
        INT.setRelease(data, index, length | bits);
        position += total(length);
        LONG.setRelease(producer, PRODUCER, position);
    }

    /**
     * Sends a record.
     *
     * @return true if it was sent, false if the ring has no room for it now
     * @throws ClosedFdException after {@link #close}
     * @throws CorruptEventsException if the positions are not those that this writer left
     * @throws IllegalArgumentException if the record is longer than {@link #longest}
     */
    public synchronized boolean send(MemorySegment from, long offset, long length) {
        if (!hasRoom(length)) {
            return false;
        }
        MemorySegment.copy(from, offset, data, (position & size - 1) + HEADER, length);
        publish((int) length, 0);
        sent++;
        bytes += length;
        return true;
    }

    /**
     * Reserves a record, filled with zeros.
     *
     * @return the reservation, or null if the ring has no room for it now
     * @throws ClosedFdException after {@link #close}
     * @throws CorruptEventsException if the positions are not those that this writer left
     * @throws IllegalArgumentException if the record is longer than {@link #longest}
     */
    public synchronized Reservation reserve(long length) {
        if (!hasRoom(length)) {
            return null;
        }
        long index = position & size - 1;
        data.asSlice(index + HEADER, length).fill((byte) 0);
        publish((int) length, BUSY);
        Reservation reservation = new Reservation(index, (int) length);
        open.add(reservation);
        MappedMemory memory = producerPages.lend(
            data.address() - producer.address() + index + HEADER, length, reservation);
        reservation.memory = new WeakReference<>(memory);
        reservation.first = memory;
        return reservation;
    }

    private synchronized boolean end(Reservation reservation, int bits) {
        if (!open.remove(reservation)) {
            return false;
        }
        // An exchange in the kernel's own producer: the write before it must be visible.
        INT.setRelease(data, reservation.index, reservation.length | bits);
        if (bits == 0) {
            sent++;
            bytes += reservation.length;
        } else {
            discarded++;
        }
        return true;
    }

    /**
     * A place in the ring that is written before the program sees it. If its memory becomes
     * unreachable, it is discarded.
     */
    public final class Reservation implements Runnable {
        private final long index;
        private final int length;
        private boolean ending;
        private WeakReference<MappedMemory> memory;
        private MappedMemory first;

        private Reservation(long index, int length) {
            this.index = index;
            this.length = length;
        }

        /**
         * Returns the memory to write to, once. It becomes invalid when the reservation ends, and
         * closing it discards the reservation.
         */
        public MappedMemory take() {
            MappedMemory taken = first;
            first = null;
            return taken;
        }

        /**
         * Invalidates the memory, then hands the record to the programs.
         *
         * @return false if the reservation has ended before
         */
        public boolean commit() {
            return endAs(0);
        }

        /**
         * Invalidates the memory, then discards the record.
         *
         * @return false if the reservation has ended before
         */
        public boolean discard() {
            return endAs(DISCARDED);
        }

        private boolean endAs(int bits) {
            synchronized (this) {
                if (ending) {
                    return false;
                }
                ending = true;
            }
            MappedMemory mapped = memory.get();
            if (mapped != null) {
                mapped.close(); // first, so that nobody writes to a record that a program reads
            }
            return end(this, bits);
        }

        /** Is called when the memory was closed, or is unreachable. */
        @Override
        public void run() {
            synchronized (this) {
                if (ending) {
                    return;
                }
                ending = true;
            }
            end(this, DISCARDED);
        }
    }

    /** Returns the number of records sent, those of reservations included. */
    public synchronized long sent() {
        return sent;
    }

    /** Returns the number of bytes in the records sent, without headers. */
    public synchronized long bytes() {
        return bytes;
    }

    /** Returns the number of reservations that were discarded. */
    public synchronized long discarded() {
        return discarded;
    }

    /** Returns the number of reservations that have not ended. */
    public synchronized int reserved() {
        return open.size();
    }

    /** Returns the number of bytes in use now, headers included. */
    public synchronized long fill() {
        if (closed) {
            return 0;
        }
        return position - consumed();
    }

    /** Returns the size of the ring in bytes. */
    public long capacity() {
        return size;
    }

    /** Returns the descriptor to wait for with epoll. It belongs to this writer. */
    public Fd pollable() {
        return fd;
    }

    /** Returns true after {@link #close}. */
    public synchronized boolean isClosed() {
        return closed;
    }

    /**
     * Discards all reservations and unmaps the ring. Idempotent.
     *
     * @throws IllegalStateException if an input or output operation uses the memory of a
     *     reservation; the ring is still mapped then, and this can be called again
     */
    @Override
    public void close() {
        ArrayList<Reservation> left;
        synchronized (this) {
            closed = true; // no further reservation
            left = new ArrayList<>(open);
        }
        left.forEach(Reservation::discard);
        synchronized (this) {
            // A reservation whose memory another thread has just closed, to end it.
            List.copyOf(open).forEach(reservation -> end(reservation, DISCARDED));
            fd.close();
            consumerPage.close();
            producerPages.close();
        }
    }
}
