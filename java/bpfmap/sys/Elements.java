package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.MemorySegment;
import java.util.concurrent.atomic.AtomicLong;

/**
 * The element operations of one open map: one system call each, and no allocation of its own. The
 * JDK may allocate 40 bytes to check the memory that takes errno, as its compiler decides.
 *
 * <p>Each operation comes in two forms. One takes a {@link CallBuffer} from {@link #take} whose key and value the caller
 * reads and writes in place. The other takes byte arrays and copies. All return zero, or the negated
 * errno as the kernel gave it: a missing key is {@code -ENOENT}, not an exception.
 *
 * <pre>{@code
 * Elements counts = new Elements(fd, 4, 8);
 * byte[] value = new byte[8];
 * if (counts.lookup(key, value, Abi.BPF_ANY) == 0) { ... }
 * }</pre>
 */
public final class Elements {
    private final Fd fd;
    private final long keySize;
    private final long valueSize;
    private final long valueOffset;

    /** Names these operations in a {@link CallBuffer}, which must not keep a leaked map from being collected. */
    private final long id = IDS.incrementAndGet();

    private static final AtomicLong IDS = new AtomicLong();

    /**
     * @param fd the open map
     * @param keySize bytes of a key, as the kernel reports them; 0 for a map without keys, such as a queue
     * @param valueSize bytes that one lookup writes. For most map types this is the reported value size; a
     *     per-CPU map writes eight-byte multiples for every possible CPU. Anything less lets the kernel write past the
     *     buffer.
     */
    public Elements(Fd fd, long keySize, long valueSize) {
        this.fd = fd;
        this.keySize = keySize;
        this.valueSize = valueSize;
        this.valueOffset = CallBuffer.KEY + (keySize + 7 & ~7L);
    }

    /** Where the value begins in the memory of {@link #take}. */
    public long valueOffset() {
        return valueOffset;
    }

    /** Memory for one operation, with room for two keys and a value. Must be given back on the same thread. */
    public CallBuffer take() {
        return CallBuffer.take(valueOffset + Math.max(valueSize, keySize));
    }

    /** Reads the value of the key, in place. Of a bloom filter, asks for the value that is there. */
    public int lookup(CallBuffer s, long flags) {
        return call(Abi.BPF_MAP_LOOKUP_ELEM, s, flags);
    }

    /** Reads the value of the key and deletes both, in place. Since Linux 5.14 for hash maps. */
    public int lookupAndDelete(CallBuffer s, long flags) {
        return call(Abi.BPF_MAP_LOOKUP_AND_DELETE_ELEM, s, flags);
    }

    /** Writes the value of the key. */
    public int update(CallBuffer s, long flags) {
        return call(Abi.BPF_MAP_UPDATE_ELEM, s, flags);
    }

    private int call(int command, CallBuffer s, long flags) {
        if (s.flags != flags) {
            s.setFlags(flags);
        }
        return call(command, s, Abi.ELEM_FLAGS + 8);
    }

    /** Deletes the key and its value. */
    public int delete(CallBuffer s) {
        return call(Abi.BPF_MAP_DELETE_ELEM, s, Abi.ELEM_KEY + 8); // the kernel refuses a value
    }

    /**
     * Reads the key after the given one into the place of the value.
     *
     * @param first ignore the key and begin at the first
     */
    public int nextKey(CallBuffer s, boolean first) {
        if (!first) {
            return call(Abi.BPF_MAP_GET_NEXT_KEY, s, Abi.ELEM_VALUE + 8); // next_key lies in the place of the value
        }
        int number = fd.acquire();
        try {
            prepare(s, number, 0);
            s.preparedFor = 0;
            return makeCall(Abi.BPF_MAP_GET_NEXT_KEY, s, Abi.ELEM_VALUE + 8);
        } finally {
            fd.release();
        }
    }

    /**
     * Makes a call with so many bytes of the attribute. All but the flags is the same in each call; a call that follows
     * another of the same map on the same thread writes nothing.
     */
    private int call(int command, CallBuffer s, int size) {
        int number = fd.acquire();
        try {
            if (s.preparedFor != id) {
                // A map without keys refuses a pointer to one.
                prepare(s, number, keySize == 0 ? 0 : s.address + CallBuffer.KEY);
            }
            return makeCall(command, s, size);
        } finally {
            fd.release();
        }
    }

    private static int makeCall(int command, CallBuffer s, int size) {
        return (int) Native.bpf(s.capture, command, s.address + CallBuffer.ATTR, size);
    }

    private void prepare(CallBuffer s, int number, long key) {
        MemorySegment memory = s.memory;
        memory.set(JAVA_INT, CallBuffer.ATTR + Abi.ELEM_MAP_FD, number);
        memory.set(JAVA_LONG, CallBuffer.ATTR + Abi.ELEM_KEY, key);
        memory.set(JAVA_LONG, CallBuffer.ATTR + Abi.ELEM_VALUE, s.address + valueOffset);
        s.preparedFor = id;
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
        CallBuffer s = take();
        try {
            Bytes.copyIn(key, s.memory, CallBuffer.KEY);
            int result = delete ? lookupAndDelete(s, flags) : lookup(s, flags);
            if (result == 0) {
                Bytes.fill(s.memory, valueOffset, value);
            }
            return result;
        } finally {
            s.give();
        }
    }

    /** Writes {@code value} as the value of the key. */
    public int update(byte[] key, byte[] value, long flags) {
        require("key", key, keySize);
        require("value", value, valueSize);
        CallBuffer s = take();
        try {
            Bytes.copyIn(key, s.memory, CallBuffer.KEY);
            Bytes.copyIn(value, s.memory, valueOffset);
            return update(s, flags);
        } finally {
            s.give();
        }
    }

    /** Deletes the key and its value. */
    public int delete(byte[] key) {
        require("key", key, keySize);
        CallBuffer s = take();
        try {
            Bytes.copyIn(key, s.memory, CallBuffer.KEY);
            return delete(s);
        } finally {
            s.give();
        }
    }

    private static void require(String what, byte[] bytes, long size) {
        if (bytes.length != size) {
            throw new IllegalArgumentException(
                "a " + what + " of this map has " + size + " bytes, not " + bytes.length);
        }
    }
}
