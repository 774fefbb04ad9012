/* Counts the system calls of one process, and sends an event for some of them: for `bpfmap run`. */
#include "bpf.h"

struct task_struct___own {
	int tgid;
} __core;

struct event {
	u32 pid;
	u32 count;
};

const volatile u32 only;
const volatile u32 step = 10;
u64 calls;

struct {
	__uint(type, 27);
	__uint(max_entries, 4096);
	__type(value, struct event);
} events SEC(".maps");

struct {
	__uint(type, 1);
	__uint(max_entries, 16);
	__type(key, u32);
	__type(value, u64);
} pids SEC(".maps");

SEC("raw_tp/sys_enter") int on_enter(void *context)
{
	struct task_struct___own *task = (void *)current_task();
	u32 pid = 0;
	u64 one = 1, *n;

	probe_read(&pid, sizeof(pid), __builtin_preserve_access_index(&task->tgid));
	if (only && pid != only)
		return 0;
	calls++;
	n = map_lookup(&pids, &pid);
	if (n)
		__sync_fetch_and_add(n, 1);
	else
		map_update(&pids, &pid, &one, 0);
	if (step && calls % step == 0) {
		struct event event = { pid, calls };

		ring_output(&events, &event, sizeof(event), 0);
	}
	return 0;
}

/* Attaches to nothing that exists. */
SEC("?raw_tp/no_such_tracepoint") int misplaced(void *context)
{
	return 0;
}

char _license[] SEC("license") = "GPL";
