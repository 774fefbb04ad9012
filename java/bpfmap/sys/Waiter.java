package bpfmap.sys;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;

/**
 * Waits until one of several descriptors is readable, with epoll. Another thread can end the wait.
 *
 * <p>Closing an epoll descriptor does not wake the thread that waits for it, and neither does an
 * interrupt. So an eventfd is in the set, and {@link #wake} writes to it, for good.
 */
public final class Waiter implements AutoCloseable {
    private static final int EPOLL_CLOEXEC = 02000000; // linux/eventpoll.h, and the next six
    private static final int EPOLL_CTL_ADD = 1;
    private static final int EPOLL_CTL_DEL = 2;
    private static final int EPOLLIN = 1;
    private static final int EPOLLOUT = 4;
    private static final int EPOLLONESHOT = 1 << 30;
    private static final int EPOLLET = 1 << 31;
    private static final int EFD_FLAGS = 02000000 | 04000; // EFD_CLOEXEC, EFD_NONBLOCK

    /** Size of {@code struct epoll_event}: packed on x86-64, and nowhere else. */
    private static final int EVENT = "amd64".equals(System.getProperty("os.arch")) ? 12 : 16;

    /** Offset of {@code data} in it, which comes back with an event. */
    private static final int DATA = EVENT - 8;

    private static final int AT_ONCE = 64;

    private final Fd epoll;
    private final Fd eventfd;

    private Waiter(Fd epoll, Fd eventfd) {
        this.epoll = epoll;
        this.eventfd = eventfd;
    }

    /**
     * Creates an epoll descriptor; pass it to {@link #own}.
     *
     * @return its number, or the negated errno
     */
    public static long createEpoll() {
        return Native.syscall(Abi.SYS_EPOLL_CREATE1, EPOLL_CLOEXEC, 0, 0, 0, 0);
    }

    /**
     * Creates an eventfd; pass it to {@link #own}.
     *
     * @return its number, or the negated errno
     */
    public static long createEventfd() {
        return Native.syscall(Abi.SYS_EVENTFD2, 0, EFD_FLAGS, 0, 0, 0);
    }

    /** Takes ownership of an epoll descriptor and of an eventfd, which still has to be added. */
    public static Waiter own(Fd epoll, Fd eventfd) {
        return new Waiter(epoll, eventfd);
    }

    /**
     * Adds the eventfd, without which {@link #wake} does nothing.
     *
     * @return 0, or the negated errno
     */
    public long addEventfd() {
        return add(eventfd);
    }

    /**
     * Adds a descriptor, level-triggered: as long as it is readable, no wait begins.
     *
     * @return 0, or the negated errno
     */
    public long add(Fd fd) {
        return control(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, 0);
    }

    /**
     * Adds a descriptor, edge-triggered: a wait ends when there is more to read than before,
     * however much there was. Only for platform threads: a virtual one takes no edge.
     *
     * @return 0, or the negated errno
     */
    public long addEdges(Fd fd) {
        return control(epoll, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLET, 0);
    }

    /**
     * Adds a descriptor that becomes writable, edge-triggered: a wait ends when there is more room
     * than before, however much there was.
     *
     * @return 0, or the negated errno
     */
    public long addForRoom(Fd fd) {
        return control(epoll, EPOLL_CTL_ADD, fd, EPOLLOUT | EPOLLET, 0);
    }

