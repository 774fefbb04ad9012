package bpfmap.sys;

import static bpfmap.sys.RingBuffer.INT;
import static bpfmap.sys.RingBuffer.LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.VarHandle;
import java.util.Arrays;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * Reads the buffer of one CPU of a {@code BPF_MAP_TYPE_PERF_EVENT_ARRAY} that keeps the newest
 * events. The kernel writes backwards, and overwrites the oldest ones.
 *
 * <p>Positions shrink. The newest record begins at the kernel's position, and older ones follow it.
 * So a pass copies what came since the last one, and hands out the copy from its end. Records near
 * the other end of the data may be overwritten during the copy. If some of these are new, the
 * kernel has to pause. Source: linux/perf_event.h, attr.write_backward and
 * PERF_EVENT_IOC_PAUSE_OUTPUT.
 */
public final class OverwritablePerfBuffer extends EventSource {
    private static final int HEADER = 8;
    private static final int BEFORE = HEADER + 4;

    private final MemorySegment meta;
    private final MemorySegment data;
    private final Fd event;
    private final int cpu;

    private MemorySegment copy;
    /** The offsets in the copy of records that were not handed out, newest first. */
    private int[] offsets = new int[64];
    private int pending;
    /** The kernel's position at the last pass: all records before it have been copied. */
    private long position;

    /**
     * Takes ownership of a read-only mapping and of a perf event that is written backwards.
     *
     * @param pages the page with the positions, and the data
     * @param pageSize size of the first page
     * @param cpu the number of the CPU
     */
    public OverwritablePerfBuffer(MappedMemory pages, long pageSize, Fd event, int cpu) {
        super(pages.segment().byteSize() - pageSize, event, pages);
        this.meta = pages.segment();
        this.data = meta.asSlice(pageSize);
        this.event = event;
        this.cpu = cpu;
        position = head();
    }

    private long head() {
        return (long) LONG.getAcquire(meta, Abi.PERF_PAGE_DATA_HEAD);
    }

    @Override
    public int cpu() {
        return cpu;
    }

    @Override
    public long fill() {
        return RingBuffer.fill(head(), position, size);
    }

    @Override
    public int drain(Handler handler, AtomicBoolean halt, int limit) {
        int n = handOut(handler, halt, limit);
        if (pending == 0 && n < limit && !halt.getOpaque()) {
            takeNew();
            n += handOut(handler, halt, limit - n);
        }
        return n;
    }

    /** Copies the records that are new. */
    private void takeNew() {
        long before = position;
        long head = head();
        if (head == before) {
            return;
        }
        if (before - head < 0 || (head & 7) != 0) {
            throw RingBuffer.corrupt(head, "the kernel's position " + Long.toUnsignedString(head)
                + " is not before the last one, " + Long.toUnsignedString(before)
                + ", or not a multiple of 8");
        }
        long length = copyFrom(head, before);
        // What the kernel writes at this moment overwrites the oldest records.
        VarHandle.loadLoadFence();
        long whole = size - PerfBuffer.IN_PROGRESS - (head - head());
        if (length > whole) {
            boolean paused = pause();
            try {
                head = head();
                length = copyFrom(head, before);
                if (!paused) {
                    VarHandle.loadLoadFence();
                    whole = size - PerfBuffer.IN_PROGRESS - (head - head());
                    length = Math.clamp(length, 0, Math.max(0, whole));
                }
            } finally {
                pauseOutput(0);
            }
        }
        position = head;
        long kept = split(head, length);
        if (kept < before - head) {
            overtaken++;
            missed += before - head - kept;
        }
    }

    /** Copies the bytes from a position to another one; returns their number. */
    private long copyFrom(long from, long to) {
        if (copy == null) {
            copy = Arena.ofAuto().allocate(size, 8);
        }
        long length = Math.min(to - from, size);
        long start = from & size - 1;
        long first = Math.min(length, size - start);
        MemorySegment.copy(data, start, copy, 0, first);
        MemorySegment.copy(data, 0, copy, first, length - first);
        return length;
    }

    /**
     * Notes where records begin in a number of copied bytes. The last one may be incomplete.
     *
     * @return the number of bytes in whole records
     */
    private long split(long head, long length) {
        long at = 0;
        while (length - at >= HEADER) {
            int record = recordLength(at);
            boolean lost = type(at) == Abi.PERF_RECORD_LOST;
            if (record < (lost ? PerfBuffer.LOST_SIZE : HEADER) || (record & 7) != 0) {
                pending = 0;
                throw RingBuffer.corrupt(head + at, "the record at position "
                    + Long.toUnsignedString(head + at) + " has type " + type(at) + " and " + record
                    + " bytes");
            }
            if (record > length - at) {
                break;
            }
            if (pending == offsets.length) {
                offsets = Arrays.copyOf(offsets, 2 * pending);
            }
            offsets[pending++] = (int) at;
            at += record;
        }
        return at;
    }

    private int type(long at) {
        return (int) INT.get(copy, at);
    }

    private int recordLength(long at) {
        return Short.toUnsignedInt(copy.get(ValueLayout.JAVA_SHORT, at + 6));
    }

    /** Passes on copied events, the oldest first. */
    private int handOut(Handler handler, AtomicBoolean halt, int limit) {
        int n = 0;
        RawEvent event = new RawEvent(cpu);
        while (pending > 0 && n < limit) {
            long at = offsets[--pending];
            if (type(at) == Abi.PERF_RECORD_LOST) {
                lost += (long) LONG.get(copy, at + 16);
            }
            if (type(at) != Abi.PERF_RECORD_SAMPLE) {
                continue;
            }
            int record = recordLength(at);
            int payload = record < BEFORE ? -1 : (int) INT.get(copy, at + HEADER);
            if (payload < 0 || payload > record - BEFORE) {
                throw RingBuffer.corrupt(position + at, "the record at position "
                    + Long.toUnsignedString(position + at) + " has " + record
                    + " bytes and an event of " + Integer.toUnsignedString(payload));
            }
            n++;
            if (!passOn(event, copy, at + BEFORE, payload, handler, halt)) {
                break;
            }
        }
        return n;
    }

    /**
     * Keeps the kernel from writing to the buffer, and waits for programs that are doing so: they
     * cannot be preempted, and MEMBARRIER_CMD_GLOBAL waits for such sections on all CPUs. Programs
     * get ENOSPC meanwhile, and the kernel counts their events as lost.
     *
     * @return false if the kernel cannot wait for programs
     */
    private boolean pause() {
        return pauseOutput(1) == 0
            && Native.syscall(Abi.SYS_MEMBARRIER, Abi.MEMBARRIER_CMD_GLOBAL, 0, 0, 0, 0) == 0;
    }

    private long pauseOutput(int on) {
        int number = event.acquire();
        try {
            return Native.syscall(
                Abi.SYS_IOCTL, number, Abi.PERF_EVENT_IOC_PAUSE_OUTPUT, on, 0, 0);
        } finally {
            event.release();
        }
    }
}
