package bpfmap.sys;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * A map that is kept in this process and answers the commands of {@code bpf(2)} as the kernel does.
 *
 * <p>It reads keys and values from the memory that the attribute of a command points to, and
 * returns 0 or the negated errno. So everything above the system call is the same code for both.
 * It needs neither Linux nor privileges. One lock guards each map.
 *
 * <p>An {@link Fd} refers to it. The map lives until the last of them is closed and no map of maps
 * holds it.
 */
public final class SimulatedMap {
    /** Ids begin where those of the kernel end, which are positive numbers of 32 bits. */
    private static final int FIRST_ID = Integer.MIN_VALUE;

    /** Numbers of descriptors begin above those that a process can have: see nr_open. */
    private static final int FIRST_NUMBER = 1 << 30;

    private static final AtomicInteger CREATED = new AtomicInteger();
    private static final ConcurrentHashMap<Integer, SimulatedMap> LIVE = new ConcurrentHashMap<>();

    /** Size of the {@code struct bpf_map_info} that is written. */
    private static final int INFO_SIZE = 88;

    private static final long NO_LOCK = ~Abi.BPF_F_LOCK;

    private final int number = CREATED.getAndIncrement();
    private final int type;
    private final int keySize;
    private final int valueSize;
    private final int maxEntries;
    private final int flags;
    private final long extra;
    private final String name;
    private final int cpus;
    private final int pageSize;
    private final boolean perCpu;
    private final int elementSize;
    private final SimulatedMap template;
    private final Object spec;
    private final SimulatedEntries entries;

    private int users;
    private boolean frozen;
    private int writableMappings;

    private SimulatedMap(int type, int keySize, int valueSize, long maxEntries, int flags,
            long extra, String name, int cpus, int pageSize, SimulatedMap template, Object spec) {
        this.type = type;
        this.pageSize = pageSize;
        this.keySize = keySize;
        this.valueSize = valueSize;
        this.maxEntries = (int) maxEntries;
        this.flags = flags & ~(Abi.BPF_F_RDONLY | Abi.BPF_F_WRONLY);
        this.extra = extra;
        this.name = name;
        this.cpus = cpus;
        this.template = template;
        this.spec = spec;
        perCpu = type == PERCPU_HASH || type == PERCPU_ARRAY || type == LRU_PERCPU_HASH;
        int stride = valueSize + 7 & ~7;
        elementSize = perCpu ? Math.multiplyExact(stride, cpus) : valueSize;
        entries = switch (type) {
            case HASH, PERCPU_HASH, RHASH -> SimulatedEntries.hash(maxEntries, true);
            case HASH_OF_MAPS -> SimulatedEntries.hash(maxEntries, false);
            case LRU_HASH, LRU_PERCPU_HASH -> SimulatedEntries.lru(maxEntries);
            case ARRAY -> SimulatedEntries.array(maxEntries, valueSize, stride);
            case PERCPU_ARRAY -> SimulatedEntries.array(maxEntries, elementSize, elementSize);
            case ARRAY_OF_MAPS -> SimulatedEntries.slots(maxEntries);
            case LPM_TRIE -> SimulatedEntries.trie(maxEntries, keySize);
            case QUEUE -> SimulatedEntries.queue(maxEntries, false);
            case STACK -> SimulatedEntries.queue(maxEntries, true);
            case RINGBUF -> SimulatedEntries.ring(2 * (pageSize + maxEntries));
            case BLOOM_FILTER -> SimulatedEntries.bloom();
            default -> throw new IllegalArgumentException("map type " + type);
        };
    }

