#!/usr/bin/python3
"""Builds a data set, sorts part of it and compresses part of it, all in anonymous memory.

The result depends on the arguments only:
    handler.py [MIB [HOLD_SECONDS]]
MIB (320 by default) is the size of the data set; HOLD_SECONDS keeps it in memory that long after the result is printed.
"""

import array
import hashlib
import resource
import sys
import time
import zlib

MIB = 1 << 20
ITEMS = 100_000


def build(mebibytes):
    """Every page of the data set differs from its neighbours, so no two can be shared."""
    page = bytes(range(256)) * 16
    data = bytearray(page) * (mebibytes * MIB // len(page))
    for number in range(0, len(data), len(page)):
        data[number : number + 8] = number.to_bytes(8, "little")
    return data


def sort(items):
    """Sorts numbers from a linear congruential generator."""
    numbers = array.array("Q")
    value = 42
    for _ in range(items):
        value = (value * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        numbers.append(value)
    return array.array("Q", sorted(numbers))


def main():
    mebibytes = int(sys.argv[1]) if len(sys.argv) > 1 else 320
    hold = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    data = build(mebibytes)
    numbers = sort(ITEMS).tobytes()
    data[: len(numbers)] = numbers
    sample = bytes(data[: 4 * MIB]) + bytes(data[-4 * MIB :])
    packed = zlib.compress(sample, 1)
    digest = hashlib.sha256(zlib.decompress(packed)).hexdigest()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"result: sha256={digest} mib={mebibytes} peak_rss_mib={peak}", flush=True)
    time.sleep(hold)


main()
