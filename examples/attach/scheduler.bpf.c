/*
 * A scheduler of sched_ext without functions: the kernel's defaults for all. Compile it with
 *     clang -target bpf -g -O2 -c scheduler.bpf.c -o scheduler.o && llvm-strip -g scheduler.o
 */
struct sched_ext_ops {
	char name[128];
};

__attribute__((section(".struct_ops.link"), used)) struct sched_ext_ops minimal = {
	.name = "minimal",
};

char _license[] __attribute__((section("license"), used)) = "GPL";
