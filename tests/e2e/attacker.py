"""Takes more and more of one thing: `attacker.py WHAT [DIRECTORY] [MOST]`.

Says `took N, then REASON` when it gets no more, and keeps them until it is killed. Ends when it has as many as it was told.
"""

import ctypes, errno, fcntl, mmap, os, resource, select, signal, socket, struct, sys

MIB = 1 << 20
libc = ctypes.CDLL(None, use_errno=True)
kept = []


def call(name, *arguments):
    """A system call that Python has no function for."""
    value = getattr(libc, name)(*arguments)
    if value < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return value


def numbered(n):
    return f"{directory}/{n:07}"


def empty_file(n):
    os.close(os.open(numbered(n), os.O_WRONLY | os.O_CREAT | os.O_EXCL))


def small_file(n):
    file = os.open(numbered(n), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(file, b"x")
    os.close(file)


def data(n):
    if not kept:
        kept.append(open(f"{directory}/data", "wb", buffering=0))
    if kept[0].write(b"x" * MIB) != MIB:
        raise OSError(errno.ENOSPC, "short write")


def memory(n):
    kept.append(bytearray(b"x") * MIB)


def page_table(n):
    """The page is the zero page; only the page table is new."""
    area = mmap.mmap(-1, 2 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    area[0]
    kept.append(area)


def fill(file, write):
    os.set_blocking(file, False)
    try:
        while write(b"x" * 65536):
            pass
    except BlockingIOError:
        pass


def pipe(n):
    read, write = os.pipe()
    fill(write, lambda block: os.write(write, block))
    kept.append((read, write))


def unix_socket(n):
    pair = socket.socketpair()
    fill(pair[0].fileno(), pair[0].send)
    kept.append(pair)


def tcp_socket(n):
    if not kept:
        kept.append(socket.create_server(("127.0.0.1", 0)))
    client = socket.create_connection(kept[0].getsockname())
    server, _ = kept[0].accept()
    fill(client.fileno(), client.send)
    kept.append((client, server))


def unread(file, block, address):
    """More than it has room for; what it has none for is lost without a word."""
    for _ in range(64):
        file.sendto(block, socket.MSG_DONTWAIT, address)
    kept.append(file)


def ping_socket(n):
    """The kernel answers."""
    file = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    unread(file, b"\x08" + bytes(4095), ("127.0.0.1", 0))


def raw_socket(n):
    """Each has an address of its own, so that no two get the same packets."""
    file, address = socket.socket(socket.AF_INET, socket.SOCK_RAW, 253), (f"127.1.{n >> 8 & 255}.{n & 255}", 0)
    file.bind(address)
    unread(file, bytes(4096), address)


def packet_socket(n):
    file, protocol = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0), 0x9000 + n % 0x6000
    file.bind(("lo", protocol))
    unread(file, bytes(4096), ("lo", protocol, 0, 0, bytes(6)))


def corked_socket(n):
    """A datagram that is never complete."""
    file = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    file.sendto(bytes(60000), socket.MSG_MORE, ("127.0.0.1", 9))
    kept.append(file)


def inotify(n):
    """Each learns of what happens in the directory, and reads none of it."""
    group = call("inotify_init1", 0)
    call("inotify_add_watch", group, directory.encode(), 0xFFF)
    with open(numbered(n % 100), "wb") as file:
        file.write(b"x")


def epoll(n):
    if not kept:
        kept.append(call("eventfd", 0, 0))
    group = select.epoll()
    group.register(kept[0])
    kept.append(group)


def message(n):
    queue = call("msgget", 0, 0o600)
    call("msgsnd", queue, (ctypes.c_long * 1000)(1), 7992, 0o4000)


def semaphores(n):
    call("semget", 0, 1000, 0o600)


def timer(n):
    call("timer_create", 1, None, ctypes.byref(ctypes.c_void_p()))


def file_lock(n):
    """Bytes that are locked one by one. Each file has few of them, since a new one is compared with all."""
    file = open(numbered(n), "wb")
    for start in range(1000, 0, -2):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, start)
    kept.append(file)


def terminal(n):
    for end in os.openpty():
        fill(end, lambda block, end=end: os.write(end, block))


