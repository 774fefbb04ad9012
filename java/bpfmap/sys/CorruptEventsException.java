package bpfmap.sys;

/** Reports positions or headers of a ring that no kernel writes. */
public final class CorruptEventsException extends IllegalStateException {
    private static final long serialVersionUID = 1L;

    /** The position of the reader, in bytes since the ring was created. */
    public final long position;

    CorruptEventsException(String message, long position) {
        super(message);
        this.position = position;
    }
}
