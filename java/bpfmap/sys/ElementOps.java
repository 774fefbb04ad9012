package bpfmap.sys;

/**
 * The element operations with values instead of bytes: encode, one system call, decode.
 *
 * <p>A map without keys has no key codec: null. Nothing is allocated here but what the codecs make. These methods are in
 * Java, and short, because all that stands between a caller and the kernel has to fit into one piece of machine code.
 */
public final class ElementOps {
    private ElementOps() {}

    /**
     * Reads the value of a key.
     *
     * @return the decoded value, or {@code absent} where there is no such key
     * @throws ErrnoException for any other answer
     */
    public static Object lookup(
            Elements elements, Codec keyCodec, Codec valueCodec, Object key, Object absent, long flags) {
        CallBuffer s = elements.take();
        try {
            encodeKey(keyCodec, key, s);
            int outcome = elements.lookup(s, flags);
            return outcome == 0 ? valueCodec.decode(s.memory, elements.valueOffset()) : missing(outcome, absent);
        } finally {
            s.give();
        }
    }

    /** As {@link #lookup}, and deletes the key in the same step; of a map without keys, the next value. */
    public static Object take(
            Elements elements, Codec keyCodec, Codec valueCodec, Object key, Object absent, long flags) {
        CallBuffer s = elements.take();
        try {
            encodeKey(keyCodec, key, s);
            int outcome = elements.lookupAndDelete(s, flags);
            return outcome == 0 ? valueCodec.decode(s.memory, elements.valueOffset()) : missing(outcome, absent);
        } finally {
            s.give();
        }
    }

    /**
     * Reads the key after the given one, or the first.
     *
     * @return the decoded key, or null after the last
     * @throws ErrnoException for any other answer
     */
    public static Object nextKey(Elements elements, Codec keyCodec, Object key, boolean first) {
        CallBuffer s = elements.take();
        try {
            if (!first) {
                keyCodec.encode(key, s.memory, CallBuffer.KEY);
            }
            int outcome = elements.nextKey(s, first);
            return outcome == 0 ? keyCodec.decode(s.memory, elements.valueOffset()) : missing(outcome, null);
        } finally {
            s.give();
        }
    }

    /** Writes the value of a key: 0, or the negated errno. */
    public static int update(
            Elements elements, Codec keyCodec, Codec valueCodec, Object key, Object value, long flags) {
        CallBuffer s = elements.take();
        try {
            encodeKey(keyCodec, key, s);
            valueCodec.encode(value, s.memory, elements.valueOffset());
            return elements.update(s, flags);
        } finally {
            s.give();
        }
    }

    /** Deletes a key and its value: 0, or the negated errno. */
    public static int delete(Elements elements, Codec keyCodec, Object key) {
        CallBuffer s = elements.take();
        try {
            encodeKey(keyCodec, key, s);
            return elements.delete(s);
        } finally {
            s.give();
        }
    }

    /** Asks a bloom filter for a value: 0, or the negated errno. */
    public static int contains(Elements elements, Codec valueCodec, Object value) {
        CallBuffer s = elements.take();
        try {
            valueCodec.encode(value, s.memory, elements.valueOffset());
            return elements.lookup(s, Abi.BPF_ANY);
        } finally {
            s.give();
        }
    }

    private static void encodeKey(Codec codec, Object key, CallBuffer s) {
        if (codec != null) {
            codec.encode(key, s.memory, CallBuffer.KEY);
        }
    }

    private static Object missing(int outcome, Object absent) {
        if (outcome == -Abi.ENOENT) {
            return absent;
        }
        throw new ErrnoException(outcome);
    }
}
