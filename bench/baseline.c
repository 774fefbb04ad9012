/*
 * What bpfmap is held against: the same operations on the same maps by bare
 * bpf(2), with no library between.
 *
 *     baseline <processor>...
 *
 * Thread i keeps to the ith of the processors. One request per line on stdin,
 * one answer per line on stdout:
 *
 *     map <id> <shape> <entries> <bytes of a value>     ready
 *     <operation> <threads> <count> <first> <batch>     <processor time> <wall time> <sum>
 *
 * `map` opens the map under test, which holds the indices 0 to entries-1 in a
 * shape: how an index becomes a key and a value, see below. The other requests
 * make `count` operations on each thread, in the order of a shuffle that the
 * other side makes the same way: thread i begins at place first + i * count of
 * it. `batch` is how many entries go with one system call, where many do.
 * Times are nanoseconds summed over the threads. The sum is made of what was
 * read, so that the asker can see that both sides did the same work. Between
 * two requests the process sleeps in read(2).
 *
 * One thread is a thread beside main() too. In a process of one thread the kernel
 * need not count references to the descriptor's file, and a JVM is never that.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
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

#define WARM_UP 4
#define MAX_THREADS 64
#define MAX_WORDS 1024
#define END_OF(field) (offsetof(union bpf_attr, field) + sizeof(((union bpf_attr *)0)->field))
#define ALWAYS_INLINE static inline __attribute__((always_inline))

static char **processors;
static int processor_count;

/* The map under test. */
static int map_fd = -1;
static struct bpf_map_info info;
static uint32_t entries, value_words, *order;

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

/* --- shapes: the index n as a key, and as a value of so many words. */

enum shape { WORD, FIELDS, PREFIX, PERCPU };

static const char *const shape_names[] = { "word", "fields", "prefix", "percpu" };

union key {
	uint32_t word;
	uint32_t fields[4];
	struct { uint32_t length, address; } prefix;
};

ALWAYS_INLINE uint32_t key_size(enum shape shape)
{
	return shape == FIELDS ? 16 : shape == PREFIX ? 8 : 4;
}

ALWAYS_INLINE uint32_t words(enum shape shape)
{
	return shape == FIELDS ? 4 : shape == PERCPU ? value_words : 1;
}

ALWAYS_INLINE void set_key(enum shape shape, void *at, uint32_t n)
{
	union key *key = at;

	if (shape == FIELDS)
		for (int i = 0; i < 4; i++)
			key->fields[i] = n + i;
	else if (shape == PREFIX)
		key->prefix.length = 32, key->prefix.address = htonl(n);
	else
		key->word = n;
}

ALWAYS_INLINE void set_value(enum shape shape, uint64_t *value, uint32_t n)
{
	for (uint32_t i = 0; i < words(shape); i++)
		value[i] = n + i;
}

/* --- operations: each takes a place in the order, and returns its sum. */

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

#define FOR_EACH_INDEX(n)                                                                     \
	for (uint64_t i = 0, at_ = first, n; i < count && (n = order[at_], 1);                \
	     i++, at_ = at_ + 1 == entries ? 0 : at_ + 1)

ALWAYS_INLINE uint64_t lookup(enum shape shape, int missing, uint64_t count, uint64_t first)
{
	uint64_t sum = 0, value[words(shape)];
	union key key;

	FOR_EACH_INDEX(n) {
		set_key(shape, &key, missing ? n + entries : n);
		int failed = element(BPF_MAP_LOOKUP_ELEM, &key, value);
		if (missing)
			expect(failed && errno == ENOENT, "lookup of a missing key"), sum++;
		else
			expect(!failed, "lookup"), sum += value[0] & 0xff;
	}
	return sum;
}

ALWAYS_INLINE uint64_t lookup_hit(enum shape shape, uint64_t count, uint64_t first, uint32_t batch)
{
	(void)batch;
	return lookup(shape, 0, count, first);
}

ALWAYS_INLINE uint64_t lookup_miss(enum shape shape, uint64_t count, uint64_t first, uint32_t batch)
{
	(void)batch;
	return lookup(shape, 1, count, first);
}

