package bpfmap.sys;

import static bpfmap.sys.MappedMemory.READABLE;
import static bpfmap.sys.MappedMemory.WRITABLE;
import static bpfmap.sys.RingBuffer.INT;
import static bpfmap.sys.RingBuffer.LONG;
import static java.lang.foreign.ValueLayout.JAVA_INT_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_LONG_UNALIGNED;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.VarHandle;
import java.lang.ref.Reference;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * Reads the buffer of one CPU of a {@code BPF_MAP_TYPE_PERF_EVENT_ARRAY}: consumes an own one, or
 * copies what is in the buffer of another process without consuming it.
 *
 * <p>The memory is a page with positions, then the data. Positions count bytes since the buffer was
 * created and never shrink. A record that crosses the end of the data continues at its beginning,
 * and is copied. Source: linux/perf_event.h, struct perf_event_mmap_page.
 */
public final class PerfBuffer extends EventSource {
    /** Offset of the position at which the kernel writes next. */
    private static final long HEAD = Abi.PERF_PAGE_DATA_HEAD;
    /** Offset of the position up to which the owner has read. */
    private static final long TAIL = Abi.PERF_PAGE_DATA_TAIL;

    private static final int HEADER = 8; // struct perf_event_header: type, misc, size
    static final int LOST_SIZE = 24; // header, id, number of lost records
    /** Bytes before the payload of a sample: the header, and the size of the payload. */
    private static final int BEFORE = HEADER + 4;
    /** The length is in the last 16 bits of a header, and is a multiple of eight. */
    private static final int LENGTH_SHIFT = 48;
    private static final long TYPE_AND_REMAINDER = 7L << LENGTH_SHIFT | 0xffffffffL;
    /** More than the longest record. */
    private static final int LARGEST = 1 << 16;
    /** Offset of the bit fields of {@code struct perf_event_attr}, and one of them. */
    private static final int FLAGS = Abi.PERF_ATTR_READ_FORMAT + 8;
    private static final long WATERMARK = 1 << 14;
    private static final long WRITE_BACKWARD = 1 << 27;

    /**
     * The most bytes between the kernel's position and the end of what it writes at this moment.
     * The position is published when a record is complete, and at most three programs of a CPU can
     * be inside the helper, because an interrupt starts the next one. Source:
     * kernel/trace/bpf_trace.c, struct bpf_trace_sample_data.
     */
    static final long IN_PROGRESS = 3 * LARGEST;

    private final MemorySegment meta;
    private final MemorySegment data;
    private final int cpu;
    private final boolean own;

    private final MemorySegment copy = Arena.ofAuto().allocate(LARGEST, 8);
    private long position;
    /** Of a pass: the limit of the loop, and true if the handler or another thread ended it. */
    private long limit;
    private boolean stopped;
    private RawEvent copied;