    private static long control(Fd epoll, int operation, Fd fd, int events, long data) {
        int set = epoll.acquire();
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment event = arena.allocate(16, 8);
            event.set(ValueLayout.JAVA_INT, 0, events);
            event.set(ValueLayout.JAVA_LONG_UNALIGNED, DATA, data);
            int number = fd.acquire();
            try {
                return Native.syscall(
                    Abi.SYS_EPOLL_CTL, set, operation, number, event.address(), 0);
            } finally {
                fd.release();
            }
        } finally {
            epoll.release();
        }
    }

    /**
     * Waits until a descriptor is readable, {@link #wake} was called, or the time is over. A signal
     * does not end the wait.
     *
     * <p>A platform thread waits in the kernel. A virtual thread would keep its carrier from all
     * other virtual threads meanwhile, so it parks, and one platform thread waits for all of them.
     *
     * @return 0 or a positive number, or the negated errno
     */
    public long await(long nanos) {
        return Thread.currentThread().isVirtual() ? park(nanos) : waitInKernel(epoll, nanos);
    }

    /** Waits in the kernel, and returns the outcome of epoll_pwait for one event. */
    private static long waitInKernel(Fd epoll, long nanos) {
        long until = System.nanoTime() + nanos;
        int set = epoll.acquire();
        CallBuffer buffer = CallBuffer.take(CallBuffer.KEY + EVENT);
        try {
            while (true) {
                long left = Math.max(0, until - System.nanoTime());
                // Not less than the rest, or a wait would end early and begin again.
                long millis = TimeUnit.NANOSECONDS.toMillis(left + 999_999);
                // Without a signal mask, the sixth argument has no meaning.
                long outcome = Native.syscall(buffer.capture, Abi.SYS_EPOLL_PWAIT, set,
                    buffer.address + CallBuffer.KEY, 1, Math.min(millis, Integer.MAX_VALUE), 0);
                if (outcome != -Abi.EINTR) {
                    return outcome;
                }
            }
        } finally {
            buffer.give();
            epoll.release();
        }
    }

    /** Ends the wait in progress and every later one at once, until {@link #reset}. */
    public void wake() {
        eventfdCall(Abi.SYS_WRITE, 1);
    }

    /** Takes back {@link #wake}, so that the next wait is one. */
    public void reset() {
        eventfdCall(Abi.SYS_READ, 0);
    }

    private void eventfdCall(long call, long content) {
        int number;
        try {
            number = eventfd.acquire();
        } catch (ClosedFdException e) {
            return; // nobody can wait any more
        }
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment counter = arena.allocate(8, 8);
            counter.set(ValueLayout.JAVA_LONG, 0, content);
            Native.syscall(call, number, counter.address(), 8, 0, 0);
        } finally {
            eventfd.release();
        }
    }

    // --- virtual threads

    private long park(long nanos) {
        long until = System.nanoTime() + nanos;
        Hub hub;
        try {
            hub = Hub.get();
        } catch (ErrnoException e) {
            return e.outcome;
        }
        long token = hub.enter(Thread.currentThread());
        try {
            long outcome = hub.watch(epoll, token);
            while (outcome >= 0 && hub.isWaiting(token)) {
                long left = until - System.nanoTime();
                if (left <= 0 || Thread.currentThread().isInterrupted()) {
                    break;
                }
                LockSupport.parkNanos(this, left);
            }
            return outcome;
        } finally {
            hub.forget(epoll, token);
        }
    }

    /** An epoll set of the epoll sets that virtual threads wait for, and the thread that waits. */
    private static final class Hub implements Runnable {
        private static Hub hub;

        private final Fd sets;
        private final ConcurrentHashMap<Long, Thread> waiting = new ConcurrentHashMap<>();
        private final AtomicLong tokens = new AtomicLong();

        private Hub(Fd sets) {
            this.sets = sets;
        }

        static synchronized Hub get() {
            if (hub == null) {
                long number = createEpoll();
                if (number < 0) {
                    throw new ErrnoException((int) number);
                }
                hub = new Hub(Fd.own(number));
                Thread.ofPlatform().daemon().name("bpfmap-event-hub").start(hub);
            }
            return hub;
        }

        long enter(Thread thread) {
            long token = tokens.incrementAndGet();
            waiting.put(token, thread);
            return token;
        }

        boolean isWaiting(long token) {
            return waiting.containsKey(token);
        }

        long watch(Fd epoll, long token) {
            return control(sets, EPOLL_CTL_ADD, epoll, EPOLLIN | EPOLLONESHOT, token);
        }

        void forget(Fd epoll, long token) {
            waiting.remove(token);
            control(sets, EPOLL_CTL_DEL, epoll, 0, 0);
        }

        @Override
        public void run() {
            int set = sets.acquire(); // for as long as the JVM lives
            MemorySegment events = Arena.global().allocate((long) AT_ONCE * EVENT, 8);
            while (true) {
                long n = Native.syscall(
                    Abi.SYS_EPOLL_PWAIT, set, events.address(), AT_ONCE, -1, 0);
                for (long i = 0; i < n; i++) {
                    Thread thread = waiting.remove(
                        events.get(ValueLayout.JAVA_LONG_UNALIGNED, i * EVENT + DATA));
                    LockSupport.unpark(thread);
                }
            }
        }
    }

    /** Closes both descriptors. A thread that waits must be woken first. */
    @Override
    public void close() {
        epoll.close();
        eventfd.close();
    }
}
