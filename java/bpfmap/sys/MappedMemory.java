package bpfmap.sys;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.ref.Cleaner;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Consumer;

/**
 * One mapped range of memory: a segment of any size that many threads may use, and that goes when it is closed.
 *
 * <p>The segment belongs to a shared arena. Closing that stops every thread at a point where it is not in the middle of
 * an access, so an access either completes before the range is unmapped, or throws {@link IllegalStateException}; it
 * never faults. An access itself pays nothing for this: the machine code reads one flag, and a loop reads it once.
 *
 * <p>A range that nobody closed is unmapped when the garbage collector finds that neither this object nor any segment,
 * slice or buffer made of it can be reached.
 *
 * <pre>{@code
 * long address = MappedMemory.map(fd, size, true, 0);
 * try (MappedMemory region = MappedMemory.own(address, size, false)) {
 *     long first = region.segment().get(ValueLayout.JAVA_LONG, 0);
 * }
 * }</pre>
 */
public final class MappedMemory implements AutoCloseable {
    private static final Cleaner CLEANER = Cleaner.create();

    private static final int PROT_READ = 1; // asm-generic/mman-common.h, and those that follow
    private static final int PROT_WRITE = 2;
    private static final int MAP_SHARED = 1;
    /** Since Linux 4.17; an older kernel takes the address for a wish. */
    private static final int MAP_FIXED_NOREPLACE = 0x100000;

    private static final int MADV_POPULATE_READ = 22;
    private static final int MADV_POPULATE_WRITE = 23;

    private static final long PATIENCE = TimeUnit.SECONDS.toNanos(1);

    private final Arena arena = Arena.ofShared();
    private final MemorySegment segment;
    private final boolean readOnly;

    private MappedMemory(long address, long size, boolean readOnly) {
        this.readOnly = readOnly;
        MemorySegment whole = segment(address, size, new Anchor(new Range(address, size)));
        segment = readOnly ? whole.asReadOnly() : whole;
    }

    /**
     * Maps a file from its beginning, shared with all who map it.
     *
     * @param address where to, or 0 for anywhere; what else lies there is never replaced
     * @return the address, for {@link #own}, or the negated errno
     */
    public static long map(Fd fd, long size, boolean writable, long address) {
        int number = fd.acquire();
        try {
            return Native.syscall6(Abi.SYS_MMAP, address, size, PROT_READ | (writable ? PROT_WRITE : 0),
                MAP_SHARED | (address == 0 ? 0 : MAP_FIXED_NOREPLACE), number, 0);
        } finally {
            fd.release();
        }
    }

    /** Takes ownership of a mapped range. From now on nothing else may unmap it. */
    public static MappedMemory own(long address, long size, boolean readOnly) {
        if (address <= 0 || size <= 0) {
            throw new IllegalArgumentException("not a mapped range: " + size + " bytes at " + address);
        }
        return new MappedMemory(address, size, readOnly);
    }

    /** All of it. Usable by any thread until {@link #close}, then it throws {@link IllegalStateException}. */
    public MemorySegment segment() {
        return segment;
    }

    /** Whether the range can only be read. */
    public boolean isReadOnly() {
        return readOnly;
    }

    /**
     * Has the kernel make all pages of a part of the range that are not there yet. What it cannot make is an answer here,
     * and a signal, which ends the JVM, to an access that would need it. Since Linux 5.14.
     *
     * @return 0, or the negated errno
     */
    public long populate(MemorySegment part, long pageSize) {
        long from = part.address() & -pageSize;
        long to = part.address() + part.byteSize();
        return Native.syscall(Abi.SYS_MADVISE, from, to - from, readOnly ? MADV_POPULATE_READ : MADV_POPULATE_WRITE, 0, 0);
    }

    /** Whether the range is unmapped. */
    public boolean isClosed() {
        return !arena.scope().isAlive();
    }

    /**
     * Unmaps the range, now. Idempotent.
     *
     * <p>An input or output operation of {@code java.nio.channels} on a buffer of this memory holds the range while it lasts,
     * since the kernel itself is using it. Closing waits a second for such an operation to end.
     *
     * @throws IllegalStateException when one lasts longer; the range is still mapped then
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
    private MemorySegment segment(long address, long size, Anchor anchor) {
        return MemorySegment.ofAddress(address).reinterpret(size, arena, anchor);
    }

    /** The range itself, which is unmapped once: by close(), or by the cleaner. */
    private record Range(long address, long size) implements Runnable {
        @Override
        public void run() {
            Native.syscall(Abi.SYS_MUNMAP, address, size, 0, 0, 0);
        }
    }

    /**
     * What the arena calls when it is closed. The arena holds it until then, and every segment holds the arena: so the
     * cleaner finds it unreachable when no segment can be used any more, and not before.
     */
    private static final class Anchor implements Consumer<MemorySegment> {
        private final Cleaner.Cleanable cleanable;

        Anchor(Range range) {
            cleanable = CLEANER.register(this, range);
        }

        @Override
        public void accept(MemorySegment whole) {
            cleanable.clean();
        }
    }
}