def poll(n):
    """Waits for one thing, many times at once."""
    if not kept:
        read, write = os.pipe()
        kept.extend([write, struct.pack("ihh", read, select.POLLIN, 0) * 50000])
    if os.fork() == 0:
        os._exit(libc.poll(kept[1], 50000, -1))
    if n == 100:
        raise OSError("they are enough")


def reader(n):
    """Has read a directory, of an image, that then changes."""
    if n == 0:
        for number in range(1000):
            os.close(os.open(f"{directory}/{'x' * 200}{number}", os.O_CREAT))
    file = os.open(directory, os.O_RDONLY)
    os.listdir(file)
    os.mkdir(numbered(n))
    os.rmdir(numbered(n))


def socket_filter(n):
    """Divides, which takes a processor more words than the program."""
    steps = struct.pack("HBBI", 1, 0, 0, 1) + struct.pack("HBBI", 0x3C, 0, 0, 0) * 2500 + struct.pack("HBBI", 6, 0, 0, 0)
    program = struct.pack("HxxxxxxP", len(steps) // 8, ctypes.cast(steps, ctypes.c_void_p).value)
    file = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    file.setsockopt(socket.SOL_SOCKET, 26, program)
    kept.append(file)


def pending_signal(n):
    """The kernel may not wait for memory while it queues them."""
    if n == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    for _ in range(1000):
        call("sigqueue", os.getpid(), signal.SIGRTMIN, None)


def fanout(n):
    """A group of one packet socket, with room for many more."""
    file = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    file.setsockopt(263, 18, struct.pack("HHI", 0, 0x2000, 65535))
    kept.append(file)


def cached_file(n):
    if n == 0:
        kept.extend(os.path.join(path, name) for path, _, names in os.walk(directory) for name in names)
    if not kept:
        raise OSError("all is read")
    path = kept.pop()
    if os.path.isfile(path):
        with open(path, "rb") as file:
            while file.read(MIB):
                pass


def cgroup(n):
    os.mkdir(f"/sys/fs/cgroup/{n}")


def neighbour(n):
    """Works each time that it is told to."""
    signal.sigwait([signal.SIGUSR1])
    assert bytes(kept_memory) == b"x" * len(kept_memory)
    small_file(n)
    pair = socket.socketpair()
    pair[0].sendall(b"x" * 1000)
    assert len(pair[1].recv(1000)) == 1000
    connection = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    accepted.sendall(b"x")
    assert connection.recv(1) == b"x"
    group, mark = call("inotify_init1", 0), select.epoll()
    call("inotify_add_watch", group, directory.encode(), 0xFFF)
    os.close(group)
    assert os.system("exit 3") == 3 << 8
    kills = open("/sys/fs/cgroup/memory.events").read().split("oom_kill ")[1].split()[0]
    print(f"works {n}, oom_kill {kills}", flush=True)


attacks = {
    "files": empty_file, "small-files": small_file, "directories": lambda n: os.mkdir(numbered(n)),
    "links": lambda n: os.symlink("x" * 100, numbered(n)),
    "long-links": lambda n: os.symlink("x" * 4000, numbered(n)), "data": data, "memory": memory, "page-tables": page_table,
    "pipes": pipe, "unix-sockets": unix_socket, "tcp-sockets": tcp_socket, "ping-sockets": ping_socket,
    "raw-sockets": raw_socket, "packet-sockets": packet_socket, "corked-sockets": corked_socket,
    "inotify": inotify, "epoll": epoll, "messages": message, "semaphores": semaphores, "timers": timer,
    "file-locks": file_lock, "terminals": terminal, "polls": poll, "readers": reader, "filters": socket_filter,
    "fanouts": fanout, "signals": pending_signal, "page-cache": cached_file, "cgroups": cgroup,
    "neighbour": neighbour,
}  # fmt: skip

what, directory, most, *_ = sys.argv[1:] + ["/tmp", ""][len(sys.argv) - 2 :]
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
if what == "neighbour":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    kept_memory = bytearray(b"x") * (16 * MIB)
    server = socket.create_server(("127.0.0.1", 0))
    print("ready", flush=True)
taken = 0
try:
    while str(taken) != most:
        attacks[what](taken)
        taken += 1
    sys.exit(print(f"took {taken}"))
except (OSError, MemoryError) as error:
    code = getattr(error, "errno", None)
    reason = errno.errorcode.get(code, str(error) or "no memory")
print(f"took {taken}, then {reason}", flush=True)
signal.pause()
