/* What the objects of the tests need of libbpf's and the kernel's headers. */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int s32;
typedef unsigned long long u64;
typedef _Bool bool;

#define SEC(name) __attribute__((section(name), used))
#define __noinline __attribute__((noinline))
#define __weak __attribute__((weak))
#define __hidden __attribute__((visibility("hidden")))
#define __tag(text) __attribute__((btf_decl_tag(text)))
#define __core __attribute__((preserve_access_index))
#define __uint(name, value) int(*name)[value]
#define __type(name, of) typeof(of) *name
#define __array(name, of) typeof(of) *name[]
#define __kconfig SEC(".kconfig")
#define __ksym SEC(".ksyms")

struct xdp_md {
	u32 data, data_end;
};

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static u64 (*ktime)(void) = (void *)5;
static long (*trace)(const char *format, u32 size, ...) = (void *)6;
static long (*store_bytes)(void *skb, u32 offset, const void *from, u32 size, u64 flags) = (void *)9;
static long (*tail_call)(void *context, void *map, u32 index) = (void *)12;
static u64 (*current_task)(void) = (void *)35;
static long (*probe_read)(void *to, u32 size, const void *from) = (void *)113;
static long (*ring_output)(void *ring, void *data, u64 size, u64 flags) = (void *)130;
static long (*for_each)(void *map, void *callback, void *context, u64 flags) = (void *)164;
