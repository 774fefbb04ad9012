package bpfmap.sys;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.function.BiConsumer;
import java.util.function.ObjIntConsumer;

/**
 * Makes system calls on descriptors and paths other than {@code bpf(2)}.
 *
 * <p>A path is bytes without a NUL. {@code java.nio.file} cannot be used: in a locale other than
 * UTF-8 it cannot name every file.
 */
public final class FileSyscalls {
    private FileSyscalls() {}

    private static final int F_DUPFD_CLOEXEC = 1030; // linux/fcntl.h: F_LINUX_SPECIFIC_BASE + 6
    private static final int AT_FDCWD = -100; // linux/fcntl.h
    private static final int O_CLOEXEC = 02000000; // asm-generic/fcntl.h
    private static final int O_PATH = 010000000; // asm-generic/fcntl.h
    private static final int PIDFD_THREAD = 0200; // linux/pidfd.h: O_EXCL
    private static final int RENAME_NOREPLACE = 1; // linux/fs.h
    private static final int AT_SYMLINK_NOFOLLOW = 0x100; // linux/fcntl.h

    private static long address(Arena arena, byte[] path) {
        MemorySegment copy = arena.allocate(path.length + 1L);
        MemorySegment.copy(path, 0, copy, ValueLayout.JAVA_BYTE, 0, path.length);
        return copy.address();
    }

    /**
     * Duplicates a descriptor: same open file, independent lifetime, closed on exec.
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

    /** Duplicates a descriptor with another owner. */
    public static long duplicate(int number) {
        return Native.syscall(Abi.SYS_FCNTL, number, F_DUPFD_CLOEXEC, 0, 0, 0);
    }

    /**
     * Opens a file as a reference, without access to its content. The descriptor is closed on exec.
     *
     * @param readable true to open it for reading, which the kernel requires for the directory of a
     *     cgroup
     * @return the new descriptor's number, or the negated errno
     */
    public static long open(byte[] path, boolean readable) {
        return open(path, readable ? 0 : O_PATH, 0);
    }

    /**
     * Opens or creates a file; the descriptor is closed on exec.
     *
     * @param flags the flags of {@code openat(2)}
     * @param mode the permissions if the file is created
     * @return the new descriptor's number, or the negated errno
     */
    public static long open(byte[] path, int flags, int mode) {
        try (Arena arena = Arena.ofConfined()) {
            return Native.syscall(Abi.SYS_OPENAT, AT_FDCWD, address(arena, path), O_CLOEXEC | flags,
                mode, 0);
        }
    }

    private static final int FSCONFIG_CMD_CREATE = 6; // linux/mount.h
    private static final int FSOPEN_CLOEXEC = 1; // linux/mount.h; FSMOUNT_CLOEXEC is equal

    /**
     * Mounts a file system that only the returned descriptor reaches: no process sees the mount,
     * and it ends when the descriptor is closed. Its files are below {@code /proc/self/fd/N}.
     * Requires Linux 5.2 and CAP_SYS_ADMIN.
     *
     * @param type the type of the file system, such as tracefs
     * @return the descriptor of its root directory, or the negated errno
     */
    public static long mount(String type) {
        try (Arena arena = Arena.ofConfined()) {
            long name = arena.allocateFrom(type).address();
            long context = Native.syscall(Abi.SYS_FSOPEN, name, FSOPEN_CLOEXEC, 0, 0, 0);
            if (context < 0) {
                return context;
            }
            try {
                long created = Native.syscall(
                    Abi.SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, 0, 0, 0);
                return created < 0
                    ? created
                    : Native.syscall(Abi.SYS_FSMOUNT, context, FSOPEN_CLOEXEC, 0, 0, 0);
            } finally {
                Native.syscall(Abi.SYS_CLOSE, context, 0, 0, 0, 0);
            }
        }
    }

    /**
     * Reads from a descriptor into native memory. A read that a signal interrupts is repeated.
     *
     * @return the number of bytes, 0 at the end, or the negated errno
     */
    public static long read(Fd fd, MemorySegment into) {
        int number = fd.acquire();
        try {
            long n;
            do {
                n = Native.syscall(
                    Abi.SYS_READ, number, into.address(), into.byteSize(), 0, 0);
            } while (n == -Abi.EINTR);
            return n;
        } finally {
            fd.release();
        }
    }

    private static final int AF_UNIX = 1; // linux/socket.h
    private static final int SOCK_DGRAM = 2; // linux/net.h
    private static final int IFNAMSIZ = 16; // linux/if.h
    // linux/if.h, struct ifreq; the index is behind the name
    private static final int IFREQ_SIZE = 40;
    private static final int SIOCGIFINDEX = 0x8933; // linux/sockios.h