    // linux/bpf.h, enum bpf_map_type
    private static final int HASH = 1;
    private static final int ARRAY = 2;
    private static final int PERCPU_HASH = 5;
    private static final int PERCPU_ARRAY = 6;
    private static final int LRU_HASH = 9;
    private static final int LRU_PERCPU_HASH = 10;
    private static final int LPM_TRIE = 11;
    private static final int ARRAY_OF_MAPS = 12;
    private static final int HASH_OF_MAPS = 13;
    private static final int QUEUE = 22;
    private static final int STACK = 23;
    private static final int RINGBUF = 27;
    private static final int BLOOM_FILTER = 30;
    private static final int RHASH = 35;

    private static final int INNER_MAP = 1 << 12; // linux/bpf.h, BPF_F_INNER_MAP

    /**
     * Creates a map and returns its first descriptor. The arguments are those of
     * {@code BPF_MAP_CREATE}, already checked.
     *
     * @param cpus the number of CPUs, each with a value in a per-CPU map
     * @param pageSize size of a page of a ring buffer in bytes
     * @param template a map like those in a map of maps, or null
     * @param spec kept for those who open the map by its id
     * @throws IllegalArgumentException for a map type that is not simulated
     */
    public static Fd create(int type, int keySize, int valueSize, long maxEntries, int flags,
            long extra, String name, int cpus, int pageSize, Fd template, Object spec) {
        SimulatedMap map = new SimulatedMap(type, keySize, valueSize, maxEntries, flags, extra,
            name, cpus, pageSize, template == null ? null : template.simulated, spec);
        LIVE.put(map.number, map);
        map.users = 1;
        return Fd.simulate(map);
    }

    /** Returns a new descriptor of the map with an id, or null if there is none. */
    public static Fd open(long id) {
        SimulatedMap map = LIVE.get((int) id - FIRST_ID);
        return map != null && map.retain() ? Fd.simulate(map) : null;
    }

    /** Returns a second descriptor of the map of an open one. */
    public static Fd duplicate(Fd fd) {
        fd.acquire();
        try {
            fd.simulated.retain();
            return Fd.simulate(fd.simulated);
        } finally {
            fd.release();
        }
    }

    /** Returns the spec that the map was created from. */
    public Object spec() {
        return spec;
    }

    /** Returns the number of CPUs. */
    public int cpus() {
        return cpus;
    }

    /** Returns the lines of {@code /proc/self/fdinfo} that apply. */
    public synchronized String fdinfo() {
        return "pos:\t0\nmap_type:\t" + type + "\nfrozen:\t" + (frozen ? 1 : 0) + "\n";
    }

    /** Returns the number that stands for a descriptor of this map in the values of other maps. */
    int number() {
        return FIRST_NUMBER + number;
    }

    private synchronized boolean retain() {
        if (users == 0) {
            return false;
        }
        users++;
        return true;
    }

    /** Ends the use by a descriptor or by a map of maps. */
    void release() {
        synchronized (this) {
            if (--users > 0) {
                return;
            }
            LIVE.remove(number);
        }
        if (template != null) {
            releaseInner();
        }
    }

    private void releaseInner() {
        for (byte[] key = entries.after(null); key != null; key = entries.after(key)) {
            releaseId(entries.lookup(key));
        }
    }

    /** Ends the use of the map whose id is the value of an entry, if there is one. */
    private static void releaseId(byte[] value) {
        if (value != null) {
            LIVE.get(MemorySegment.ofArray(value).get(ValueLayout.JAVA_INT_UNALIGNED, 0) - FIRST_ID)
                .release();
        }
    }

    // --- mapped memory

    /**
     * Returns a part of the memory, mapped, or null if it cannot be mapped for writing because the
     * map is frozen. Closing it ends the mapping.
     *
     * @param offset where the part begins
     * @param size size of the mapping in bytes
     */
    public synchronized MappedMemory map(long offset, long size, boolean writable) {
        if (writable && frozen) {
            return null;
        }
        if (writable) {
            writableMappings++;
        }
        // The memory of the elements lives as long as this map, which the action refers to.
        return MappedMemory.borrow(entries.memory().address() + offset, size, !writable, () -> {
            synchronized (this) {
                writableMappings -= writable ? 1 : 0;
            }
        });
    }

