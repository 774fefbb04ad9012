package bpfmap.sys;

import java.io.ByteArrayOutputStream;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * Asks the kernel for lists about the network, by rtnetlink.
 *
 * <p>Source: linux/netlink.h, linux/rtnetlink.h.
 */
public final class Netlink {
    private Netlink() {}

    private static final int AF_NETLINK = 16; // linux/socket.h
    private static final int SOCK_RAW_CLOEXEC = 3 | 02000000; // linux/net.h
    private static final int NETLINK_ROUTE = 0;
    private static final int NLMSG_ERROR = 2;
    private static final int NLMSG_DONE = 3;
    /** A kernel sends at most 32 KiB at once, which is NLMSG_GOODSIZE or the size of the reader. */
    private static final int ROOM = 1 << 16;

    /**
     * Sends a request for a list and returns the messages of the answer, one behind the other. The
     * answer comes from the network namespace of the calling thread.
     *
     * @param request a whole message, with the flags for a dump
     * @return the bytes of the messages
     * @throws ErrnoException if the kernel refuses the request
     */
    public static byte[] dump(byte[] request) {
        long socket = check(
            Native.syscall(Abi.SYS_SOCKET, AF_NETLINK, SOCK_RAW_CLOEXEC, NETLINK_ROUTE, 0, 0));
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment sent = arena.allocate(request.length, 8);
            MemorySegment.copy(request, 0, sent, ValueLayout.JAVA_BYTE, 0, request.length);
            check(Native.syscall(Abi.SYS_WRITE, socket, sent.address(), request.length, 0, 0));
            return answer(socket, arena.allocate(ROOM, 8));
        } finally {
            Native.syscall(Abi.SYS_CLOSE, socket, 0, 0, 0, 0);
        }
    }

    /** Reads until the message that ends the list. */
    private static byte[] answer(long socket, MemorySegment buffer) {
        ByteArrayOutputStream found = new ByteArrayOutputStream();
        while (true) {
            long n;
            do {
                n = Native.syscall(Abi.SYS_READ, socket, buffer.address(), ROOM, 0, 0);
            } while (n == -Abi.EINTR);
            check(n);
            long at = 0;
            while (at + 16 <= n) {
                long length = Integer.toUnsignedLong(buffer.get(ValueLayout.JAVA_INT, at));
                int type = Short.toUnsignedInt(buffer.get(ValueLayout.JAVA_SHORT, at + 4));
                if (length < 16 || length > n - at) {
                    return found.toByteArray();
                }
                if (type == NLMSG_DONE) {
                    return found.toByteArray();
                }
                if (type == NLMSG_ERROR) {
                    check(length < 20 ? 0 : buffer.get(ValueLayout.JAVA_INT, at + 16));
                    return found.toByteArray();
                }
                found.writeBytes(Bytes.copyOut(buffer, at, (int) length));
                at += length + 3 & ~3L;
            }
            if (n == 0) {
                return found.toByteArray();
            }
        }
    }

    private static long check(long outcome) {
        if (outcome < 0) {
            throw new ErrnoException((int) outcome);
        }
        return outcome;
    }
}
