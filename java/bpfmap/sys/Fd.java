package bpfmap.sys;

import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.lang.ref.Cleaner;

/**
 * Owns one file descriptor: counts the calls that use it, and gives it back to the kernel exactly once.
 *
 * <p>The number is handed out between {@link #acquire} and {@link #release} only. Closing makes every later
 * {@code acquire} fail at once, and the last call in flight, not the closing thread, gives the number back. So a
 * close never blocks, and no call can reach a number that the kernel has meanwhile given to another file.
 *
 * <p>An {@code Fd} that nobody closed is closed when the garbage collector finds it unreachable.
 */
public final class Fd implements AutoCloseable {
    private static final Cleaner CLEANER = Cleaner.create();

    private final State state;
    private final Cleaner.Cleanable cleanable;

    private Fd(int number) {
        state = new State(number);
        cleanable = CLEANER.register(this, state);
    }

    /**
     * Takes ownership of an open descriptor. From now on nothing else may close it.
     *
     * @throws IllegalArgumentException for a negative number
     */
    public static Fd own(long number) {
        if (number < 0 || number > Integer.MAX_VALUE) {
            throw new IllegalArgumentException("not a file descriptor: " + number);
        }
        return new Fd((int) number);
    }

    /**
     * Marks a call as in flight and returns the descriptor for it. Must be paired with {@link #release}.
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

    /** Whether {@link #close} was called; calls in flight may still be at work. */
    public boolean isClosed() {
        return state.isClosed();
    }

    /** Refuses all later calls, and gives the descriptor back once those in flight are done. Idempotent. */
    @Override
    public void close() {
        cleanable.clean();
    }

    /** The descriptor's number for people to read; it may be stale by the time they do. */
    @Override
    public String toString() {
        return "fd " + state.number + (isClosed() ? " (closed)" : "");
    }

    /** What the cleaner holds: it must not refer to the Fd, or the Fd would never become unreachable. */
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

        /** Calls in flight, with CLOSED once no more may begin, and RETURNED once the kernel has the number back. */
        private volatile int use;

        State(int number) {
            this.number = number;
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

        /** Run once, by close() or by the cleaner. */
        @Override
        public void run() {
            if ((int) USE.getAndBitwiseOr(this, CLOSED) == 0) {
                giveBack();
            }
        }

        // A refused acquire passes through CLOSED too; RETURNED makes sure that only one of all these closes.
        private void giveBack() {
            if (USE.compareAndSet(this, CLOSED, CLOSED | RETURNED)) {
                // Never repeated, not on EINTR either: Linux has released the number by then.
                Native.syscall(Abi.SYS_CLOSE, number, 0, 0, 0, 0);
            }
        }
    }
}
