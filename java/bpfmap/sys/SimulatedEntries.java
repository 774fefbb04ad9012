package bpfmap.sys;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.util.ArrayDeque;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.Set;
import java.util.TreeMap;

/**
 * Holds the entries of a {@link SimulatedMap}: the part in which map types differ.
 *
 * <p>Every method returns what the kernel returns: 0 or a negated errno. Methods that read return
 * bytes instead, or null for ENOENT. Keys and values are whole byte arrays, which the caller has
 * copied. The caller holds the lock of the map.
 */
abstract class SimulatedEntries {
    /** Returns the value of a key, or null if there is none. */
    abstract byte[] lookup(byte[] key);

    abstract int update(byte[] key, byte[] value, long flags);

    abstract int delete(byte[] key);

    /** Returns true if a value can be read and deleted in one step. */
    boolean takes() {
        return false;
    }

    /** Returns the errno for operations on keys that this type does not have, or 0. */
    int withoutKeys() {
        return 0;
    }

    /** Returns the key after one, or the first for null and for a key that is missing. */
    abstract byte[] next(byte[] key);

    /** Returns the key after one in the order of keys, also if that key is missing. */
    byte[] after(byte[] key) {
        return next(key);
    }

    /** Returns the memory of the elements, or null if there is none to map. */
    MemorySegment memory() {
        return null;
    }

    private static int index(byte[] key) {
        return MemorySegment.ofArray(key).get(ValueLayout.JAVA_INT_UNALIGNED, 0);
    }

    private static byte[] key(int index) {
        byte[] key = new byte[4];
        MemorySegment.ofArray(key).set(ValueLayout.JAVA_INT_UNALIGNED, 0, index);
        return key;
    }

    /** Returns the outcome of an update that depends on whether the key exists. */
    private static int condition(boolean present, long flags) {
        if (present && flags == Abi.BPF_NOEXIST) {
            return -Abi.EEXIST;
        }
        return !present && flags == Abi.BPF_EXIST ? -Abi.ENOENT : 0;
    }

    /** Entries with keys in an order, up to a limit. */
    private static class Sorted extends SimulatedEntries {
        final TreeMap<byte[], byte[]> entries;
        final long maxEntries;
        private final int full;

        Sorted(Comparator<byte[]> order, long maxEntries, int full) {
            this.entries = new TreeMap<>(order);
            this.maxEntries = maxEntries;
            this.full = full;
        }

        @Override
        byte[] lookup(byte[] key) {
            return entries.get(key);
        }

        @Override
        int update(byte[] key, byte[] value, long flags) {
            boolean present = entries.containsKey(key);
            int outcome = condition(present, flags);
            if (outcome == 0 && !present && entries.size() >= maxEntries) {
                return full;
            }
            if (outcome == 0) {
                entries.remove(key); // the new key may differ behind its prefix
                entries.put(key, value);
            }
            return outcome;
        }

        @Override
        int delete(byte[] key) {
            return entries.remove(key) == null ? -Abi.ENOENT : 0;
        }

        @Override
        byte[] next(byte[] key) {
            return after(key != null && entries.containsKey(key) ? key : null);
        }

        @Override
        byte[] after(byte[] key) {
            if (key != null) {
                return entries.higherKey(key);
            }
            return entries.isEmpty() ? null : entries.firstKey();
        }
    }

    /**
     * Orders keys by a hash, so that no test comes to rely on an order that the kernel does not
     * have.
     */
    private static int scattered(byte[] a, byte[] b) {
        int order = Integer.compare(scatter(a), scatter(b));
        return order != 0 ? order : Arrays.compare(a, b);
    }

    private static int scatter(byte[] key) {
        int hash = Arrays.hashCode(key) * 0x9e3779b9;
        return (hash ^ hash >>> 15) * 0x85ebca6b;
    }

    /** A hash map. */
    static SimulatedEntries hash(long maxEntries, boolean takes) {
        return new Sorted(SimulatedEntries::scattered, maxEntries, -Abi.E2BIG) {
            @Override
            boolean takes() {
                return takes;
            }
        };
    }