ALWAYS_INLINE uint64_t update(enum shape shape, uint64_t count, uint64_t first, uint32_t batch)
{
	uint64_t sum = 0, value[words(shape)];
	union key key;

	(void)batch;
	FOR_EACH_INDEX(n) {
		set_key(shape, &key, n);
		set_value(shape, value, n);
		expect(!element(BPF_MAP_UPDATE_ELEM, &key, value), "update");
		sum++;
	}
	return sum;
}

ALWAYS_INLINE uint64_t delete(enum shape shape, uint64_t count, uint64_t first, uint32_t batch)
{
	uint64_t sum = 0;
	union key key;

	(void)batch;
	FOR_EACH_INDEX(n) {
		set_key(shape, &key, n);
		expect(!element(BPF_MAP_DELETE_ELEM, &key, NULL), "delete");
		sum++;
	}
	return sum;
}

ALWAYS_INLINE uint64_t take(enum shape shape, uint64_t count, uint64_t first, uint32_t batch)
{
	uint64_t sum = 0, value[words(shape)];
	union key key;

	(void)batch;
	FOR_EACH_INDEX(n) {
		set_key(shape, &key, n);
		expect(!element(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &key, value), "lookup and delete");
		sum += value[0] & 0xff;
	}
	return sum;
}

/* Reads `count` entries in the kernel's order, from the beginning. */
ALWAYS_INLINE uint64_t walk(enum shape shape, uint64_t count, uint64_t first, uint32_t batch)
{
	uint64_t sum = 0, value[words(shape)];
	union key key;

	(void)batch, (void)first;
	for (uint64_t i = 0; i < count; i++) {
		expect(!element(BPF_MAP_GET_NEXT_KEY, i ? &key : NULL, &key), "next key");
		expect(!element(BPF_MAP_LOOKUP_ELEM, &key, value), "lookup");
		sum += value[0] & 0xff;
	}
	return sum;
}

struct buffers {
	unsigned char *keys;
	uint64_t *values;
};

static struct buffers allocate(enum shape shape, uint32_t batch)
{
	struct buffers b = { malloc((size_t)batch * key_size(shape)), malloc((size_t)batch * 8 * words(shape)) };

	expect(b.keys && b.values, "malloc");
	return b;
}

static void release(struct buffers b)
{
	free(b.keys);
	free(b.values);
}

/* Reads the whole map as often as gives `count` entries. */
ALWAYS_INLINE uint64_t read_batch(enum shape shape, uint64_t count, uint64_t first, uint32_t batch)
{
	struct buffers b = allocate(shape, batch);
	uint64_t sum = 0;

	(void)first;
	for (uint64_t i = 0; i < count;) {
		union key cursor; /* a bucket's number, or a key */
		uint32_t begun = 0, last = 0;
		while (!last) {
			union bpf_attr attr;
			memset(&attr, 0, END_OF(batch));
			attr.batch.in_batch = begun ? (uintptr_t)&cursor : 0;
			attr.batch.out_batch = (uintptr_t)&cursor;
			attr.batch.keys = (uintptr_t)b.keys;
			attr.batch.values = (uintptr_t)b.values;
			attr.batch.count = batch;
			attr.batch.map_fd = map_fd;
			if (syscall(SYS_bpf, BPF_MAP_LOOKUP_BATCH, &attr, END_OF(batch))) {
				expect(errno == ENOENT, "lookup batch");
				last = 1;
			}
			begun = 1;
			for (uint32_t j = 0; j < attr.batch.count; j++)
				sum += b.values[(size_t)j * words(shape)] & 0xff;
			i += attr.batch.count;
		}
	}
	release(b);
	return sum;
}

ALWAYS_INLINE uint64_t change_batch(enum shape shape, int command, uint64_t count, uint64_t first, uint32_t batch)
{
	struct buffers b = allocate(shape, batch);
	uint32_t n = 0;

	FOR_EACH_INDEX(index) {
		set_key(shape, b.keys + (size_t)n * key_size(shape), index);
		if (command == BPF_MAP_UPDATE_BATCH)
			set_value(shape, b.values + (size_t)n * words(shape), index);
		if (++n < batch && i + 1 < count)
			continue;
		union bpf_attr attr;
		memset(&attr, 0, END_OF(batch));
		attr.batch.keys = (uintptr_t)b.keys;
		attr.batch.values = command == BPF_MAP_UPDATE_BATCH ? (uintptr_t)b.values : 0;
		attr.batch.count = n;
		attr.batch.map_fd = map_fd;
		expect(!syscall(SYS_bpf, command, &attr, END_OF(batch)), "changing a batch");
		n = 0;
	}
	release(b);
	return count;
}

