package bpfmap.sys;

/**
 * Names the constants of the kernel's binary interface: command numbers, field offsets of
 * {@code union bpf_attr}, flag bits and system call numbers.
 *
 * <p>Source: the UAPI header {@code linux/bpf.h}. A test compiles that header and compares every
 * constant. An attribute is passed only up to its last field in use, so that an older kernel with
 * fewer fields accepts it.
 */
public final class Abi {
    private Abi() {}

    // --- system call numbers: asm/unistd_64.h on x86-64, asm-generic/unistd.h on arm64 and riscv64

    private static final String ARCH = System.getProperty("os.arch");

    private static boolean x86(String arch) {
        return "amd64".equals(arch);
    }

    private static boolean generic(String arch) {
        return "aarch64".equals(arch) || "riscv64".equals(arch);
    }

    /** Returns true if the system call numbers of a processor are known, by its {@code os.arch}. */
    static boolean known(String arch) {
        return x86(arch) || generic(arch);
    }

    /** {@code bpf(2)}; negative if this library does not support the processor. */
    public static final long SYS_BPF = number(321, 280);
    static final long SYS_READ = number(0, 63);
    static final long SYS_WRITE = number(1, 64);
    public static final long SYS_CLOSE = number(3, 57);
    public static final long SYS_CLOCK_GETTIME = number(228, 113);
    static final long SYS_FCNTL = number(72, 25);
    static final long SYS_IOCTL = number(16, 29);
    static final long SYS_MADVISE = number(28, 233);
    static final long SYS_MMAP = number(9, 222);
    static final long SYS_MUNMAP = number(11, 215);
    static final long SYS_OPENAT = number(257, 56);
    /** Since Linux 5.3; the number is the same on every processor. */
    public static final long SYS_PIDFD_OPEN = 434;
    /** Since Linux 5.6; the number is the same on every processor. */
    static final long SYS_PIDFD_GETFD = 438;
    /** Since Linux 5.2, as the two below; the numbers are the same on every processor. */
    static final long SYS_FSOPEN = 430;
    static final long SYS_FSCONFIG = 431;
    static final long SYS_FSMOUNT = 432;
    static final long SYS_EPOLL_CREATE1 = number(291, 20);
    static final long SYS_EPOLL_CTL = number(233, 21);
    static final long SYS_EPOLL_PWAIT = number(281, 22);
    static final long SYS_EVENTFD2 = number(290, 19);
    static final long SYS_MEMBARRIER = number(324, 283);
    static final long SYS_PERF_EVENT_OPEN = number(298, 241);
    static final long SYS_GETDENTS64 = number(217, 61);
    static final long SYS_PRLIMIT64 = number(302, 261);
    static final long SYS_READLINKAT = number(267, 78);
    static final long SYS_RENAMEAT2 = number(316, 276);
    static final long SYS_SOCKET = number(41, 198);
    static final long SYS_STATFS = number(137, 43);
    static final long SYS_STATX = number(332, 291);
    static final long SYS_UNLINKAT = number(263, 35);

    private static long number(long x86, long generic) {
        return x86(ARCH) ? x86 : generic(ARCH) ? generic : -1;
    }

    // --- errno values that the code distinguishes; Errno has all names

    public static final int EPERM = 1;
    public static final int ENOENT = 2;
    public static final int ESRCH = 3;
    public static final int EINTR = 4;
    public static final int E2BIG = 7;
    static final int EBADF = 9;
    public static final int EAGAIN = 11;
    public static final int ENOMEM = 12;
    public static final int EACCES = 13;
    public static final int EBUSY = 16;
    public static final int EEXIST = 17;
    public static final int ENODEV = 19;
    public static final int EINVAL = 22;
    public static final int EMFILE = 24;
    public static final int ENOSPC = 28;
    static final int ERANGE = 34;
    public static final int EOPNOTSUPP = 95;
    public static final int EINPROGRESS = 115;
    /** Internal to the kernel, but returned by {@code bpf(2)}: the operation is not supported. */
    public static final int ENOTSUPP = 524;