    /** A hash map that drops the entry written longest ago if it is full. */
    static SimulatedEntries lru(long maxEntries) {
        return new Sorted(SimulatedEntries::scattered, maxEntries, 0) {
            private final Set<ByteBuffer> byAge = new LinkedHashSet<>();

            @Override
            boolean takes() {
                return true;
            }

            @Override
            int update(byte[] key, byte[] value, long flags) {
                boolean present = entries.containsKey(key);
                int outcome = condition(present, flags);
                if (outcome != 0) {
                    return outcome;
                }
                if (!present && entries.size() >= maxEntries) {
                    delete(byAge.iterator().next().array());
                }
                byAge.remove(ByteBuffer.wrap(key));
                byAge.add(ByteBuffer.wrap(key));
                entries.put(key, value);
                return 0;
            }

            @Override
            int delete(byte[] key) {
                byAge.remove(ByteBuffer.wrap(key));
                return super.delete(key);
            }
        };
    }

    /** A trie of prefixes: a number of bits in four bytes, then the bits. */
    static SimulatedEntries trie(long maxEntries, long keySize) {
        Comparator<byte[]> order = (a, b) -> {
            MemorySegment left = MemorySegment.ofArray(a);
            MemorySegment right = MemorySegment.ofArray(b);
            if (KeyOrder.PREFIX.after(left, 0, right, 0, keySize)) {
                return 1;
            }
            return KeyOrder.PREFIX.after(right, 0, left, 0, keySize) ? -1 : 0;
        };
        return new Sorted(order, maxEntries, -Abi.ENOSPC) {
            private boolean fits(byte[] key) {
                return index(key) >= 0 && index(key) <= 8 * (keySize - 4);
            }

            /** Tries the prefix, then each that covers it: the longest is the first found. */
            @Override
            byte[] lookup(byte[] key) {
                if (!fits(key) || entries.isEmpty()) {
                    return null;
                }
                byte[] prefix = key.clone();
                for (int bits = index(key); bits >= 0; bits--) {
                    MemorySegment.ofArray(prefix).set(ValueLayout.JAVA_INT_UNALIGNED, 0, bits);
                    byte[] value = entries.get(prefix);
                    if (value != null) {
                        return value;
                    }
                }
                return null;
            }

            @Override
            int update(byte[] key, byte[] value, long flags) {
                return fits(key) ? super.update(key, value, flags) : -Abi.EINVAL;
            }

            @Override
            int delete(byte[] key) {
                return fits(key) ? super.delete(key) : -Abi.EINVAL;
            }

            @Override
            byte[] next(byte[] key) {
                return super.next(key != null && fits(key) ? key : null);
            }
        };
    }

    /** Slots that are numbered. */
    private abstract static class Indexed extends SimulatedEntries {
        final int length;

        Indexed(int length) {
            this.length = length;
        }

        final boolean within(byte[] key) {
            return Integer.compareUnsigned(index(key), length) < 0;
        }

        @Override
        byte[] next(byte[] key) {
            if (key == null || !within(key)) {
                return SimulatedEntries.key(0);
            }
            int next = index(key) + 1;
            return next == length ? null : SimulatedEntries.key(next);
        }
    }

    /** An array, in memory that can be mapped: an element begins at each multiple of the stride. */
    static SimulatedEntries array(long maxEntries, int valueSize, long stride) {
        MemorySegment memory = Arena.ofAuto().allocate(maxEntries * stride, 8);
        return new Indexed((int) maxEntries) {
            @Override
            byte[] lookup(byte[] key) {
                return within(key)
                    ? memory.asSlice(at(key), valueSize).toArray(ValueLayout.JAVA_BYTE)
                    : null;
            }

            private long at(byte[] key) {
                return Integer.toUnsignedLong(index(key)) * stride;
            }

            @Override
            int update(byte[] key, byte[] value, long flags) {
                if (!within(key)) {
                    return -Abi.E2BIG;
                }
                if (flags == Abi.BPF_NOEXIST) {
                    return -Abi.EEXIST;
                }
                MemorySegment.copy(value, 0, memory, ValueLayout.JAVA_BYTE, at(key), value.length);
                return 0;
            }

            @Override
            int delete(byte[] key) {
                return -Abi.EINVAL;
            }

            @Override
            MemorySegment memory() {
                return memory;
            }
        };
    }

