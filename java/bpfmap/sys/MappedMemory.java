package bpfmap.sys;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.ref.Cleaner;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Consumer;

/**
 * Owns one mapped range of memory: a segment that many threads may use until it is closed.
 *
 * <p>The segment belongs to a shared arena. Closing the arena stops every thread outside an access,
 * so an access either completes before the range is unmapped, or throws
 * {@link IllegalStateException}. It never faults. This does not slow an access: the machine code
 * reads one flag, and a loop reads it once.
 *
 * <p>If a range is not closed, it is unmapped after this object and all segments, slices and
 * buffers made from it become unreachable.
 *
 * <pre>{@code
 * long address = MappedMemory.map(fd, size, true, 0);
 * try (MappedMemory memory = MappedMemory.own(address, size, false)) {
 *     long first = memory.segment().get(ValueLayout.JAVA_LONG, 0);
 * }
 * }</pre>
 */
public final class MappedMemory implements AutoCloseable {
    private static final Cleaner CLEANER = Cleaner.create();

    private static final int PROT_READ = 1; // asm-generic/mman-common.h, and the next two
    private static final int PROT_WRITE = 2;
    private static final int MAP_SHARED = 1;
    /** Since Linux 4.17. An older kernel treats the address as a hint. */
    private static final int MAP_FIXED_NOREPLACE = 0x100000;

    private static final int MADV_POPULATE_READ = 22;
    private static final int MADV_POPULATE_WRITE = 23;

    private static final long PATIENCE = TimeUnit.SECONDS.toNanos(1);

    /**
     * All addresses of this process, for the loops over events only: an access costs what it does
     * in C. Whoever uses it checks offsets, and keeps the memory mapped meanwhile.
     */
    static final MemorySegment WRITABLE = allAddresses();

    /** The same for reading. A write throws; a write to a read-only page would end the JVM. */
    static final MemorySegment READABLE = WRITABLE.asReadOnly();

    private final Arena arena = Arena.ofShared();
    private final MemorySegment segment;
    private final boolean readOnly;

    private MappedMemory(long address, long size, boolean readOnly, Runnable end) {
        this.readOnly = readOnly;
        MemorySegment whole = segment(address, size, new Anchor(end));
        segment = readOnly ? whole.asReadOnly() : whole;
    }

    /**
     * Maps a file from its beginning, as shared memory.
     *
     * @param address the address to map at, or 0 for any; an existing mapping is never replaced
     * @return the address, for {@link #own}, or the negated errno
     */
    public static long map(Fd fd, long size, boolean writable, long address) {
        return map(fd, 0, size, writable, address);
    }

    /**
     * Maps a part of a file, as shared memory.
     *
     * @param offset where the part begins, a multiple of the page size
     * @param address the address to map at, or 0 for any; an existing mapping is never replaced
     * @return the address, for {@link #own}, or the negated errno
     */
    public static long map(Fd fd, long offset, long size, boolean writable, long address) {
        int number = fd.acquire();
        try {
            return Native.syscall6(Abi.SYS_MMAP, address, size, PROT_READ
                | (writable ? PROT_WRITE : 0),
                MAP_SHARED | (address == 0 ? 0 : MAP_FIXED_NOREPLACE), number, offset);
        } finally {
            fd.release();
        }
    }

    /** Takes ownership of a mapped range. Nothing else may unmap it afterwards. */
    public static MappedMemory own(long address, long size, boolean readOnly) {
        if (address <= 0 || size <= 0) {
            throw new IllegalArgumentException("not a mapped range: " + size + " bytes at "
                + address);
        }
        return new MappedMemory(address, size, readOnly, new Range(address, size));
    }

    /**
     * Returns memory that somebody else owns as a mapping. Closing it unmaps nothing, but runs an
     * action, which keeps the memory alive until then.
     *
     * @param end runs once, as that of {@link #lend}
     */
    static MappedMemory borrow(long address, long size, boolean readOnly, Runnable end) {
        return new MappedMemory(address, size, readOnly, end);
    }

    /**
     * Returns a part of the range that can be closed before the whole, and must be. Closing it
     * unmaps nothing, but ends all access to it, and then runs an action.
     *
     * @param end runs once: when the part is closed, or after it and its segments became
     *     unreachable. It must not refer to them
     */
    MappedMemory lend(long offset, long size, Runnable end) {
        MemorySegment part = segment.asSlice(offset, size);
        return new MappedMemory(part.address(), size, readOnly, end);
    }

    /**
     * Returns the whole range. Any thread may use it until {@link #close}; then it throws
     * {@link IllegalStateException}.
     */
    public MemorySegment segment() {
        return segment;
    }

    /** Returns true if the range can only be read. */
    public boolean isReadOnly() {
        return readOnly;
    }

    /**
     * Allocates all missing pages of a part of the range. If a page cannot be allocated, this
     * returns an errno; an access to it would cause a signal that ends the JVM. Since Linux 5.14.
     *
     * @return 0, or the negated errno
     */
    public long populate(MemorySegment part, long pageSize) {
        long from = part.address() & -pageSize;
        long to = part.address() + part.byteSize();
        return Native.syscall(Abi.SYS_MADVISE, from, to - from,
            readOnly ? MADV_POPULATE_READ : MADV_POPULATE_WRITE, 0, 0);
    }

    /** Returns true if the range is unmapped. */
    public boolean isClosed() {
        return !arena.scope().isAlive();
    }

    /**
     * Unmaps the range immediately. Idempotent.
     *
     * <p>An input or output operation of {@code java.nio.channels} on a buffer of this memory keeps
     * the range open, because the kernel uses it. Closing waits one second for such an operation.
     *
     * @throws IllegalStateException if an operation takes longer; the range is still mapped then
     */
    @Override
    public void close() {
        long begun = System.nanoTime();
        while (!isClosed()) {
            try {
                arena.close();
            } catch (IllegalStateException e) {
                if (!isClosed()) {
                    if (System.nanoTime() - begun > PATIENCE) {
                        throw e;
                    }
                    LockSupport.parkNanos(100_000);
                }
            }
        }
    }

    @SuppressWarnings("restricted")
    private static MemorySegment allAddresses() {
        return MemorySegment.NULL.reinterpret(Long.MAX_VALUE);
    }

    @SuppressWarnings("restricted")
    private MemorySegment segment(long address, long size, Anchor anchor) {
        return MemorySegment.ofAddress(address).reinterpret(size, arena, anchor);
    }

    /** Unmaps the range, once: called by close() or by the cleaner. */
    private record Range(long address, long size) implements Runnable {
        @Override
        public void run() {
            Native.syscall(Abi.SYS_MUNMAP, address, size, 0, 0, 0);
        }
    }

    /**
     * Is called when the arena is closed. The arena refers to it until then, and every segment
     * refers to the arena. So it becomes unreachable only when no segment can be used.
     */
    private static final class Anchor implements Consumer<MemorySegment> {
        private final Cleaner.Cleanable cleanable;

        Anchor(Runnable end) {
            cleanable = CLEANER.register(this, end);
        }

        @Override
        public void accept(MemorySegment whole) {
            cleanable.clean();
        }
    }
}