    // --- commands of bpf(2): enum bpf_cmd

    public static final int BPF_MAP_CREATE = 0;
    public static final int BPF_MAP_LOOKUP_ELEM = 1;
    public static final int BPF_MAP_UPDATE_ELEM = 2;
    public static final int BPF_MAP_DELETE_ELEM = 3;
    public static final int BPF_MAP_GET_NEXT_KEY = 4;
    public static final int BPF_PROG_LOAD = 5;
    public static final int BPF_OBJ_PIN = 6;
    public static final int BPF_OBJ_GET = 7;
    public static final int BPF_PROG_TEST_RUN = 10;
    public static final int BPF_PROG_GET_NEXT_ID = 11;
    public static final int BPF_MAP_GET_NEXT_ID = 12;
    public static final int BPF_PROG_GET_FD_BY_ID = 13;
    public static final int BPF_MAP_GET_FD_BY_ID = 14;
    public static final int BPF_OBJ_GET_INFO_BY_FD = 15;
    public static final int BPF_PROG_QUERY = 16;
    public static final int BPF_RAW_TRACEPOINT_OPEN = 17;
    public static final int BPF_BTF_LOAD = 18;
    public static final int BPF_BTF_GET_FD_BY_ID = 19;
    public static final int BPF_BTF_GET_NEXT_ID = 23;
    public static final int BPF_TASK_FD_QUERY = 20;
    public static final int BPF_MAP_LOOKUP_AND_DELETE_ELEM = 21;
    public static final int BPF_MAP_FREEZE = 22;
    public static final int BPF_MAP_LOOKUP_BATCH = 24;
    public static final int BPF_MAP_LOOKUP_AND_DELETE_BATCH = 25;
    public static final int BPF_MAP_UPDATE_BATCH = 26;
    public static final int BPF_MAP_DELETE_BATCH = 27;
    public static final int BPF_LINK_CREATE = 28;
    public static final int BPF_LINK_UPDATE = 29;
    public static final int BPF_LINK_GET_FD_BY_ID = 30;
    public static final int BPF_LINK_GET_NEXT_ID = 31;
    public static final int BPF_ENABLE_STATS = 32;
    public static final int BPF_ITER_CREATE = 33;
    public static final int BPF_LINK_DETACH = 34;
    public static final int BPF_TOKEN_CREATE = 36;

    // --- flags of element operations

    public static final long BPF_ANY = 0;
    public static final long BPF_NOEXIST = 1;
    public static final long BPF_EXIST = 2;
    /** Hold the value's spin lock. Since Linux 5.1. */
    public static final long BPF_F_LOCK = 4;
    /** The value of one CPU, whose number is in the upper half of the flags. Since Linux 7.0. */
    public static final long BPF_F_CPU = 8;
    /** One value for every CPU. Since Linux 7.0. */
    static final long BPF_F_ALL_CPUS = 16;

    // --- flags of BPF_PROG_LOAD

    public static final int BPF_F_SLEEPABLE = 1 << 4;
    public static final int BPF_F_XDP_HAS_FRAGS = 1 << 5;

    // --- flags of BPF_LINK_CREATE

    /** Order among the programs of a hook, since Linux 6.6; of a cgroup, since 6.17. */
    public static final int BPF_F_BEFORE = 1 << 3;
    public static final int BPF_F_AFTER = 1 << 4;
    public static final int BPF_F_ID = 1 << 5;
    /** The relative is a link. It has the value of a flag of maps, so the header has no name. */
    public static final int BPF_F_LINK = 1 << 13;
    public static final int BPF_F_KPROBE_MULTI_RETURN = 1;
    public static final int BPF_F_UPROBE_MULTI_RETURN = 1;
    public static final int BPF_F_NETFILTER_IP_DEFRAG = 1;

    // --- per-descriptor access flags, for create, open by id, and open by path

