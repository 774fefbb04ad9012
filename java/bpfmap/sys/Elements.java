package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.MemorySegment;
import java.util.concurrent.atomic.AtomicLong;

/**
 * Runs the element operations of one open map: one system call each, without allocation. The JDK
 * may allocate 40 bytes to check the memory for errno, depending on its compiler.
 *
 * <p>Each operation has two forms. One takes a {@link CallBuffer} from {@link #take}, in which the
 * caller reads and writes the key and the value. The other takes byte arrays and copies them. All
 * return zero or the negated errno: a missing key is {@code -ENOENT}, not an exception.
 *
 * <pre>{@code
 * Elements counts = new Elements(fd, 4, 8);
 * byte[] value = new byte[8];
 * if (counts.lookup(key, value, Abi.BPF_ANY) == 0) { ... }
 * }</pre>
 */
public final class Elements {
    /** The most repetitions of a write that the kernel answers with EAGAIN. */
    private static final int ATTEMPTS = 100;

    private final Fd fd;
    private final long keySize;
    private final long valueSize;
    private final long valueOffset;

    /**
     * Identifies this object in a {@link CallBuffer}. A reference would keep an unclosed map
     * reachable.
     */
    private final long id = IDS.incrementAndGet();

    private static final AtomicLong IDS = new AtomicLong();

    /**
     * @param fd the open map
     * @param keySize size of a key in bytes, as the kernel reports it; 0 for a map without keys,
     *     such as a queue
     * @param valueSize size in bytes that a lookup writes. For most map types this is the reported
     *     value size. A per-CPU map writes the size, rounded up to a multiple of eight, for each
     *     possible CPU. With a smaller size the kernel would write past the buffer.
     */
    public Elements(Fd fd, long keySize, long valueSize) {
        this.fd = fd;
        this.keySize = keySize;
        this.valueSize = valueSize;
        this.valueOffset = CallBuffer.KEY + (keySize + 7 & ~7L);
    }

    /** Returns the offset of the value in the memory of {@link #take}. */
    public long valueOffset() {
        return valueOffset;
    }

    /**
     * Takes a buffer for one operation, with room for two keys and a value. Must be given back on
     * the same thread.
     */
    public CallBuffer take() {
        return CallBuffer.take(valueOffset + Math.max(valueSize, keySize));
    }

    /** Reads the value of the key, in place. For a bloom filter, checks the value in place. */
    public int lookup(CallBuffer buffer, long flags) {
        return call(Abi.BPF_MAP_LOOKUP_ELEM, buffer, flags);
    }

    /** Reads the value of the key and deletes both, in place. Since Linux 5.14 for hash maps. */
    public int lookupAndDelete(CallBuffer buffer, long flags) {
        return call(Abi.BPF_MAP_LOOKUP_AND_DELETE_ELEM, buffer, flags);
    }

    /** Writes the value of the key. */
    public int update(CallBuffer buffer, long flags) {
        int result = call(Abi.BPF_MAP_UPDATE_ELEM, buffer, flags);
        return result == -Abi.EAGAIN ? updateAgain(buffer, flags) : result;
    }

    /**
     * Writes a value after EAGAIN: the first storage of a task, inode, socket or cgroup was being
     * created or deleted by somebody else, and the kernel leaves the repetition to the caller.
     * Source: kernel/bpf/bpf_local_storage.c, bpf_local_storage_update.
     */
    private int updateAgain(CallBuffer buffer, long flags) {
        int result = -Abi.EAGAIN;
        for (int i = 0; i < ATTEMPTS && result == -Abi.EAGAIN; i++) {
            Thread.onSpinWait();
            result = call(Abi.BPF_MAP_UPDATE_ELEM, buffer, flags);
        }
        return result;
    }

    private int call(int command, CallBuffer buffer, long flags) {
        if (buffer.flags != flags) {
            buffer.setFlags(flags);
        }
        return call(command, buffer, Abi.ELEM_FLAGS + 8);
    }

