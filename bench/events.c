/*
 * What reading a ring buffer or a perf event array is held against: its protocol written out,
 * without a library.
 *
 *     events <processor> <map id>
 *
 * One request per line on stdin, one answer per line on stdout: the processor time in nanoseconds,
 * the number of events, and the sum of their first eight bytes.
 *
 * `raw` reads what is there now, and looks at the first eight bytes of each event. `fields` copies
 * the four fields of an event, and passes them to a function. `live <milliseconds>` reads until no
 * event came for so long, and waits with epoll.
 *
 * For a perf event array, `raw` is the only request. The buffer is the one of the processor. Its
 * size is 1,024 pages.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static uint64_t *consumer, *producer;
static char *data;
static uint64_t mask, sum;
static int set;
static struct perf_event_mmap_page *perf;

static long expect(long result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "events: %s: %s\n", what, strerror(errno));
		exit(1);
	}
	return result;
}

static long bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static void *map(int fd, off_t offset, size_t size, int protection)
{
	void *memory = mmap(NULL, size, protection, MAP_SHARED, fd, offset);

	expect(memory == MAP_FAILED ? -1 : 0, "mmap");
	return memory;
}

/* Opens the buffer of a processor, and stores it in the map. */
static void open_buffer(int map_fd, uint32_t cpu)
{
	size_t page = sysconf(_SC_PAGESIZE), size = 1024 * page;
	struct perf_event_attr event;
	union bpf_attr attr;
	int fd;

	memset(&event, 0, sizeof(event));
	event.type = PERF_TYPE_SOFTWARE;
	event.config = PERF_COUNT_SW_BPF_OUTPUT;
	event.sample_type = PERF_SAMPLE_RAW;
	event.size = sizeof(event);
	event.wakeup_events = 1 << 30; /* nobody waits */
	fd = expect(syscall(SYS_perf_event_open, &event, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC),
		    "perf_event_open");
	perf = map(fd, 0, page + size, PROT_READ | PROT_WRITE);
	data = (char *)perf + page;
	mask = size - 1;
	memset(&attr, 0, sizeof(attr));
	attr.map_fd = map_fd;
	attr.key = (uintptr_t)&cpu;
	attr.value = (uintptr_t)&fd;
	expect(bpf(BPF_MAP_UPDATE_ELEM, &attr), "update");
	expect(ioctl(fd, PERF_EVENT_IOC_ENABLE, 0), "enable");
}