    public static final int BPF_F_RDONLY = 1 << 3;
    public static final int BPF_F_WRONLY = 1 << 4;

    // --- union bpf_attr: BPF_MAP_CREATE

    public static final int MAP_CREATE_MAP_TYPE = 0;
    public static final int MAP_CREATE_KEY_SIZE = 4;
    public static final int MAP_CREATE_VALUE_SIZE = 8;
    public static final int MAP_CREATE_MAX_ENTRIES = 12;
    public static final int MAP_CREATE_MAP_FLAGS = 16;
    public static final int MAP_CREATE_INNER_MAP_FD = 20;
    public static final int MAP_CREATE_NUMA_NODE = 24;
    public static final int MAP_CREATE_MAP_NAME = 28;
    public static final int MAP_CREATE_BTF_FD = 48;
    public static final int MAP_CREATE_BTF_KEY_TYPE_ID = 52;
    public static final int MAP_CREATE_BTF_VALUE_TYPE_ID = 56;
    public static final int MAP_CREATE_BTF_VMLINUX_VALUE_TYPE_ID = 60;
    public static final int MAP_CREATE_MAP_EXTRA = 64;
    public static final int MAP_CREATE_VALUE_TYPE_BTF_OBJ_FD = 72;
    public static final int MAP_CREATE_MAP_TOKEN_FD = 76;

    // --- union bpf_attr: the element commands, BPF_MAP_GET_NEXT_KEY, BPF_MAP_FREEZE

    public static final int ELEM_MAP_FD = 0;
    public static final int ELEM_KEY = 8;
    public static final int ELEM_VALUE = 16;
    public static final int ELEM_FLAGS = 24;

    // --- union bpf_attr: the batch commands

    static final int BATCH_IN_BATCH = 0;
    static final int BATCH_OUT_BATCH = 8;
    static final int BATCH_KEYS = 16;
    static final int BATCH_VALUES = 24;
    public static final int BATCH_COUNT = 32;
    public static final int BATCH_MAP_FD = 36;
    static final int BATCH_ELEM_FLAGS = 40;
    static final int BATCH_FLAGS = 48;
    static final int BATCH_SIZE = 56;

    // --- union bpf_attr: BPF_PROG_LOAD

    public static final int PROG_LOAD_PROG_TYPE = 0;
    public static final int PROG_LOAD_INSN_CNT = 4;
    public static final int PROG_LOAD_INSNS = 8;
    public static final int PROG_LOAD_LICENSE = 16;
    public static final int PROG_LOAD_LOG_LEVEL = 24;
    public static final int PROG_LOAD_LOG_SIZE = 28;
    public static final int PROG_LOAD_LOG_BUF = 32;
    public static final int PROG_LOAD_KERN_VERSION = 40;
    public static final int PROG_LOAD_PROG_FLAGS = 44;
    public static final int PROG_LOAD_PROG_NAME = 48;
    public static final int PROG_LOAD_EXPECTED_ATTACH_TYPE = 68;
    public static final int PROG_LOAD_PROG_BTF_FD = 72;
    public static final int PROG_LOAD_FUNC_INFO_REC_SIZE = 76;
    public static final int PROG_LOAD_FUNC_INFO = 80;
    public static final int PROG_LOAD_FUNC_INFO_CNT = 88;
    public static final int PROG_LOAD_LINE_INFO_REC_SIZE = 92;
    public static final int PROG_LOAD_LINE_INFO = 96;
    public static final int PROG_LOAD_LINE_INFO_CNT = 104;
    public static final int PROG_LOAD_ATTACH_BTF_ID = 108;
    /** A union: the program to attach to, or the BTF object of {@link #PROG_LOAD_ATTACH_BTF_ID}. */
    public static final int PROG_LOAD_ATTACH_PROG_FD = 112;
    public static final int PROG_LOAD_ATTACH_BTF_OBJ_FD = 112;
    public static final int PROG_LOAD_FD_ARRAY = 120;

