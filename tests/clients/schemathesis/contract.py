"""Holds a server of Bellows' API against its own OpenAPI document, by schemathesis.

    contract.py FILES

FILES is JSON: the program, kernel, initramfs, store, image, TAP and a folder to work in.  Two servers: one whose VM never boots, one whose
VM runs.  Each operation of the document gets a good answer once, by a request that is valid here (`life`); then schemathesis sends each server
what it makes of the document.  Exits with 0 if no check failed and no operation was left out.
"""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import schemathesis

import hooks  # noqa: F401 (it says how bodies are sent)

HERE = pathlib.Path(__file__).resolve().parent

# Begins each answer for as long as its client likes.
ENDLESS = "/events"


class Server:
    """`bellows api`, and a TCP port that leads to its socket: schemathesis knows no other."""

    def __init__(self, files, name):
        self.folder = pathlib.Path(files["folder"], name)
        self.folder.mkdir()
        self.path = self.folder / "api.sock"
        command = [files["program"], "api", "--api-sock", self.path, "--store", files["store"], "--level", "Debug"]
        with (self.folder / "log").open("wb") as log:
            # What requests have it write lies in its folder.
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        while not self.path.exists():
            if self.process.poll() is not None:
                sys.exit(f"the server has ended: {(self.folder / 'log').read_text()}")
            time.sleep(0.05)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.relay, daemon=True).start()
        _, document = self.send("GET", "/openapi.json")
        self.schema = schemathesis.openapi.from_dict(document)

    def relay(self):
        while True:
            client, _ = self.listener.accept()
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(bytes(self.path))
            except OSError:
                client.close()
                continue
            for source, sink in (client, server), (server, client):
                threading.Thread(target=pass_on, args=(source, sink), daemon=True).start()

    def connect(self):
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(bytes(self.path))
        return connection

    def send(self, method, path, body=None):
        """Status and JSON of an answer."""
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            text = answer.read()
        return answer.status, json.loads(text) if text else None

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def pass_on(source, sink):
    with contextlib.suppress(OSError):
        while part := source.recv(65536):
            sink.sendall(part)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


# --- A good answer from each operation --------------------------------------------------------------------------------


class Life:
    """Valid requests, each checked against the document."""

    def __init__(self, server):
        self.server = server
        self.done = set()

    def send(self, method, path, body=None, of=None, media_type=None, **parameters):
        """A request that must succeed.  `path` is one of the document, its parameters beside it; `of` is one in an instance."""
        given = {} if body is None else {"body": body}
        given |= {} if of is None else {"query": {"path": of}}
        given |= {} if media_type is None else {"media_type": media_type}
        case = self.server.schema[path][method].Case(path_parameters=parameters, **given)
        response = case.call(base_url=self.server.url, timeout=900)
        if response.status_code >= 300:
            sys.exit(f"{method} {path} {parameters} {body}: {response.status_code} {response.text}")
        case.validate_response(response)
        self.done.add((method, path))
        return response

    def listen(self):
        """Begins to read what has no end."""
        with contextlib.closing(self.server.connect()) as connection:
            connection.request("GET", ENDLESS)
            answer = connection.getresponse()
            said = answer.status, answer.getheader("Content-Type"), answer.fp.readline()
        if said[:2] != (200, "text/event-stream"):
            sys.exit(f"GET {ENDLESS}: {said}")
        self.done.add(("GET", ENDLESS))

    def left_out(self):
        wanted = {(result.ok().method.upper(), result.ok().path) for result in self.server.schema.get_all_operations()}
        return sorted(wanted - self.done)


