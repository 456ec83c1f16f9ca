#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Run Linux's own selftests of memory management from a cgroup with a partition, and compare.

    tests/selftests.py build FOLDER [--source linux-source-6.12.tar.xz]
    tests/selftests.py run --kernel bzImage --programs FOLDER [--only cow --only mremap] ...

`build` makes the selftests of the kernel's source, with our patches, in FOLDER.  It takes the packages below.

`run` boots them like qemu.py.  As root and with all privileges, each runs from a cgroup that is not attached and then
from one that is attached, both with the same memory.max.  All its checks must have the same results
in both, other than what BY_DESIGN says; nothing of the partition may be in use afterwards; and the log may have no
trace of trouble.  Exits with 0 if all of that is so.

Checks that fail or are skipped in both are the same: they say what the kernel's options and the machine lack.
"""

import argparse
import collections
import dataclasses
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
import qemu

PATCHES = pathlib.Path(__file__).resolve().parent.parent / "patches"
SOURCE = "/usr/src/linux-source-6.12.tar.xz"
BELOW = "tools/testing/selftests/mm"

# What a build takes, and how to see that it is there: a program, or a header.
PACKAGES = {
    "gcc": "gcc",
    "make": "make",
    "patch": "patch",
    "xz-utils": "xz",
    "libc6-dev": "stdio.h",
    "libcap-dev": "sys/capability.h",
    "libnuma-dev": "numa.h",
    "liburing-dev": "liburing.h",
}

# Some files lack the header that has this number.
FLAGS = "-static -DKSFT_SKIP=4"

# --- The selftests -----------------------------------------------------------------------------------------------

# How it is before each run.  Files that a kernel does not have are settings that it does not need.
SETTINGS = {
    "/sys/kernel/mm/transparent_hugepage/enabled": "always",
    "/sys/kernel/mm/transparent_hugepage/defrag": "madvise",
    "/sys/kernel/mm/transparent_hugepage/shmem_enabled": "never",
    "/proc/sys/vm/overcommit_memory": "0",
    "/proc/sys/vm/nr_hugepages": "128",
    "/proc/sys/vm/drop_caches": "3",
    "/proc/sys/vm/compact_memory": "1",
}


def with_hugepages(count):
    return {"/proc/sys/vm/nr_hugepages": str(count)}


# A page fault and the thread that handles it take turns. On one CPU, emulated ones need not wake each other for that.
TURNS = {"/sys/fs/cgroup/selftest/cpuset.cpus": "0"}

# Each program that is built, but for those in NOT_RUN: the name of the test, its command line, and settings of its own.
# The arguments are those of run_vmtests.sh.
SELFTESTS = [
    ("cow", "cow", {}),
    ("compaction_test", "compaction_test", {}),
    ("gup_longterm", "gup_longterm", {}),
    ("gup_fast", "gup_test -u", {}),
    ("gup_pin_fast", "gup_test -a", {}),
    ("gup_basic", "gup_test -t -U -n 512", {}),
    ("gup_pin_basic", "gup_test -t -b -n 123", {}),
    ("gup_pin_longterm", "gup_test -t -L -n 512", {}),
    ("gup_pin_longterm_small", "gup_test -T -L -S -n 123", {}),
    ("gup_dump", "gup_test -ct -F 0x1 0 19 0x1000", {}),
    ("hugetlb-madvise", "hugetlb-madvise", {}),
    ("hugepage-mmap", "hugepage-mmap", {}),
    ("hugepage-mremap", "hugepage-mremap", {}),
    ("hugepage-shm", "hugepage-shm", {}),
    ("hugepage-vmemmap", "hugepage-vmemmap", {}),
    ("hugetlb_dio", "hugetlb_dio", {}),
    ("hugetlb_fault_after_madv", "hugetlb_fault_after_madv", with_hugepages(1)),
    ("hugetlb_madv_vs_map", "hugetlb_madv_vs_map", with_hugepages(1)),
    ("hugetlb-read-hwpoison", "hugetlb-read-hwpoison", {}),
    ("hugetlb-soft-offline", "hugetlb-soft-offline", {}),
    ("khugepaged", "khugepaged all:anon", {}),
    ("khugepaged-order-2", "khugepaged -s 2 all:anon", {}),
    ("khugepaged-shmem", "khugepaged all:shmem", {}),
    ("khugepaged-tmpfs", "khugepaged all:file /tmp", {}),
    ("ksm_tests", "ksm_tests -M -p 10", {}),
    ("ksm_functional_tests", "ksm_functional_tests", {}),
    ("madv_populate", "madv_populate", {}),
    ("map_fixed_noreplace", "map_fixed_noreplace", {}),
    ("map_hugetlb", "map_hugetlb", {}),
    ("map_populate", "map_populate", {}),
    ("mdwe_test", "mdwe_test", {}),
    ("memfd_secret", "memfd_secret", {}),
    ("migration", "migration", {}),
    ("mkdirty", "mkdirty", {}),
    ("mlock-random-test", "mlock-random-test", {}),
    ("mlock2-tests", "mlock2-tests", {}),
    ("mrelease_test", "mrelease_test", {}),
    ("mremap_dontunmap", "mremap_dontunmap", {}),
    ("mremap_test", "mremap_test", {}),
    ("mseal_test", "mseal_test", {}),
    ("seal_elf", "seal_elf", {}),
    ("on-fault-limit", "on-fault-limit", {}),
    ("pagemap_ioctl", "pagemap_ioctl", {}),
    ("private_nodes", "private_nodes", {}),
    ("pkey_sighandler_tests", "pkey_sighandler_tests_64", {}),
    ("protection_keys", "protection_keys_64", {}),
    ("soft-dirty", "soft-dirty", {}),
    ("split_huge_page_test", "split_huge_page_test", {}),
    ("thuge-gen", "thuge-gen", {}),
    ("transhuge-stress", "transhuge-stress -d 20", {}),
    ("droppable", "droppable", {}),
    ("uffd-unit-tests", "uffd-unit-tests", TURNS),
    ("uffd-stress-anon", "uffd-stress anon 20 16", TURNS),
    ("uffd-stress-hugetlb", "uffd-stress hugetlb 64 8", TURNS),
    ("uffd-stress-hugetlb-private", "uffd-stress hugetlb-private 64 8", TURNS),
    ("uffd-stress-shmem", "uffd-stress shmem 20 16", TURNS),
    ("uffd-stress-shmem-private", "uffd-stress shmem-private 20 16", TURNS),
    ("va_high_addr_switch", "va_high_addr_switch --run-hugetlb", {}),
    ("virtual_address_range", "virtual_address_range", {"/proc/sys/vm/overcommit_memory": "1"}),
]

NOT_RUN = {
    "hmm-tests": "takes a driver that is a module, and a kernel without",
    "write_to_hugetlbfs": "is a tool of a script",
}

# Checks of the test of private nodes, which takes one to which no cgroup is attached.
OF_PRIVATE_NODES = [
    "attachment",
    "attachment_in_use",
    "anonymous_memory",
    "tmpfs_files",
    "no_escape",
    "no_way_in",
    "written_from_outside",
    "no_part_of_the_limit",
    "leftovers",
]

# Checks that shall not have the same result: (test, check): (without a partition, with it, why).
BY_DESIGN = {
    ("private_nodes", f"private_nodes.{check}"): ("ok", "SKIP", "the cgroup that it runs in is attached to the node")
    for check in OF_PRIVATE_NODES
}

# --- Building ----------------------------------------------------------------------------------------------------


def missing_packages():
    def is_there(what):
        if what.endswith(".h"):
            command = ["gcc", "-fsyntax-only", "-include", what, "-x", "c", "/dev/null"]
            return bool(shutil.which("gcc")) and subprocess.run(command, capture_output=True).returncode == 0
        return shutil.which(what) is not None

    return [package for package, what in PACKAGES.items() if not is_there(what)]


def build(options):
    missing = missing_packages()
    if missing:
        sys.exit(f"missing packages: apt-get install {' '.join(missing)}")
    programs = pathlib.Path(options.folder)
    programs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=programs) as tree:
        subprocess.run(["tar", "-x", "--strip-components=1", "-f", options.source, "-C", tree], check=True)
        for patch in sorted(PATCHES.glob("*.patch")):
            subprocess.run(["patch", "-s", "-p1", "--fuzz=0", "-d", tree, "-i", patch], check=True)
        make = ["make", "-s", "ARCH=x86_64", f"-j{options.jobs}"]
        subprocess.run([*make, "-C", tree, "headers"], check=True)
        # Without -k a program that this compiler cannot build would hide others; but none of ours may be missing.
        subprocess.run([*make, "-k", "-C", f"{tree}/{BELOW}", f"USERCFLAGS={FLAGS}"])
        built = [path for path in pathlib.Path(tree, BELOW).iterdir() if is_elf(path)]
        names = {path.name for path in built}
        wanted = {command.split()[0] for _, command, _ in SELFTESTS}
        if wanted - names:
            sys.exit(f"not built: {', '.join(sorted(wanted - names))}")
        for path in built:
            subprocess.run(["strip", "-o", programs / path.name, path], check=True)
    print(f"{len(names)} programs in {programs}")
    return 0


def is_elf(path):
    return path.is_file() and not path.suffix and path.read_bytes()[:4] == b"\x7fELF"


# --- What a selftest says ----------------------------------------------------------------------------------------

CHECK = re.compile(r"(ok|not ok) \d+ ?(.*)")
# Those without TAP: what they do, and how it went.
STEP = re.compile(r"(.+?)\.{3,}\s*(\w*)")
VERDICTS = {"OK": "ok", "done": "ok", "Fail": "not ok", "Timeout": "not ok", "failed": "not ok", "Skip": "SKIP", "skipped": "SKIP"}
DIRECTIVE = re.compile(r"#\s*(SKIP|XFAIL|XPASS|error)\b\s*", re.IGNORECASE)
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@dataclasses.dataclass
class Observation:
    """One run of a selftest."""

    status: int
    lines: list[str]

    def results(self):
        """Result by check.  If it prints no TAP, each of its lines is a check, less its numbers."""
        results = {"exit status": str(self.status)}
        checks = [match for line in self.lines if (match := CHECK.match(line))]
        if checks:
            said = [verdict_and_name(match) for match in checks]
        else:
            said = [verdict_and_step(line) for line in self.lines if line.strip()]
        seen = collections.Counter()
        for verdict, name in said:
            seen[name] += 1
            results[name if seen[name] == 1 else f"{name} ({seen[name]})"] = verdict
        return results


def verdict_and_name(match):
    verdict, name = match.groups()
    directive = DIRECTIVE.search(name)
    if directive:
        verdict = directive[1].upper() if verdict == "ok" else verdict
        # What comes after it is the reason, unless nothing comes before it.
        name = name[: directive.start()].strip() or DIRECTIVE.sub("", name)
    return verdict, re.sub(r"0x[0-9a-f]+", "0xN", name).strip(" -#")


def verdict_and_step(line):
    line = re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "N", line)
    step = STEP.match(line)
    return (VERDICTS[step[2]], step[1]) if step and step[2] in VERDICTS else ("said", line)


class Reports:
    """Observations by test and cgroup, from the guest's lines."""

    def __init__(self):
        self.observations = {}
        self.current = None

    def take(self, line):
        if line.startswith("ran "):
            _, test, cgroup, status = line.split()
            self.current = Observation(int(status), [])
            self.observations[test, cgroup] = self.current
        elif line.startswith("| "):
            # A line that was written over and over is what it was at last.
            self.current.lines.append(ESCAPES.sub("", line[2:]).rstrip().rpartition("\r")[2])


