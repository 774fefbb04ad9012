package bpfmap.sys;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_LONG_UNALIGNED;

import java.lang.foreign.MemorySegment;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.List;

/**
 * The fields of a small struct of integers whose bytes are kept as four numbers, its words, and
 * decoded when they are looked up.
 *
 * <p>An object with four numbers is the only one that such a value needs. A map of decoded fields
 * needs one for most fields, an array and the map. The row "a map of four fields" of {@code
 * bpfmap.bench.events} justifies this class. Fields of other types are left out: a string, for
 * example, takes twice as long to decode from words.
 *
 * <p>A word is eight bytes. The words begin at the offsets 0, 8, 16 and 24, but none ends behind
 * the struct: in a struct of 20 bytes, the last two words are the bytes from 12 to 20. The word of
 * a struct of less than eight bytes ends with zeros.
 */
public final class StructWords {
    private static final int WORD = 8;
    private static final int LARGEST = 4 * WORD;
    private static final boolean BIG = ByteOrder.nativeOrder() == ByteOrder.BIG_ENDIAN;
    private static final StructWords NONE = new StructWords(null, -1, null, 0);
    private static final VarHandle LONGS =
        MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.nativeOrder());

    /** Makes the value of a struct from its words. */
    @FunctionalInterface
    public interface Maker {
        /** Returns a value that keeps the words. */
        Object make(StructWords struct, long a, long b, long c, long d);
    }

    /** One field of a struct. */
    public final class Field {
        private final Object name;
        private final TypeCodec codec;
        private final long offset;

        // Where it is: the word, and the shifts that leave its bits.
        private final int word;
        private final int left;
        private final int right;
        private final long mask;
        private final boolean swapped;
        private final boolean large; // if it is negative, it is above 2^63-1

        private Field(Object name, TypeCodec codec, long offset) {
            this.name = name;
            this.codec = codec;
            this.offset = offset;
            long bytes = codec.size();
            word = wordOf(offset, bytes);
            long from = offset - start(word);
            swapped = codec.isSwapped();
            left = (int) (8 * (BIG == swapped ? WORD - bytes - from : from));
            right = (int) (8 * (WORD - bytes));
            mask = codec.isUnsigned() ? -1L >>> right : -1;
            large = codec.isUnsigned() && bytes == WORD;
        }

        /** Returns the name. */
        public Object name() {
            return name;
        }

        /**
         * Returns the index of the word that has the field; negative if more than shifts and a mask
         * are needed to decode it.
         */
        public int word() {
            return swapped ? -1 : word;
        }

        /** Returns the number of bits by which the word is shifted to the left first. */
        public int left() {
            return left;
        }

        /** Returns the number of bits by which the word is shifted to the right then. */
        public int right() {
            return right;
        }

        /**
         * Returns the bits that remain after the shifts. If they are a negative number, only
         * {@link #decode} knows the value.
         */
        public long mask() {
            return mask;
        }

        /** Returns the value in a struct of some words. */
        public Object decode(long a, long b, long c, long d) {
            long bits = word == 0 ? a : word == 1 ? b : word == 2 ? c : d;
            if (swapped) {
                bits = Long.reverseBytes(bits);
            }
            long n = bits << left >> right & mask;
            if (n < 0 && large) {
                return codec.decode(MemorySegment.ofArray(bytes(a, b, c, d)), offset);
            }
            return n;
        }
    }

    private final Maker maker;
    private final int size;
    private final Padding padding;
    private final Field[] fields;
    private final Reader reader;

    // Offsets of the words behind the first; the last one is negative in a struct of less than one.
    private final int second;
    private final int third;
    private final int fourth;

    /**
     * Returns the words of a struct; null if it has more than 32 bytes, or a field that is not an
     * integer within a word.
     *
     * @param maker makes values
     * @param size size of the struct in bytes
     * @param padding its unused bits, or null for none
     * @param names names of its fields
     * @param codecs their codecs
     * @param offsets their offsets
     */
    public static StructWords of(Maker maker, long size, Padding padding, Object[] names,
            TypeCodec[] codecs, long[] offsets) {
        if (size > LARGEST) {
            return null;
        }
        StructWords words = new StructWords(maker, (int) size, padding, names.length);
        for (int i = 0; i < names.length; i++) {
            if (!codecs[i].isInteger() || words.wordOf(offsets[i], codecs[i].size()) < 0) {
                return null;
            }
            words.fields[i] = words.new Field(names[i], codecs[i], offsets[i]);
        }
        return words;
    }

    private StructWords(Maker maker, int size, Padding padding, int count) {
        this.maker = maker;
        this.size = size;
        this.padding = padding;
        this.fourth = size - WORD;
        this.second = Math.min(WORD, fourth);
        this.third = Math.min(2 * WORD, fourth);
        this.fields = new Field[count];
        this.reader = reader(this);
    }

    private long start(int word) {
        return word == 0 ? 0 : word == 1 ? second : word == 2 ? third : fourth;
    }

    /** Returns the word that contains some bytes, or a negative number. */
    private int wordOf(long offset, long bytes) {
        for (int word = 0; word < 4; word++) {
            long from = offset - start(word);
            if (from >= 0 && from + bytes <= WORD) {
                return word;
            }
        }
        return -1;
    }

    /**
     * Returns what decides how words are decoded, as an object that can be compared; null if unused
     * bits are checked as well.
     */
    public Object shape() {
        if (padding != null) {
            return null;
        }
        List<Object> shape = new ArrayList<>();
        shape.add(size);
        for (Field field : fields) {
            shape.add(field.name);
            shape.add(field.offset);
            shape.add(field.codec.kind());
        }
        return shape;
    }

    /** Returns the number of fields. */
    public int count() {
        return fields.length;
    }

    /** Returns the field with an index. */
    public Field field(int index) {
        return fields[index];
    }

    /** Returns the field of a name, which is compared by identity; null if there is none. */
    public Field field(Object name) {
        for (Field field : fields) {
            if (field.name == name) {
                return field;
            }
        }
        return null;
    }

    /** Reads a struct; returns null if one of its unused bits is set. */
    Object read(MemorySegment m, long offset) {
        return reader.read(m, offset);
    }

    /**
     * Returns a new reader of structs; if there is none, of structs that no event has the size of.
     * In a loop that keeps the reader to itself, the compiler replaces it by local variables, which
     * need not be loaded for each struct.
     */
    static Reader reader(StructWords struct) {
        StructWords some = struct == null ? NONE : struct;
        return new Reader(some, some.maker, some.size, some.padding);
    }

    /** Reads structs. */
    static final class Reader {
        private final StructWords struct;
        private final Maker maker;
        private final int size;
        private final Padding padding;

        Reader(StructWords struct, Maker maker, int size, Padding padding) {
            this.struct = struct;
            this.maker = maker;
            this.size = size;
            this.padding = padding;
        }

        /** Returns the size of the structs in bytes; negative if there are none. */
        long size() {
            return size;
        }

        /** Reads a struct; returns null if one of its unused bits is set. */
        Object read(MemorySegment m, long offset) {
            if (padding != null && !padding.isZero(m, offset)) {
                return null;
            }
            if (size > 2 * WORD) {
                long a = word(m, offset);
                long b = word(m, offset + WORD);
                return size > 3 * WORD
                    ? maker.make(struct, a, b, word(m, offset + 2 * WORD), last(m, offset))
                    : maker.make(struct, a, b, last(m, offset), 0);
            }
            if (size > WORD) {
                return maker.make(struct, word(m, offset), last(m, offset), 0, 0);
            }
            return maker.make(struct, size < WORD ? less(m, offset) : word(m, offset), 0, 0, 0);
        }

        private long last(MemorySegment m, long offset) {
            return word(m, offset + size - WORD);
        }

        private static long word(MemorySegment m, long offset) {
            return m.get(JAVA_LONG_UNALIGNED, offset);
        }

        /** Reads a struct of less than a word. */
        private long less(MemorySegment m, long offset) {
            long word = 0;
            for (int i = 0; i < size; i++) {
                word |= (m.get(JAVA_BYTE, offset + i) & 0xffL) << 8 * (BIG ? WORD - 1 - i : i);
            }
            return word;
        }
    }

    /** Returns the bytes of a struct. */
    private byte[] bytes(long a, long b, long c, long d) {
        byte[] bytes = new byte[Math.max(size, WORD)];
        LONGS.set(bytes, 0, a);
        if (size > WORD) {
            LONGS.set(bytes, second, b);
            if (size > 2 * WORD) {
                LONGS.set(bytes, third, c);
                if (size > 3 * WORD) {
                    LONGS.set(bytes, fourth, d);
                }
            }
        }
        return bytes;
    }
}
