package bpfmap.sys;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/** System calls on descriptors and paths other than {@code bpf(2)}. */
public final class Descriptors {
    private Descriptors() {}

    private static final int F_DUPFD_CLOEXEC = 1030; // linux/fcntl.h: F_LINUX_SPECIFIC_BASE + 6
    private static final int AT_FDCWD = -100; // linux/fcntl.h
    private static final int O_CLOEXEC = 02000000; // asm-generic/fcntl.h
    private static final int O_PATH = 010000000; // asm-generic/fcntl.h
    private static final int PIDFD_THREAD = 0200; // linux/pidfd.h: O_EXCL
    private static final int RENAME_NOREPLACE = 1; // linux/fs.h

    /**
     * Duplicates a descriptor: same open file, own lifetime, closed on exec.
     *
     * @return the new descriptor's number, or the negated errno
     */
    public static long duplicate(Fd fd) {
        int number = fd.acquire();
        try {
            return duplicate(number);
        } finally {
            fd.release();
        }
    }

    /** Duplicates a descriptor that somebody else owns. */
    public static long duplicate(int number) {
        return Native.syscall(Abi.SYS_FCNTL, number, F_DUPFD_CLOEXEC, 0, 0, 0);
    }

    /**
     * Opens a file without reading it: a descriptor that says which file is meant, and is closed on exec.
     *
     * @param readable open it for reading after all, which the kernel asks of a cgroup's directory
     * @return the new descriptor's number, or the negated errno
     */
    public static long open(String path, boolean readable) {
        try (Arena arena = Arena.ofConfined()) {
            return Native.syscall(Abi.SYS_OPENAT, AT_FDCWD, arena.allocateFrom(path).address(),
                O_CLOEXEC | (readable ? 0 : O_PATH), 0, 0);
        }
    }

    /**
     * A descriptor of a process, or of one thread of it (since Linux 6.9).
     *
     * @return the new descriptor's number, or the negated errno
     */
    public static long pidfd(int pid, boolean thread) {
        return Native.syscall(Abi.SYS_PIDFD_OPEN, pid, thread ? PIDFD_THREAD : 0, 0, 0, 0);
    }

    /**
     * Duplicates a descriptor of another process, which takes the right to trace it.
     *
     * @return the new descriptor's number, or the negated errno
     */
    public static long fromProcess(Fd pidfd, int number) {
        int process = pidfd.acquire();
        try {
            return Native.syscall(Abi.SYS_PIDFD_GETFD, process, number, 0, 0, 0);
        } finally {
            pidfd.release();
        }
    }

    /** What {@link #fileSystem} answers for a BPF file system: linux/magic.h, BPF_FS_MAGIC. */
    public static final long BPF_FS = 0xcafe4a11L;

    private static final long STATFS_SIZE = 120; // asm-generic/statfs.h on 64-bit processors; f_type is its first word

    /**
     * The kind of file system that a file is on.
     *
     * @return its magic number, or the negated errno
     */
    public static long fileSystem(String path) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment buffer = arena.allocate(STATFS_SIZE, 8);
            long result = Native.syscall(
                Abi.SYS_STATFS, arena.allocateFrom(path).address(), buffer.address(), 0, 0, 0);
            return result < 0 ? result : Bytes.get64(buffer, 0, false);
        }
    }

    private static final long TIOCGWINSZ = 0x5413; // asm-generic/ioctls.h; struct winsize: rows, columns, pixels twice

    /**
     * How many characters fit on the terminal that a descriptor of this process is.
     *
     * @return rows times 65536 and columns, 0 where the terminal does not know, or the negated errno: ENOTTY for no terminal
     */
    public static long windowSize(int number) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment size = arena.allocate(8, 2);
            long result = Native.syscall(Abi.SYS_IOCTL, number, TIOCGWINSZ, size.address(), 0, 0);
            return result < 0 ? result : (Bytes.getU16(size, 0, false) << 16) | Bytes.getU16(size, 2, false);
        }
    }

    /**
     * Renames a file in one step, refusing a target that exists.
     *
     * @return 0, or the negated errno
     */
    public static long rename(String from, String to) {
        try (Arena arena = Arena.ofConfined()) {
            return Native.syscall(Abi.SYS_RENAMEAT2, AT_FDCWD, arena.allocateFrom(from).address(),
                AT_FDCWD, arena.allocateFrom(to).address(), RENAME_NOREPLACE);
        }
    }
}
