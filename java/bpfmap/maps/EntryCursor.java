package bpfmap.maps;

import bpfmap.sys.Abi;
import bpfmap.sys.BatchReader;
import bpfmap.sys.Elements;
import bpfmap.sys.Fd;
import bpfmap.sys.KeyIterator;
import bpfmap.sys.KeyOrder;
import bpfmap.sys.Reader;
import java.lang.foreign.MemorySegment;
import java.util.ConcurrentModificationException;
import java.util.NoSuchElementException;

/**
 * Iterates over the entries of a map. For use by one thread.
 *
 * <pre>{@code
 * try (EntryCursor cursor = map.cursor()) {
 *     while (cursor.next()) {
 *         use(cursor.key(), cursor.value());
 *     }
 * }
 * }</pre>
 *
 * <p>The map may change during the iteration, also by its own thread. An entry that exists
 * throughout is seen. An entry that is inserted or deleted concurrently may be seen or not. If
 * others delete entries and the kernel has no batches for the map type, an entry may be seen twice.
 */
public final class EntryCursor implements AutoCloseable {
    private final Elements elements;
    private final MapInfo info;
    private final int valueSize;
    private Reader reader;
    private boolean batches;
    private boolean closed;
    private int count;
    private int index = -1;

    EntryCursor(Fd fd, Elements elements, MapInfo info, int valueSize) {
        this.elements = elements;
        this.info = info;
        this.valueSize = valueSize;
        if (info.keySize() == 0) {
            throw new UnsupportedOperationException("a map without keys cannot be iterated");
        }
        batches = info.type() != null && info.type().hasBatches();
        reader = batches
            ? new BatchReader(
                fd, Abi.BPF_MAP_LOOKUP_BATCH, info.keySize(), valueSize, info.maxEntries(),
                Abi.BPF_ANY, info.type().order())
            : byKeys();
    }

    private Reader byKeys() {
        MapType type = info.type();
        long most = info.maxEntries();
        if (type == MapType.STACK_TRACE && most > 1) {
            most = Long.highestOneBit(most - 1) << 1; // the kernel rounds up without reporting it
        }
        return new KeyIterator(
            elements, info.keySize(), valueSize, most, Abi.BPF_ANY,
            type == null ? KeyOrder.NONE : type.order(),
            type != null && type.isByIndex());
    }

    /**
     * Moves to the next entry.
     *
     * @return true if there is one
     * @throws ConcurrentModificationException if others delete entries faster than this iteration
     *     can read them
     * @throws IllegalStateException if the cursor or the map is closed
     */
    public boolean next() {
        if (closed) {
            throw new IllegalStateException("the cursor is closed");
        }
        if (index + 1 < count) {
            index++;
            return true;
        }
        int outcome = reader.read();
        if (batches && isUnsupported(outcome)) {
            reader.close();
            reader = byKeys();
            outcome = reader.read();
        }
        batches = false; // only the first call can find that the kernel has none
        if (outcome == Reader.ABORTED) {
            throw new ConcurrentModificationException(
                "others delete entries faster than the iteration can read them");
        }
        if (outcome < 0) {
            throw new BpfMapException("iterate", outcome);
        }
        count = outcome;
        index = outcome == 0 ? -1 : 0;
        return outcome > 0;
    }

    private static boolean isUnsupported(int outcome) {
        return outcome == -Abi.EINVAL || outcome == -Abi.ENOTSUPP || outcome == -Abi.EOPNOTSUPP;
    }

    /** Returns the current key: read-only memory that is valid until the next {@link #next}. */
    public MemorySegment key() {
        return current(reader.keys(), info.keySize());
    }

    /** Returns the current value: read-only memory that is valid until the next {@link #next}. */
    public MemorySegment value() {
        return current(reader.values(), valueSize);
    }

    private MemorySegment current(MemorySegment chunk, long size) {
        if (index < 0 || closed) {
            throw new NoSuchElementException("the cursor is not at an entry");
        }
        return chunk.asSlice(index * size, size).asReadOnly();
    }

    /** Frees the memory of the iteration. Idempotent. */
    @Override
    public void close() {
        if (!closed) {
            closed = true;
            reader.close();
        }
    }
}
