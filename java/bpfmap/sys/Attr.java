package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_INT_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_LONG_UNALIGNED;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;

/**
 * Builds a {@code union bpf_attr} for one command, with the buffers that it points to. For all
 * calls except the hot paths.
 *
 * <p>All fields start as zero. The size passed to the kernel ends with the last field that was set,
 * so an older kernel does not reject the call because of a field that is not set. Descriptors set
 * with {@link #fd} stay in use until {@link #close}, and the buffers are valid until then. For use
 * by one thread.
 *
 * <pre>{@code
 * try (Attr attr = new Attr().fd(Abi.ELEM_MAP_FD, map)) {
 *     long result = attr.call(Abi.BPF_MAP_FREEZE);
 * }
 * }</pre>
 */
public final class Attr implements AutoCloseable {
    private static final int SIZE = 168;

    /** Size of the call buffer, enough for the attribute and the buffers of most commands. */
    private static final long ROOM = 4096;

    private final CallBuffer callBuffer = CallBuffer.take(ROOM);
    private final MemorySegment attr = callBuffer.clearedAttr(SIZE);
    private final MemorySegment capture = callBuffer.capture;
    private final List<Fd> inUse = new ArrayList<>(2);
    private long free = CallBuffer.ATTR + SIZE;
    private int used;
    private boolean closed;

    /** A simulated map among the descriptors, which then runs the command; or null. */
    private SimulatedMap simulated;

    /** Arena of buffers that do not fit into the call buffer; null if there are none. */
    private Arena arena;

    /** Sets a field of four bytes. */
    public Attr int32(int offset, long value) {
        attr.set(JAVA_INT_UNALIGNED, offset, (int) value);
        used = Math.max(used, offset + 4);
        return this;
    }

    /** Sets a field of eight bytes. */
    public Attr int64(int offset, long value) {
        attr.set(JAVA_LONG_UNALIGNED, offset, value);
        used = Math.max(used, offset + 8);
        return this;
    }

    /**
     * Sets a field within the attribute to a NUL-terminated text, such as the name of an object.
     */
    public Attr name(int offset, String text) {
        byte[] bytes = text.getBytes(StandardCharsets.US_ASCII);
        if (bytes.length > Abi.NAME_LENGTH) {
            throw new IllegalArgumentException(
                "longer than " + Abi.NAME_LENGTH + " bytes: " + text);
        }
        MemorySegment.copy(bytes, 0, attr, JAVA_BYTE, offset, bytes.length);
        used = Math.max(used, offset + Abi.NAME_LENGTH + 1);
        return this;
    }

    /** Sets a field to a descriptor and keeps it in use until {@link #close}. */
    public Attr fd(int offset, Fd fd) {
        return int32(offset, use(fd));
    }

    /**
     * Keeps a descriptor in use until {@link #close} and returns its number, for use in a buffer.
     */
    public int use(Fd fd) {
        int number = fd.acquire();
        inUse.add(fd);
        if (fd.simulated != null) {
            simulated = fd.simulated;
        }
        return number;
    }

    /** Returns a new zeroed buffer that no field points to, for a pointer in another buffer. */
    public MemorySegment spare(long size) {
        long bytes = Math.max(size, 1);
        if (bytes <= ROOM - free) {
            MemorySegment buffer = callBuffer.memory.asSlice(free, bytes).fill((byte) 0);
            free += bytes + 7 & ~7L;
            return buffer;
        }
        if (arena == null) {
            arena = Arena.ofConfined();
        }
        return arena.allocate(bytes, 8);
    }

    /** Sets a field to the address of a new zeroed buffer, and returns the buffer. */
    public MemorySegment buffer(int offset, long size) {
        MemorySegment buffer = spare(size);
        int64(offset, buffer.address());
        return buffer;
    }

    /** Sets a field to the address of a copy of the bytes. */
    public Attr bytes(int offset, byte[] bytes) {
        Bytes.copyIn(bytes, buffer(offset, bytes.length), 0);
        return this;
    }

    /** Sets a field to the address of a NUL-terminated copy of the text, in UTF-8. */
    public Attr string(int offset, String text) {
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        Bytes.copyIn(bytes, buffer(offset, bytes.length + 1L), 0);
        return this;
    }

    /** Reads back a field of four bytes. */
    public long int32(int offset) {
        return Bytes.getU32(attr, offset, false);
    }

    /** Reads back a field of eight bytes. */
    public long int64(int offset) {
        return Bytes.get64(attr, offset, false);
    }

    /**
     * Makes the {@code bpf(2)} call and repeats it if a signal interrupts it. Returns the result or
     * the negated errno.
     */
    public long call(int command) {
        return simulated == null
            ? Native.bpf(capture, command, attr.address(), used)
            : simulated.command(command, attr.address());
    }

    /**
     * Makes the {@code bpf(2)} call once, for a command that must not be repeated unconditionally.
     */
    public long callOnce(int command) {
        return simulated == null
            ? Native.syscall(capture, Abi.SYS_BPF, command, attr.address(), used, 0, 0)
            : simulated.command(command, attr.address());
    }

    /** Frees the memory and ends the use of the descriptors. */
    @Override
    public void close() {
        if (closed) {
            return; // the call buffer may be in use by another call
        }
        closed = true;
        for (int i = 0; i < inUse.size(); i++) {
            inUse.get(i).release();
        }
        inUse.clear();
        if (arena != null) {
            arena.close();
        }
        // the next element operation must not see this command's fields
        callBuffer.clearedAttr(SIZE);
        callBuffer.give();
    }
}
