package bpfmap.maps;

import bpfmap.sys.KeyOrder;
import java.util.EnumSet;
import java.util.Set;

/**
 * Names the map types of the kernel: {@code HASH} is {@code BPF_MAP_TYPE_HASH} of
 * {@code linux/bpf.h}.
 */
public enum MapType {
    HASH(1),
    ARRAY(2),
    PROG_ARRAY(3),
    PERF_EVENT_ARRAY(4),
    PERCPU_HASH(5),
    PERCPU_ARRAY(6),
    STACK_TRACE(7),
    CGROUP_ARRAY(8),
    LRU_HASH(9),
    LRU_PERCPU_HASH(10),
    LPM_TRIE(11),
    ARRAY_OF_MAPS(12),
    HASH_OF_MAPS(13),
    DEVMAP(14),
    SOCKMAP(15),
    CPUMAP(16),
    XSKMAP(17),
    SOCKHASH(18),
    CGROUP_STORAGE(19),
    REUSEPORT_SOCKARRAY(20),
    PERCPU_CGROUP_STORAGE(21),
    QUEUE(22),
    STACK(23),
    SK_STORAGE(24),
    DEVMAP_HASH(25),
    STRUCT_OPS(26),
    RINGBUF(27),
    INODE_STORAGE(28),
    TASK_STORAGE(29),
    BLOOM_FILTER(30),
    USER_RINGBUF(31),
    CGRP_STORAGE(32),
    ARENA(33),
    INSN_ARRAY(34),
    RHASH(35);

    // A test compares these facts with the rows of bpfmap.impl.map-types.

    private static final Set<MapType> PER_CPU =
        EnumSet.of(PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH, PERCPU_CGROUP_STORAGE);

    private static final Set<MapType> BY_INDEX = EnumSet.of(
        ARRAY, PROG_ARRAY, PERF_EVENT_ARRAY, PERCPU_ARRAY, STACK_TRACE, CGROUP_ARRAY,
        ARRAY_OF_MAPS, DEVMAP, SOCKMAP, CPUMAP, XSKMAP, REUSEPORT_SOCKARRAY, STRUCT_OPS,
        INSN_ARRAY);

    private static final Set<MapType> BATCHES = EnumSet.of(
        HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LRU_PERCPU_HASH, LPM_TRIE, HASH_OF_MAPS,
        RHASH);

    private static final Set<MapType> EVICTING = EnumSet.of(LRU_HASH, LRU_PERCPU_HASH);

    private final int number;

    MapType(int number) {
        this.number = number;
    }

    /** Returns the number of the type in the kernel. */
    public int number() {
        return number;
    }

    /**
     * Returns the type with a number.
     *
     * @return the type, or null if this version of bpfmap does not know the number
     */
    public static MapType of(int number) {
        MapType[] types = values();
        return 1 <= number && number <= types.length ? types[number - 1] : null;
    }

    /** Returns true if a value of the map has a part for each possible CPU. */
    public boolean isPerCpu() {
        return PER_CPU.contains(this);
    }

    /** Returns true if keys are indices of four bytes. */
    boolean isByIndex() {
        return BY_INDEX.contains(this);
    }

    /** Returns true if newer kernels read many entries with one call. */
    boolean hasBatches() {
        return BATCHES.contains(this);
    }

    /** Returns true if newer kernels write many entries with one call. */
    boolean hasWriteBatches() {
        return hasBatches() || this == ARRAY_OF_MAPS;
    }

    /** Returns true if newer kernels delete many entries with one call. */
    boolean hasDeleteBatches() {
        return hasBatches() && this != ARRAY && this != PERCPU_ARRAY;
    }

    /** Returns true if a full map drops entries to make room. */
    boolean evicts() {
        return EVICTING.contains(this);
    }

    /** Returns the order in which the kernel iterates over keys that can be deleted. */
    KeyOrder order() {
        return switch (this) {
            case STACK_TRACE -> KeyOrder.INDEX;
            case LPM_TRIE -> KeyOrder.PREFIX;
            default -> KeyOrder.NONE;
        };
    }
}