def configure(life, files, folder):
    """All that comes before a VM boots."""
    disk = pathlib.Path(folder, "disk")
    with disk.open("wb") as file:
        file.truncate(8 << 20)
    life.send("GET", "/")
    life.send("GET", "/version")
    life.send("GET", "/openapi.json")
    life.send("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 256})
    life.send("PATCH", "/machine-config", {"vcpu_count": 2})
    life.send("PUT", "/cpu-config", {"cpuid_modifiers": []})
    life.send("GET", "/machine-config")
    life.send("PUT", "/boot-source", {"kernel_image_path": files["kernel"], "initrd_path": files["initramfs"]})
    life.send("PUT", "/drives/{drive_id}", drive(disk), drive_id="disk")
    life.send("PUT", "/network-interfaces/{iface_id}", interface(files), iface_id="eth0")
    life.send("PUT", "/mmds/config", {"network_interfaces": ["eth0"], "version": "V2"})
    life.send("PUT", "/mmds", {"role": "worker"})
    life.send("PUT", "/vsock", {"guest_cid": 3, "uds_path": "vsock"})
    life.send("PUT", "/entropy", {})
    balloon = {"amount_mib": 0, "deflate_on_oom": True, "stats_polling_interval_s": 1, "free_page_hinting": True}
    life.send("PUT", "/balloon", balloon)
    life.send("GET", "/balloon")
    life.send("PUT", "/hotplug/memory", {"total_size_mib": 256})
    life.send("PUT", "/serial", {"serial_out_path": "console"})
    life.send("PUT", "/logger", {"level": "Debug"})
    life.send("PUT", "/metrics", {"metrics_path": "metrics"})
    for partition in 1, 2:
        life.send("PUT", "/partitions/{partition}", {"window_mib": 256}, partition=partition)
    life.send("GET", "/vm/config")


def interface(files):
    return {"iface_id": "eth0", "host_dev_name": files["tap"]}


def drive(path):
    return {"drive_id": path.name, "path_on_host": str(path), "is_root_device": False}


def live(life, files, folder):
    """All that a VM can do that has booted, but for its end."""
    life.send("PUT", "/actions", {"action_type": "InstanceStart"})
    life.listen()
    # Waits for the guest's agent, as all that comes after it does not.
    life.send("PUT", "/images/{image}", {"name": files["image"]}, image="demo")
    life.send("PATCH", "/vm", {"state": "Paused"})
    life.send("PATCH", "/vm", {"state": "Resumed"})
    other = pathlib.Path(folder, "other")
    shutil.copy(pathlib.Path(folder, "disk"), other)
    life.send("PATCH", "/drives/{drive_id}", {"drive_id": "disk", "path_on_host": str(other)}, drive_id="disk")
    life.send("DELETE", "/drives/{drive_id}", drive_id="disk")
    pmem = {"id": "memory", "path_on_host": str(other), "read_only": True}
    life.send("PUT", "/pmem/{id}", pmem, id="memory")
    life.send("DELETE", "/pmem/{id}", id="memory")
    limits = {"iface_id": "eth0", "rx_rate_limiter": {"bandwidth": {"size": 1 << 20, "refill_time": 100}}}
    life.send("PATCH", "/network-interfaces/{iface_id}", limits, iface_id="eth0")
    life.send("DELETE", "/network-interfaces/{iface_id}", iface_id="eth0")
    life.send("PUT", "/network-interfaces/{iface_id}", interface(files), iface_id="eth0")
    life.send("PATCH", "/mmds", {"zone": "a"})
    life.send("GET", "/mmds")
    life.send("PATCH", "/balloon", {"amount_mib": 1})
    until(lambda: life.server.send("GET", "/balloon/statistics")[0] == 200)
    life.send("GET", "/balloon/statistics")
    life.send("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 2})
    life.send("GET", "/balloon/hinting/status")
    life.send("PATCH", "/balloon/hinting/start", {"acknowledge_on_stop": True})
    life.send("PATCH", "/balloon/hinting/stop")
    life.send("GET", "/memory")
    life.send("PATCH", "/hotplug/memory", {"requested_size_mib": 128})
    life.send("GET", "/hotplug/memory")
    life.send("GET", "/partitions")
    life.send("PATCH", "/partitions/{partition}", {"size_mib": 64}, partition=2)
    life.send("GET", "/partitions/{partition}", partition=2)
    life.send("DELETE", "/partitions/{partition}", partition=2)
    life.send("GET", "/images")
    run(life)
    life.send("GET", "/instances")
    life.send("GET", "/instances/{instance}", instance="a")
    life.send("PATCH", "/instances/{instance}", {"state": "Frozen"}, instance="a")
    life.send("PATCH", "/instances/{instance}", {"state": "Running"}, instance="a")
    life.send("POST", "/instances/{instance}/exec", {"argv": ["/bin/echo", "hello"]}, instance="a")
    archive = "/instances/{instance}/archive"
    # Two blocks of zeros are an archive of nothing.
    life.send("PUT", archive, bytes(1024), of="/tmp", media_type="application/x-tar", instance="a")
    life.send("GET", archive, of="/etc/hostname", instance="a")
    life.send("GET", "/instances/{instance}/files", of="/etc", instance="a")
    life.send("GET", "/metrics/prometheus")
    life.send("PUT", "/instances/{instance}/signal", {"signal": 23}, instance="a")
    life.send("POST", "/instances/{instance}/stop", {"timeout_ms": 100}, instance="a")
    life.send("GET", "/instances/{instance}/wait", instance="a")
    life.send("GET", "/instances/{instance}/logs", instance="a")
    life.send("DELETE", "/instances/{instance}", instance="a")
    life.send("DELETE", "/images/{image}", image="demo")


def run(life):
    """An instance that waits, in its partition."""
    wanted = {"image": "demo", "argv": ["/bin/sleep", "100000"], "memory_mib": 64}
    life.send("PUT", "/instances/{instance}", wanted, instance="a")


def until(done):
    while not done():
        time.sleep(0.2)


# --- What schemathesis makes of the document --------------------------------------------------------------------------


def fuzz(server, number_of_examples):
    """Whether no check failed."""
    document = server.folder / "openapi.json"
    document.write_text(json.dumps(server.send("GET", "/openapi.json")[1]))
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", HERE / "schemathesis.toml", "run", document]
    command += ["--url", server.url, "--exclude-path", ENDLESS, "--max-examples", str(number_of_examples), "--no-color"]
    command += ["--seed", "1", "--request-timeout", "900", "--suppress-health-check", "all", "--warnings", "off"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"}
    status = subprocess.run(command, cwd=server.folder, stdin=subprocess.DEVNULL, env=environment).returncode
    alive = server.process.poll() is None
    print(f"{server.folder.name}: schemathesis ended with {status}, the server is {'there' if alive else 'gone'}", flush=True)
    return status == 0 and alive


def main():
    files = json.loads(sys.argv[1])
    early = Server(files, "before-boot")
    passed = fuzz(early, files["examples"])
    early.end()

    server = Server(files, "after-boot")
    try:
        passed &= run_through(server, files)
    finally:
        log = (server.folder / "log").read_text().splitlines()
        print(*log[-20:], sep="\n", flush=True)
    return 0 if passed else 1


def run_through(server, files):
    """All of a life, and in the midst of it what schemathesis sends.  Whether that was well."""
    life = Life(server)
    configure(life, files, server.folder)
    live(life, files, server.folder)
    left_out = life.left_out()
    print(f"{len(life.done)} operations succeeded; left out: {left_out}", flush=True)
    # Its requests find an image and an instance of names that they may hit upon.
    life.send("PUT", "/images/{image}", {"name": files["image"]}, image="demo")
    run(life)
    passed = fuzz(server, files["examples"])
    life.send("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
    server.process.wait()
    return passed and not left_out


if __name__ == "__main__":
    sys.exit(main())