    /** Slots that may be empty, as an array of maps has. */
    static SimulatedEntries slots(long maxEntries) {
        return new Indexed((int) maxEntries) {
            private final TreeMap<Integer, byte[]> slots = new TreeMap<>();

            @Override
            byte[] lookup(byte[] key) {
                return within(key) ? slots.get(index(key)) : null;
            }

            @Override
            int update(byte[] key, byte[] value, long flags) {
                if (flags != Abi.BPF_ANY) {
                    return -Abi.EINVAL;
                }
                if (!within(key)) {
                    return -Abi.E2BIG;
                }
                slots.put(index(key), value);
                return 0;
            }

            @Override
            int delete(byte[] key) {
                if (!within(key)) {
                    return -Abi.E2BIG;
                }
                return slots.remove(index(key)) == null ? -Abi.ENOENT : 0;
            }
        };
    }

    /** A queue, or a stack: they have no keys. */
    static SimulatedEntries queue(long maxEntries, boolean newestFirst) {
        return new SimulatedEntries() {
            private final ArrayDeque<byte[]> values = new ArrayDeque<>();

            @Override
            int withoutKeys() {
                return -Abi.EINVAL;
            }

            @Override
            byte[] lookup(byte[] key) {
                return newestFirst ? values.peekLast() : values.peekFirst();
            }

            @Override
            int update(byte[] key, byte[] value, long flags) {
                if (flags == Abi.BPF_NOEXIST) {
                    return -Abi.EINVAL;
                }
                if (values.size() >= maxEntries) {
                    if (flags != Abi.BPF_EXIST) {
                        return -Abi.E2BIG;
                    }
                    values.removeFirst();
                }
                values.addLast(value);
                return 0;
            }

            @Override
            boolean takes() {
                return true;
            }

            @Override
            int delete(byte[] key) {
                return (newestFirst ? values.pollLast() : values.pollFirst()) == null
                    ? -Abi.ENOENT
                    : 0;
            }

            @Override
            byte[] next(byte[] key) {
                return null;
            }
        };
    }

    /** No entries, but the memory of a ring buffer. */
    static SimulatedEntries ring(long bytes) {
        MemorySegment memory = Arena.ofAuto().allocate(bytes, 8);
        return new SimulatedEntries() {
            @Override
            int withoutKeys() {
                return -Abi.ENOTSUPP;
            }

            @Override
            byte[] lookup(byte[] key) {
                return null;
            }

            @Override
            int update(byte[] key, byte[] value, long flags) {
                return -Abi.ENOTSUPP;
            }

            @Override
            int delete(byte[] key) {
                return -Abi.ENOTSUPP;
            }

            @Override
            byte[] next(byte[] key) {
                return null;
            }

            @Override
            MemorySegment memory() {
                return memory;
            }
        };
    }

    /** A bloom filter without false positives. */
    static SimulatedEntries bloom() {
        return new SimulatedEntries() {
            private final Set<ByteBuffer> values = new HashSet<>();

            @Override
            int withoutKeys() {
                return -Abi.EOPNOTSUPP;
            }

            /** The key is the value here: the kernel reads it from the field of the value. */
            @Override
            byte[] lookup(byte[] value) {
                return values.contains(ByteBuffer.wrap(value)) ? value : null;
            }

            @Override
            int update(byte[] key, byte[] value, long flags) {
                if (flags != Abi.BPF_ANY) {
                    return -Abi.EINVAL;
                }
                values.add(ByteBuffer.wrap(value));
                return 0;
            }

            @Override
            int delete(byte[] key) {
                return -Abi.EOPNOTSUPP;
            }

            @Override
            byte[] next(byte[] key) {
                return null;
            }
        };
    }
}
