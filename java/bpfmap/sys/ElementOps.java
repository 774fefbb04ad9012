package bpfmap.sys;

/**
 * Runs the element operations with values instead of bytes: encode, one system call, decode.
 *
 * <p>The key codec of a map without keys is null. Only the codecs allocate. These methods are short
 * and in Java so that the JIT can compile the whole path to the kernel as one unit.
 */
public final class ElementOps {
    private ElementOps() {}

    /**
     * Reads the value of a key.
     *
     * @return the decoded value, or {@code absent} if the key does not exist
     * @throws ErrnoException for any errno other than ENOENT
     */
    public static Object lookup(
            Elements elements, Codec keyCodec, Codec valueCodec, Object key, Object absent,
            long flags) {
        CallBuffer buffer = elements.take();
        try {
            encodeKey(keyCodec, key, buffer);
            int outcome = elements.lookup(buffer, flags);
            return outcome == 0
                ? valueCodec.decode(buffer.memory, elements.valueOffset())
                : missing(outcome, absent);
        } finally {
            buffer.give();
        }
    }

    /**
     * Reads the value of a key as {@link #lookup} does, and deletes the entry atomically. For a map
     * without keys, reads and removes the next value.
     */
    public static Object take(
            Elements elements, Codec keyCodec, Codec valueCodec, Object key, Object absent,
            long flags) {
        CallBuffer buffer = elements.take();
        try {
            encodeKey(keyCodec, key, buffer);
            int outcome = elements.lookupAndDelete(buffer, flags);
            return outcome == 0
                ? valueCodec.decode(buffer.memory, elements.valueOffset())
                : missing(outcome, absent);
        } finally {
            buffer.give();
        }
    }

    /**
     * Reads the key after the given one, or the first.
     *
     * @return the decoded key, or null after the last
     * @throws ErrnoException for any errno other than ENOENT
     */
    public static Object nextKey(Elements elements, Codec keyCodec, Object key, boolean first) {
        CallBuffer buffer = elements.take();
        try {
            if (!first) {
                keyCodec.encode(key, buffer.memory, CallBuffer.KEY);
            }
            int outcome = elements.nextKey(buffer, first);
            return outcome == 0
                ? keyCodec.decode(buffer.memory, elements.valueOffset())
                : missing(outcome, null);
        } finally {
            buffer.give();
        }
    }

    /** Writes the value of a key; returns 0 or the negated errno. */
    public static int update(
            Elements elements, Codec keyCodec, Codec valueCodec, Object key, Object value,
            long flags) {
        CallBuffer buffer = elements.take();
        try {
            encodeKey(keyCodec, key, buffer);
            valueCodec.encode(value, buffer.memory, elements.valueOffset());
            return elements.update(buffer, flags);
        } finally {
            buffer.give();
        }
    }

    /** Deletes a key and its value; returns 0 or the negated errno. */
    public static int delete(Elements elements, Codec keyCodec, Object key) {
        CallBuffer buffer = elements.take();
        try {
            encodeKey(keyCodec, key, buffer);
            return elements.delete(buffer);
        } finally {
            buffer.give();
        }
    }

    /** Checks whether a bloom filter may contain a value; returns 0 or the negated errno. */
    public static int contains(Elements elements, Codec valueCodec, Object value) {
        CallBuffer buffer = elements.take();
        try {
            valueCodec.encode(value, buffer.memory, elements.valueOffset());
            return elements.lookup(buffer, Abi.BPF_ANY);
        } finally {
            buffer.give();
        }
    }

    private static void encodeKey(Codec codec, Object key, CallBuffer buffer) {
        if (codec != null) {
            codec.encode(key, buffer.memory, CallBuffer.KEY);
        }
    }

    private static Object missing(int outcome, Object absent) {
        if (outcome == -Abi.ENOENT) {
            return absent;
        }
        throw new ErrnoException(outcome);
    }
}
