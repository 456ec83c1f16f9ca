#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Run the tests of private nodes in an emulated machine, and be its host.

    tests/qemu.py --kernel bzImage [--partitions 8] [--append "only=park"] ...

Builds the tests, boots them as /init, prints the console, and changes the
devices' sizes as the guest asks for on its second serial port: lines of
"set DEVICE BYTES".  Exits with 0 if all tests passed and the console has no
trace of trouble.
"""

import argparse
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

TESTS = pathlib.Path(__file__).resolve().parent
SOURCES = sorted(TESTS.glob("*.c"))
TROUBLE = re.compile(
    r"WARNING:|BUG:|BUG at|\bOops\b|Call Trace|INFO: .*(lockdep|deadlock|circular|recursive)|kernel panic|"
    r"possible (circular|recursive|irq)|suspicious RCU|Bad page|leaked out|general protection|"
    r"ODEBUG|INFO: task .* blocked|list_(add|del) corruption",
    re.IGNORECASE,
)
# Tests that use up all memory are to be told of it: with one call trace each.
# And so are those who wait for emulated CPUs that share slow real ones.
EXPECTED_TRACE = re.compile(
    r"invoked oom-killer|page allocation failure|rcu: .*stack dump|rcu: Stack dump|NMI backtrace for cpu|"
    r"soft lockup|self-detected stall",
    re.IGNORECASE,
)
# The emulated CPUs are slow, and share real ones: a watchdog is no trouble.
NO_TROUBLE = re.compile(r"rcu.*(stall|detected stalls)|soft lockup|clocksource|workqueue: .* hogged CPU|MP-BIOS bug: 8254")


def initramfs(program: bytes, folders: dict[str, dict[str, bytes]]) -> bytes:
    """A cpio archive (newc) with /init, a console, and folders of programs by name."""
    out = bytearray()

    def entry(name: str, mode: int, data: bytes = b"", rdev=(0, 0)):
        fields = [len(out) + 1, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(name) + 1, 0]
        out.extend(b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0")
        out.extend(b"\0" * (-len(out) % 4) + data)
        out.extend(b"\0" * (-len(out) % 4))

    entry("dev", 0o040755)
    entry("dev/console", 0o020600, rdev=(5, 1))
    entry("init", 0o100755, program)
    for folder, programs in folders.items():
        entry(folder, 0o040755)
        for name, data in programs.items():
            entry(f"{folder}/{name}", 0o100755, data)
    entry("TRAILER!!!", 0)
    return bytes(out)


class Qmp:
    """QEMU's control socket: one command at a time."""

    def __init__(self, path):
        self.socket = connect(path)
        self.file = self.socket.makefile("rw")
        self.file.readline()
        self.command("qmp_capabilities")

    def command(self, name, **arguments):
        json.dump({"execute": name, "arguments": arguments}, self.file)
        self.file.write("\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "return" in answer or "error" in answer:
                return answer


def connect(path):
    end = time.monotonic() + 20
    while True:
        try:
            client = socket.socket(socket.AF_UNIX)
            client.connect(path)
            return client
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def serve(directory, on_report):
    qmp = Qmp(f"{directory}/qmp")
    for line in connect(f"{directory}/host").makefile("r", errors="replace", newline="\n"):
        words = line.split()
        if len(words) != 3 or words[0] != "set":
            on_report(line.rstrip("\r\n"))
        else:
            answer = qmp.command(
                "qom-set", path=f"/machine/peripheral/vm{words[1]}", property="requested-size", value=int(words[2])
            )
            if "error" in answer:
                print(f"host: {answer['error']}", flush=True)


def command_line(options, directory):
    count = options.partitions
    line = [options.qemu, *options.accel.split(), "-nodefaults", "-nographic", "-no-reboot"]
    # A node that has neither memory nor a CPU exists for Linux only if the
    # firmware says that a CPU could be plugged there.
    line += ["-smp", f"{options.cpus},sockets={options.cpus + count},maxcpus={options.cpus + count}"]
    line += ["-m", f"{options.memory + options.far_memory}M,slots={count},maxmem={64 + 16 * count}G"]
    line += ["-object", f"memory-backend-ram,id=base,size={options.memory}M"]
    line += ["-numa", "node,nodeid=0,memdev=base"]
    if options.far_memory:
        line += ["-object", f"memory-backend-ram,id=far,size={options.far_memory}M"]
    line += sum([["-numa", f"cpu,node-id=0,socket-id={cpu}"] for cpu in range(options.cpus)], [])
    for number in range(count):
        line += ["-numa", f"node,nodeid={number + 1}"]
        line += ["-numa", f"cpu,node-id={number + 1},socket-id={options.cpus + number}"]
        line += ["-object", f"memory-backend-ram,id=ram{number},size={options.window}M,prealloc=off"]
        line += [
            "-device",
            f"virtio-mem-pci,id=vm{number},memdev=ram{number},node={number + 1},block-size=2M,requested-size=0,"
            "unplugged-inaccessible=on",
        ]
    if options.far_memory:
        line += ["-numa", f"node,nodeid={count + 1},memdev=far"]
    # A disk of zeros: what is read from there is page cache.
    line += ["-blockdev", "driver=null-co,node-name=disk,size=4294967296,read-zeroes=on", "-device", "virtio-blk-pci,drive=disk"]
    line += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    line += ["-chardev", f"socket,id=host,path={directory}/host,server=on,wait=off", "-serial", "chardev:host"]
    line += ["-qmp", f"unix:{directory}/qmp,server=on,wait=off"]
    line += ["-kernel", options.kernel, "-initrd", f"{directory}/initramfs"]
    line += [
        "-append",
        "console=ttyS0 panic=-1 tsc=reliable no_timer_check swiotlb=noforce memhp_default_state=online_movable "
        f"virtio_mem.private_nodes=1 {options.append}",
    ]
    return line


def arguments(description, **options):
    """A parser of what makes the machine."""
    parser = argparse.ArgumentParser(description=description, **options)
    parser.add_argument("--kernel", required=True)
    parser.add_argument("--qemu", default="qemu-system-x86_64")
    parser.add_argument("--accel", default="-accel tcg,thread=multi -cpu max,-xsave")
    parser.add_argument("--partitions", type=int, default=2)
    parser.add_argument("--window", type=int, default=9216, help="MiB")
    parser.add_argument("--memory", type=int, default=1024, help="MiB")
    parser.add_argument("--far-memory", type=int, default=0, help="MiB of base memory in a node of its own, the last")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--append", default="")
    parser.add_argument("--timeout", type=int, default=900)
    return parser


def run(options, folders=None, on_report=lambda line: None):
    """Whether all tests passed, without trouble.  Lines of the second serial port that are no requests are reports."""
    with tempfile.TemporaryDirectory() as directory:
        program = f"{directory}/init"
        subprocess.run(
            ["gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", program]
            + [str(source) for source in SOURCES]
            + ["-lpthread"],
            check=True,
        )
        pathlib.Path(f"{directory}/initramfs").write_bytes(initramfs(pathlib.Path(program).read_bytes(), folders or {}))
        machine = subprocess.Popen(
            command_line(options, directory), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
        )
        watchdog = threading.Timer(options.timeout, machine.kill)
        watchdog.start()
        host = threading.Thread(target=serve, args=(directory, on_report), daemon=True)
        host.start()
        passed, trouble, excused = False, [], 0
        try:
            for line in machine.stdout:
                print(line, end="", flush=True)
                passed |= line.startswith("# PASSED")
                excused += EXPECTED_TRACE.search(line) is not None
                if excused and "Call Trace:" in line:
                    excused -= 1
                elif TROUBLE.search(line) and not NO_TROUBLE.search(line):
                    trouble.append(line.strip())
        finally:
            watchdog.cancel()
            machine.kill()
            machine.wait()
        # It ends with the machine, after the last report.
        host.join(20)
    for line in trouble:
        print(f"trouble: {line}")
    return passed and not trouble


def main():
    return 0 if run(arguments(__doc__.splitlines()[0]).parse_args()) else 1


if __name__ == "__main__":
    sys.exit(main())
