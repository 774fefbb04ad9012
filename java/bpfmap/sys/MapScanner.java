package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;

/**
 * Opens all maps of a host one after the other, and reads their infos into one buffer.
 *
 * <p>A process that lists thousands of maps and then ends runs most of its code in the interpreter.
 * It therefore counts how much code runs for each map; this class needs little: each command has an
 * attribute of its own, in which only what changes is written. The benchmark is
 * {@code bench-lifecycle}. For use by one thread.
 *
 * <pre>{@code
 * try (MapScanner scanner = new MapScanner()) {
 *     for (int id : scanner.ids()) {
 *         if (scanner.open(id) == 0 && scanner.readInfo() == 0) {
 *             long type = Bytes.getU32(scanner.info, Info.MAP_TYPE, false);
 *         }
 *     }
 * }
 * }</pre>
 */
public final class MapScanner implements AutoCloseable {
    /** Result of {@link #count} for a map that one call does not read to its end. */
    public static final long UNKNOWN = -1;

    private static final int INFO_SIZE = 88;

    private static final int ID_SIZE = Abi.ID_OPEN_FLAGS + 4;
    private static final int INFO_ATTR_SIZE = Abi.INFO_INFO + 8;

    /** Offsets of the attributes of the commands on ids, infos and batches. */
    private static final long ID_ATTR = CallBuffer.ATTR;
    private static final long INFO_ATTR = ID_ATTR + ID_SIZE + 7 & ~7L;
    private static final long BATCH_ATTR = INFO_ATTR + INFO_ATTR_SIZE + 7 & ~7L;
    private static final long INFO = BATCH_ATTR + Abi.BATCH_SIZE + 7 & ~7L;
    /**
     * Offset of the entries. The kernel writes its cursor there too, as the last step: four bytes
     * or a key.
     */
    private static final long ENTRIES = INFO + INFO_SIZE;
    private static final long SIZE = 64 << 10;

    private final Arena arena = Arena.ofConfined();
    private final MemorySegment memory = arena.allocate(SIZE, 64);
    private final MemorySegment capture = memory.asSlice(0, Native.CAPTURE_SIZE);
    private final long address = memory.address();

    /** The info of the map, after {@link #readInfo}. */
    public final MemorySegment info = memory.asSlice(INFO, INFO_SIZE);

    /** The descriptor of the open map, -1 if there is none. */
    private int number = -1;

    /** Allocates the memory. {@link #close} frees it. */
    public MapScanner() {
        memory.set(JAVA_INT, ID_ATTR + Abi.ID_OPEN_FLAGS, Abi.BPF_F_RDONLY);
        memory.set(JAVA_LONG, INFO_ATTR + Abi.INFO_INFO, address + INFO);
        memory.set(JAVA_LONG, BATCH_ATTR + Abi.BATCH_OUT_BATCH, address + ENTRIES);
        memory.set(JAVA_LONG, BATCH_ATTR + Abi.BATCH_KEYS, address + ENTRIES);
    }

    private long bpf(int command, long attr, int size) {
        return Native.bpf(capture, command, address + attr, size);
    }

    /**
     * Returns the ids of all maps, ascending.
     *
     * @throws ErrnoException if the kernel does not list them
     */
    public int[] ids() {
        int[] ids = new int[64];
        int n = 0;
        int id = 0;
        while (true) {
            memory.set(JAVA_INT, ID_ATTR + Abi.ID_START_ID, id);
            long outcome = bpf(Abi.BPF_MAP_GET_NEXT_ID, ID_ATTR, Abi.ID_NEXT_ID + 4);
            if (outcome == -Abi.ENOENT) {
                return Arrays.copyOf(ids, n);
            }
            if (outcome < 0) {
                throw new ErrnoException((int) outcome);
            }
            id = memory.get(JAVA_INT, ID_ATTR + Abi.ID_NEXT_ID);
            if (n == ids.length) {
                ids = Arrays.copyOf(ids, 2 * n);
            }
            ids[n++] = id;
        }
    }

    /**
     * Opens a map for reading, and closes the one before.
     *
     * @return 0, or the negated errno
     */
    public long open(int id) {
        closeMap();
        memory.set(JAVA_INT, ID_ATTR + Abi.ID_START_ID, id);
        long outcome = bpf(Abi.BPF_MAP_GET_FD_BY_ID, ID_ATTR, ID_SIZE);
        if (outcome == -Abi.EINVAL) { // before Linux 4.15 there are no flags
            outcome = bpf(Abi.BPF_MAP_GET_FD_BY_ID, ID_ATTR, Abi.ID_START_ID + 4);
        }
        if (outcome < 0) {
            return outcome;
        }
        number = (int) outcome;
        return 0;
    }

    /**
     * Reads the info of the open map. Fields that the kernel lacks are zero.
     *
     * @return 0, or the negated errno
     */
    public long readInfo() {
        info.fill((byte) 0); // the kernel may leave fields as they are that do not apply
        memory.set(JAVA_INT, INFO_ATTR + Abi.INFO_BPF_FD, number);
        memory.set(JAVA_INT, INFO_ATTR + Abi.INFO_INFO_LEN, INFO_SIZE); // the kernel changes it
        long outcome = bpf(Abi.BPF_OBJ_GET_INFO_BY_FD, INFO_ATTR, INFO_ATTR_SIZE);
        return outcome < 0 ? outcome : 0;
    }

    /**
     * Counts the entries of the open map, if one {@code BPF_MAP_LOOKUP_BATCH} reads all of them.
     *
     * @param keySize size of a key in bytes
     * @param valueSize size in bytes that the kernel writes for a value
     * @return the number, or {@link #UNKNOWN}
     */
    public long count(long keySize, long valueSize) {
        long room = (SIZE - ENTRIES - 8) / (keySize + valueSize);
        if (room < 1) {
            return UNKNOWN;
        }
        memory.set(JAVA_LONG, BATCH_ATTR + Abi.BATCH_VALUES,
            address + (ENTRIES + room * keySize + 7 & ~7L));
        memory.set(JAVA_INT, BATCH_ATTR + Abi.BATCH_COUNT, (int) room);
        memory.set(JAVA_INT, BATCH_ATTR + Abi.BATCH_MAP_FD, number);
        long outcome = Native.syscall(capture, Abi.SYS_BPF, Abi.BPF_MAP_LOOKUP_BATCH,
            address + BATCH_ATTR, Abi.BATCH_SIZE, 0, 0);
        return outcome == -Abi.ENOENT
            ? Integer.toUnsignedLong(memory.get(JAVA_INT, BATCH_ATTR + Abi.BATCH_COUNT))
            : UNKNOWN;
    }

    /** Returns the number of the descriptor of the open map. */
    public int number() {
        return number;
    }

    /** Returns the open map as an {@link Fd}, which owns the descriptor from now on. */
    public Fd take() {
        int taken = number;
        number = -1;
        return Fd.own(taken);
    }

    private void closeMap() {
        if (number >= 0) {
            int closing = number;
            number = -1;
            Native.syscall(capture, Abi.SYS_CLOSE, closing, 0, 0, 0, 0);
        }
    }

    @Override
    public void close() {
        closeMap();
        arena.close();
    }
}
