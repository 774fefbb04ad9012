package bpfmap.maps;

import bpfmap.sys.Abi;
import bpfmap.sys.Attr;
import bpfmap.sys.Bytes;
import bpfmap.sys.Fd;
import bpfmap.sys.Info;
import java.lang.foreign.MemorySegment;

/**
 * Holds the kernel's description of an open map.
 *
 * @param id the id of the map, for {@link BpfMap#openById}
 * @param type the type of the map, or null if this version of bpfmap does not know it
 * @param typeNumber the number of the type in the kernel
 * @param keySize size of a key in bytes
 * @param valueSize size of a value in bytes; of a per-CPU map, the size for one CPU
 * @param maxEntries the largest number of entries
 * @param flags the create flags
 * @param name the name, or an empty string
 */
public record MapInfo(
        int id, MapType type, int typeNumber, int keySize, int valueSize, long maxEntries,
        int flags, String name) {
    private static final long SIZE = Info.MAP_MAP_EXTRA + 8;

    static MapInfo read(Fd fd, String operation) {
        try (Attr attr = new Attr().fd(Abi.INFO_BPF_FD, fd)) {
            MemorySegment info = attr.buffer(Abi.INFO_INFO, SIZE);
            attr.int32(Abi.INFO_INFO_LEN, SIZE);
            long outcome = attr.call(Abi.BPF_OBJ_GET_INFO_BY_FD);
            if (outcome < 0) {
                throw new BpfMapException(operation, outcome);
            }
            int type = int32(info, Info.MAP_TYPE);
            byte[] name = Bytes.copyOut(info, Info.MAP_NAME, Abi.NAME_LENGTH + 1);
            return new MapInfo(
                int32(info, Info.MAP_ID), MapType.of(type), type,
                int32(info, Info.MAP_KEY_SIZE), int32(info, Info.MAP_VALUE_SIZE),
                Bytes.getU32(info, Info.MAP_MAX_ENTRIES, false), int32(info, Info.MAP_MAP_FLAGS),
                Bytes.text(name, true));
        }
    }

    private static int int32(MemorySegment info, int offset) {
        return (int) Bytes.getU32(info, offset, false);
    }
}
