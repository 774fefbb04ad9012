package bpfmap.sys;

import static bpfmap.sys.MappedMemory.READABLE;
import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_INT_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_LONG_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_SHORT_UNALIGNED;

import java.lang.foreign.MemorySegment;

/**
 * The current event of a pass, read in place. One object serves all events of a pass, so that an
 * event costs no allocation. Every access is checked against the end of the event. After the pass,
 * each access throws.
 *
 * <p>Nothing else keeps an access within mapped memory: it has no check whether a segment is alive.
 * So only the thread that made this object may use it. That thread also makes the pass, and the
 * memory stays mapped until the pass is over. Another thread could look at the length, and read
 * after the memory was unmapped.
 */
public final class RawEvent {
    // An address, and not a segment: storing a reference for each event costs a fence under G1.
    private long address;
    private long length = -1;
    private final int cpu;
    private final Thread owner = Thread.currentThread();

    RawEvent() {
        this(-1);
    }

    /** Makes an object for the events of a CPU; its number is negative if it is unknown. */
    RawEvent(int cpu) {
        this.cpu = cpu;
    }

    /** Returns true if this thread made the object, and may use it. */
    boolean isOfThisThread() {
        return owner == Thread.currentThread();
    }

    /** Shows an event in native memory, which stays mapped until {@link #end}. */
    void begin(long address, long length) {
        this.address = address;
        this.length = length;
    }

    /** Shows nothing: the event's place may be overwritten from now on. */
    void end() {
        length = -1;
        address = 0;
    }

    private long at(long index, int size) {
        // One comparison for an index below 0 and for one beyond the end; none for length -1.
        if (Long.compareUnsigned(index, length - size) > 0 || length < size
                || Thread.currentThread() != owner) {
            throw outside(index, size);
        }
        return address + index;
    }

    private RuntimeException outside(long index, int size) {
        if (Thread.currentThread() != owner) {
            return new IllegalStateException("the event belongs to the thread \"" + owner.getName()
                + "\"; copy there what another thread uses");
        }
        return length < 0
            ? new IllegalStateException("the event is over; copy what is used later")
            : new IndexOutOfBoundsException(size + " bytes at " + index + " of an event of "
            + length + " bytes");
    }

    /** Returns the size of the event in bytes. */
    public long length() {
        if (length < 0 || Thread.currentThread() != owner) {
            throw outside(0, 0);
        }
        return length;
    }

    /** Returns the number of the CPU on which the event was sent; negative if it is unknown. */
    public int cpu() {
        return cpu;
    }

    /** Decodes a value at an offset. */
    public Object decode(TypeCodec codec, long index) {
        return codec.decode(READABLE, at(index, (int) codec.size()));
    }

    /** Returns a copy of the bytes from an offset to the end. */
    public byte[] copyFrom(long index) {
        return Bytes.copyOut(READABLE, at(index, 0), (int) (length - index));
    }

    /** Returns a signed byte. */
    public long int8(long index) {
        return READABLE.get(JAVA_BYTE, at(index, 1));
    }

    /** Returns a signed number of two bytes, in the byte order of this machine. */
    public long int16(long index) {
        return READABLE.get(JAVA_SHORT_UNALIGNED, at(index, 2));
    }

    /** Returns a signed number of four bytes, in the byte order of this machine. */
    public long int32(long index) {
        return READABLE.get(JAVA_INT_UNALIGNED, at(index, 4));
    }

    /** Returns a number of eight bytes, in the byte order of this machine. */
    public long int64(long index) {
        return READABLE.get(JAVA_LONG_UNALIGNED, at(index, 8));
    }

    /**
     * Copies bytes of the event into an array.
     *
     * @return the number of bytes copied: the rest of the event, or as many as fit
     */
    public long copyTo(long index, byte[] array) {
        long from = at(index, 0);
        int n = (int) Math.min(length - index, array.length);
        MemorySegment.copy(READABLE, JAVA_BYTE, from, array, 0, n);
        return n;
    }

    @Override
    public String toString() {
        return length < 0 ? "an event that is over" : "an event of " + length + " bytes";
    }
}
