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
 * The only class that touches the linker: one handle, to the C library's {@code syscall(2)}.
 *
 * <p>{@code errno} is captured by the same downcall that sets it. The JVM may run other native code between two
 * downcalls, so a second call could only ever read somebody else's errno.
 */
public final class Native {
    private Native() {}

    /** Bytes that a capture segment needs; it receives the errno of a failed call. */
    public static final long CAPTURE_SIZE = Linker.Option.captureStateLayout().byteSize();

    /** Where in it the errno lies: a number, since a VarHandle is slow to make and every start would pay for it. */
    private static final long ERRNO =
        Linker.Option.captureStateLayout().byteOffset(MemoryLayout.PathElement.groupElement("errno"));

    private static final String UNAVAILABLE;
    private static final MethodHandle SYSCALL;

    // A class whose initialiser throws can never say why again; so the reason is kept and said at each call.
    static {
        MethodHandle handle = null;
        String reason = null;
        if (!"Linux".equals(System.getProperty("os.name"))) {
            reason = "BPF maps live in the Linux kernel; this is " + System.getProperty("os.name");
        } else if (Abi.SYS_BPF < 0) {
            reason = "the system call numbers of this processor are not known: " + System.getProperty("os.arch")
                + " (known: amd64, aarch64, riscv64)";
        } else {
            try {
                handle = link(5);
            } catch (IllegalCallerException e) {
                reason = "this JVM denies native access: start it with --enable-native-access=ALL-UNNAMED";
            }
        }
        SYSCALL = handle;
        UNAVAILABLE = reason;
    }

    /** The one call that has six arguments, mmap, has a handle of its own: a word more costs every call. */
    private static final class Six {
        static final MethodHandle SYSCALL = link(6);
    }

    @SuppressWarnings("restricted")
    private static MethodHandle link(int arguments) {
        Linker linker = Linker.nativeLinker();
        MemoryLayout word = ValueLayout.JAVA_LONG;
        return linker.downcallHandle(
            linker.defaultLookup().find("syscall").orElseThrow(),
            FunctionDescriptor.of(word, Collections.nCopies(1 + arguments, word).toArray(MemoryLayout[]::new)),
            Linker.Option.firstVariadicArg(1),
            Linker.Option.captureCallState("errno"));
    }

    /**
     * Why no system call can be made here, or null where they can.
     *
     * @return a sentence without its full stop, for an error message
     */
    public static String unavailable() {
        return UNAVAILABLE;
    }

    /**
     * Makes one system call.
     *
     * @param capture memory of at least {@link #CAPTURE_SIZE} bytes, used by this call alone
     * @param number the number of the call on this processor
     * @return what the kernel returned, or the negated errno
     * @throws UnsupportedOperationException where there is no Linux, or native access is denied
     */
    public static long syscall(MemorySegment capture, long number, long a, long b, long c, long d, long e) {
        if (SYSCALL == null) {
            throw new UnsupportedOperationException(UNAVAILABLE);
        }
        try {
            long result = (long) SYSCALL.invokeExact(capture, number, a, b, c, d, e);
            return result == -1 ? -(long) capture.get(ValueLayout.JAVA_INT, ERRNO) : result;
        } catch (RuntimeException | Error t) {
            throw t;
        } catch (Throwable t) {
            throw new IllegalStateException(t); // a downcall throws nothing checked
        }
    }

    /**
     * Makes one system call with memory of its own for errno: for calls that are not hot.
     *
     * @return what the kernel returned, or the negated errno
     */
    public static long syscall(long number, long a, long b, long c, long d, long e) {
        CallBuffer s = CallBuffer.take(CAPTURE_SIZE);
        try {
            return syscall(s.capture, number, a, b, c, d, e);
        } finally {
            s.give();
        }
    }

    /**
     * Makes one system call of six arguments, with memory of its own for errno.
     *
     * @return what the kernel returned, or the negated errno
     * @throws UnsupportedOperationException where there is no Linux, or native access is denied
     */
    public static long syscall6(long number, long a, long b, long c, long d, long e, long f) {
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
            throw new IllegalStateException(t); // a downcall throws nothing checked
        }
    }

    /**
     * Makes one {@code bpf(2)} call, again when a signal interrupted it.
     *
     * <p>Two kinds of commands must not be repeated blindly and use {@link #syscall}: {@code BPF_PROG_TEST_RUN}, which may
     * have run, and the batches, whose count the kernel may have written.
     *
     * @param attr address of a {@code union bpf_attr}
     * @param size bytes of it that are in use
     * @return what the kernel returned, or the negated errno
     */
    public static long bpf(MemorySegment capture, int command, long attr, int size) {
        long result;
        do {
            result = syscall(capture, Abi.SYS_BPF, command, attr, size, 0, 0);
        } while (result == -Abi.EINTR);
        return result;
    }
}
