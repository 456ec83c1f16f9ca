#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Show that the tests notice if a patch of the series is not there.

    tests/prove.py --kernel bzImage [NAME...]

The kernel has sabotage.patch applied on top of the series: with sabotage=NAME
on its command line, one mechanism is off, as if its patch were reverted.  For
each of them, runs the tests that have to fail then.  First of all, runs the
same tests without sabotage: there they have to pass.  Prints a table.
"""

import argparse
import pathlib
import re
import subprocess
import sys

TESTS = pathlib.Path(__file__).resolve().parent
STOCK = "virtio_mem.private_nodes=0 init_on_alloc=1"

# What is off, of which patch, what that means, and the tests that notice it.
PROOFS = [
    ("reasons", 1, "migrations are not counted by reason", "holder"),
    ("count_zero", 3, "zeroed pages are not counted", "stock", STOCK),
    ("state", 4, "private nodes are in `N_MEMORY`", "hidden,pressure"),
    ("threads", 4, "kswapd and kcompactd run for private nodes", "hidden"),
    ("cpuset", 4, "cpusets apply to private allocations", "subjects"),
    ("mm", 5, "an address space does not inherit the cgroup's node", "subjects"),
    ("fork", 5, "nor with `CLONE_INTO_CGROUP`", "clone_into_cgroup"),
    ("inherit", 5, "nor do descendants of the cgroup", "escape"),
    ("attach_busy", 5, "a cgroup with tasks can be attached and detached", "attach"),
    ("anon", 6, "anonymous memory comes from anywhere", "subjects,remote,escape"),
    ("collapse", 6, "collapsed huge pages come from anywhere", "subjects"),
    ("early_copy", 6, "copies that `fork()` makes at once are the parent's", "adopted_pins"),
    ("shmem", 7, "tmpfs pages come from anywhere", "subjects,tmpfs_from_outside"),
    ("shmem_file", 7, "memfd, SysV and shared anonymous memory have no node", "subjects"),
    ("shmem_mount", 7, "any node can be mounted", "escape"),
    ("shmem_collapse", 7, "collapsed huge pages of tmpfs come from anywhere", "subjects"),
    ("oom", 8, "a full node kills processes outside its cgroup", "bounded,full_tmpfs"),
    ("fault_oom", 8, "a page fault that finds no memory is retried for ever", "unkillable"),
    ("shmem_full", 8, "a task from outside waits for a page of a full node", "full_tmpfs"),
    ("outsider", 8, "a write from outside into a full node kills in its cgroup", "full_from_outside"),
    ("charge", 9, "memory of the node counts for limits", "whole_partition"),
    ("show_private", 9, "it does not show in `memory.current`", "usage"),
    ("peak", 9, "nor in `memory.peak`", "usage"),
    ("descendants", 9, "an attached cgroup does not show that of its descendants", "usage"),
    ("uncharge", 9, "it is added, and never subtracted", "usage,balance"),
    ("badness", 10, "all memory counts where base memory is short", "system_oom,culprit_in_cgroup"),
    ("cgroup_badness", 10, "the kernel's memory does not count", "culprit"),
    ("cgroup_task", 10, "the victim is any process of the cgroup", "culprit_in_cgroup"),
    ("migrate_target", 11, "pages in the way move to any node", "offline_block"),
    ("move_pages", 11, "`move_pages()` moves private memory", "escape"),
    ("mbind", 11, "`mbind()` moves private memory", "escape"),
    ("pin", 12, "long-term pins move memory out of the node", "pins"),
    ("pin_alloc", 12, "memory that is pinned at first touch is not movable", "pins"),
    ("reclaim", 13, "cgroup reclaim does not look at the private node", "reclaim"),
    ("limit_reclaim", 13, "reclaim for a limit looks at the private node", "limit_reclaim"),
    ("numa_maps", 14, "`numa_maps` does not show private nodes", "holder"),
    ("numa_stat", 15, "per-node statistics of the private node are not summed up", "usage"),
    ("available", 16, "free private memory counts as available", "counts"),
    ("reserves", 16, "private nodes' reserves count as reserves", "counts"),
    ("tmpfs_size", 17, "a tmpfs may have half of all memory by default", "counts"),
    ("batches", 18, "private pages are put into LRU batches", "batches"),
    ("lists", 19, "per-CPU lists grow with the node", "lists"),
    ("park_empty", 20, "it parks without checking for pages in use", "pinned_by_pipe"),
    ("park_sections", 20, "a parked node's sections stay online", "park"),
    ("park_usable", 20, "a cgroup can be attached to a parked node", "park"),
    ("wait", 20, "parking waits for memory hotplug", "beside_first_plug"),
    ("leftover", 21, "a node with pages in use can be attached", "leftover_refused,balance"),
    ("resized", 22, "watermarks are those of the size before", "resize"),
    ("private", 24, "the driver registers no private node", "hidden"),
    ("park", 25, "the driver does not park", "park"),
    ("retry", 25, "it retries as late as for other nodes", "pinned_by_pipe"),
    ("blocks", 25, "memory blocks of a parked node can go offline", "parked_blocks"),
    ("size", 25, "a parked node is unparked for any requested size", "resize"),
    ("remove", 26, "parked memory is never removed", "remove_parked"),
    ("remove_anew", 26, "the time since an earlier park counts", "remove_parked"),
    ("withhold", 29, "free pageblocks are not withheld", "patience,live_resize"),
    ("aborted", 30, "an unplug that the host has taken back counts as complete", "aborted"),
    ("netlink", 32, "unread netlink messages are not charged", "base_bounded", "attack=netlink_sockets"),
    ("kernfs", 33, "the files of cgroups are not charged", "base_bounded", "attack=cgroups"),
    ("packet", 34, "rings of packet sockets are not charged", "base_bounded", "attack=packet_rings"),
    ("symlink", 7, "targets of long symlinks come from anywhere", "base_bounded", "attack=long_links"),
    ("received", 36, "data that raw, packet and ping sockets receive is not charged", "base_bounded", "attack=ping_sockets"),
    ("errors", 37, "error queues are not charged", "base_bounded", "attack=error_queues"),
    ("sent", 38, "unsent data of sockets other than streams is not charged", "base_bounded", "attack=corked_sockets"),
    ("cache", 43, "page cache is the cgroup's, not the parent's", "cache_to_parent"),
    ("adopt_anybody", 44, "no permission is needed to adopt", "adoption_refused"),
    ("adopt_capable", 44, "nor to have a process wait in `fork()`", "adoption_refused"),
    ("adopt_node", 44, "a fork's memory comes from the runtime's node", "adoption"),
    ("adopt_state", 44, "a fork has the registers of the process that adopts", "adoption"),
    ("ksm", 48, "equal pages of a private node are merged", "merge"),
    ("balancing", 49, "NUMA balancing looks at pages of a private node", "balancing"),
    ("swap", 50, "memory of a private node is swapped out", "swap"),
    ("hibernation", 53, "the system can hibernate", "hibernation"),
    ("damon", 55, "DAMON migrates pages of a private node", "damon"),
    ("node_stats", 58, "each cgroup has statistics of each private node", "node_stats"),
]


def run(options, tests, append):
    """Whether all passed; and the first line that says what was wrong."""
    command = [TESTS / "qemu.py", "--kernel", options.kernel, "--timeout", str(options.timeout)]
    command += ["--memory", str(options.memory), "--append", f"only={tests} {append}"]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    said = r"^# \S*?(\w+\.c:\d+: not so: .*|.*: hangs)$|^trouble: (.*)$|^# (not the partitions.*)$"
    why = re.findall(said, result.stdout, re.MULTILINE)
    why = [next(filter(None, groups)) for groups in why]
    how = f"{why[0]}{f' (and {len(why) - 1} more)' if len(why) > 1 else ''}" if why else "no end"
    return result.returncode == 0, how, result.stdout


def without_effect():
    """Names whose mechanism nothing turns off, or that the kernel does not know: a hunk of sabotage.patch has been lost."""
    patch = (TESTS / "sabotage.patch").read_text()
    hooks = set(re.findall(r"^\+.*sabotaged\((\w+)\)", patch, re.MULTILINE))
    known = set(re.findall(r'^\+\t"(\w+)",$', patch, re.MULTILINE))
    return [name for name, *_ in PROOFS if name.upper() not in hooks or name not in known]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", required=True)
    parser.add_argument("--timeout", type=int, default=240)
    parser.add_argument("--memory", type=int, default=1024, help="MiB")
    parser.add_argument("--logs", help="a directory for the consoles")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests without sabotage")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if names := without_effect():
        sys.exit(f"sabotage.patch turns nothing off for {', '.join(names)}")
    proofs = [proof for proof in PROOFS if not options.names or proof[0] in options.names]

    def attempt(name, tests, append):
        passed, why, console = run(options, tests, append)
        if options.logs:
            (pathlib.Path(options.logs) / f"{name}.log").write_text(console)
        return passed, why

    failed = False
    boots = set() if options.no_baseline else {proof[4] if len(proof) > 4 else "" for proof in proofs}
    for boot in sorted(boots):
        tests = {test for proof in proofs if (proof[4] if len(proof) > 4 else "") == boot for test in proof[3].split(",")}
        passed, why = attempt(f"none-{sorted(boots).index(boot)}", ",".join(sorted(tests)), boot)
        print(f"without sabotage{', ' + boot if boot else ''}: {'pass' if passed else 'FAIL: ' + why}", flush=True)
        failed |= not passed

    print("| patch | sabotage | then | test that fails | how |\n|---|---|---|---|---|", flush=True)
    for name, patch, what, tests, *append in proofs:
        passed, why = attempt(name, tests, " ".join([f"sabotage={name}", *append]))
        failed |= passed
        how = "**passes**" if passed else "`" + why.replace("|", "\\|") + "`"
        print(f"| {patch} | `{name}` | {what} | {tests.replace(',', ', ')} | {how} |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
