/* Variables in every kind of section. sections-el.o and sections-eb.o are made of this by
 *
 *   clang -target bpfel -O2 -g -c sections.c -o sections-el.o
 *   llvm-objcopy --strip-debug sections-el.o     (and the same with bpfeb)
 */
#define SEC(name) __attribute__((section(name)))
#define __uint(name, val) int (*name)[val]
#define __type(name, val) val *name
#define __array(name, val) val *name[]
#define __weak __attribute__((weak))

typedef unsigned int u32;
typedef unsigned long long u64;

struct flow { u32 a, b; };
struct inner { __uint(type, 1); __uint(max_entries, 8); __type(key, u32); __type(value, u32); };
struct {
	__uint(type, 1);
	__uint(max_entries, 8);
	__type(key, u32);
	__type(value, struct flow);
} flows SEC(".maps");
struct inner in SEC(".maps");
struct {
	__uint(type, 12);
	__uint(max_entries, 8);
	__type(key, u32);
	__array(values, struct inner);
} outer SEC(".maps") = { .values = { [1] = &in } };

static u64 seen = 3;
u32 total = 7;
char text[16] = "hi";
volatile const u32 limit = 2;
static const char merged[] = "hello"; /* goes to .rodata.str1.1 */
u64 zeroed;
static u32 quiet;
u32 mine SEC(".data.mine") = 5;

extern const int bpf_prog_active SEC(".ksyms");
extern const void bpf_link_fops SEC(".ksyms");
extern void bpf_rcu_read_lock(void) SEC(".ksyms");
extern void bpf_rcu_read_unlock(void) SEC(".ksyms");

extern int LINUX_KERNEL_VERSION SEC(".kconfig");
extern char CONFIG_CC_VERSION_TEXT[8] SEC(".kconfig") __weak;
extern u64 CONFIG_HZ SEC(".kconfig") __weak;
extern _Bool CONFIG_BPF SEC(".kconfig") __weak;

static int pick(int i)
{
	static u32 turn = 1;
	static const volatile char shape[] = "abc";

	turn += i + shape[i & 3];
	return turn;
}

SEC("socket") int count(void *ctx)
{
	bpf_rcu_read_lock();
	bpf_rcu_read_unlock();
	seen++;
	zeroed += quiet++;
	total += limit + *(int *)&bpf_prog_active + (long)&bpf_link_fops + LINUX_KERNEL_VERSION
		+ CONFIG_CC_VERSION_TEXT[0] + CONFIG_HZ + CONFIG_BPF;
	return pick(total) + text[total & 15] + merged[total & 3] + mine;
}

char _license[] SEC("license") = "GPL";
