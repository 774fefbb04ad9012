package bpfmap.sys;

/** Thrown for a command of the kernel that a {@link SimulatedMap} does not have. */
public final class NotSimulatedException extends UnsupportedOperationException {
    private static final long serialVersionUID = 1;

    NotSimulatedException(String message) {
        super(message);
    }
}
