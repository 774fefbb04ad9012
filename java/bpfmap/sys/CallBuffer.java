package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.concurrent.ConcurrentLinkedQueue;

/**
 * Native memory for one call at a time: errno, the attribute, the key, the value.
 *
 * <p>A platform thread keeps its own, so that an element operation allocates nothing itself. Virtual threads, which are
 * many and short-lived, share a pool. A call made while another is being prepared on the same thread (a codec that
 * reads a second map) gets memory of its own.
 */
public final class CallBuffer {
    /** Where the key begins in {@link #memory}. */
    public static final long KEY = 64;

    static final long ATTR = 16;

    private static final long SMALLEST = 4096;

    /** A thread that once handled a value of megabytes does not keep them for ever. */
    private static final long LARGEST_KEPT = 1 << 16;

    private static final ThreadLocal<CallBuffer> OWN = new ThreadLocal<>();
    private static final ConcurrentLinkedQueue<CallBuffer> POOL = new ConcurrentLinkedQueue<>();

    /** All of it; valid until {@link #give}. */
    public final MemorySegment memory;

    final long address;
    final MemorySegment capture;
    /** Which {@link Elements} the attribute has been filled in for, and the flags that stand in it. */
    long preparedFor;
    long flags;

    private final Arena arena;
    private boolean pooled;
    private boolean busy;

    private CallBuffer(long size, Arena arena) {
        // An automatic arena frees the memory with the thread; a given one frees it with the call.
        this.memory = (arena == null ? Arena.ofAuto() : arena).allocate(size, 16);
        this.address = memory.address();
        this.capture = memory.asSlice(0, Native.CAPTURE_SIZE);
        this.arena = arena;
    }

    /**
     * Takes memory for one call. Must be paired with {@link #give}, on the same thread.
     *
     * @param size bytes wanted, counted from the beginning of {@link #memory}
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

    /** The attribute, all zero: an element operation that comes next fills it in anew, and writes its flags if it has any. */
    MemorySegment clearedAttr(long size) {
        preparedFor = 0;
        flags = 0;
        return memory.asSlice(ATTR, size).fill((byte) 0);
    }

    void setFlags(long flags) {
        memory.set(JAVA_LONG, ATTR + Abi.ELEM_FLAGS, flags);
        this.flags = flags;
    }

    /** Ends the use of this memory. */
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