    /**
     * Opens a perf event to which programs can write, on one CPU. It does nothing until it is
     * mapped, stored in the map and enabled.
     *
     * @param wakeup wake a waiting reader after so many events; if {@code watermark} is true, when
     *     so many bytes are in the buffer
     * @param backward true for an {@link OverwritablePerfBuffer}
     * @return its descriptor, or the negated errno: ENODEV if the CPU is offline
     */
    public static long open(int cpu, long wakeup, boolean watermark, boolean backward) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment attr = arena.allocate(Abi.PERF_ATTR_SIZE_VER0, 8);
            attr.set(ValueLayout.JAVA_INT, Abi.PERF_ATTR_TYPE, Abi.PERF_TYPE_SOFTWARE);
            attr.set(ValueLayout.JAVA_INT, Abi.PERF_ATTR_SIZE, Abi.PERF_ATTR_SIZE_VER0);
            attr.set(ValueLayout.JAVA_LONG, Abi.PERF_ATTR_CONFIG, Abi.PERF_COUNT_SW_BPF_OUTPUT);
            attr.set(ValueLayout.JAVA_LONG, Abi.PERF_ATTR_SAMPLE_TYPE, Abi.PERF_SAMPLE_RAW);
            attr.set(ValueLayout.JAVA_LONG, FLAGS,
                (watermark ? WATERMARK : 0) | (backward ? WRITE_BACKWARD : 0));
            attr.set(ValueLayout.JAVA_INT, Abi.PERF_ATTR_WAKEUP_EVENTS, (int) wakeup);
            return Native.syscall(
                Abi.SYS_PERF_EVENT_OPEN, attr.address(), -1, cpu, -1, Abi.PERF_FLAG_FD_CLOEXEC);
        }
    }

    /**
     * Lets programs write to a perf event.
     *
     * @return 0, or the negated errno
     */
    public static long enable(Fd event) {
        int number = event.acquire();
        try {
            return Native.syscall(Abi.SYS_IOCTL, number, Abi.PERF_EVENT_IOC_ENABLE, 0, 0, 0);
        } finally {
            event.release();
        }
    }

    /**
     * Takes ownership of a mapping and of a perf event.
     *
     * @param pages the page with the positions and the data; nothing is consumed if it is read-only
     * @param pageSize size of the first page
     * @param fd the perf event; null for one of another process. Nobody else may wait for that,
     *     because waiting takes the notification away from its owner
     * @param cpu the number of the CPU; negative if it is unknown
     * @param now true to begin with the next record, false with the oldest one
     */
    public PerfBuffer(MappedMemory pages, long pageSize, Fd fd, int cpu, boolean now) {
        super(pages.segment().byteSize() - pageSize, fd, pages);
        this.meta = pages.segment();
        this.data = meta.asSlice(pageSize);
        this.cpu = cpu;
        this.own = !pages.isReadOnly();
        position = now ? head() : tail();
    }

    private long head() {
        return (long) LONG.getAcquire(meta, HEAD);
    }

    private long tail() {
        return (long) LONG.getAcquire(meta, TAIL);
    }

    private CorruptEventsException corruptRecord(long at, int type, int length, long end) {
        return RingBuffer.corrupt(at, "the record at position " + Long.toUnsignedString(at)
            + " has type " + type + " and " + length + " bytes; there are " + (end - at)
            + " bytes up to the kernel's position");
    }

    /**
     * Goes to where the owner is, if the record at a position may be overwritten already. The
     * kernel overwrites only what the owner has read, and that only when it gets there, a whole
     * buffer later.
     */
    private boolean isOvertaken(long at) {
        if (own) {
            return false;
        }
        VarHandle.loadLoadFence();
        long valid = tail();
        if (valid - at <= 0 || head() - at <= size - IN_PROGRESS) {
            return false;
        }
        if ((valid & 7) != 0) {
            throw RingBuffer.positions(valid, head(), size);
        }
        overtaken++;
        missed += valid - at;
        position = valid;
        return true;
    }

    @Override
    public int drain(Handler handler, AtomicBoolean halt, int limit) {
        long end = head();
        if (end - position > size) {
            isOvertaken(position);
        }
        // The owner of another buffer may have read beyond the head that was read before.
        if (own && end - position < 0 || end - position > size || ((position | end) & 7) != 0) {
            throw RingBuffer.positions(position, end, size);
        }
        return own
            ? consume(handler, halt, limit, end)
            : follow(handler, halt, limit, end);
    }

    /** Reads the records of an own buffer. Nobody overwrites them, so most are read in place. */
    private int consume(Handler handler, AtomicBoolean halt, int limit, long end) {
        stopped = false;
        int n = inPlace(handler, halt, limit, end);
        while (!stopped && n < limit && position != end) {
            n += single(handler, halt, end);
            if (!stopped) {
                n += inPlace(handler, halt, limit - n, end);
            }
        }
        return n;
    }

    /**
     * Reads events in place, up to the end of the data or a record that is unusual: one that
     * crosses this end, has other contents, or is corrupt. {@link #single} reads these. A call here
     * for them would keep all variables of the loop in memory, and not in registers. See
     * RingBuffer.drain for the shape of the loop; the benchmark is bench-events.
     */
    private int inPlace(Handler handler, AtomicBoolean halt, int limit, long end) {
        long begin = position;
        long start = begin & size - 1;
        long record = data.address() + start;
        long behind = record + Math.min(end - begin, size - start);
        long toPosition = begin - record;
        long tail = meta.address() + TAIL;
        RawEvent event = new RawEvent(cpu);
        long left = limit;
        this.limit = limit;
        try {
            // A record without a payload has 16 bytes. All are multiples of eight.
            while (record < behind - HEADER && left != 0) {
                long header = READABLE.get(JAVA_LONG_UNALIGNED, record);
                long length = header >>> LENGTH_SHIFT;
                if ((header & TYPE_AND_REMAINDER) != Abi.PERF_RECORD_SAMPLE
                        || length > behind - record) {
                    break;
                }
                long payload = Integer.toUnsignedLong(
                    READABLE.get(JAVA_INT_UNALIGNED, record + HEADER));
                if (payload + BEFORE != length) {
                    break;
                }
                event.begin(record + BEFORE, payload);
                record += length;
                left--;
                boolean more = handler.accept(event);
                event.end();
                if (!more || halt.getOpaque()) {
                    stopped = true;
                    break;
                }
                LONG.setRelease(WRITABLE, tail, record + toPosition);
            }
        } finally {
            event.end();
            long at = record + toPosition;
            long n = this.limit - left;
            events += n;
            bytes += at - position - n * BEFORE;
            if (at != position) {
                position = at;
                LONG.setRelease(WRITABLE, tail, at);
            }
            Reference.reachabilityFence(this); // it keeps the memory
        }
        return (int) (this.limit - left);
    }

    /**
     * Reads the next record, whatever it is. Copies an event: it may cross the end of the data.
     *
     * @return the number of events passed on
     */
    private int single(Handler handler, AtomicBoolean halt, long end) {
        long at = position;
        long mask = size - 1;
        int type = (int) INT.get(data, at & mask);
        int length = Short.toUnsignedInt(data.get(ValueLayout.JAVA_SHORT, (at & mask) + 6));
        boolean sample = type == Abi.PERF_RECORD_SAMPLE;
        int payload = (int) INT.get(data, at + HEADER & mask);
        if (!fits(type, length, end - at)
                || sample && (payload < 0 || payload > length - BEFORE)) {
            throw corruptRecord(at, type, length, end);
        }
        position = at + length;
        try {
            if (!sample) {
                lost += lostIn(type, at);
                return 0;
            }
            events++;
            bytes += payload;
            RawEvent event = copiedEvent();
            try {
                event.begin(copied(at + BEFORE & mask, payload), payload);
                stopped = !handler.accept(event) || halt.getOpaque();
            } finally {
                event.end();
            }
            return 1;
        } finally {
            LONG.setRelease(meta, TAIL, at + length);
            Reference.reachabilityFence(this); // it keeps the memory
        }
    }

    /** Returns an object for a copied event; each thread needs its own. */
    private RawEvent copiedEvent() {
        if (copied == null || !copied.isOfThisThread()) {
            copied = new RawEvent(cpu);
        }
        return copied;
    }

    /** Returns true if the length of a record of a type is possible, with some bytes left. */
    private static boolean fits(int type, int length, long left) {
        int least = type == Abi.PERF_RECORD_LOST ? LOST_SIZE : HEADER;
        return length >= least && (length & 7) == 0 && length <= left;
    }

    /** Returns the number of lost events that a record reports. */
    private long lostIn(int type, long at) {
        return type == Abi.PERF_RECORD_LOST ? (long) LONG.get(data, at + 16 & size - 1) : 0;
    }

    /** Copies an event, which may cross the end of the buffer; returns the address of the copy. */
    private long copied(long start, int payload) {
        long first = Math.min(payload, size - start);
        MemorySegment.copy(data, start, copy, 0, first);
        MemorySegment.copy(data, 0, copy, first, payload - first);
        return copy.address();
    }

    /** Copies the records of another process, and believes those that were not overwritten. */
    private int follow(Handler handler, AtomicBoolean halt, int limit, long end) {
        RawEvent event = new RawEvent(cpu);
        long mask = size - 1;
        int n = 0;
        while (end - position > 0 && n < limit) {
            long at = position;
            int type = (int) INT.get(data, at & mask);
            int length = data.get(ValueLayout.JAVA_SHORT, (at & mask) + 6) & 0xffff;
            int payload = (int) INT.get(data, at + HEADER & mask);
            boolean sample = type == Abi.PERF_RECORD_SAMPLE;
            boolean valid = fits(type, length, end - at)
                && (!sample || payload >= 0 && payload <= length - BEFORE);
            long count = lostIn(type, at);
            if (sample && valid) {
                copied(at + BEFORE & mask, payload);
            }
            if (isOvertaken(at)) {
                continue;
            }
            if (!valid) {
                throw corruptRecord(at, type, length, end);
            }
            position = at + length;
            lost += count;
            if (sample) {
                n++;
                events++;
                bytes += payload;
                try {
                    event.begin(copy.address(), payload);
                    if (!handler.accept(event) || halt.getOpaque()) {
                        break;
                    }
                } finally {
                    event.end();
                    Reference.reachabilityFence(this); // it keeps the memory
                }
            }
        }
        return n;
    }

    @Override
    public int cpu() {
        return cpu;
    }

    @Override
    public long fill() {
        long tail = tail();
        return RingBuffer.fill(tail, head(), size);
    }
}
