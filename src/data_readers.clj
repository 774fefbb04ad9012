{bpfmap/bytes bpfmap.bytes/->bytes}
