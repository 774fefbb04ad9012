package bpfmap.maps;

import bpfmap.sys.Abi;
import bpfmap.sys.Errno;

/** Reports that the kernel rejected an operation on a map, with the errno. */
public final class BpfMapException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    /** The operation that failed, as in the message. */
    private final String operation;

    /** The errno, a positive number. */
    private final int errno;

    /** The number of elements that were processed before the failure. */
    private final int completed;

    /**
     * @param outcome the negated errno
     */
    BpfMapException(String operation, long outcome) {
        this(operation, outcome, 0, "");
    }

    /**
     * @param outcome the negated errno
     */
    BpfMapException(String operation, long outcome, int completed, int total) {
        this(operation, outcome, completed, "; " + completed + " of " + total + " were done");
    }

    private BpfMapException(String operation, long outcome, int completed, String progress) {
        super(operation + " failed with " + name(-outcome) + ": " + explain((int) -outcome)
            + progress);
        this.operation = operation;
        this.errno = (int) -outcome;
        this.completed = completed;
    }

    /** Returns the operation that failed, such as {@code "put"}. */
    public String operation() {
        return operation;
    }

    /** Returns the errno, such as 7. */
    public int errno() {
        return errno;
    }

    /** Returns the name of the errno, such as {@code "E2BIG"}. */
    public String errnoName() {
        return name(errno);
    }

    /**
     * Returns the number of entries that {@link BpfMap#putAll} had written, or of keys that
     * {@link BpfMap#deleteAll} had deleted, before the failure. 0 for other operations.
     */
    public int completed() {
        return completed;
    }

    private static String name(long errno) {
        String name = Errno.name((int) errno);
        return name == null ? "errno " + errno : name;
    }

    private static String explain(int errno) {
        return switch (errno) {
            case Abi.EPERM ->
                "the process lacks a capability such as CAP_BPF, the map is frozen, or the handle"
                    + " does not permit the operation";
            case Abi.EACCES -> "the mode of the file or directory does not permit it";
            case Abi.ENOENT -> "the key, the id or the file does not exist";
            case Abi.EEXIST -> "it exists already";
            case Abi.E2BIG, Abi.ENOSPC ->
                "the map is full, an index is out of range, or a size is too large";
            case Abi.EBUSY -> "the memory of the map is mapped writable, or it is in use";
            case Abi.EINVAL ->
                "this kernel or map type does not support the operation, or an argument breaks one"
                    + " of its rules";
            case Abi.ENOTSUPP, Abi.EOPNOTSUPP ->
                "this kernel or map type does not support the operation";
            case Abi.ENOMEM -> "the kernel has no memory for it";
            case Abi.EMFILE -> "the process has reached its limit of open files (ulimit -n)";
            default -> "see the manual page bpf(2)";
        };
    }
}