    /**
     * Writes a record to a ring buffer, as a program does. The memory is that of the kernel: a
     * consumer page, a producer page, and the data twice. The kernel maps the same pages twice, and
     * here each byte is written twice.
     *
     * @return false if there is no room
     */
    public synchronized boolean emit(MemorySegment record, long offset, int length) {
        MemorySegment ring = entries.memory();
        long size = Integer.toUnsignedLong(maxEntries);
        long consumed = (long) RingBuffer.LONG.getAcquire(ring, RingBuffer.CONSUMER);
        long produced = (long) RingBuffer.LONG.getAcquire(ring, pageSize + RingBuffer.PRODUCER);
        long end = produced + RingBuffer.total(length);
        if (end - consumed > size) {
            return false;
        }
        MemorySegment data = ring.asSlice(2L * pageSize, 2 * size);
        long at = produced & size - 1;
        data.set(ValueLayout.JAVA_INT, at, length);
        data.set(ValueLayout.JAVA_INT, at + 4, 0);
        MemorySegment.copy(record, offset, data, at + RingBuffer.HEADER, length);
        long first = Math.min(end - produced, size - at);
        MemorySegment.copy(data, at, data, at + size, first);
        MemorySegment.copy(data, size, data, 0, end - produced - first);
        RingBuffer.LONG.setRelease(ring, pageSize + RingBuffer.PRODUCER, end);
        return true;
    }

    // --- commands

    /**
     * Runs a command on this map.
     *
     * @param attr address of a {@code union bpf_attr}
     * @return 0 or the negated errno
     * @throws NotSimulatedException for a command that only the kernel has
     */
    synchronized long command(int command, long attr) {
        return switch (command) {
            case Abi.BPF_MAP_LOOKUP_ELEM -> lookup(attr);
            case Abi.BPF_MAP_UPDATE_ELEM -> frozen ? -Abi.EPERM : update(attr);
            case Abi.BPF_MAP_DELETE_ELEM -> frozen ? -Abi.EPERM : delete(attr);
            case Abi.BPF_MAP_LOOKUP_AND_DELETE_ELEM -> frozen ? -Abi.EPERM : take(attr);
            case Abi.BPF_MAP_GET_NEXT_KEY -> nextKey(attr);
            case Abi.BPF_MAP_LOOKUP_BATCH -> readBatch(attr, false);
            case Abi.BPF_MAP_LOOKUP_AND_DELETE_BATCH ->
                frozen ? -Abi.EPERM : readBatch(attr, true);
            case Abi.BPF_MAP_UPDATE_BATCH -> frozen ? -Abi.EPERM : writeBatch(attr, true);
            case Abi.BPF_MAP_DELETE_BATCH -> frozen ? -Abi.EPERM : writeBatch(attr, false);
            case Abi.BPF_MAP_FREEZE -> freeze();
            case Abi.BPF_OBJ_GET_INFO_BY_FD -> info(attr);
            default -> throw new NotSimulatedException("the map is simulated in this process, and "
                + "only the kernel can do this with a map of its own");
        };
    }

    private static long word(long attr, int offset) {
        return MappedMemory.READABLE.get(ValueLayout.JAVA_LONG_UNALIGNED, attr + offset);
    }

    private static int half(long attr, int offset) {
        return MappedMemory.READABLE.get(ValueLayout.JAVA_INT_UNALIGNED, attr + offset);
    }

    private static byte[] bytes(long address, int size) {
        byte[] bytes = new byte[size];
        MemorySegment.copy(MappedMemory.READABLE, ValueLayout.JAVA_BYTE, address, bytes, 0, size);
        return bytes;
    }

    private static void write(byte[] bytes, long address) {
        MemorySegment.copy(bytes, 0, MappedMemory.WRITABLE, ValueLayout.JAVA_BYTE, address,
            bytes.length);
    }

