/*
 * What the examples about networks run. Compile it with
 *     clang -target bpf -g -O2 -c network.bpf.c -o network.o && llvm-strip -g network.o
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, of) typeof(of) *name

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*current_comm)(void *to, u32 size) = (void *)16;
static u64 (*socket_cookie)(void *context) = (void *)46;
static long (*callbacks)(void *ops, int flags) = (void *)59;
static long (*ring_output)(void *ring, void *data, u64 size, u64 flags) = (void *)130;
static void *(*to_tcp_sock)(void *sock) = (void *)137;

/* Fields of the kernel's structs, found by name when the object is loaded. */
struct sock_common {
	u32 skc_daddr, skc_rcv_saddr;
	u16 skc_dport, skc_num, skc_family;
} __attribute__((preserve_access_index));
struct sock {
	struct sock_common __sk_common;
} __attribute__((preserve_access_index));
struct tcp_sock {
	u32 srtt_us;
} __attribute__((preserve_access_index));

/* Addresses and ports are in network byte order, the round-trip time in microseconds. */
struct event {
	u32 source, target;
	u16 source_port, target_port;
	u32 rtt;
	char comm[16];
};

struct {
	__uint(type, 27);
	__uint(max_entries, 1 << 16);
	__type(value, struct event);
} events SEC(".maps");

static u16 swapped(u16 x)
{
	return x << 8 | x >> 8;
}

static int send(struct sock *sk, u32 rtt)
{
	struct sock_common *common = &sk->__sk_common;
	struct event event = {};

	if (common->skc_family != 2)
		return 0;
	event.source = common->skc_rcv_saddr;
	event.target = common->skc_daddr;
	event.source_port = swapped(common->skc_num);
	event.target_port = common->skc_dport;
	event.rtt = rtt;
	current_comm(event.comm, sizeof(event.comm));
	ring_output(&events, &event, sizeof(event), 0);
	return 0;
}

SEC("fentry/tcp_connect") int connecting(u64 *arguments)
{
	return send((struct sock *)arguments[0], 0);
}

SEC("fentry/tcp_close") int closing(u64 *arguments)
{
	struct sock *sk = (struct sock *)arguments[0];
	struct tcp_sock *tcp = to_tcp_sock(sk);

	return tcp ? send(sk, tcp->srtt_us >> 3) : 0;
}

/* The first fields of a context that the kernel promises. */
struct bpf_sock_ops {
	u32 op, args[4], family, remote_ip4, local_ip4, remote_ip6[4], local_ip6[4];
	u32 remote_port, local_port, is_fullsock, snd_cwnd, srtt_us;
};

enum { CONNECTED = 4, ACCEPTED = 5, MEASURED = 12, MEASURING = 8 };

/* The connections by cookie: 1 for accepted ones, whose source is the other side. */
struct {
	__uint(type, 9);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, u8);
} connections SEC(".maps");

SEC("sockops") int measuring(struct bpf_sock_ops *ops)
{
	u64 cookie = socket_cookie(ops);
	struct event event = {};
	u8 accepted = ops->op == ACCEPTED, *known;

	if (ops->op == CONNECTED || ops->op == ACCEPTED) {
		if (ops->family == 2) {
			map_update(&connections, &cookie, &accepted, 0);
			callbacks(ops, MEASURING);
		}
	} else if (ops->op == MEASURED && (known = map_lookup(&connections, &cookie))) {
		u32 local = ops->local_ip4, remote = ops->remote_ip4;
		u16 local_port = swapped(ops->local_port), remote_port = ops->remote_port >> 16;

		event.source = *known ? remote : local;
		event.target = *known ? local : remote;
		event.source_port = *known ? remote_port : local_port;
		event.target_port = *known ? local_port : remote_port;
		event.rtt = ops->srtt_us >> 3;
		ring_output(&events, &event, sizeof(event), 0);
	}
	return 1;
}

struct xdp_md {
	u32 data, data_end;
};

struct {
	__uint(type, 9);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, u32);
} sources SEC(".maps");

SEC("xdp") int receiving(struct xdp_md *packet)
{
	u8 *data = (void *)(long)packet->data, *end = (void *)(long)packet->data_end;
	u32 source, one = 1, *count;

	/* Ethernet, with the protocol in its last two bytes, and IPv4, with the source at 12 */
	if (data + 34 > end || data[12] != 8 || data[13] != 0)
		return 2;
	source = *(u32 *)(data + 26);
	count = map_lookup(&sources, &source);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		map_update(&sources, &source, &one, 0);
	return 2;
}

char _license[] SEC("license") = "GPL";
