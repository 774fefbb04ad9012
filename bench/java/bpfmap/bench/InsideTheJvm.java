package bpfmap.bench;

import bpfmap.sys.Codec;
import bpfmap.sys.Fd;
import bpfmap.sys.CallBuffer;
import clojure.java.api.Clojure;
import clojure.lang.IFn;
import clojure.lang.PersistentArrayMap;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.Warmup;

/** What bpfmap does without the kernel, each beside a yardstick: the least that Java and Clojure would do for it. */
@State(Scope.Thread)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.NANOSECONDS)
@Warmup(iterations = 3, time = 1)
public class InsideTheJvm {
    private static final Object A = Clojure.read(":a");
    private static final Object B = Clojure.read(":b");
    private static final Object C = Clojure.read(":c");
    private static final Object D = Clojure.read(":d");

    private final MemorySegment memory = Arena.ofAuto().allocate(256, 8);
    private Codec u64;
    private Codec struct;
    private Codec address;
    private Codec array;
    private Object map;
    private Object boxed = 700000L;
    private long n = 100000;
    private Fd fd;
    private IFn parse;
    private IFn typeNamed;
    private byte[] kernelTypes;
    private Object kernel;

    @Setup
    public void setUp() throws IOException {
        IFn require = Clojure.var("clojure.core", "require");
        require.invoke(Clojure.read("bpfmap.impl.codec"));
        require.invoke(Clojure.read("bpfmap.btf"));
        IFn codec = Clojure.var("bpfmap.impl.codec", "codec");
        u64 = (Codec) codec.invoke(Clojure.read(":u64"));
        struct = (Codec) codec.invoke(Clojure.read("[:struct [:a :u32] [:b :u32] [:c :u64] [:d :u64]]"));
        address = (Codec) codec.invoke(Clojure.read(":ipv4"));
        array = (Codec) codec.invoke(Clojure.read("[:array :u32 8]"));
        map = Clojure.read("{:a 100000 :b 200000 :c 300000 :d 400000}");
        struct.encode(map, memory, 0);
        fd = Fd.own(Integer.MAX_VALUE); // never called: a number to count calls of
        parse = Clojure.var("bpfmap.btf", "parse");
        typeNamed = Clojure.var("bpfmap.btf", "type-named");
        kernelTypes = Files.readAllBytes(Path.of("/sys/kernel/btf/vmlinux"));
        kernel = parse.invoke(kernelTypes);
    }

    // --- codecs

    @Benchmark
    public Object decodeU64() {
        return u64.decode(memory, 8);
    }

    @Benchmark
    public Object decodeU64Yardstick() {
        return Long.valueOf(n += 1);
    }

    @Benchmark
    public void encodeU64() {
        u64.encode(boxed, memory, 64);
    }

    @Benchmark
    public Object decodeStruct() {
        return struct.decode(memory, 0);
    }

    @Benchmark
    public Object decodeStructYardstick() {
        long i = n += 1;
        return new PersistentArrayMap(new Object[] {A, i, B, i + 1, C, i + 2, D, i + 3});
    }

    @Benchmark
    public void encodeStruct() {
        struct.encode(map, memory, 64);
    }

    @Benchmark
    public long encodeStructYardstick() {
        PersistentArrayMap m = (PersistentArrayMap) map;
        return (Long) m.valAt(A) + (Long) m.valAt(B) + (Long) m.valAt(C) + (Long) m.valAt(D);
    }

    @Benchmark
    public Object decodeArrayOfEight() {
        return array.decode(memory, 0);
    }

    @Benchmark
    public Object decodeAddress() {
        return address.decode(memory, 0);
    }

    // --- what an element operation needs beside its system call

    @Benchmark
    public long takeAndGiveMemory() {
        CallBuffer s = CallBuffer.take(128);
        try {
            return s.memory.byteSize();
        } finally {
            s.give();
        }
    }

    @Benchmark
    public int acquireAndRelease() {
        int number = fd.acquire();
        fd.release();
        return number;
    }

    // --- the kernel's types: a lot of code, which takes the JIT longer

    @Benchmark
    @Warmup(iterations = 15, time = 1)
    public Object btfOpenAndFind() {
        return typeNamed.invoke(parse.invoke(kernelTypes), "list_head");
    }

    @Benchmark
    @Warmup(iterations = 15, time = 1)
    public Object btfSkBuff() {
        return typeNamed.invoke(kernel, "sk_buff");
    }

    @Benchmark
    @Warmup(iterations = 15, time = 1)
    public Object btfTaskStruct() {
        return typeNamed.invoke(kernel, "task_struct");
    }
}
