/*
 * What opening, creating and listing maps is held against: the same by bare bpf(2).
 *
 *     lifecycle <processor> <map id> <another id>
 *
 * One request per line on stdin, `<operation> <count>`; one answer per line on stdout, the
 * processor time in nanoseconds. `open` and `open-typed` open the first and the second map by id, read
 * its info and close it. `create` and `create-typed` make a hash map of u32 to u64 and close it; the second
 * loads BTF of its types first. `list` opens every map there is and reads its info.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <linux/btf.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static uint32_t untyped_id, typed_id;

static long bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static long expect(long result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "lifecycle: %s: %s\n", what, strerror(errno));
		exit(1);
	}
	return result;
}

/* Returns 0 if the map is gone. */
static int look(uint32_t id)
{
	struct bpf_map_info info;
	union bpf_attr attr;
	int fd;

	memset(&attr, 0, sizeof(attr));
	attr.map_id = id;
	fd = bpf(BPF_MAP_GET_FD_BY_ID, &attr);
	if (fd < 0 && errno == ENOENT)
		return 0;
	expect(fd, "open");
	memset(&info, 0, sizeof(info));
	memset(&attr, 0, sizeof(attr));
	attr.info.bpf_fd = fd;
	attr.info.info_len = sizeof(info);
	attr.info.info = (uintptr_t)&info;
	expect(bpf(BPF_OBJ_GET_INFO_BY_FD, &attr), "info");
	close(fd);
	return 1;
}

static void open_untyped(void) { expect(look(untyped_id) - 1, "open"); }
static void open_typed(void) { expect(look(typed_id) - 1, "open"); }

static void list(void)
{
	union bpf_attr attr;
	uint32_t id = 0;

	for (;;) {
		memset(&attr, 0, sizeof(attr));
		attr.start_id = id;
		if (bpf(BPF_MAP_GET_NEXT_ID, &attr) < 0)
			break;
		id = attr.next_id;
		look(id);
	}
}

static const struct {
	struct btf_header header;
	struct btf_type u32;
	uint32_t u32_bits;
	struct btf_type u64;
	uint32_t u64_bits;
	char names[40];
} types = {
	.header = { .magic = BTF_MAGIC, .version = BTF_VERSION, .hdr_len = sizeof(struct btf_header),
		    .type_len = 32, .str_off = 32, .str_len = 33 },
	.u32 = { .name_off = 1, .info = BTF_KIND_INT << 24, .size = 4 }, .u32_bits = 32,
	.u64 = { .name_off = 14, .info = BTF_KIND_INT << 24, .size = 8 }, .u64_bits = 64,
	.names = "\0unsigned int\0unsigned long long",
};

static void make(int typed)
{
	union bpf_attr attr;
	int btf = -1, fd;

	if (typed) {
		memset(&attr, 0, sizeof(attr));
		attr.btf = (uintptr_t)&types;
		attr.btf_size = sizeof(struct btf_header) + 32 + 33;
		btf = expect(bpf(BPF_BTF_LOAD, &attr), "BTF");
	}
	memset(&attr, 0, sizeof(attr));
	attr.map_type = BPF_MAP_TYPE_HASH;
	attr.key_size = 4;
	attr.value_size = 8;
	attr.max_entries = 8;
	strcpy(attr.map_name, "bench");
	if (typed) {
		attr.btf_fd = btf;
		attr.btf_key_type_id = 1;
		attr.btf_value_type_id = 2;
	}
	fd = expect(bpf(BPF_MAP_CREATE, &attr), "create");
	if (typed)
		close(btf);
	close(fd);
}

static void create(void) { make(0); }
static void create_typed(void) { make(1); }

static const struct {
	const char *name;
	void (*run)(void);
} operations[] = { { "open", open_untyped }, { "open-typed", open_typed }, { "create", create },
		   { "create-typed", create_typed }, { "list", list } };

static int64_t cpu_time(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	char name[32];
	long count;
	cpu_set_t set;

	if (argc != 4) {
		fprintf(stderr, "usage: lifecycle <processor> <map id> <another id>\n");
		return 2;
	}
	CPU_ZERO(&set);
	CPU_SET(atoi(argv[1]), &set);
	expect(sched_setaffinity(0, sizeof(set), &set), "sched_setaffinity");
	untyped_id = strtoul(argv[2], NULL, 10);
	typed_id = strtoul(argv[3], NULL, 10);
	while (scanf("%31s %ld", name, &count) == 2) {
		for (size_t i = 0; i < sizeof(operations) / sizeof(*operations); i++) {
			int64_t begun;

			if (strcmp(name, operations[i].name))
				continue;
			begun = cpu_time();
			for (long n = 0; n < count; n++)
				operations[i].run();
			printf("%lld\n", (long long)(cpu_time() - begun));
			fflush(stdout);
		}
	}
	return 0;
}
