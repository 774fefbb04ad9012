package bpfmap.sys;

/** Reports the errno of an element operation whose result leaves no room for an errno. */
public final class ErrnoException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    /** The negated errno. */
    public final int outcome;

    ErrnoException(int outcome) {
        // the catcher adds the operation and the map
        super("errno " + -outcome, null, false, false);
        this.outcome = outcome;
    }
}
