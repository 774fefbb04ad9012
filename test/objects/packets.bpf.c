/* Counts packets by their size: the object of doc/objects.md. */
#include "bpf.h"

const volatile u32 step = 64;
u64 packets;

struct {
	__uint(type, 1);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, u64);
} sizes SEC(".maps");

SEC("xdp") int count(struct xdp_md *packet)
{
	u32 size = (packet->data_end - packet->data) / step * step;
	u64 one = 1, *n = map_lookup(&sizes, &size);

	packets++;
	if (n)
		__sync_fetch_and_add(n, 1);
	else
		map_update(&sizes, &size, &one, 0);
	return 2;
}

char _license[] SEC("license") = "GPL";