@dataclasses.dataclass
class Comparison:
    """Of the results without a partition, and with it."""

    unattached: dict[str, str]
    attached: dict[str, str]
    # Lines that say what differs, and should not.
    wrong: list[str]
    nr_by_design: int = 0


def compare(test, reports):
    """None if the test has not run in both cgroups."""
    pair = [reports.observations.get((test, cgroup)) for cgroup in ("unattached", "attached")]
    if None in pair:
        return None
    comparison = Comparison(*(observation.results() for observation in pair), [])
    for check in {**comparison.unattached, **comparison.attached}:
        found = comparison.unattached.get(check, "missing"), comparison.attached.get(check, "missing")
        known = BY_DESIGN.get((test, check))
        if found[0] == found[1]:
            continue
        if known and known[:2] == found:
            comparison.nr_by_design += 1
        else:
            comparison.wrong.append(f"{check}: {found[0]}, and attached: {found[1]}")
    return comparison


# --- Running -----------------------------------------------------------------------------------------------------


def run(options):
    tests = [test for test in SELFTESTS if not options.only or any(only in test[0] for only in options.only)]
    options.append += f" selftests={options.partition}"
    reports, passed, left = Reports(), True, tests
    # Some selftests race with the kernel. What differs for another reason differs each time.
    for _ in range(options.attempts):
        passed &= boot(options, left, reports)
        compared = {test[0]: compare(test[0], reports) for test in tests}
        left = [test for test in left if not compared[test[0]] or compared[test[0]].wrong]
        if not left or not passed:
            break
    if options.outputs:
        write_outputs(pathlib.Path(options.outputs), reports)
    show(compared)
    passed &= not left
    print("# THE SAME" if passed else "# NOT THE SAME")
    return 0 if passed else 1


