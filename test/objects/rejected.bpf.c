/* Programs that the verifier rejects, each for one reason; and one that it accepts. */
#include "bpf.h"

struct {
	__uint(type, 1);
	__uint(max_entries, 16);
	__type(key, u32);
	__type(value, u64);
} counts SEC(".maps");

struct task_struct___gone {
	int no_such_field;
} __core;

volatile u64 result;

SEC("?xdp") int null_check(struct xdp_md *packet)
{
	u32 key = 0;
	u64 *count = map_lookup(&counts, &key);

	return *count;
}

SEC("?xdp") int helper(struct xdp_md *packet)
{
	return store_bytes(packet, 0, &packet, 4, 0);
}

SEC("?raw_tp/sys_enter") int field(u64 *context)
{
	struct task_struct___gone *task = (void *)current_task();
	int value = 0;

	probe_read(&value, sizeof(value), __builtin_preserve_access_index(&task->no_such_field));
	return value;
}

SEC("?xdp") int endless(struct xdp_md *packet)
{
	while (result < 10)
		result += result & 1;
	return 0;
}

SEC("?xdp") int too_long(struct xdp_md *packet)
{
	for (u32 i = 0; i < 2000000; i++)
		result += i;
	return 0;
}

SEC("?xdp") int address(struct xdp_md *packet)
{
	return *(volatile int *)result;
}

SEC("?fentry/vfs_reed") int target(u64 *context)
{
	return 0;
}

SEC("?fentry/vfs_read") int traced(u64 *context)
{
	return 0;
}

static __noinline int first(void)
{
	static volatile u32 calls = 1;

	return calls++;
}

static __noinline int second(void)
{
	static volatile u32 calls = 10;

	return calls++;
}

SEC("xdp") int accepted(struct xdp_md *packet)
{
	return first() + second();
}

char _license[] SEC("license") = "GPL";
