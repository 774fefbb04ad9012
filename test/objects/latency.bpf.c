/*
 * How long system calls take: a histogram of the time between their entry and their exit, by powers of
 * two of nanoseconds. With `only`, of one process.
 */
#include "bpf.h"

struct enter {
	u64 common;
	u64 number;
	u64 arguments[6];
};

static u64 (*pid_tgid)(void) = (void *)14;
static long (*map_delete)(void *map, const void *key) = (void *)3;

const volatile u32 only;

struct {
	__uint(type, 1);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, u64);
} started SEC(".maps");

struct {
	__uint(type, 2);
	__uint(max_entries, 64);
	__type(key, u32);
	__type(value, u64);
} latencies SEC(".maps");

SEC("tracepoint/raw_syscalls/sys_enter") int on_enter(struct enter *context)
{
	u64 thread = pid_tgid(), now = ktime();

	if (!only || thread >> 32 == only)
		map_update(&started, &thread, &now, 0);
	return 0;
}

SEC("tracepoint/raw_syscalls/sys_exit") int on_exit(void *context)
{
	u64 thread = pid_tgid(), *start = map_lookup(&started, &thread), *count;
	u32 power = 0, half;
	u64 left;

	if (!start)
		return 0;
	left = ktime() - *start;
	map_delete(&started, &thread);
#pragma unroll
	for (half = 32; half; half >>= 1)
		if (left >> half) {
			left >>= half;
			power += half;
		}
	count = map_lookup(&latencies, &power);
	if (count)
		__sync_fetch_and_add(count, 1);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