def boot(options, tests, reports):
    """Whether all have ended in time, left nothing in the partition, and no trouble in the log."""
    programs = {command.split()[0] for _, command, _ in tests}
    files = {name: pathlib.Path(options.programs, name).read_bytes() for name in programs}
    files["list"] = "".join(line(test, options.seconds) for test in tests).encode()
    return qemu.run(options, {"selftests": files}, reports.take)


def show(compared):
    """As TAP, and what it adds up to."""
    totals = collections.defaultdict(collections.Counter)
    print("TAP version 13")
    for number, (test, comparison) in enumerate(compared.items(), 1):
        if not comparison:
            print(f"not ok {number} - {test}: has not run in both")
            continue
        for cgroup, results in ("unattached", comparison.unattached), ("attached", comparison.attached):
            totals[cgroup].update(kind(check, verdict) for check, verdict in results.items())
        summary = f"exit status {comparison.attached['exit status']}, {tally(comparison.attached)}"
        if comparison.nr_by_design:
            summary += f"; {comparison.nr_by_design} differ by design"
        print(f"{'not ok' if comparison.wrong else 'ok'} {number} - {test}: {summary}")
        for difference in comparison.wrong:
            print(f"# {difference}")
    print(f"1..{len(compared)}")
    for cgroup, counts in totals.items():
        print(f"# {cgroup}: {', '.join(f'{count} {what}' for what, count in sorted(counts.items()))}")