    /** Deletes the key and its value. */
    public int delete(CallBuffer buffer) {
        // the kernel rejects a value
        return call(Abi.BPF_MAP_DELETE_ELEM, buffer, Abi.ELEM_KEY + 8);
    }

    /**
     * Reads the key after the given one to the offset of the value.
     *
     * @param first true to ignore the key and read the first
     */
    public int nextKey(CallBuffer buffer, boolean first) {
        if (!first) {
            // next_key shares the field with value
            return call(Abi.BPF_MAP_GET_NEXT_KEY, buffer, Abi.ELEM_VALUE + 8);
        }
        int number = fd.acquire();
        try {
            prepare(buffer, number, 0);
            buffer.preparedFor = 0;
            return makeCall(Abi.BPF_MAP_GET_NEXT_KEY, buffer, Abi.ELEM_VALUE + 8);
        } finally {
            fd.release();
        }
    }

    /**
     * Makes a call with the first {@code size} bytes of the attribute. All calls of a map have the
     * same attribute except for the flags, so consecutive calls on a thread write nothing.
     */
    private int call(int command, CallBuffer buffer, int size) {
        int number = fd.acquire();
        try {
            if (buffer.preparedFor != id) {
                // A map without keys rejects a pointer to a key.
                prepare(buffer, number, keySize == 0 ? 0 : buffer.address + CallBuffer.KEY);
            }
            return makeCall(command, buffer, size);
        } finally {
            fd.release();
        }
    }

    private int makeCall(int command, CallBuffer buffer, int size) {
        long attr = buffer.address + CallBuffer.ATTR;
        SimulatedMap simulated = fd.simulated;
        return (int) (simulated == null
            ? Native.bpf(buffer.capture, command, attr, size)
            : simulated.command(command, attr));
    }

    private void prepare(CallBuffer buffer, int number, long key) {
        MemorySegment memory = buffer.memory;
        memory.set(JAVA_INT, CallBuffer.ATTR + Abi.ELEM_MAP_FD, number);
        memory.set(JAVA_LONG, CallBuffer.ATTR + Abi.ELEM_KEY, key);
        memory.set(JAVA_LONG, CallBuffer.ATTR + Abi.ELEM_VALUE, buffer.address + valueOffset);
        buffer.preparedFor = id;
    }

    /** Reads the value of the key into {@code value}. */
    public int lookup(byte[] key, byte[] value, long flags) {
        return read(key, value, flags, false);
    }

    /** Reads the value of the key into {@code value} and deletes both. */
    public int lookupAndDelete(byte[] key, byte[] value, long flags) {
        return read(key, value, flags, true);
    }

    private int read(byte[] key, byte[] value, long flags, boolean delete) {
        require("key", key, keySize);
        require("value", value, valueSize);
        CallBuffer buffer = take();
        try {
            Bytes.copyIn(key, buffer.memory, CallBuffer.KEY);
            int result = delete ? lookupAndDelete(buffer, flags) : lookup(buffer, flags);
            if (result == 0) {
                Bytes.fill(buffer.memory, valueOffset, value);
            }
            return result;
        } finally {
            buffer.give();
        }
    }

    /** Writes {@code value} as the value of the key. */
    public int update(byte[] key, byte[] value, long flags) {
        require("key", key, keySize);
        require("value", value, valueSize);
        CallBuffer buffer = take();
        try {
            Bytes.copyIn(key, buffer.memory, CallBuffer.KEY);
            Bytes.copyIn(value, buffer.memory, valueOffset);
            return update(buffer, flags);
        } finally {
            buffer.give();
        }
    }

    /** Deletes the key and its value. */
    public int delete(byte[] key) {
        require("key", key, keySize);
        CallBuffer buffer = take();
        try {
            Bytes.copyIn(key, buffer.memory, CallBuffer.KEY);
            return delete(buffer);
        } finally {
            buffer.give();
        }
    }

    private static void require(String what, byte[] bytes, long size) {
        if (bytes.length != size) {
            throw new IllegalArgumentException(
                "a " + what + " of this map has " + size + " bytes, not " + bytes.length);
        }
    }
}