ALWAYS_INLINE uint64_t write_batch(enum shape shape, uint64_t count, uint64_t first, uint32_t batch)
{
	return change_batch(shape, BPF_MAP_UPDATE_BATCH, count, first, batch);
}

ALWAYS_INLINE uint64_t delete_batch(enum shape shape, uint64_t count, uint64_t first, uint32_t batch)
{
	return change_batch(shape, BPF_MAP_DELETE_BATCH, count, first, batch);
}

static int open_by_id(uint32_t id)
{
	union bpf_attr attr;

	memset(&attr, 0, END_OF(open_flags));
	attr.map_id = id;
	return syscall(SYS_bpf, BPF_MAP_GET_FD_BY_ID, &attr, END_OF(open_flags));
}

ALWAYS_INLINE uint64_t open_close(enum shape shape, uint64_t count, uint64_t first, uint32_t batch)
{
	(void)shape, (void)first, (void)batch;
	for (uint64_t i = 0; i < count; i++) {
		int fd = open_by_id(info.id);
		expect(fd >= 0 && !close(fd), "opening by id");
	}
	return count;
}

/* A map like the one under test, but empty. */
ALWAYS_INLINE uint64_t create_close(enum shape shape, uint64_t count, uint64_t first, uint32_t batch)
{
	(void)shape, (void)first, (void)batch;
	for (uint64_t i = 0; i < count; i++) {
		union bpf_attr attr;
		memset(&attr, 0, END_OF(map_name));
		attr.map_type = info.type;
		attr.key_size = info.key_size;
		attr.value_size = info.value_size;
		attr.max_entries = info.max_entries;
		attr.map_flags = info.map_flags;
		memcpy(attr.map_name, info.name, sizeof(attr.map_name));
		int fd = syscall(SYS_bpf, BPF_MAP_CREATE, &attr, END_OF(map_name));
		expect(fd >= 0 && !close(fd), "creating a map");
	}
	return count;
}

/* --- the table: a function for each shape, and whether what it deleted is written again, unmeasured. */

typedef uint64_t operation(uint64_t count, uint64_t first, uint32_t batch);

#define SHAPED(op, shape, SHAPE)                                                             \
	static uint64_t op##_##shape(uint64_t count, uint64_t first, uint32_t batch)         \
	{                                                                                    \
		return op(SHAPE, count, first, batch);                                       \
	}
#define OPERATION(op) SHAPED(op, word, WORD) SHAPED(op, fields, FIELDS) SHAPED(op, prefix, PREFIX) SHAPED(op, percpu, PERCPU)
#define ROW(op, name, deletes) { name, { op##_word, op##_fields, op##_prefix, op##_percpu }, deletes }

OPERATION(lookup_hit) OPERATION(lookup_miss) OPERATION(update) OPERATION(delete) OPERATION(take) OPERATION(walk)
OPERATION(read_batch) OPERATION(write_batch) OPERATION(delete_batch) OPERATION(open_close) OPERATION(create_close)

static const struct row {
	const char *name;
	operation *run[4];
	int deletes;
} rows[] = {
	ROW(lookup_hit, "lookup-hit", 0),     ROW(lookup_miss, "lookup-miss", 0),   ROW(update, "update", 0),
	ROW(delete, "delete", 1),             ROW(take, "take", 1),                 ROW(walk, "walk", 0),
	ROW(read_batch, "read-batch", 0),     ROW(write_batch, "write-batch", 0),   ROW(delete_batch, "delete-batch", 1),
	ROW(open_close, "open-close", 0),     ROW(create_close, "create-close", 0),
};
static operation *const restore[] = { update_word, update_fields, update_prefix, update_percpu };
static enum shape shape;

/* --- threads and requests */

struct job {
	const struct row *row;
	uint64_t count, first, sum;
	uint32_t batch;
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
	operation *run = job->row->run[shape];
	cpu_set_t processor;

