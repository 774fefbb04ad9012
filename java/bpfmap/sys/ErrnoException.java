package bpfmap.sys;

/** The kernel's refusal of an element operation, where what it returns leaves no room for an errno. */
public final class ErrnoException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    /** The negated errno. */
    public final int outcome;

    ErrnoException(int outcome) {
        super("errno " + -outcome, null, false, false); // who catches it says where and why
        this.outcome = outcome;
    }
}
