package bpfmap.sys;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.util.Collections;

/**
 * Makes system calls, through the C library's {@code syscall(2)}. No other class uses the linker.
 *
 * <p>The downcall that sets {@code errno} also captures it. The JVM may run other native code
 * between two downcalls, so a second downcall could read the errno of other code.
 */
public final class Native {
    private Native() {}

    /** Size in bytes of a capture segment, which receives the errno of a failed call. */
    public static final long CAPTURE_SIZE = Linker.Option.captureStateLayout().byteSize();

    /**
     * Offset of errno in a capture segment. A number, because creating a VarHandle slows every
     * start.
     */
    private static final long ERRNO =
        Linker.Option.captureStateLayout()
            .byteOffset(MemoryLayout.PathElement.groupElement("errno"));

    private static final String UNAVAILABLE;
    private static final MethodHandle SYSCALL;

    // A class whose initializer throws reports the reason only once, so it is kept for every call.
    static {
        MethodHandle handle = null;
        String reason = null;
        if (!"Linux".equals(System.getProperty("os.name"))) {
            reason = "BPF maps live in the Linux kernel; this is " + System.getProperty("os.name");
        } else if (Abi.SYS_BPF < 0) {
            reason = "the system call numbers of this processor are not known: "
                + System.getProperty("os.arch")
                + " (known: amd64, aarch64, riscv64)";
        } else {
            try {
                handle = link(5);
            } catch (IllegalCallerException e) {
                reason = "this JVM denies native access: start it with "
                    + "--enable-native-access=ALL-UNNAMED";
            }
        }
        SYSCALL = handle;
        UNAVAILABLE = reason;
    }

    /**
     * Holds the handle of mmap, the only call with six arguments: a sixth would slow every other
     * call.
     */
    private static final class Six {
        static final MethodHandle SYSCALL = link(6);
    }

    @SuppressWarnings("restricted")
    private static MethodHandle link(int arguments) {
        Linker linker = Linker.nativeLinker();
        MemoryLayout word = ValueLayout.JAVA_LONG;
        return linker.downcallHandle(
            linker.defaultLookup().find("syscall").orElseThrow(),
            FunctionDescriptor.of(word,
            Collections.nCopies(1 + arguments, word).toArray(MemoryLayout[]::new)),
            Linker.Option.firstVariadicArg(1),
            Linker.Option.captureCallState("errno"));
    }

    /**
     * Returns why no system call can be made here, or null if calls can be made.
     *
     * @return a reason for an error message, without a full stop
     */
    public static String unavailable() {
        return UNAVAILABLE;
    }

    /**
     * Makes one system call.
     *
     * @param capture memory of at least {@link #CAPTURE_SIZE} bytes that no other call uses
     * @param number the number of the call on this processor
     * @return the result of the call, or the negated errno
     * @throws UnsupportedOperationException if this is not Linux, or native access is denied
     */
    public static long syscall(MemorySegment capture, long number, long a, long b, long c, long d,
            long e) {
        if (SYSCALL == null) {
            throw new UnsupportedOperationException(UNAVAILABLE);
        }
        try {
            long result = (long) SYSCALL.invokeExact(capture, number, a, b, c, d, e);
            return result == -1 ? -(long) capture.get(ValueLayout.JAVA_INT, ERRNO) : result;
        } catch (RuntimeException | Error t) {
            throw t;
        } catch (Throwable t) {
            throw new IllegalStateException(t); // a downcall throws no checked exception
        }
    }

    /**
     * Makes one system call and provides the memory for errno. For calls that are not hot.
     *
     * @return the result of the call, or the negated errno
     */
    public static long syscall(long number, long a, long b, long c, long d, long e) {
        CallBuffer buffer = CallBuffer.take(CAPTURE_SIZE);
        try {
            return syscall(buffer.capture, number, a, b, c, d, e);
        } finally {
            buffer.give();
        }
    }

    /**
     * Makes one system call with six arguments and provides the memory for errno.
     *
     * @return the result of the call, or the negated errno
     * @throws UnsupportedOperationException if this is not Linux, or native access is denied
     */
    static long syscall6(long number, long a, long b, long c, long d, long e, long f) {
        if (SYSCALL == null) {
            throw new UnsupportedOperationException(UNAVAILABLE);
        }
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment capture = arena.allocate(CAPTURE_SIZE, 8);
            long result = (long) Six.SYSCALL.invokeExact(capture, number, a, b, c, d, e, f);
            return result == -1 ? -(long) capture.get(ValueLayout.JAVA_INT, ERRNO) : result;
        } catch (RuntimeException | Error t) {
            throw t;
        } catch (Throwable t) {
            throw new IllegalStateException(t); // a downcall throws no checked exception
        }
    }

    /**
     * Makes one {@code bpf(2)} call, and repeats it if a signal interrupts it.
     *
     * <p>Two kinds of commands must not be repeated unconditionally and use {@link #syscall}:
     * {@code BPF_PROG_TEST_RUN}, because the program may have run, and the batch commands, because
     * the kernel may have written the count.
     *
     * @param attr address of a {@code union bpf_attr}
     * @param size size in bytes of its part that is in use
     * @return the result of the call, or the negated errno
     */
    static long bpf(MemorySegment capture, int command, long attr, int size) {
        long result;
        do {
            result = syscall(capture, Abi.SYS_BPF, command, attr, size, 0, 0);
        } while (result == -Abi.EINTR);
        return result;
    }
}
