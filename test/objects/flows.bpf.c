/*
 * An object with most of what clang puts into one. The checked-in objects are made in the root of the
 * checkout by clang 14, for both byte orders, with script/objects.
 */
#include "bpf.h"

struct address {
	u32 ip;
	u16 port;
	u16 pad;
};

struct flow {
	u64 packets;
	u64 bytes;
	enum state { NEW, OPEN = 5, CLOSED } state;
};

struct event {
	u64 time;
	char comm[16];
};

/* --- maps --- */

struct {
	__uint(type, 1);
	__uint(max_entries, 1024);
	__uint(map_flags, 1);
	__type(key, struct address);
	__type(value, struct flow);
} flows SEC(".maps") __tag("export") __tag("per host");

struct {
	__uint(type, 6);
	__uint(max_entries, 2);
	__type(key, u32);
	__type(value, u64);
} totals SEC(".maps");

struct {
	__uint(type, 27);
	__uint(max_entries, 4096);
	__type(value, struct event);
} events SEC(".maps");

struct {
	__uint(type, 7);
	__uint(key_size, 4);
	__uint(value_size, 1016);
	__uint(max_entries, 128);
	__uint(numa_node, 0);
	__uint(map_flags, 4);
} stacks SEC(".maps");

struct {
	__uint(type, 30);
	__uint(max_entries, 100);
	__uint(map_extra, 3);
	__uint(pinning, 1);
	__type(value, u32);
} known SEC(".maps");

struct row {
	__uint(type, 2);
	__uint(max_entries, 4);
	__type(key, u32);
	__type(value, u64);
} first SEC(".maps"), second SEC(".maps");

struct {
	__uint(type, 12);
	__uint(max_entries, 3);
	__type(key, u32);
	__array(values, struct row);
} rows SEC(".maps") = { .values = { [0] = &first, [2] = &second } };

int classify(void *context);

struct {
	__uint(type, 3);
	__uint(max_entries, 2);
	__uint(key_size, 4);
	__array(values, int(void *));
} jumps SEC(".maps") = { .values = { [1] = &classify } };

/* --- variables --- */

const volatile u32 limit = 100;
const volatile char greeting[8] = "hello";
const volatile bool verbose = 1;
volatile enum state state = OPEN;
volatile struct address peer = { .ip = 7, .port = 443 };
u64 total __tag("read me");
static volatile u64 seen = 3;
u32 own SEC(".data.own") = 9;

/* --- what the kernel has --- */

extern int LINUX_KERNEL_VERSION __kconfig;
extern bool CONFIG_BPF __kconfig __weak;
extern char CONFIG_CC_VERSION_TEXT[8] __kconfig __weak;
extern const void init_task __ksym __weak;
extern const int bpf_prog_active __ksym __weak;
extern void bpf_rcu_read_lock(void) __ksym __weak;
extern void bpf_rcu_read_unlock(void) __ksym __weak;

struct list {
	struct list *next;
} __core;

struct task_struct___own {
	int pid;
	union {
		char comm[16];
		int gone;
	};
	struct list links[2];
	unsigned int on : 1;
	unsigned int reset : 3;
} __core;

enum map_kind { KIND_HASH, KIND_RING = 27 };

/* --- functions --- */

static __noinline int add(int a, int b)
{
	return a + b + seen;
}

__noinline int twice(int a)
{
	return add(a, a) * 2;
}

__hidden __noinline int hidden(int a)
{
	return a * 3 + own;
}

__weak __noinline int overridden(int a)
{
	return a * 5 + limit;
}

static long count_one(void *map, const u32 *key, u64 *value, void *context)
{
	total += *value;
	return 0;
}

/* --- programs --- */

SEC("xdp") int count_packets(void *context)
{
	static volatile u32 turn;
	struct address key = { .ip = 1, .port = peer.port };
	struct flow *flow = map_lookup(&flows, &key);

	turn++;
	if (flow) {
		__sync_fetch_and_add(&flow->packets, 1);
		if (flow->state == CLOSED)
			flow->state = state;
	} else {
		struct flow new = { .packets = 1, .state = NEW };

		map_update(&flows, &key, &new, 0);
	}
	return twice(limit) + hidden(turn) > 0 ? 2 : 1;
}

SEC("xdp") int pass(void *context)
{
	tail_call(context, &jumps, 1);
	return 2;
}

SEC("tc") int classify(void *context)
{
	const char text[] = "classified a packet";

	for_each(&totals, count_one, 0, 0);
	trace(text, sizeof(text));
	return overridden(greeting[1]) + verbose;
}

SEC("?raw_tp/sys_enter") int on_enter(void *context)
{
	struct task_struct___own *task = (void *)current_task();
	struct event event = { .time = ktime() };
	int pid = 0, on = 0;

	if (bpf_rcu_read_lock && bpf_rcu_read_unlock) {
		bpf_rcu_read_lock();
		bpf_rcu_read_unlock();
	}
	probe_read(&pid, sizeof(pid), __builtin_preserve_access_index(&task->pid));
	probe_read(&on, sizeof(on), __builtin_preserve_access_index(&task->links[1].next));
	if (__builtin_preserve_field_info(task->gone, 2))
		pid++;
	pid += __builtin_preserve_field_info(task->comm, 1);
	pid += __builtin_preserve_field_info(task->reset, 3);
	pid += __builtin_preserve_field_info(task->reset, 4);
	pid += __builtin_preserve_field_info(task->reset, 5);
	pid += __builtin_preserve_type_info(*(struct list *)0, 0);
	pid += __builtin_preserve_type_info(*(struct list *)0, 1);
	pid += __builtin_btf_type_id(*(struct list *)0, 0);
	pid += __builtin_btf_type_id(*(struct list *)0, 1);
	pid += __builtin_preserve_enum_value(*(enum map_kind *)KIND_RING, 0);
	pid += __builtin_preserve_enum_value(*(enum map_kind *)KIND_RING, 1);
	if (&init_task && &bpf_prog_active)
		pid += bpf_prog_active;
	ring_output(&events, &event, sizeof(event), 0);
	return pid + on + LINUX_KERNEL_VERSION + CONFIG_BPF + CONFIG_CC_VERSION_TEXT[0];
}

SEC("fentry.s/do_unlinkat") int on_unlink(u64 *context)
{
	total++;
	return 0;
}

SEC("something/else") int untyped(void *context)
{
	return add(1, 2);
}

char _license[] SEC("license") = "Dual MIT/GPL";
u32 _version SEC("version") = 0x060102;
