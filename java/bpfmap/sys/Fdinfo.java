package bpfmap.sys;

/** The BPF object that a file of {@code /proc/PID/fdinfo} describes. */
public final class Fdinfo {
    /** The number of the descriptor. */
    public final int number;

    /** The kind of the object: {@code "link"}, {@code "map"} or {@code "program"}. */
    public final String kind;

    /** The id of the object. */
    public final long id;

    /** The memory of a map in bytes, -1 if the kernel does not report it. */
    public final long memlock;

    /** The number 1 for a frozen map, 0 for another, -1 if the kernel does not report it. */
    public final long frozen;

    private Fdinfo(int number, String kind, long id, long memlock, long frozen) {
        this.number = number;
        this.kind = kind;
        this.id = id;
        this.memlock = memlock;
        this.frozen = frozen;
    }

    /**
     * Returns the object that a file describes, or null for anything else.
     *
     * <p>A link also has the id of its program, and a link of an iterator, a struct_ops or a
     * sockmap the id of its map. Before Linux 4.18 there are no ids.
     */
    public static Fdinfo parse(int number, byte[] file) {
        long link = -1;
        long map = -1;
        long program = -1;
        long memlock = -1;
        long frozen = -1;
        int from = 0;
        for (int at = 0; at < file.length; at++) {
            if (file[at] == '\n') {
                from = at + 1;
            } else if (file[at] == ':' && from >= 0) {
                switch (at - from) {
                    case 6:
                        map = is(file, from, "map_id") ? value(file, at) : map;
                        frozen = is(file, from, "frozen") ? value(file, at) : frozen;
                        break;
                    case 7:
                        link = is(file, from, "link_id") ? value(file, at) : link;
                        program = is(file, from, "prog_id") ? value(file, at) : program;
                        memlock = is(file, from, "memlock") ? value(file, at) : memlock;
                        break;
                    default:
                }
                from = Integer.MIN_VALUE;
            }
        }
        if (link >= 0) {
            return new Fdinfo(number, "link", link, -1, -1);
        }
        if (map >= 0) {
            return new Fdinfo(number, "map", map, memlock, frozen);
        }
        return program >= 0 ? new Fdinfo(number, "program", program, -1, -1) : null;
    }

    private static boolean is(byte[] file, int from, String name) {
        for (int i = 0; i < name.length(); i++) {
            if (file[from + i] != name.charAt(i)) {
                return false;
            }
        }
        return true;
    }

    /** Returns the number after the colon, or -1 if there is none. */
    private static long value(byte[] file, int colon) {
        long value = -1;
        for (int at = colon + 1; at < file.length && file[at] != '\n'; at++) {
            if (file[at] >= '0' && file[at] <= '9') {
                value = 10 * Math.max(0, value) + file[at] - '0';
            } else if (file[at] != '\t' && file[at] != ' ') {
                return -1;
            }
        }
        return value;
    }
}