    // --- union bpf_attr: BPF_TASK_FD_QUERY

    public static final int TASK_PID = 0;
    public static final int TASK_FD = 4;
    public static final int TASK_BUF_LEN = 12;
    public static final int TASK_BUF = 16;
    public static final int TASK_PROG_ID = 24;
    public static final int TASK_FD_TYPE = 28;
    public static final int TASK_PROBE_OFFSET = 32;
    public static final int TASK_PROBE_ADDR = 40;

    // --- union bpf_attr: BPF_OBJ_PIN, BPF_OBJ_GET

    public static final int OBJ_PATHNAME = 0;
    public static final int OBJ_BPF_FD = 8;
    public static final int OBJ_FILE_FLAGS = 12;

    // --- union bpf_attr: BPF_PROG_TEST_RUN

    public static final int TEST_PROG_FD = 0;
    public static final int TEST_RETVAL = 4;
    public static final int TEST_DATA_SIZE_IN = 8;
    public static final int TEST_DATA_SIZE_OUT = 12;
    public static final int TEST_DATA_IN = 16;
    public static final int TEST_DATA_OUT = 24;
    public static final int TEST_REPEAT = 32;
    public static final int TEST_DURATION = 36;
    public static final int TEST_CTX_SIZE_IN = 40;
    public static final int TEST_CTX_IN = 48;

    // --- union bpf_attr: BPF_*_GET_NEXT_ID, BPF_*_GET_FD_BY_ID

    public static final int ID_START_ID = 0;
    public static final int ID_NEXT_ID = 4;
    public static final int ID_OPEN_FLAGS = 8;

    // --- union bpf_attr: BPF_OBJ_GET_INFO_BY_FD

    public static final int INFO_BPF_FD = 0;
    public static final int INFO_INFO_LEN = 4;
    public static final int INFO_INFO = 8;

    // --- union bpf_attr: BPF_RAW_TRACEPOINT_OPEN

    public static final int RAW_TRACEPOINT_NAME = 0;
    public static final int RAW_TRACEPOINT_PROG_FD = 8;
    public static final int RAW_TRACEPOINT_COOKIE = 16;

    // --- union bpf_attr: BPF_LINK_CREATE, its head, then the fields of each kind of link

    public static final int LINK_CREATE_PROG_FD = 0;
    public static final int LINK_CREATE_TARGET_FD = 4;
    public static final int LINK_CREATE_ATTACH_TYPE = 8;
    public static final int LINK_CREATE_FLAGS = 12;
    public static final int LINK_CREATE_ITER_INFO = 16;
    public static final int LINK_CREATE_ITER_INFO_LEN = 24;
    public static final int LINK_CREATE_PERF_EVENT_BPF_COOKIE = 16;
    public static final int LINK_CREATE_TRACING_TARGET_BTF_ID = 16;
    public static final int LINK_CREATE_TRACING_COOKIE = 24;
    public static final int LINK_CREATE_KPROBE_MULTI_FLAGS = 16;
    public static final int LINK_CREATE_KPROBE_MULTI_CNT = 20;
    public static final int LINK_CREATE_KPROBE_MULTI_SYMS = 24;
    public static final int LINK_CREATE_KPROBE_MULTI_COOKIES = 40;
    public static final int LINK_CREATE_UPROBE_MULTI_PATH = 16;
    public static final int LINK_CREATE_UPROBE_MULTI_OFFSETS = 24;
    public static final int LINK_CREATE_UPROBE_MULTI_REF_CTR_OFFSETS = 32;
    public static final int LINK_CREATE_UPROBE_MULTI_COOKIES = 40;
    public static final int LINK_CREATE_UPROBE_MULTI_CNT = 48;
    public static final int LINK_CREATE_UPROBE_MULTI_FLAGS = 52;
    public static final int LINK_CREATE_UPROBE_MULTI_PID = 56;
    public static final int LINK_CREATE_NETFILTER_PF = 16;
    public static final int LINK_CREATE_NETFILTER_HOOKNUM = 20;
    public static final int LINK_CREATE_NETFILTER_PRIORITY = 24;
    public static final int LINK_CREATE_NETFILTER_FLAGS = 28;
    /** Links of netkit devices and of cgroups have the fields of TCX links. */
    public static final int LINK_CREATE_TCX_RELATIVE_FD = 16;
    public static final int LINK_CREATE_TCX_EXPECTED_REVISION = 24;

