/* An object without BTF, whose maps are numbers. */
#define SEC(name) __attribute__((section(name), used))

struct bpf_map_def {
	unsigned int type, key_size, value_size, max_entries, map_flags;
};

struct bpf_map_def counts SEC("maps") = { 1, 4, 8, 256, 1 };
struct bpf_map_def slots SEC("maps") = { 2, 4, 4, 16, 0 };

int global = 5;
static volatile int hidden_global = 6;
int zero;

static void *(*map_lookup)(void *map, const void *key) = (void *)1;

static __attribute__((noinline)) int local(int a)
{
	return a + hidden_global;
}

SEC("socket") int filter(void *context)
{
	int key = 1;
	int *found = map_lookup(&counts, &key);

	return (found ? *found : local(key)) + global + zero + (map_lookup(&slots, &key) != 0);
}
