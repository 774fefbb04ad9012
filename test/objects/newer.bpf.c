/* Instructions and sections that clang 19 makes with -mcpu=v4, and earlier ones do not. */
#include "bpf.h"

#define __arena __attribute__((address_space(1)))
#define __ulong(name, value) enum { name##_value = value } name

struct {
	__uint(type, 33);
	__uint(map_flags, 1 << 10);
	__uint(max_entries, 16);
	__ulong(map_extra, 1ull << 44);
} arena SEC(".maps");

u64 __arena in_arena = 8;
u32 __arena zero_in_arena;

struct tcp_congestion_ops {
	u32 (*ssthresh)(void *socket);
	void (*cong_avoid)(void *socket, u32 ack, u32 acked);
	u32 (*undo_cwnd)(void *socket);
	u32 flags;
	char name[16];
};

SEC("struct_ops/ssthresh") u32 ssthresh(u64 *context)
{
	return 2;
}

SEC("struct_ops") void cong_avoid(u64 *context)
{
}

SEC("struct_ops.s/undo_cwnd") u32 undo_cwnd(u64 *context)
{
	return 10;
}

SEC(".struct_ops.link") struct tcp_congestion_ops own_cc = {
	.ssthresh = (void *)ssthresh,
	.cong_avoid = (void *)cong_avoid,
	.undo_cwnd = (void *)undo_cwnd,
	.flags = 2, /* TCP_CONG_NEEDS_ECN: others are newer */
	.name = "own_cc",
};

SEC("?.struct_ops") struct tcp_congestion_ops spare_cc = {
	.ssthresh = (void *)ssthresh,
	.name = "spare_cc",
};

int failed(u64 cookie);

SEC("syscall") __tag("exception_callback:failed") long compute(u64 *context)
{
	signed char byte = context[0];
	short half = context[1];
	int word = context[2];
	long long wide = context[3];
	u64 __arena *pointer = &in_arena;

	if (word > 5)
		*pointer += __builtin_bswap32(word);
	zero_in_arena++;
	return byte * half / word % 7 + wide / -3 + *(volatile signed char *)context;
}

__noinline int failed(u64 cookie)
{
	return cookie;
}

char _license[] SEC("license") = "GPL";