def line(test, seconds):
    name, command, settings = test
    written = " ".join(f"{path}={value}" for path, value in {**SETTINGS, **settings}.items())
    return f"{name}\t{seconds}\t{written}\t{command}\n"


def kind(check, verdict):
    return "selftests" if check == "exit status" else verdict


def tally(results):
    counts = collections.Counter(kind(check, verdict) for check, verdict in results.items())
    del counts["selftests"]
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) or "says nothing"


def write_outputs(folder, reports):
    folder.mkdir(parents=True, exist_ok=True)
    for (test, cgroup), observation in reports.observations.items():
        (folder / f"{test}.{cgroup}").write_text("\n".join([*observation.lines, f"exit status {observation.status}", ""]))


def main():
    description = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(description=description)
    commands = parser.add_subparsers(required=True)
    builder = commands.add_parser("build")
    builder.add_argument("folder")
    builder.add_argument("--source", default=SOURCE)
    builder.add_argument("--jobs", type=int, default=2)
    builder.set_defaults(act=build)
    runner = commands.add_parser("run", parents=[qemu.arguments(description, add_help=False)])
    runner.add_argument("--programs", required=True, help="the folder of a build")
    runner.add_argument("--partition", type=int, default=2048, help="MiB; a small one makes differences")
    runner.add_argument("--seconds", type=int, default=1200, help="for one selftest")
    runner.add_argument("--attempts", type=int, default=3, help="boots, until the results are the same")
    runner.add_argument("--only", action="append", help="selftests whose names contain this; may be given again")
    runner.add_argument("--outputs", help="a folder for what the selftests say")
    # Two nodes of base memory and three CPUs, or pages are not migrated.  And a partition in which khugepaged has huge
    # pages to spare: it makes 512, each with a page in use. An ordinary node of 1 GiB has too few for that as well.
    runner.set_defaults(act=run, cpus=3, memory=1536, far_memory=512, window=2048, timeout=14400)
    options = parser.parse_args()
    return options.act(options)


if __name__ == "__main__":
    sys.exit(main())
