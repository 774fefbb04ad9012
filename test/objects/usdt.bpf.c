/*
 * Programs on USDT probes, by libbpf's usdt.bpf.h as it is. script/objects compiles it twice: with
 * the header of the system, and with a newer one that reads arguments with an index register.
 */
#define __TARGET_ARCH_x86
#include <linux/ptrace.h>
#include <linux/bpf.h>

typedef _Bool bool;
#include <bpf/usdt.bpf.h>

struct call {
	__u64 cookie;
	__s32 count;
	__s32 errors;
	__s64 values[12];
};

/* The arguments of each probe that was hit, in the order of the hits. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 256);
	__type(value, struct call);
} calls SEC(".maps");

__u64 hits;
__s64 total;

static __always_inline int record(struct pt_regs *ctx)
{
	struct call call = {};
	long value;
	int i;

	__sync_fetch_and_add(&hits, 1);
	call.cookie = bpf_usdt_cookie(ctx);
	call.count = bpf_usdt_arg_cnt(ctx);
#pragma unroll
	for (i = 0; i < 12; i++) {
		call.errors += bpf_usdt_arg(ctx, i, &value) != 0;
		call.values[i] = value;
	}
	bpf_map_push_elem(&calls, &call, 0);
	return 0;
}

SEC("usdt")
int any_probe(struct pt_regs *ctx)
{
	return record(ctx);
}

SEC("usdt/bpfmap-probed:bpfmap:rax")
int of_section(struct pt_regs *ctx)
{
	return record(ctx);
}

/* Typed arguments: the first one is a number of bytes. */
SEC("usdt/bpfmap-probed:bpfmap:sized")
int BPF_USDT(sum, long first, int second)
{
	__sync_fetch_and_add(&total, first + second);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