    // --- union bpf_attr: BPF_LINK_UPDATE, BPF_LINK_DETACH, BPF_ITER_CREATE

    public static final int LINK_UPDATE_LINK_FD = 0;
    public static final int LINK_UPDATE_NEW_PROG_FD = 4;
    public static final int LINK_DETACH_LINK_FD = 0;
    public static final int ITER_CREATE_LINK_FD = 0;

    // --- union bpf_attr: BPF_PROG_QUERY

    public static final int QUERY_TARGET_FD = 0;
    public static final int QUERY_ATTACH_TYPE = 4;
    public static final int QUERY_PROG_IDS = 16;
    public static final int QUERY_PROG_CNT = 24;
    public static final int QUERY_LINK_IDS = 40;
    public static final int QUERY_REVISION = 56;

    // --- union bpf_attr: BPF_ENABLE_STATS

    public static final int BPF_STATS_RUN_TIME = 0;
    public static final int ENABLE_STATS_TYPE = 0;

    // --- union bpf_attr: BPF_BTF_LOAD

    public static final int BTF_LOAD_BTF = 0;
    public static final int BTF_LOAD_BTF_SIZE = 16;
    public static final int BTF_LOAD_BTF_FLAGS = 32;
    public static final int BTF_LOAD_BTF_TOKEN_FD = 36;

    // --- union bpf_attr: BPF_TOKEN_CREATE

    public static final int TOKEN_CREATE_FLAGS = 0;
    public static final int TOKEN_CREATE_BPFFS_FD = 4;

    // --- linux/membarrier.h

    static final int MEMBARRIER_CMD_GLOBAL = 1;

    // --- perf events: linux/perf_event.h

    public static final int PERF_TYPE_SOFTWARE = 1;
    public static final int PERF_COUNT_SW_BPF_OUTPUT = 10;
    static final int PERF_SAMPLE_RAW = 1 << 10;
    static final int PERF_FLAG_FD_CLOEXEC = 1 << 3;
    static final int PERF_EVENT_IOC_ENABLE = 0x2400;
    static final int PERF_EVENT_IOC_SET_BPF = 0x40042408;
    static final int PERF_EVENT_IOC_PAUSE_OUTPUT = 0x40042409;
    static final int PERF_RECORD_LOST = 2;
    static final int PERF_RECORD_SAMPLE = 9;

    static final int PERF_ATTR_TYPE = 0;
    static final int PERF_ATTR_SIZE = 4;
    static final int PERF_ATTR_CONFIG = 8;
    static final int PERF_ATTR_SAMPLE_PERIOD = 16;
    static final int PERF_ATTR_SAMPLE_TYPE = 24;
    static final int PERF_ATTR_READ_FORMAT = 32;
    static final int PERF_ATTR_WAKEUP_EVENTS = 48;
    static final int PERF_ATTR_CONFIG1 = 56;
    static final int PERF_ATTR_CONFIG2 = 64;
    /** Size of the first version of the struct, which every kernel accepts. */
    static final int PERF_ATTR_SIZE_VER0 = 64;
    /** Size of the version with a second word for the event. Since Linux 2.6.39. */
    static final int PERF_ATTR_SIZE_VER1 = 72;

    static final int PERF_PAGE_DATA_HEAD = 1024;
    static final int PERF_PAGE_DATA_TAIL = 1032;

    /** Length of the longest object name, without its NUL: {@code BPF_OBJ_NAME_LEN - 1}. */
    public static final int NAME_LENGTH = 15;
}
