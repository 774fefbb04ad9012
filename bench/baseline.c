/*
 * What bpfmap is held against: the same operations on the same map by bare
 * bpf(2), with no library between.
 *
 *     baseline <map id> <entries> <processor>...
 *
 * The map has keys 0 to entries-1, a power of two. Thread i keeps to the ith of
 * the processors. One request per line on stdin, one answer per line on stdout:
 *
 *     <operation> <threads> <count> <seed>
 *     <processor time> <wall time> <sum>
 *
 * Each thread makes `count` operations; thread i begins with seed + i. Times are
 * nanoseconds summed over the threads. The sum is made of what was read, so that
 * the asker can see that both sides did the same work. Between two requests the
 * process sleeps in read(2).
 *
 * One thread is a thread beside main() too. In a process of one thread the kernel
 * need not count references to the descriptor's file, and a JVM is never that.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BATCH 4096
#define WARM_UP 4
#define MAX_THREADS 64
#define END_OF(field) (offsetof(union bpf_attr, field) + sizeof(((union bpf_attr *)0)->field))

static int map_fd;
static uint64_t entries;
static char **processors;
static int processor_count;

static void die(const char *what)
{
	fprintf(stderr, "baseline: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void expect(int ok, const char *what)
{
	if (__builtin_expect(!ok, 0))
		die(what);
}

/* Marsaglia's xorshift with 64 bits; the other side has the same. */
static inline uint64_t next_random(uint64_t x)
{
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x;
}

/* Fills in the attribute for each call, as every function over bpf(2) has to. */
static inline int element(int command, const void *key, void *value)
{
	union bpf_attr attr;

	memset(&attr, 0, END_OF(flags));
	attr.map_fd = map_fd;
	attr.key = (uintptr_t)key;
	attr.value = (uintptr_t)value; /* next_key lies in the same place */
	return syscall(SYS_bpf, command, &attr, END_OF(flags));
}

static uint64_t lookup_hit(uint64_t count, uint64_t seed)
{
	uint64_t sum = 0, value = 0;

	for (uint64_t i = 0, x = seed; i < count; i++) {
		x = next_random(x);
		uint32_t key = x & (entries - 1);
		expect(!element(BPF_MAP_LOOKUP_ELEM, &key, &value), "lookup");
		sum += value & 0xff;
	}
	return sum;
}

static uint64_t lookup_miss(uint64_t count, uint64_t seed)
{
	uint64_t sum = 0, value = 0;

	for (uint64_t i = 0, x = seed; i < count; i++) {
		x = next_random(x);
		uint32_t key = entries + (x & (entries - 1));
		expect(element(BPF_MAP_LOOKUP_ELEM, &key, &value) && errno == ENOENT, "lookup of a missing key");
		sum++;
	}
	return sum;
}

static uint64_t update(uint64_t count, uint64_t seed)
{
	uint64_t sum = 0;

	for (uint64_t i = 0, x = seed; i < count; i++) {
		x = next_random(x);
		uint32_t key = x & (entries - 1);
		uint64_t value = key;
		expect(!element(BPF_MAP_UPDATE_ELEM, &key, &value), "update");
		sum++;
	}
	return sum;
}

static uint64_t delete_insert(uint64_t count, uint64_t seed)
{
	uint64_t sum = 0;

	for (uint64_t i = 0, x = seed; i < count; i++) {
		x = next_random(x);
		uint32_t key = x & (entries - 1);
		uint64_t value = key;
		expect(!element(BPF_MAP_DELETE_ELEM, &key, NULL), "delete");
		expect(!element(BPF_MAP_UPDATE_ELEM, &key, &value), "insert");
		sum++;
	}
	return sum;
}

/* Reads `count` entries in the kernel's order, from the beginning again after the last. */
static uint64_t walk(uint64_t count, uint64_t seed)
{
	uint64_t sum = 0, value = 0;
	uint32_t key = 0;
	int begun = 0;

	(void)seed;
	for (uint64_t i = 0; i < count; i++) {
		while (element(BPF_MAP_GET_NEXT_KEY, begun ? &key : NULL, &key)) {
			expect(errno == ENOENT && begun, "next key");
			begun = 0;
		}
		begun = 1;
		expect(!element(BPF_MAP_LOOKUP_ELEM, &key, &value), "lookup");
		sum += value & 0xff;
	}
	return sum;
}