static void open_map(uint32_t id, uint32_t cpu)
{
	struct epoll_event event = { .events = EPOLLIN };
	long page = sysconf(_SC_PAGESIZE);
	struct bpf_map_info info;
	union bpf_attr attr;
	int fd;

	memset(&attr, 0, sizeof(attr));
	attr.map_id = id;
	fd = expect(bpf(BPF_MAP_GET_FD_BY_ID, &attr), "open");
	memset(&info, 0, sizeof(info));
	memset(&attr, 0, sizeof(attr));
	attr.info.bpf_fd = fd;
	attr.info.info_len = sizeof(info);
	attr.info.info = (uintptr_t)&info;
	expect(bpf(BPF_OBJ_GET_INFO_BY_FD, &attr), "info");
	if (info.type == BPF_MAP_TYPE_PERF_EVENT_ARRAY) {
		open_buffer(fd, cpu);
		return;
	}
	mask = info.max_entries - 1;
	consumer = map(fd, 0, page, PROT_READ | PROT_WRITE);
	producer = map(fd, page, page + 2 * (size_t)info.max_entries, PROT_READ);
	data = (char *)producer + page;
	set = expect(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
	expect(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
}

struct fields {
	uint32_t pid, cpu;
	uint64_t bytes, number;
};

static __attribute__((noinline)) void use(struct fields *fields)
{
	sum += fields->number;
}

static void (*volatile use_fields)(struct fields *) = use;

/* Reads all events, with `USE` for each of them; returns their number. */
#define READ(USE)                                                                      \
	({                                                                             \
		uint64_t at = __atomic_load_n(consumer, __ATOMIC_ACQUIRE), end;        \
		long events = 0;                                                       \
		int more;                                                              \
									               \
		do {                                                                   \
			more = 0;                                                      \
			end = __atomic_load_n(producer, __ATOMIC_ACQUIRE);             \
			while (at < end) {                                             \
				char *record = data + (at & mask);                     \
				uint32_t header = __atomic_load_n((uint32_t *)record,  \
								  __ATOMIC_ACQUIRE);   \
									               \
				if (header & BPF_RINGBUF_BUSY_BIT) {                   \
					more = 0;                                      \
					break;                                         \
				}                                                      \
				more = 1;                                              \
				at += ((header << 2 >> 2) + BPF_RINGBUF_HDR_SZ + 7) & ~7u; \
				if (!(header & BPF_RINGBUF_DISCARD_BIT)) {             \
					char *event = record + BPF_RINGBUF_HDR_SZ;     \
									               \
					USE;                                           \
					events++;                                      \
				}                                                      \
				__atomic_store_n(consumer, at, __ATOMIC_RELEASE);      \
			}                                                              \
		} while (more);                                                        \
		events;                                                                \
	})

static __attribute__((noinline)) long read_raw(void)
{
	return READ(sum += *(uint64_t *)event);
}

static __attribute__((noinline)) long read_fields(void)
{
	return READ(struct fields fields; memcpy(&fields, event, sizeof(fields));
		    use_fields(&fields));
}

static uint64_t lost;

/*
 * A record that crosses the end of the buffer is copied; the place of all is given back at once.
 * As libbpf does, it reads the size of each event, counts the lost ones, and rejects other records.
 */
static __attribute__((noinline)) long read_buffer(void)
{
	uint64_t at = perf->data_tail;
	uint64_t end = __atomic_load_n(&perf->data_head, __ATOMIC_ACQUIRE);
	static char copy[1 << 16];
	long events = 0;

	while (at != end) {
		uint64_t start = at & mask, rest = mask + 1 - start;
		struct perf_event_header *record = (void *)(data + start);
		uint16_t size = record->size;

		if (size > rest) {
			memcpy(copy, record, rest);
			memcpy(copy + rest, data, size - rest);
			record = (void *)copy;
		}
		if (record->type == PERF_RECORD_SAMPLE) {
			struct {
				uint32_t size;
				char data[];
			} *sample = (void *)(record + 1);
			uint64_t number = 0;

			if (sample->size >= sizeof(number))
				memcpy(&number, sample->data, sizeof(number));
			sum += number;
			events++;
		} else if (record->type == PERF_RECORD_LOST) {
			lost += ((uint64_t *)(record + 1))[1];
		} else {
			fprintf(stderr, "events: a record of type %u\n", record->type);
			exit(1);
		}
		at += size;
	}
	__atomic_store_n(&perf->data_tail, at, __ATOMIC_RELEASE);
	return events;
}

static long read_live(int milliseconds)
{
	struct epoll_event event;
	long events = 0;

	while (epoll_wait(set, &event, 1, milliseconds) > 0)
		events += read_raw();
	return events;
}

static int64_t cpu_time(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	char name[32];
	int milliseconds;
	cpu_set_t cpus;

	if (argc != 3) {
		fprintf(stderr, "usage: events <processor> <map id>\n");
		return 2;
	}
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[1]), &cpus);
	expect(sched_setaffinity(0, sizeof(cpus), &cpus), "sched_setaffinity");
	open_map(strtoul(argv[2], NULL, 10), atoi(argv[1]));
	while (scanf("%31s %d", name, &milliseconds) == 2) {
		int64_t begun = cpu_time();
		long events;

		sum = 0;
		events = perf                      ? read_buffer()
			 : !strcmp(name, "raw")    ? read_raw()
			 : !strcmp(name, "fields") ? read_fields()
						   : read_live(milliseconds);
		printf("%lld %ld %llu\n", (long long)(cpu_time() - begun), events,
		       (unsigned long long)sum);
		fflush(stdout);
	}
	return 0;
}