    /** Returns the key of a command: empty for a map without keys, null for no key. */
    private byte[] key(long attr) {
        long address = word(attr, Abi.ELEM_KEY);
        return address == 0 ? null : bytes(address, keySize);
    }

    private int lookup(long attr) {
        if ((word(attr, Abi.ELEM_FLAGS) & NO_LOCK) != 0) {
            return -Abi.EINVAL;
        }
        long address = word(attr, Abi.ELEM_VALUE);
        byte[] value = entries.lookup(
            type == BLOOM_FILTER ? bytes(address, valueSize) : key(attr));
        if (value == null) {
            return -Abi.ENOENT;
        }
        write(value, address);
        return 0;
    }

    private int take(long attr) {
        if (!entries.takes()) {
            return -Abi.ENOTSUPP;
        }
        int outcome = lookup(attr);
        return outcome == 0 ? entries.delete(key(attr)) : outcome;
    }

    private int update(long attr) {
        return update(key(attr), word(attr, Abi.ELEM_VALUE), word(attr, Abi.ELEM_FLAGS));
    }

    private int update(byte[] key, long address, long allFlags) {
        long flags = allFlags & NO_LOCK;
        if (perCpu && (flags & Abi.BPF_F_CPU) != 0) {
            return updateCpu(key, bytes(address, valueSize), (int) (flags >>> 32));
        }
        if (flags < 0 || flags > Abi.BPF_EXIST) {
            return -Abi.EINVAL;
        }
        return template == null
            ? entries.update(key, bytes(address, elementSize), flags)
            : updateInner(key, half(address, 0), flags);
    }

    /** Writes the value of one CPU; a new entry has zeros for the others. */
    private int updateCpu(byte[] key, byte[] value, int cpu) {
        if (cpu < 0 || cpu >= cpus) {
            return -Abi.ERANGE;
        }
        byte[] old = entries.lookup(key);
        byte[] all = old == null ? new byte[elementSize] : old.clone();
        System.arraycopy(value, 0, all, cpu * (elementSize / cpus), value.length);
        return entries.update(key, all, Abi.BPF_ANY);
    }

    /** Stores a map in this map of maps, as its id. */
    private int updateInner(byte[] key, int descriptor, long flags) {
        SimulatedMap inner = LIVE.get(descriptor - FIRST_NUMBER);
        if (inner == null) {
            return -Abi.EBADF;
        }
        if (!inner.isLike(template) || !inner.retain()) {
            return -Abi.EINVAL;
        }
        byte[] old = entries.lookup(key);
        byte[] id = new byte[4];
        MemorySegment.ofArray(id).set(ValueLayout.JAVA_INT_UNALIGNED, 0, FIRST_ID + inner.number);
        int outcome = entries.update(key, id, flags);
        if (outcome == 0) {
            releaseId(old);
        } else {
            inner.release();
        }
        return outcome;
    }

    /** Returns true if this map may be in a map of maps: bpf_map_meta_equal in the kernel. */
    private boolean isLike(SimulatedMap other) {
        return type == other.type && keySize == other.keySize && valueSize == other.valueSize
            && flags == other.flags
            && (type != ARRAY || maxEntries == other.maxEntries
                || (flags & INNER_MAP) != 0);
    }

    private int delete(long attr) {
        int without = entries.withoutKeys();
        return without != 0 ? without : delete(key(attr));
    }

    private int delete(byte[] key) {
        byte[] old = template == null ? null : entries.lookup(key);
        int outcome = entries.delete(key);
        if (outcome == 0) {
            releaseId(old);
        }
        return outcome;
    }

    private int nextKey(long attr) {
        int without = entries.withoutKeys();
        if (without != 0) {
            return without;
        }
        byte[] next = entries.next(key(attr));
        if (next == null) {
            return -Abi.ENOENT;
        }
        write(next, word(attr, Abi.ELEM_VALUE));
        return 0;
    }

