{bpfmap/bytes bpfmap.bytes/literal}
