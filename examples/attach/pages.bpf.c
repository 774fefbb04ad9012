/*
 * Counts the pages that the kernel allocates. Compile it with
 *     clang -target bpf -g -O2 -c pages.bpf.c -o pages.o && llvm-strip -g pages.o
 */
#define SEC(name) __attribute__((section(name), used))

unsigned long long allocations;

/* The format of the tracepoint: behind eight bytes that all have, the fields of this one. */
struct page_alloc {
	unsigned long long common, pfn;
	unsigned int order, flags;
	int type;
};

SEC("tracepoint/kmem/mm_page_alloc") int allocating(struct page_alloc *context)
{
	__sync_fetch_and_add(&allocations, 1ull << (context->order & 15));
	return 0;
}

char _license[] SEC("license") = "GPL";