    /** Reads a chunk. The cursor is the last key, and the next chunk has the keys after it. */
    private int readBatch(long attr, boolean delete) {
        long in = word(attr, Abi.BATCH_IN_BATCH);
        int count = half(attr, Abi.BATCH_COUNT);
        byte[] last = in == 0 ? null : bytes(in, keySize);
        int done = 0;
        byte[] key = entries.after(last);
        while (key != null && done < count) {
            byte[] value = entries.lookup(key);
            if (value != null) { // a slot may be empty
                write(key, word(attr, Abi.BATCH_KEYS) + (long) done * keySize);
                write(value, word(attr, Abi.BATCH_VALUES) + (long) done * elementSize);
                done++;
            }
            if (delete) {
                delete(key);
            }
            last = key;
            key = entries.after(key);
        }
        MappedMemory.WRITABLE.set(ValueLayout.JAVA_INT_UNALIGNED, attr + Abi.BATCH_COUNT, done);
        if (last != null) {
            write(last, word(attr, Abi.BATCH_OUT_BATCH));
        }
        return key == null ? -Abi.ENOENT : 0;
    }

    private int writeBatch(long attr, boolean update) {
        long flags = word(attr, Abi.BATCH_ELEM_FLAGS);
        if ((flags & NO_LOCK) != 0) {
            return -Abi.EINVAL;
        }
        int count = half(attr, Abi.BATCH_COUNT);
        int done = 0;
        int outcome = 0;
        while (done < count && outcome == 0) {
            byte[] key = bytes(word(attr, Abi.BATCH_KEYS) + (long) done * keySize, keySize);
            outcome = update
                ? update(key, word(attr, Abi.BATCH_VALUES) + (long) done * elementSize, flags)
                : delete(key);
            done += outcome == 0 ? 1 : 0;
        }
        MappedMemory.WRITABLE.set(ValueLayout.JAVA_INT_UNALIGNED, attr + Abi.BATCH_COUNT, done);
        return outcome;
    }

    private int freeze() {
        if (writableMappings > 0) {
            return -Abi.EBUSY;
        }
        if (frozen) {
            return -Abi.EPERM;
        }
        frozen = true;
        return 0;
    }

    /** Writes a {@code struct bpf_map_info}. */
    private int info(long attr) {
        byte[] bytes = new byte[INFO_SIZE];
        MemorySegment info = MemorySegment.ofArray(bytes);
        info.set(ValueLayout.JAVA_INT_UNALIGNED, Info.MAP_TYPE, type);
        info.set(ValueLayout.JAVA_INT_UNALIGNED, Info.MAP_ID, FIRST_ID + number);
        info.set(ValueLayout.JAVA_INT_UNALIGNED, Info.MAP_KEY_SIZE, keySize);
        info.set(ValueLayout.JAVA_INT_UNALIGNED, Info.MAP_VALUE_SIZE, valueSize);
        info.set(ValueLayout.JAVA_INT_UNALIGNED, Info.MAP_MAX_ENTRIES, maxEntries);
        info.set(ValueLayout.JAVA_INT_UNALIGNED, Info.MAP_MAP_FLAGS, flags);
        info.set(ValueLayout.JAVA_LONG_UNALIGNED, Info.MAP_MAP_EXTRA, extra);
        byte[] text = name.getBytes(StandardCharsets.US_ASCII);
        System.arraycopy(text, 0, bytes, Info.MAP_NAME, text.length);
        int size = Math.min(INFO_SIZE, half(attr, Abi.INFO_INFO_LEN));
        write(Arrays.copyOf(bytes, size), word(attr, Abi.INFO_INFO));
        MappedMemory.WRITABLE.set(ValueLayout.JAVA_INT_UNALIGNED, attr + Abi.INFO_INFO_LEN, size);
        return 0;
    }
}
