package bpfmap.sys;

import static bpfmap.sys.MappedMemory.READABLE;
import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_INT_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_LONG_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_SHORT_UNALIGNED;

import java.lang.foreign.MemorySegment;

/**
 * The codec of any type, as one class. It reads and writes integers of up to eight bytes itself,
 * which most keys, values and fields are, and calls another codec for all other types.
 *
 * <p>A call through {@link Codec} takes longer than the work for an integer if codecs of many
 * classes are in use. The rows "reduce, typed" of {@code bpfmap.bench} justify this class: callers
 * that declare it call it directly.
 */
public final class TypeCodec implements Codec {
    // The kind of an integer: log2 of its size, and flags. 0 for all other types.
    private static final int NONE = 0;
    private static final int INTEGER = 16;
    private static final int UNSIGNED = 4;
    private static final int SWAPPED = 8;
    private static final int WIDTH = 3;

    private final int kind;
    private final Codec codec;
    private final StructWords words;
    private final long size;
    private final Object type;

    private TypeCodec(int kind, Codec codec, Object type) {
        this.kind = kind;
        this.codec = codec;
        this.words = codec.words();
        this.size = codec.size();
        this.type = type;
    }

    /**
     * Returns the codec of integers of 1, 2, 4 or 8 bytes.
     *
     * @param unusual encodes other objects than a Long in range, or rejects them; decodes numbers
     *     above 2^63-1
     * @param swapped true if the byte order differs from this machine's
     * @param type for {@link #toString}
     */
    public static TypeCodec integer(
            Codec unusual, boolean signed, boolean swapped, Object type) {
        int kind = INTEGER | Long.numberOfTrailingZeros(unusual.size()) | (signed ? 0 : UNSIGNED)
            | (swapped ? SWAPPED : 0);
        return new TypeCodec(kind, unusual, type);
    }

    /** Returns a codec as this class. */
    public static TypeCodec of(Codec codec) {
        return of(codec, "a part");
    }

    /** Returns a codec as this class, with a type for {@link #toString}. */
    public static TypeCodec of(Codec codec, Object type) {
        return codec instanceof TypeCodec c ? c : new TypeCodec(NONE, codec, type);
    }

    /** Returns true if the values are integers of up to eight bytes. */
    public boolean isInteger() {
        return kind != NONE;
    }

    /** Returns the number that decides how integers are decoded. */
    int kind() {
        return kind;
    }

    boolean isUnsigned() {
        return (kind & UNSIGNED) != 0;
    }

    boolean isSwapped() {
        return (kind & SWAPPED) != 0;
    }

    @Override
    public long size() {
        return size;
    }

    @Override
    public StructWords words() {
        return words;
    }

    @Override
    public boolean total() {
        return codec.total();
    }

    @Override
    public Object decode(MemorySegment m, long offset) {
        if (kind == NONE) {
            return other(m, offset);
        }
        // The compiler knows the bounds of this one.
        long n = m == READABLE ? signed(READABLE, offset) : signed(m, offset);
        int spare = 64 - (8 << (kind & WIDTH));
        if ((kind & SWAPPED) != 0) {
            n = Long.reverseBytes(n) >> spare;
        }
        if ((kind & UNSIGNED) != 0) {
            n &= -1L >>> spare;
            if (n < 0) {
                return codec.decode(m, offset); // it is above 2^63-1
            }
        }
        return n;
    }

    private Object other(MemorySegment m, long offset) {
        if (words != null) {
            Object value = m == READABLE ? words.read(READABLE, offset) : words.read(m, offset);
            if (value != null) {
                return value;
            }
        }
        return codec.decode(m, offset);
    }

    private long signed(MemorySegment m, long offset) {
        switch (kind & WIDTH) {
            case 0: return m.get(JAVA_BYTE, offset);
            case 1: return m.get(JAVA_SHORT_UNALIGNED, offset);
            case 2: return m.get(JAVA_INT_UNALIGNED, offset);
            default: return m.get(JAVA_LONG_UNALIGNED, offset);
        }
    }

    @Override
    public void encode(Object value, MemorySegment m, long offset) {
        if (kind == NONE || !(value instanceof Long)) {
            codec.encode(value, m, offset);
            return;
        }
        long n = (Long) value;
        int spare = 64 - (8 << (kind & WIDTH));
        boolean fits = (kind & UNSIGNED) != 0
            ? n >= 0 && (n & ~(-1L >>> spare)) == 0
            : n << spare >> spare == n;
        if (!fits) {
            codec.encode(value, m, offset);
            return;
        }
        if ((kind & SWAPPED) != 0) {
            n = Long.reverseBytes(n) >> spare;
        }
        switch (kind & WIDTH) {
            case 0: m.set(JAVA_BYTE, offset, (byte) n); break;
            case 1: m.set(JAVA_SHORT_UNALIGNED, offset, (short) n); break;
            case 2: m.set(JAVA_INT_UNALIGNED, offset, (int) n); break;
            default: m.set(JAVA_LONG_UNALIGNED, offset, n);
        }
    }

    /** Reads {@code count} values, {@code stride} bytes apart. */
    public Object[] decodeRow(int count, long stride, MemorySegment m, long offset) {
        Object[] out = new Object[count];
        for (int i = 0; i < count; i++) {
            out[i] = decode(m, offset + i * stride);
        }
        return out;
    }

    private static Object field(
            int i, TypeCodec[] codecs, long[] offsets, MemorySegment m, long offset) {
        return codecs[i].decode(m, offset + offsets[i]);
    }

    /**
     * Reads the fields of a struct.
     *
     * @return names and values, alternating
     */
    public static Object[] decodeFields(
            Object[] names, TypeCodec[] codecs, long[] offsets, MemorySegment m, long offset) {
        // If all values exist before their array, no write barriers are needed: a third of the
        // time. The row "reduce, typed" of a struct in bpfmap.bench justifies this.
        switch (names.length) {
            case 2: {
                Object a = field(0, codecs, offsets, m, offset);
                Object b = field(1, codecs, offsets, m, offset);
                return new Object[] {names[0], a, names[1], b};
            }
            case 3: {
                Object a = field(0, codecs, offsets, m, offset);
                Object b = field(1, codecs, offsets, m, offset);
                Object c = field(2, codecs, offsets, m, offset);
                return new Object[] {names[0], a, names[1], b, names[2], c};
            }
            case 4: {
                Object a = field(0, codecs, offsets, m, offset);
                Object b = field(1, codecs, offsets, m, offset);
                Object c = field(2, codecs, offsets, m, offset);
                Object d = field(3, codecs, offsets, m, offset);
                return new Object[] {names[0], a, names[1], b, names[2], c, names[3], d};
            }
            default: {
                Object[] out = new Object[2 * names.length];
                for (int i = 0; i < names.length; i++) {
                    out[2 * i] = names[i];
                    out[2 * i + 1] = field(i, codecs, offsets, m, offset);
                }
                return out;
            }
        }
    }

    @Override
    public String toString() {
        return "codec of " + type + ", " + size + " bytes";
    }
}
