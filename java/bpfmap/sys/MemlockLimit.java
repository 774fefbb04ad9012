package bpfmap.sys;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/**
 * Raises this process's limit of locked memory, RLIMIT_MEMLOCK. Kernels before 5.11 charge maps and
 * programs to it and return EPERM if it is exceeded. Later kernels charge the memory cgroup.
 */
public final class MemlockLimit {
    private MemlockLimit() {}

    private static final int RLIMIT_MEMLOCK = 8; // asm-generic/resource.h
    private static final long RLIM_INFINITY = -1; // asm-generic/resource.h, unsigned
    // struct rlimit64 of linux/resource.h: the soft and the hard limit
    private static final long SIZE = 16;

    /**
     * Raises the limit to infinity, or, without the right to do so, to the hard limit. Raising the
     * hard limit requires CAP_SYS_RESOURCE.
     *
     * @return true if there is no limit now
     */
    public static boolean raise() {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment limit = arena.allocate(SIZE, 8);
            if (call(MemorySegment.NULL, limit) < 0) {
                return false;
            }
            long soft = Bytes.get64(limit, 0, false);
            long hard = Bytes.get64(limit, 8, false);
            if (soft == RLIM_INFINITY || set(limit, RLIM_INFINITY, RLIM_INFINITY)) {
                return true;
            }
            if (soft != hard) {
                set(limit, hard, hard);
            }
            return hard == RLIM_INFINITY;
        }
    }

    private static boolean set(MemorySegment limit, long soft, long hard) {
        Bytes.put64(limit, 0, soft, false);
        Bytes.put64(limit, 8, hard, false);
        return call(limit, MemorySegment.NULL) == 0;
    }

    /**
     * Sets the limit if {@code newLimit} is not NULL, and reads the old one if {@code oldLimit} is
     * not.
     */
    private static long call(MemorySegment newLimit, MemorySegment oldLimit) {
        return Native.syscall(Abi.SYS_PRLIMIT64, 0, RLIMIT_MEMLOCK, newLimit.address(),
            oldLimit.address(), 0);
    }
}