    /**
     * Returns the index of a network device in the network namespace of the calling thread.
     *
     * @param name at most 15 bytes
     * @return the index, or the negated errno: ENODEV if there is no such device
     */
    public static long deviceIndex(byte[] name) {
        if (name.length >= IFNAMSIZ) {
            return -Abi.ENODEV;
        }
        long socket = Native.syscall(Abi.SYS_SOCKET, AF_UNIX, SOCK_DGRAM | O_CLOEXEC, 0, 0, 0);
        if (socket < 0) {
            return socket;
        }
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment request = arena.allocate(IFREQ_SIZE, 8);
            MemorySegment.copy(name, 0, request, ValueLayout.JAVA_BYTE, 0, name.length);
            long outcome = Native.syscall(
                Abi.SYS_IOCTL, socket, SIOCGIFINDEX, request.address(), 0, 0);
            return outcome < 0 ? outcome : Bytes.getU32(request, IFNAMSIZ, false);
        } finally {
            Native.syscall(Abi.SYS_CLOSE, socket, 0, 0, 0, 0);
        }
    }

    private static final long READ_AT_ONCE = 4096;

    /**
     * Reads a whole small file, for example in /proc, with three system calls. {@code Files} makes
     * more and allocates more.
     *
     * @return the bytes, or null if the file cannot be read
     */
    public static byte[] readFile(byte[] path) {
        if (Native.unavailable() != null) {
            return null;
        }
        long number = open(path, 0, 0);
        return number < 0 ? null : readAndClose(number, false);
    }

    /**
     * @param whole true if a read that leaves room has reached the end, as in a file that the
     *     kernel writes in one piece
     */
    private static byte[] readAndClose(long number, boolean whole) {
        CallBuffer buffer = CallBuffer.take(READ_AT_ONCE);
        try {
            byte[] all = new byte[0];
            int size = 0;
            while (true) {
                long room = READ_AT_ONCE - CallBuffer.KEY;
                long n = Native.syscall(buffer.capture, Abi.SYS_READ, number, buffer.address
                    + CallBuffer.KEY, room, 0, 0);
                if (n == -Abi.EINTR) {
                    continue;
                }
                if (n <= 0) {
                    return n == 0 ? Arrays.copyOf(all, size) : null;
                }
                int end = size + (int) n;
                if (all.length < end) {
                    all = Arrays.copyOf(all, size == 0 ? end : 2 * end);
                }
                MemorySegment.copy(buffer.memory, ValueLayout.JAVA_BYTE, CallBuffer.KEY, all, size,
                    (int) n);
                size = end;
                if (whole && n < room) {
                    return size == all.length ? all : Arrays.copyOf(all, size);
                }
            }
        } finally {
            buffer.give();
            Native.syscall(Abi.SYS_CLOSE, number, 0, 0, 0, 0);
        }
    }

    /**
     * Opens a descriptor of a process, or of one of its threads (since Linux 6.9).
     *
     * @return the new descriptor's number, or the negated errno
     */
    public static long pidfd(int pid, boolean thread) {
        return Native.syscall(Abi.SYS_PIDFD_OPEN, pid, thread ? PIDFD_THREAD : 0, 0, 0, 0);
    }

    /**
     * Duplicates a descriptor of another process. Requires the right to trace that process.
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

    /** Result of {@link #fileSystem} for a BPF file system: linux/magic.h, BPF_FS_MAGIC. */
    public static final long BPF_FS = 0xcafe4a11L;

    // asm-generic/statfs.h on 64-bit processors; f_type is its first word
    private static final long STATFS_SIZE = 120;

    /**
     * Returns the type of the file system that a file is on.
     *
     * @return its magic number, or the negated errno
     */
    public static long fileSystem(byte[] path) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment buffer = arena.allocate(STATFS_SIZE, 8);
            long result = Native.syscall(
                Abi.SYS_STATFS, address(arena, path), buffer.address(), 0, 0, 0);
            return result < 0 ? result : Bytes.get64(buffer, 0, false);
        }
    }

    // asm-generic/ioctls.h; struct winsize: rows, columns, pixels twice
    private static final long TIOCGWINSZ = 0x5413;

    /**
     * Returns the size of the terminal behind a descriptor of this process, in characters.
     *
     * @return rows * 65536 + columns, 0 if the terminal does not report its size, or the negated
     *     errno: ENOTTY if it is not a terminal
     */
    public static long windowSize(int number) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment size = arena.allocate(8, 2);
            long result = Native.syscall(Abi.SYS_IOCTL, number, TIOCGWINSZ, size.address(), 0, 0);
            return result < 0
                ? result
                : (Bytes.getU16(size, 0, false) << 16) | Bytes.getU16(size, 2, false);
        }
    }

    /**
     * Renames a file atomically.
     *
     * @param replace true to replace an existing target; otherwise EEXIST is returned
     * @return 0, or the negated errno
     */
    public static long rename(byte[] from, byte[] to, boolean replace) {
        try (Arena arena = Arena.ofConfined()) {
            return Native.syscall(Abi.SYS_RENAMEAT2, AT_FDCWD, address(arena, from),
                AT_FDCWD, address(arena, to), replace ? 0 : RENAME_NOREPLACE);
        }
    }

    /**
     * Removes a file. Does not remove a directory.
     *
     * @return 0, or the negated errno
     */
    public static long remove(byte[] path) {
        try (Arena arena = Arena.ofConfined()) {
            return Native.syscall(Abi.SYS_UNLINKAT, AT_FDCWD, address(arena, path), 0, 0, 0);
        }
    }

    private static final long STATX_SIZE = 256; // linux/stat.h, struct statx
    private static final long STATX_MODE = 28; // stx_mode in it
    private static final int STATX_TYPE_AND_MODE = 3; // linux/stat.h

    /**
     * Returns the type and the permissions of a file, as in {@code st_mode} of {@code stat(2)}.
     * Requires Linux 4.11.
     *
     * @param follow true to follow a symbolic link
     * @return the mode, or the negated errno
     */
    public static long mode(byte[] path, boolean follow) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment buffer = arena.allocate(STATX_SIZE, 8);
            long result = Native.syscall(Abi.SYS_STATX, AT_FDCWD, address(arena, path),
                follow ? 0 : AT_SYMLINK_NOFOLLOW, STATX_TYPE_AND_MODE, buffer.address());
            return result < 0 ? result : Bytes.getU16(buffer, STATX_MODE, false);
        }
    }

    private static final int PATH_MAX = 4096; // linux/limits.h

    /**
     * Reads a symbolic link.
     *
     * @return the path in it, or null if it cannot be read
     */
    public static byte[] link(byte[] path) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment buffer = arena.allocate(PATH_MAX);
            long length = Native.syscall(
                Abi.SYS_READLINKAT, AT_FDCWD, address(arena, path), buffer.address(), PATH_MAX, 0);
            return length < 0 ? null : Bytes.copyOut(buffer, 0, (int) length);
        }
    }

    /**
     * Reads each small file of a directory such as {@code /proc/1/fdinfo}, and passes its name and
     * its bytes to a function. Skips files that no longer exist.
     *
     * @return 0, or the negated errno of the directory or of the first file that cannot be read;
     *     EIO if the reason is unknown
     */
    public static long readEach(byte[] path, BiConsumer<byte[], byte[]> file) {
        if (Native.unavailable() != null) {
            return -EIO;
        }
        long number = open(path, 0, 0);
        if (number < 0) {
            return number;
        }
        Fd directory = Fd.own(number);
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment memory = arena.allocate(NAME_MAX + 1);
            long[] failed = {0};
            long outcome = entries(directory, (name, type) -> {
                if (failed[0] != 0) {
                    return;
                }
                MemorySegment.copy(name, 0, memory, ValueLayout.JAVA_BYTE, 0, name.length);
                memory.set(ValueLayout.JAVA_BYTE, name.length, (byte) 0);
                long opened = Native.syscall(
                    Abi.SYS_OPENAT, number, memory.address(), O_CLOEXEC, 0, 0);
                byte[] bytes = opened < 0 ? null : readAndClose(opened, true);
                if (bytes != null) {
                    file.accept(name, bytes);
                } else if (opened != -Abi.ENOENT) {
                    failed[0] = opened < 0 ? opened : -EIO;
                }
            });
            return outcome < 0 ? outcome : failed[0];
        } finally {
            directory.close();
        }
    }

    private static final int NAME_MAX = 255; // linux/limits.h
    private static final int EIO = 5; // asm-generic/errno-base.h

    private static final int ENTRIES_SIZE = 32768;

    /**
     * Reads a directory from the current position of its descriptor, and passes each name and its
     * type, as in {@code readdir(3)}, to a function. Skips {@code .} and {@code ..}.
     *
     * @return 0, or the negated errno
     */
    public static long entries(Fd directory, ObjIntConsumer<byte[]> entry) {
        int number = directory.acquire();
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment buffer = arena.allocate(ENTRIES_SIZE, 8);
            while (true) {
                long length =
                    Native.syscall(Abi.SYS_GETDENTS64, number, buffer.address(), ENTRIES_SIZE, 0,
                    0);
                if (length <= 0) {
                    return length;
                }
                // struct linux_dirent64: inode and offset, 8 bytes each; length of the record, 2;
                // type, 1; name
                byte[] records = Bytes.copyOut(buffer, 0, (int) length);
                for (int at = 0; at < length; at += (int) Bytes.getU16(buffer, at + 16, false)) {
                    int end = at + 19;
                    while (records[end] != 0) {
                        end++;
                    }
                    byte[] name = Arrays.copyOfRange(records, at + 19, end);
                    boolean dots = name[0] == '.'
                        && (name.length == 1 || name.length == 2 && name[1] == '.');
                    if (!dots) {
                        entry.accept(name, records[at + 18]);
                    }
                }
            }
        } finally {
            directory.release();
        }
    }
}
