package bpfmap.sys;

/**
 * Names the offsets in the structs that {@code BPF_OBJ_GET_INFO_BY_FD} fills in: the part of the
 * kernel's binary interface that is not in {@link Abi}.
 *
 * <p>Source: the UAPI header {@code linux/bpf.h}, a test compares every constant here with it.
 */
public final class Info {
    private Info() {}

    // --- struct bpf_btf_info

    public static final int BTF_BTF = 0;
    public static final int BTF_BTF_SIZE = 8;
    public static final int BTF_NAME = 16;
    public static final int BTF_NAME_LEN = 24;
    public static final int BTF_KERNEL_BTF = 28;

    // --- struct bpf_map_info

    public static final int MAP_TYPE = 0;
    public static final int MAP_ID = 4;
    public static final int MAP_KEY_SIZE = 8;
    public static final int MAP_VALUE_SIZE = 12;
    public static final int MAP_MAX_ENTRIES = 16;
    public static final int MAP_MAP_FLAGS = 20;
    public static final int MAP_NAME = 24;
    public static final int MAP_IFINDEX = 40;
    public static final int MAP_BTF_VMLINUX_VALUE_TYPE_ID = 44;
    public static final int MAP_BTF_ID = 64;
    public static final int MAP_BTF_KEY_TYPE_ID = 68;
    public static final int MAP_BTF_VALUE_TYPE_ID = 72;
    public static final int MAP_MAP_EXTRA = 80;

    // --- struct bpf_prog_info

    public static final int PROG_TYPE = 0;
    public static final int PROG_ID = 4;
    public static final int PROG_TAG = 8;
    public static final int PROG_JITED_PROG_LEN = 16;
    public static final int PROG_XLATED_PROG_LEN = 20;
    public static final int PROG_JITED_PROG_INSNS = 24;
    public static final int PROG_XLATED_PROG_INSNS = 32;
    public static final int PROG_LOAD_TIME = 40;
    public static final int PROG_CREATED_BY_UID = 48;
    public static final int PROG_NR_MAP_IDS = 52;
    public static final int PROG_MAP_IDS = 56;
    public static final int PROG_NAME = 64;
    public static final int PROG_IFINDEX = 80;
    /**
     * The word that has it as its lowest bit. A bit-field has no offset in C, so the test uses the
     * end of the field before it.
     */
    public static final int PROG_GPL_COMPATIBLE = 84;
    public static final int PROG_NR_JITED_KSYMS = 104;
    public static final int PROG_NR_JITED_FUNC_LENS = 108;
    public static final int PROG_JITED_KSYMS = 112;
    public static final int PROG_JITED_FUNC_LENS = 120;
    public static final int PROG_BTF_ID = 128;
    public static final int PROG_FUNC_INFO_REC_SIZE = 132;
    public static final int PROG_FUNC_INFO = 136;
    public static final int PROG_NR_FUNC_INFO = 144;
    public static final int PROG_NR_LINE_INFO = 148;
    public static final int PROG_LINE_INFO = 152;
    public static final int PROG_JITED_LINE_INFO = 160;
    public static final int PROG_NR_JITED_LINE_INFO = 168;
    public static final int PROG_LINE_INFO_REC_SIZE = 172;
    public static final int PROG_JITED_LINE_INFO_REC_SIZE = 176;
    public static final int PROG_RUN_TIME_NS = 192;
    public static final int PROG_RUN_CNT = 200;
    public static final int PROG_RECURSION_MISSES = 208;
    public static final int PROG_VERIFIED_INSNS = 216;
    public static final int PROG_ATTACH_BTF_OBJ_ID = 220;
    public static final int PROG_ATTACH_BTF_ID = 224;

    // --- struct bpf_link_info: its head, then the fields in the union of all link types

    public static final int LINK_TYPE = 0;
    public static final int LINK_ID = 4;
    public static final int LINK_PROG_ID = 8;
    public static final int LINK_RAW_TRACEPOINT_TP_NAME = 16;
    public static final int LINK_RAW_TRACEPOINT_TP_NAME_LEN = 24;
    public static final int LINK_TRACING_ATTACH_TYPE = 16;
    public static final int LINK_TRACING_TARGET_OBJ_ID = 20;
    public static final int LINK_TRACING_TARGET_BTF_ID = 24;
    public static final int LINK_CGROUP_CGROUP_ID = 16;
    public static final int LINK_CGROUP_ATTACH_TYPE = 24;
    public static final int LINK_ITER_TARGET_NAME = 16;
    public static final int LINK_ITER_TARGET_NAME_LEN = 24;
    public static final int LINK_ITER_MAP_MAP_ID = 28;
    public static final int LINK_NETNS_NETNS_INO = 16;
    public static final int LINK_NETNS_ATTACH_TYPE = 20;
    public static final int LINK_XDP_IFINDEX = 16;
    public static final int LINK_RAW_TRACEPOINT_COOKIE = 32;
    public static final int LINK_TRACING_COOKIE = 32;
    public static final int LINK_NETFILTER_PF = 16;
    public static final int LINK_NETFILTER_HOOKNUM = 20;
    public static final int LINK_NETFILTER_PRIORITY = 24;
    public static final int LINK_KPROBE_MULTI_COUNT = 24;
    public static final int LINK_KPROBE_MULTI_FLAGS = 28;
    public static final int LINK_KPROBE_MULTI_MISSED = 32;
    public static final int LINK_UPROBE_MULTI_PATH = 16;
    public static final int LINK_UPROBE_MULTI_PATH_SIZE = 48;
    public static final int LINK_UPROBE_MULTI_COUNT = 52;
    public static final int LINK_UPROBE_MULTI_FLAGS = 56;
    public static final int LINK_UPROBE_MULTI_PID = 60;
    public static final int LINK_PERF_EVENT_TYPE = 16;
    public static final int LINK_PERF_EVENT_UPROBE_FILE_NAME = 24;
    public static final int LINK_PERF_EVENT_UPROBE_NAME_LEN = 32;
    public static final int LINK_PERF_EVENT_UPROBE_OFFSET = 36;
    public static final int LINK_PERF_EVENT_UPROBE_COOKIE = 40;
    public static final int LINK_PERF_EVENT_KPROBE_FUNC_NAME = 24;
    public static final int LINK_PERF_EVENT_KPROBE_NAME_LEN = 32;
    public static final int LINK_PERF_EVENT_KPROBE_OFFSET = 36;
    public static final int LINK_PERF_EVENT_KPROBE_ADDR = 40;
    public static final int LINK_PERF_EVENT_KPROBE_MISSED = 48;
    public static final int LINK_PERF_EVENT_KPROBE_COOKIE = 56;
    public static final int LINK_PERF_EVENT_TRACEPOINT_TP_NAME = 24;
    public static final int LINK_PERF_EVENT_TRACEPOINT_NAME_LEN = 32;
    public static final int LINK_PERF_EVENT_TRACEPOINT_COOKIE = 40;
    public static final int LINK_PERF_EVENT_EVENT_CONFIG = 24;
    public static final int LINK_PERF_EVENT_EVENT_TYPE = 32;
    public static final int LINK_PERF_EVENT_EVENT_COOKIE = 40;
}