	CPU_ZERO(&processor);
	CPU_SET(job->processor, &processor);
	expect(!sched_setaffinity(0, sizeof(processor), &processor), "sched_setaffinity");
	/* Measured are only warm caches. */
	job->sum = run(job->count / WARM_UP, job->first, job->batch);
	if (job->row->deletes)
		restore[shape](job->count / WARM_UP, job->first, job->batch);
	/* Spinning, not sleeping: when the last is ready, all have a processor and begin at once. */
	__atomic_sub_fetch(job->not_ready, 1, __ATOMIC_ACQ_REL);
	while (__atomic_load_n(job->not_ready, __ATOMIC_ACQUIRE))
		;
	int64_t wall = now(CLOCK_MONOTONIC);
	int64_t cpu = now(CLOCK_THREAD_CPUTIME_ID);
	job->sum = run(job->count, job->first, job->batch);
	job->cpu = now(CLOCK_THREAD_CPUTIME_ID) - cpu;
	job->wall = now(CLOCK_MONOTONIC) - wall;
	if (job->row->deletes)
		restore[shape](job->count, job->first, job->batch);
	return NULL;
}

static void answer(const struct row *row, unsigned threads, uint64_t count, uint64_t first, uint32_t batch)
{
	struct job jobs[MAX_THREADS];
	pthread_t ids[MAX_THREADS];
	unsigned not_ready = threads;
	uint64_t sum = 0;
	int64_t cpu = 0, wall = 0;

	errno = EINVAL;
	expect(map_fd >= 0 && threads > 0 && threads <= MAX_THREADS, row->name);
	for (unsigned i = 0; i < threads; i++) {
		jobs[i] = (struct job){
			.row = row,
			.count = count,
			.first = (first + i * count) % entries,
			.batch = batch,
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

/* Marsaglia's xorshift with 64 bits, and the shuffle of Fisher and Yates; the other side has the same. */
static void shuffle(void)
{
	uint64_t x = 1;

	order = realloc(order, entries * sizeof(*order));
	expect(order != NULL, "realloc");
	for (uint32_t i = 0; i < entries; i++)
		order[i] = i;
	for (uint32_t i = entries - 1; i > 0; i--) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		uint32_t j = x % (i + 1), other = order[j];
		order[j] = order[i];
		order[i] = other;
	}
}

static void open_map(uint32_t id, const char *name, uint32_t count, uint32_t value_size)
{
	union bpf_attr attr;

	if (map_fd >= 0)
		close(map_fd);
	map_fd = open_by_id(id);
	expect(map_fd >= 0, "opening the map");
	memset(&attr, 0, END_OF(info));
	attr.info.bpf_fd = map_fd;
	attr.info.info_len = sizeof(info);
	attr.info.info = (uintptr_t)&info;
	expect(!syscall(SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &attr, END_OF(info)), "the map's info");

	for (shape = WORD; strcmp(name, shape_names[shape]); shape++) {
		errno = EINVAL;
		expect(shape < PERCPU, name);
	}
	value_words = value_size / 8;
	errno = EINVAL;
	expect(count > 0 && value_words > 0 && value_words <= MAX_WORDS && info.key_size == key_size(shape), "the map's sizes");
	entries = count;
	shuffle();
	puts("ready");
}

int main(int argc, char **argv)
{
	char name[64];

	errno = EINVAL;
	expect(argc > 1, "takes processors");
	processors = argv + 1;
	processor_count = argc - 1;
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (scanf("%63s", name) == 1) {
		unsigned long long a, b, c, d;
		char shape_name[64];
		const struct row *row = rows;

		errno = EINVAL;
		if (!strcmp(name, "map")) {
			expect(scanf("%llu %63s %llu %llu", &a, shape_name, &b, &c) == 4, "map");
			open_map(a, shape_name, b, c);
			continue;
		}
		while (strcmp(name, row->name))
			expect(++row < rows + sizeof(rows) / sizeof(*rows), name);
		expect(scanf("%llu %llu %llu %llu", &a, &b, &c, &d) == 4, name);
		answer(row, a, b, c, d);
	}
	return 0;
}
