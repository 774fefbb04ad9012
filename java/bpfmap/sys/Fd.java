package bpfmap.sys;

import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.lang.ref.Cleaner;

/**
 * Owns one file descriptor: counts the calls that use it, and closes it exactly once.
 *
 * <p>The number is valid only between {@link #acquire} and {@link #release}. Closing makes every
 * later {@code acquire} fail immediately. If calls are in flight, the last of them closes the
 * descriptor, not the closing thread. So a close never blocks, and no call can use a number that
 * the kernel has already reused for another file.
 *
 * <p>If an {@code Fd} is not closed, it is closed after it becomes unreachable.
 */
public final class Fd implements AutoCloseable {
    private static final Cleaner CLEANER = Cleaner.create();

    private final State state;
    private final Cleaner.Cleanable cleanable;

    /** The map of this process that the descriptor refers to; null for an object of the kernel. */
    final SimulatedMap simulated;

    private Fd(int number, SimulatedMap simulated) {
        this.simulated = simulated;
        state = new State(number, simulated);
        cleanable = CLEANER.register(this, state);
    }

    /**
     * Takes ownership of an open descriptor. Nothing else may close it afterwards.
     *
     * @throws IllegalArgumentException if the number is negative
     */
    public static Fd own(long number) {
        if (number < 0 || number > Integer.MAX_VALUE) {
            throw new IllegalArgumentException("not a file descriptor: " + number);
        }
        return new Fd((int) number, null);
    }

    /** Returns a descriptor that owns a use of a simulated map. */
    static Fd simulate(SimulatedMap map) {
        return new Fd(map.number(), map);
    }

    /** Returns the simulated map, or null for an object of the kernel. */
    public SimulatedMap simulated() {
        return simulated;
    }

    /**
     * Marks a call as in flight and returns the descriptor for it. Must be paired with
     * {@link #release}.
     *
     * @throws ClosedFdException after {@link #close}
     */
    public int acquire() {
        return state.acquire();
    }

    /** Ends a call that {@link #acquire} began. */
    public void release() {
        state.release();
    }

    /** Returns true if {@link #close} was called. Calls may still be in flight. */
    public boolean isClosed() {
        return state.isClosed();
    }

    /** Rejects all later calls, and closes the descriptor when no call is in flight. Idempotent. */
    @Override
    public void close() {
        cleanable.clean();
    }

    /** Returns the descriptor's number for messages. The number may already be stale. */
    @Override
    public String toString() {
        return "fd " + state.number + (isClosed() ? " (closed)" : "");
    }

    /**
     * Holds the state for the cleaner. It must not refer to the Fd, which would keep the Fd
     * reachable.
     */
    private static final class State implements Runnable {
        private static final int CLOSED = 1 << 31;
        private static final int RETURNED = 1 << 30;
        private static final VarHandle USE;

        static {
            try {
                USE = MethodHandles.lookup().findVarHandle(State.class, "use", int.class);
            } catch (ReflectiveOperationException e) {
                throw new ExceptionInInitializerError(e);
            }
        }

        final int number;
        private final SimulatedMap simulated;

        /**
         * Number of calls in flight, with CLOSED when no more may begin, and RETURNED when the
         * descriptor has been closed.
         */
        private volatile int use;

        State(int number, SimulatedMap simulated) {
            this.number = number;
            this.simulated = simulated;
        }

        int acquire() {
            if ((int) USE.getAndAdd(this, 1) < 0) {
                release();
                throw new ClosedFdException();
            }
            return number;
        }

        void release() {
            if ((int) USE.getAndAdd(this, -1) - 1 == CLOSED) {
                giveBack();
            }
        }

        boolean isClosed() {
            return use < 0;
        }

        /** Runs once, called by close() or by the cleaner. */
        @Override
        public void run() {
            if ((int) USE.getAndBitwiseOr(this, CLOSED) == 0) {
                giveBack();
            }
        }

        // A rejected acquire also passes through CLOSED. RETURNED ensures that only one of them
        // closes.
        private void giveBack() {
            if (!USE.compareAndSet(this, CLOSED, CLOSED | RETURNED)) {
                return;
            }
            if (simulated != null) {
                simulated.release();
            } else {
                // Never repeated, not even after EINTR: Linux has already released the number.
                Native.syscall(Abi.SYS_CLOSE, number, 0, 0, 0, 0);
            }
        }
    }
}
