package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.concurrent.ConcurrentLinkedQueue;

/**
 * Holds native memory for one call at a time: errno, the attribute, the key and the value.
 *
 * <p>Each platform thread keeps its own buffer, so that an element operation allocates nothing.
 * Virtual threads, which are many and short-lived, share a pool. If a call is made while another is
 * being prepared on the same thread, for example by a codec that reads a second map, it gets
 * another buffer.
 */
public final class CallBuffer {
    /** Offset of the key in {@link #memory}. */
    public static final long KEY = 64;

    static final long ATTR = 16;

    private static final long SMALLEST = 4096;

    /**
     * Larger buffers are freed after the call, so that a thread does not keep megabytes after one
     * large value.
     */
    private static final long LARGEST_KEPT = 1 << 16;

    private static final ThreadLocal<CallBuffer> OWN = new ThreadLocal<>();
    private static final ConcurrentLinkedQueue<CallBuffer> POOL = new ConcurrentLinkedQueue<>();

    /** The whole buffer; valid until {@link #give}. */
    public final MemorySegment memory;

    final long address;
    final MemorySegment capture;
    /** Id of the {@link Elements} for which the attribute is filled in. */
    long preparedFor;
    long flags;

    private final Arena arena;
    private boolean pooled;
    private boolean busy;

    private CallBuffer(long size, Arena arena) {
        // An automatic arena frees the memory with the thread, a given arena with the call.
        this.memory = (arena == null ? Arena.ofAuto() : arena).allocate(size, 16);
        this.address = memory.address();
        this.capture = memory.asSlice(0, Native.CAPTURE_SIZE);
        this.arena = arena;
    }

    /**
     * Takes a buffer for one call. Must be paired with {@link #give}, on the same thread.
     *
     * @param size required size of {@link #memory} in bytes
     */
    public static CallBuffer take(long size) {
        if (!Thread.currentThread().isVirtual()) {
            CallBuffer own = OWN.get();
            if (own != null && !own.busy && size <= own.memory.byteSize()) {
                own.busy = true;
                return own;
            }
        }
        return takeElsewhere(size);
    }

    private static CallBuffer takeElsewhere(long size) {
        if (size > LARGEST_KEPT) {
            return new CallBuffer(size, Arena.ofConfined());
        }
        CallBuffer taken = null;
        if (!Thread.currentThread().isVirtual() && (OWN.get() == null || !OWN.get().busy)) {
            taken = new CallBuffer(Math.max(size, SMALLEST), null);
            OWN.set(taken);
        } else {
            taken = POOL.poll();
            if (taken == null || taken.memory.byteSize() < size) {
                taken = new CallBuffer(Math.max(size, SMALLEST), null);
            }
            taken.pooled = true;
        }
        taken.busy = true;
        return taken;
    }

    /**
     * Clears the attribute and returns it. The next element operation fills it in again and writes
     * its flags.
     */
    MemorySegment clearedAttr(long size) {
        preparedFor = 0;
        flags = 0;
        return memory.asSlice(ATTR, size).fill((byte) 0);
    }

    void setFlags(long flags) {
        memory.set(JAVA_LONG, ATTR + Abi.ELEM_FLAGS, flags);
        this.flags = flags;
    }

    /** Returns this buffer to its thread or pool. */
    public void give() {
        if (arena != null) {
            arena.close();
        } else {
            busy = false;
            if (pooled) {
                POOL.offer(this);
            }
        }
    }
}
