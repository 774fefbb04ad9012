/*
 * What bpfmap.memory is held against: the same work on the same array, mapped by C.
 *
 *     memory <map id> <entries> <processor>
 *
 * The map is an array of u64, created with BPF_F_MMAPABLE. One request per line on
 * stdin, one answer per line on stdout:
 *
 *     <operation> <count> <seed>
 *     <processor time in nanoseconds> <sum>
 *
 * The sum is made of what was read, so that the asker can see that both sides did
 * the same work. The work is done by a thread beside main(): see bench/baseline.c.
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
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WARM_UP 4
#define END_OF(field) (offsetof(union bpf_attr, field) + sizeof(((union bpf_attr *)0)->field))

static int map_fd, processor;
static uint64_t entries;
static uint64_t *memory;

static void expect(int ok, const char *what)
{
	if (__builtin_expect(!ok, 0)) {
		fprintf(stderr, "memory: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

/* Marsaglia's xorshift with 64 bits; the other side has the same. */
static inline uint64_t next_random(uint64_t x)
{
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x;
}

/* All entries, one after the other, until count were read. */
static uint64_t sum(uint64_t count, uint64_t seed)
{
	uint64_t total = 0;

	(void)seed;
	for (uint64_t done = 0; done < count; done += entries) {
		for (uint64_t i = 0; i < entries; i++)
			total += memory[i];
		__asm__ volatile("" ::: "memory"); /* somebody else may have written meanwhile */
	}
	return total;
}

static uint64_t add(uint64_t count, uint64_t seed)
{
	(void)seed;
	for (uint64_t i = 0; i < count; i++)
		__atomic_fetch_add(&memory[0], 1, __ATOMIC_SEQ_CST);
	return count;
}

static uint64_t get(uint64_t count, uint64_t seed)
{
	uint64_t total = 0;

	for (uint64_t i = 0; i < count; i++) {
		seed = next_random(seed);
		total += ((volatile uint64_t *)memory)[seed % 65536 + 1];
	}
	return total;
}

static uint64_t lookup(uint64_t count, uint64_t seed)
{
	uint64_t total = 0, value = 0;

	for (uint64_t i = 0; i < count; i++) {
		union bpf_attr attr;
		uint32_t key;

		seed = next_random(seed);
		key = seed % 65536 + 1;
		memset(&attr, 0, END_OF(flags));
		attr.map_fd = map_fd;
		attr.key = (uintptr_t)&key;
		attr.value = (uintptr_t)&value;
		expect(!syscall(SYS_bpf, BPF_MAP_LOOKUP_ELEM, &attr, END_OF(flags)), "lookup");
		total += value;
	}
	return total;
}

static const struct operation {
	const char *name;
	uint64_t (*run)(uint64_t count, uint64_t seed);
} operations[] = { { "sum", sum }, { "add", add }, { "get", get }, { "lookup", lookup } };

static struct {
	const struct operation *operation;
	uint64_t count, seed, sum;
	int64_t cpu;
} job;

static int64_t cpu_time(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *work(void *unused)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(processor, &set);
	expect(!sched_setaffinity(0, sizeof(set), &set), "sched_setaffinity");
	job.operation->run(job.count / WARM_UP, job.seed); /* measured are only warm caches */
	job.cpu = cpu_time();
	job.sum = job.operation->run(job.count, job.seed);
	job.cpu = cpu_time() - job.cpu;
	return unused;
}

int main(int argc, char **argv)
{
	char name[64];
	unsigned long long count, seed;
	union bpf_attr attr;

	errno = EINVAL;
	expect(argc == 4, "takes a map id, the number of its entries, and a processor");
	memset(&attr, 0, END_OF(open_flags));
	attr.map_id = strtoul(argv[1], NULL, 10);
	map_fd = syscall(SYS_bpf, BPF_MAP_GET_FD_BY_ID, &attr, END_OF(open_flags));
	expect(map_fd >= 0, "opening the map");
	entries = strtoull(argv[2], NULL, 10);
	processor = atoi(argv[3]);
	memory = mmap(NULL, entries * sizeof(*memory), PROT_READ | PROT_WRITE, MAP_SHARED, map_fd, 0);
	expect(memory != MAP_FAILED, "mapping the memory");

	setvbuf(stdout, NULL, _IOLBF, 0);
	while (scanf("%63s %llu %llu", name, &count, &seed) == 3) {
		pthread_t thread;

		job.operation = NULL;
		for (size_t i = 0; i < sizeof(operations) / sizeof(*operations); i++)
			if (!strcmp(name, operations[i].name))
				job.operation = &operations[i];
		errno = EINVAL;
		expect(job.operation != NULL, name);
		job.count = count;
		job.seed = seed;
		errno = pthread_create(&thread, NULL, work, NULL);
		expect(!errno, "pthread_create");
		pthread_join(thread, NULL);
		printf("%lld %llu\n", (long long)job.cpu, (unsigned long long)job.sum);
	}
	return 0;
}
