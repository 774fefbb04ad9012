package bpfmap.sys;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * Opens perf events on which programs run: probes, tracepoints, counters and clocks.
 *
 * <p>Source: linux/perf_event.h, struct perf_event_attr. Events of perf event arrays, to which
 * programs write, are opened by {@link PerfBuffer}.
 */
public final class PerfEvents {
    private PerfEvents() {}

    /** Offset of the bit fields of {@code struct perf_event_attr}, and one of them. */
    private static final int FLAGS = Abi.PERF_ATTR_READ_FORMAT + 8;
    private static final long FREQUENCY = 1 << 10;

    /**
     * Opens a perf event, enabled.
     *
     * @param config the event within its type
     * @param text the path or function of a probe, without a NUL; null for {@code config1} as it is
     * @param config2 the offset of a probe
     * @param samples a program runs each time after so many events, or so often in a second; 0 for
     *     a probe or a tracepoint
     * @param frequency true if {@code samples} is a frequency
     * @param pid the process whose events count; -1 for all
     * @param cpu the CPU whose events count; -1 for all, which needs a process
     * @return its descriptor, or the negated errno
     */
    public static long open(int type, long config, byte[] text, long config1, long config2,
            long samples, boolean frequency, int pid, int cpu) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment attr = arena.allocate(Abi.PERF_ATTR_SIZE_VER1, 8);
            attr.set(ValueLayout.JAVA_INT, Abi.PERF_ATTR_TYPE, type);
            attr.set(ValueLayout.JAVA_INT, Abi.PERF_ATTR_SIZE, Abi.PERF_ATTR_SIZE_VER1);
            attr.set(ValueLayout.JAVA_LONG, Abi.PERF_ATTR_CONFIG, config);
            attr.set(ValueLayout.JAVA_LONG, Abi.PERF_ATTR_SAMPLE_PERIOD, samples);
            attr.set(ValueLayout.JAVA_LONG, FLAGS, frequency ? FREQUENCY : 0);
            long first = config1;
            if (text != null) {
                MemorySegment copy = arena.allocate(text.length + 1L);
                MemorySegment.copy(text, 0, copy, ValueLayout.JAVA_BYTE, 0, text.length);
                first = copy.address();
            }
            attr.set(ValueLayout.JAVA_LONG, Abi.PERF_ATTR_CONFIG1, first);
            attr.set(ValueLayout.JAVA_LONG, Abi.PERF_ATTR_CONFIG2, config2);
            return Native.syscall(
                Abi.SYS_PERF_EVENT_OPEN, attr.address(), pid, cpu, -1, Abi.PERF_FLAG_FD_CLOEXEC);
        }
    }

    /**
     * Attaches a program to a perf event, for as long as the event is open. Before Linux 5.15 there
     * are no links for it.
     *
     * @return 0, or the negated errno
     */
    public static long setProgram(Fd event, Fd program) {
        int number = event.acquire();
        try {
            int programNumber = program.acquire();
            try {
                return Native.syscall(
                    Abi.SYS_IOCTL, number, Abi.PERF_EVENT_IOC_SET_BPF, programNumber, 0, 0);
            } finally {
                program.release();
            }
        } finally {
            event.release();
        }
    }
}
