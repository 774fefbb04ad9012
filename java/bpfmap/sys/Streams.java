package bpfmap.sys;

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Objects;

/** Makes streams of memory, with 64-bit positions. Closing a stream does not affect the memory. */
public final class Streams {
    private Streams() {}

    /** Creates the exceptions of a stream. */
    public interface Failures {
        /**
         * Returns the exception for an access to unmapped memory; returns any other exception
         * unchanged.
         */
        RuntimeException failed(IllegalStateException e);

        /** Returns the exception for bytes that do not fit. */
        RuntimeException full(long bytes);
    }

    /** Returns a stream that reads memory. Supports mark and available. */
    public static InputStream input(MemorySegment memory, Failures failures) {
        return new Input(memory, failures);
    }

    /** Returns a stream that writes to memory. If bytes do not fit, none of them are written. */
    public static OutputStream output(MemorySegment memory, Failures failures) {
        return new Output(memory, failures);
    }

    private static void checkOpen(boolean closed) throws IOException {
        if (closed) {
            throw new IOException("the stream is closed");
        }
    }

    private static final class Input extends InputStream {
        private final MemorySegment memory;
        private final Failures failures;
        private long place;
        private long mark;
        private boolean closed;

        Input(MemorySegment memory, Failures failures) {
            this.memory = memory;
            this.failures = failures;
        }

        private long left() throws IOException {
            checkOpen(closed);
            if (!memory.scope().isAlive()) {
                throw failures.failed(new IllegalStateException());
            }
            return memory.byteSize() - place;
        }

        @Override
        public synchronized int read() throws IOException {
            if (left() == 0) {
                return -1;
            }
            try {
                int value = memory.get(ValueLayout.JAVA_BYTE, place) & 0xff;
                place++;
                return value;
            } catch (IllegalStateException e) {
                throw failures.failed(e);
            }
        }

        @Override
        public synchronized int read(byte[] array, int from, int length) throws IOException {
            Objects.checkFromIndexSize(from, length, array.length);
            int n = (int) Math.min(length, left());
            if (n == 0) {
                return length == 0 ? 0 : -1;
            }
            try {
                MemorySegment.copy(memory, ValueLayout.JAVA_BYTE, place, array, from, n);
                place += n;
                return n;
            } catch (IllegalStateException e) {
                throw failures.failed(e);
            }
        }

        @Override
        public synchronized long skip(long n) throws IOException {
            long skipped = Math.max(0, Math.min(n, left()));
            place += skipped;
            return skipped;
        }

        @Override
        public synchronized int available() throws IOException {
            return (int) Math.min(Integer.MAX_VALUE, left());
        }

        @Override
        public boolean markSupported() {
            return true;
        }

        @Override
        public synchronized void mark(int readLimit) {
            mark = place;
        }

        @Override
        public synchronized void reset() throws IOException {
            checkOpen(closed);
            place = mark;
        }

        @Override
        public synchronized void close() {
            closed = true;
        }
    }

    private static final class Output extends OutputStream {
        private final MemorySegment memory;
        private final Failures failures;
        private long place;
        private boolean closed;

        Output(MemorySegment memory, Failures failures) {
            this.memory = memory;
            this.failures = failures;
        }

        @Override
        public void write(int value) throws IOException {
            write(new byte[] {(byte) value}, 0, 1);
        }

        @Override
        public synchronized void write(byte[] array, int from, int length) throws IOException {
            Objects.checkFromIndexSize(from, length, array.length);
            checkOpen(closed);
            try {
                if (length > memory.byteSize() - place) {
                    throw memory.scope().isAlive()
                        ? failures.full(length)
                        : failures.failed(new IllegalStateException());
                }
                MemorySegment.copy(array, from, memory, ValueLayout.JAVA_BYTE, place, length);
                place += length;
            } catch (IllegalStateException e) {
                throw failures.failed(e);
            }
        }

        @Override
        public synchronized void flush() throws IOException {
            checkOpen(closed);
        }

        @Override
        public synchronized void close() {
            closed = true;
        }
    }
}