/* Reads the whole map as often as gives `count` entries. */
static uint64_t batch(uint64_t count, uint64_t seed)
{
	uint32_t *keys = malloc(BATCH * sizeof(*keys));
	uint64_t *values = malloc(BATCH * sizeof(*values));
	uint64_t sum = 0;

	(void)seed;
	expect(keys && values, "malloc");
	for (uint64_t i = 0; i < count;) {
		uint32_t cursor, begun = 0, last = 0;
		while (!last) {
			union bpf_attr attr;
			memset(&attr, 0, END_OF(batch));
			attr.batch.in_batch = begun ? (uintptr_t)&cursor : 0;
			attr.batch.out_batch = (uintptr_t)&cursor;
			attr.batch.keys = (uintptr_t)keys;
			attr.batch.values = (uintptr_t)values;
			attr.batch.count = BATCH;
			attr.batch.map_fd = map_fd;
			if (syscall(SYS_bpf, BPF_MAP_LOOKUP_BATCH, &attr, END_OF(batch))) {
				expect(errno == ENOENT, "lookup batch");
				last = 1;
			}
			begun = 1;
			for (uint32_t j = 0; j < attr.batch.count; j++)
				sum += values[j] & 0xff;
			i += attr.batch.count;
		}
	}
	free(keys);
	free(values);
	return sum;
}

static const struct {
	const char *name;
	uint64_t (*run)(uint64_t count, uint64_t seed);
} operations[] = {
	{ "lookup-hit", lookup_hit },
	{ "lookup-miss", lookup_miss },
	{ "update", update },
	{ "delete-insert", delete_insert },
	{ "walk", walk },
	{ "batch", batch },
};

struct job {
	uint64_t (*run)(uint64_t count, uint64_t seed);
	uint64_t count, seed, sum;
	int64_t cpu, wall;
	int processor;
	unsigned *not_ready;
};

static int64_t now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *work(void *arg)
{
	struct job *job = arg;
	cpu_set_t processor;

	CPU_ZERO(&processor);
	CPU_SET(job->processor, &processor);
	expect(!sched_setaffinity(0, sizeof(processor), &processor), "sched_setaffinity");
	job->sum = job->run(job->count / WARM_UP, job->seed); /* measured are only warm caches */
	/* Spinning, not sleeping: when the last is ready, all have a processor and begin at once. */
	__atomic_sub_fetch(job->not_ready, 1, __ATOMIC_ACQ_REL);
	while (__atomic_load_n(job->not_ready, __ATOMIC_ACQUIRE))
		;
	int64_t wall = now(CLOCK_MONOTONIC);
	int64_t cpu = now(CLOCK_THREAD_CPUTIME_ID);
	job->sum = job->run(job->count, job->seed);
	job->cpu = now(CLOCK_THREAD_CPUTIME_ID) - cpu;
	job->wall = now(CLOCK_MONOTONIC) - wall;
	return NULL;
}

static void answer(const char *name, unsigned threads, uint64_t count, uint64_t seed)
{
	struct job jobs[MAX_THREADS];
	pthread_t ids[MAX_THREADS];
	unsigned not_ready = threads;
	uint64_t sum = 0;
	int64_t cpu = 0, wall = 0;
	size_t op = 0;

	while (op < sizeof(operations) / sizeof(*operations) && strcmp(name, operations[op].name))
		op++;
	errno = EINVAL;
	expect(op < sizeof(operations) / sizeof(*operations) && threads > 0 && threads <= MAX_THREADS, name);

	for (unsigned i = 0; i < threads; i++) {
		jobs[i] = (struct job){
			.run = operations[op].run,
			.count = count,
			.seed = seed + i,
			.processor = atoi(processors[i % processor_count]),
			.not_ready = &not_ready,
		};
		errno = pthread_create(&ids[i], NULL, work, &jobs[i]);
		expect(!errno, "pthread_create");
	}
	for (unsigned i = 0; i < threads; i++) {
		pthread_join(ids[i], NULL);
		sum += jobs[i].sum;
		cpu += jobs[i].cpu;
		wall += jobs[i].wall;
	}
	printf("%lld %lld %llu\n", (long long)cpu, (long long)wall, (unsigned long long)sum);
}

int main(int argc, char **argv)
{
	char name[64];
	unsigned threads;
	unsigned long long count, seed;
	union bpf_attr attr;

	errno = EINVAL;
	expect(argc > 3, "takes a map id, the number of its entries, and processors");
	memset(&attr, 0, END_OF(open_flags));
	attr.map_id = strtoul(argv[1], NULL, 10);
	map_fd = syscall(SYS_bpf, BPF_MAP_GET_FD_BY_ID, &attr, END_OF(open_flags));
	expect(map_fd >= 0, "opening the map");
	entries = strtoull(argv[2], NULL, 10);
	processors = argv + 3;
	processor_count = argc - 3;

	setvbuf(stdout, NULL, _IOLBF, 0);
	while (scanf("%63s %u %llu %llu", name, &threads, &count, &seed) == 4)
		answer(name, threads, count, seed);
	return 0;
}
