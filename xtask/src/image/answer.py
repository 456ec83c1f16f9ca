#!/usr/bin/python3
"""Reads a part of a model, says what the guest keeps of files, and waits for its end."""
import ctypes
import json
import os
import signal

try:
    with open("/bench/model", "rb") as model:
        model.read(8 << 20)
except FileNotFoundError:
    pass

if os.getpid() == 1 and not os.path.exists("/proc/meminfo"):
    # This is the guest's first process: nothing is mounted yet.
    ctypes.CDLL(None).mount(b"proc", b"/proc", b"proc", 0, None)
with open("/proc/meminfo") as meminfo:
    kib = {name: int(value.split()[0]) for name, value in (line.split(":") for line in meminfo)}
with open("/proc/vmstat") as vmstat:
    counters = dict(line.split() for line in vmstat)
pages = int(counters.get("nr_memmap_pages", 0)) + int(counters.get("nr_memmap_boot_pages", 0))
answer = {
    "cached_bytes": (kib["Active(file)"] + kib["Inactive(file)"]) << 10,
    "memory_map_bytes": pages << 12,
}
print(json.dumps(answer), flush=True)
signal.pause()
