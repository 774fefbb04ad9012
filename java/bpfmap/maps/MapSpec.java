package bpfmap.maps;

import java.util.Objects;

/**
 * Describes a map to create.
 *
 * @param type the type of the map
 * @param keySize size of a key in bytes; 0 for a map without keys, such as a queue
 * @param valueSize size of a value in bytes; of a per-CPU map, the size for one CPU
 * @param maxEntries the largest number of entries
 * @param flags the create flags, such as {@link #MMAPABLE}, combined with {@code |}
 * @param name at most 15 letters, digits, dots and underscores in ASCII; may be empty
 */
public record MapSpec(
        MapType type, int keySize, int valueSize, int maxEntries, int flags, String name) {
    /** Allocates entries on demand. Required for LPM tries. */
    public static final int NO_PREALLOC = 1;

    /** Uses a separate LRU list for each CPU. */
    public static final int NO_COMMON_LRU = 1 << 1;

    /** Opens the map for reading only. */
    public static final int RDONLY = 1 << 3;

    /** Opens the map for writing only. */
    public static final int WRONLY = 1 << 4;

    /** Makes programs unable to write to the map. */
    public static final int RDONLY_PROG = 1 << 7;

    /** Makes programs unable to read from the map. */
    public static final int WRONLY_PROG = 1 << 8;

    /** Lets {@link BpfMap#memory} map the memory of an array. Since Linux 5.5. */
    public static final int MMAPABLE = 1 << 10;

    /**
     * Checks that the type and the name are not null, and that the sizes are not negative. The
     * kernel checks the rules of the map type.
     */
    public MapSpec {
        Objects.requireNonNull(type, "type");
        Objects.requireNonNull(name, "name");
        require("keySize", keySize);
        require("valueSize", valueSize);
        require("maxEntries", maxEntries);
        if (!name.matches("[A-Za-z0-9_.]{0,15}")) {
            throw new IllegalArgumentException("name must be at most 15 letters, digits, dots and"
                + " underscores, got \"" + name + "\"");
        }
    }

    /** Returns a spec without flags and without a name. */
    public static MapSpec of(MapType type, int keySize, int valueSize, int maxEntries) {
        return new MapSpec(type, keySize, valueSize, maxEntries, 0, "");
    }

    /** Returns this spec with other flags. */
    public MapSpec withFlags(int newFlags) {
        return new MapSpec(type, keySize, valueSize, maxEntries, newFlags, name);
    }

    /** Returns this spec with another name. */
    public MapSpec withName(String newName) {
        return new MapSpec(type, keySize, valueSize, maxEntries, flags, newName);
    }

    private static void require(String what, int number) {
        if (number < 0) {
            throw new IllegalArgumentException(
                what + " must be a non-negative integer, got " + number);
        }
    }
}
