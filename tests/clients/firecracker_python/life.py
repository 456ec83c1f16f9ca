"""Takes a VM through its whole life with firecracker-python, as it is published.

The environment says with what: KERNEL, INITRD, DISK, OTHER_DISK and TAP, and DIRECTORY for sockets and logs.  The program `firecracker` is
found in PATH.  Exits with 0 if everything went as it has to.

Of the package this uses what speaks to Firecracker: `Api` and its resources.  The class `MicroVM` around them asks a Docker daemon and servers
on the Internet before it does anything, and has no requests for rate limits and balloons.
"""

import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

from firecracker.api import Api, Resource

PATIENCE = 120
ECHO_PORT = 5000
DRIVE, INTERFACE = "data", "eth0"
DIRECTORY = pathlib.Path(os.environ["DIRECTORY"])


def main():
    path = DIRECTORY / "api.sock"
    process = subprocess.Popen(["firecracker", "--api-sock", path, "--id", "python"], stdin=subprocess.DEVNULL)
    try:
        await_true("a socket", lambda: path.exists() or process.poll() is not None)
        # The path is the host of an URL, whose capital letters become small: the directory's name may have some.
        os.chdir(DIRECTORY)
        api = Api(path.name)
        configure(api)
        live(api)
        api.actions.put(action_type="SendCtrlAltDel")
        expect("the exit code", process.wait(PATIENCE), 0)
        api.close()
    finally:
        process.kill()
    print("the VM has lived")


def configure(api):
    api.logger.put(log_path=str(DIRECTORY / "log"), level="Info")
    Resource(api, "/metrics").put(metrics_path=str(DIRECTORY / "metrics"))
    api.machine_config.put(vcpu_count=1, mem_size_mib=256, smt=False)
    api.boot.put(
        kernel_image_path=os.environ["KERNEL"],
        initrd_path=os.environ["INITRD"],
        boot_args="console=ttyS0 reboot=k panic=1 pci=off",
    )
    api.drive.put(
        drive_id=DRIVE,
        path_on_host=os.environ["DISK"],
        is_root_device=False,
        is_read_only=False,
        cache_type="Unsafe",
        rate_limiter=limiter(1 << 20, 100),
    )
    api.network.put(
        iface_id=INTERFACE,
        host_dev_name=os.environ["TAP"],
        guest_mac="06:00:AC:10:00:02",
        rx_rate_limiter=limiter(1 << 20, 100),
        tx_rate_limiter=limiter(1 << 20, 100),
    )
    api.vsock.put(guest_cid=3, uds_path=str(DIRECTORY / "vsock"))
    Resource(api, "/balloon").put(amount_mib=0, deflate_on_oom=True, stats_polling_interval_s=1)
    api.actions.put(action_type="InstanceStart")


def live(api):
    expect("the VM", state(api), ("python", "Running"))
    expect("the version", api.version.get().json(), {"firecracker_version": "1.16.1"})
    echo()
    step("echo")
    api.network.patch(
        iface_id=INTERFACE, rx_rate_limiter=limiter(2 << 20, 200), tx_rate_limiter=limiter(2 << 20, 200)
    )
    api.drive.patch(drive_id=DRIVE, rate_limiter=limiter(4 << 20, 400))
    [drive] = api.vm_config.get().json()["drives"]
    expect("the drive's limit", drive["rate_limiter"]["ops"]["size"], 400)
    step("limits")
    api.drive.patch(drive_id=DRIVE, path_on_host=os.environ["OTHER_DISK"])
    step("exchange of a drive")
    api.vm.patch(state="Paused")
    expect("a paused VM", state(api), ("python", "Paused"))
    api.vm.patch(state="Resumed")
    expect("a VM that goes on", state(api), ("python", "Running"))
    step("pause and resume")
    Resource(api, "/balloon").patch(amount_mib=16)
    Resource(api, "/balloon/statistics").patch(stats_polling_interval_s=2)
    await_true("an inflated balloon", lambda: is_inflated(Resource(api, "/balloon/statistics").get().json()))
    step("balloon")
    echo()
    step("echo after the pause")
    api.actions.put(action_type="FlushMetrics")
    expect("metrics of changes", '"patch_api_requests"' in (DIRECTORY / "metrics").read_text(), True)
    step("metrics")


def limiter(size, operations):
    def bucket(size):
        return {"size": size, "one_time_burst": size, "refill_time": 100}

    return {"bandwidth": bucket(size), "ops": bucket(operations)}


def state(api):
    info = api.describe.get().json()
    return info["id"], info["state"]


def is_inflated(statistics):
    return statistics["actual_mib"] == 16 and statistics.get("free_memory", 0) > 0


def echo():
    """Sends more than the buffers on the way hold, and expects it back."""
    sent = b"there and back " * (1 << 15)
    with connect() as stream:
        sender = threading.Thread(target=stream.sendall, args=[sent])
        sender.start()
        back = bytearray()
        while len(back) < len(sent) and (part := stream.recv(1 << 20)):
            back += part
        sender.join()
    expect("what came back", bytes(back) == sent, True)


def connect():
    """Connects to the guest's echo, once that listens."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(PATIENCE)
        stream.connect(str(DIRECTORY / "vsock"))
        stream.sendall(f"CONNECT {ECHO_PORT}\n".encode())
        if stream.recv(64).startswith(b"OK "):
            return stream
        stream.close()
        time.sleep(0.2)
    sys.exit("the guest does not listen")


def await_true(what, condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"there is not {what} after {PATIENCE} s")
        time.sleep(0.05)


def expect(what, found, expected):
    if found != expected:
        sys.exit(f"{what}: {found!r}, expected {expected!r}")


def step(name):
    print(name, flush=True)


main()
