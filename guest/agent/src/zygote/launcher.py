"""Imports modules, then goes on in every fork with what its start document says: docs/zygotes.md.

Run by `python3 -c`, with the modules' names as arguments.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import sys
import time
import types

# The descriptor of a fork's start document.
START = 3


def prepare(modules):
    """Makes this process a zygote; returns in a fork."""
    control = int(os.environ.pop("BELLOWS_ZYGOTE_FD"))
    try:
        for name in modules:
            importlib.import_module(name)
        rehearse()
        stop_threads()
    except BaseException as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        os.write(control, f"error {reason[:200]}\n".encode(errors="replace"))
        raise
    # What stands in these buffers would be written by every fork.
    sys.stdout.flush()
    sys.stderr.flush()
    # The collector then leaves these objects, and the pages that they share, alone.
    gc.collect()
    gc.freeze()
    os.write(control, b"ready\n")
    if os.read(control, 5) != b"fork\n":
        sys.exit("the agent does not want this zygote")
    os.close(control)
    while os.fork() != 0:
        pass


def rehearse():
    """Has the interpreter make, once for all forks, what it first makes when it runs source: hundreds of types, for one."""
    importlib.import_module("pkgutil")
    exec(compile("pass", "<string>", "exec"), {})


def stop_threads():
    """Has libraries that handle forks, such as OpenBLAS, stop their threads, by a fork that ends at once. They start anew when used."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def reseed():
    """Seeds the generators that do not notice a fork by themselves, or notice it by a process number that may come again."""
    if "_ssl" in sys.modules:
        sys.modules["_ssl"].RAND_bytes(1)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def start():
    """Runs what the start document says, as `python3` would run its arguments."""
    with open(START, "rb") as file:
        document = json.load(file)
    variables = [variable.encode().split(b"=", 1) for variable in document["env"]]
    os.environb.clear()
    os.environb.update(variables)
    time.tzset()
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())
    run([os.fsdecode(argument.encode()) for argument in document["args"][1:]])


def run(arguments):
    kind, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if kind == "-c" and rest:
        sys.argv = ["-c", *rest[1:]]
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif kind == "-m" and rest:
        sys.argv = ["-m", *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind and not kind.startswith("-"):
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.realpath(kind))
        runpy.run_path(kind, run_name="__main__")
    else:
        sys.exit(f"a fork of a zygote runs `-c CODE`, `-m MODULE` or a script, with arguments: found {arguments}")


def end(status):
    """Ends as processes of `multiprocessing` do: an interpreter that takes itself apart writes to most pages that it shares with the zygote.

    Returns where only the interpreter can say what is wrong.
    """
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    for kept in gc.get_objects():
        if isinstance(kept, (io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)):
            with contextlib.suppress(Exception):
                kept.flush()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            return
    os._exit(status)


prepare(sys.argv[1:])
reseed()
status = 0
try:
    start()
except SystemExit as error:
    if error.code is not None:
        # Anything else than a status is for the interpreter to print.
        if not isinstance(error.code, int) or not 0 <= error.code < 256:
            raise
        status = int(error.code)
end(status)
sys.exit(status)
