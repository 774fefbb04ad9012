package bpfmap.sys;

/** Reports a call on a descriptor that was closed. */
public final class ClosedFdException extends IllegalStateException {
    private static final long serialVersionUID = 1L;

    ClosedFdException() {
        super("the descriptor is closed");
    }
}
