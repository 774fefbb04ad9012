package bpfmap.sys;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.nio.ByteOrder;
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
        String reason =
            refusal(
                System.getProperty("os.name"),
                System.getProperty("os.arch"),
                ByteOrder.nativeOrder(),
                ValueLayout.ADDRESS.byteSize());
        if (reason == null) {
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
     * Returns why no system call is made on such a machine, or null if calls are made.
     *
     * @param addressSize bytes of an address of this JVM
     * @return a reason for an error message, without a full stop
     */
    public static String refusal(String os, String arch, ByteOrder order, long addressSize) {
        if (!"Linux".equals(os)) {
            return "BPF maps live in the Linux kernel; this is " + os;
        }
        if (addressSize != Long.BYTES) {
            return "32-bit JVMs are not supported; this one is for " + arch;
        }
        if (order != ByteOrder.LITTLE_ENDIAN) {
            return "big-endian processors are not supported; this one is " + arch;
        }
        if (!Abi.known(arch)) {
            return "the system call numbers of this processor are not known: " + arch
                + " (known: amd64, aarch64, riscv64)";
        }
        return null;
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
     * @throws RuntimeException of {@link Refusal} if no system call can be made
     */
    public static long syscall(MemorySegment capture, long number, long a, long b, long c, long d,
            long e) {
        if (SYSCALL == null) {
            throw Refusal.exception(UNAVAILABLE);
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
     * @throws RuntimeException of {@link Refusal} if no system call can be made
     */
    static long syscall6(long number, long a, long b, long c, long d, long e, long f) {
        if (SYSCALL == null) {
            throw Refusal.exception(UNAVAILABLE);
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
