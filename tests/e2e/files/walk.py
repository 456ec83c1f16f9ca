# Prints a line for each file below the directory that is its argument: attributes, digest, target, extended attributes.
import hashlib, os, stat, sys

top = os.fsencode(sys.argv[1])
root = os.lstat(top).st_dev
found = []
def walk(path):
    found.append(path)
    for name in sorted(os.listdir(path)):
        child = path.rstrip(b"/") + b"/" + name
        status = os.lstat(child)
        if not stat.S_ISDIR(status.st_mode):
            found.append(child)
        elif status.st_dev == root:
            walk(child)
walk(top)
names = {}
for path in sorted(path[1:] for path in found):
    full = b"/" + path
    status = os.lstat(full)
    same_as = names.setdefault((status.st_dev, status.st_ino), path)
    kind = stat.S_IFMT(status.st_mode)
    data = hashlib.sha256(open(full, "rb").read()).hexdigest() if kind == stat.S_IFREG else "-"
    target = os.readlink(full).hex() if kind == stat.S_IFLNK else "-"
    keys = sorted(key.encode() for key in os.listxattr(full, follow_symlinks=False))
    xattrs = [key.hex() + "=" + os.getxattr(full, key, follow_symlinks=False).hex() for key in keys]
    print(path.hex(), oct(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns,
          0 if kind == stat.S_IFDIR else status.st_nlink, status.st_rdev,
          status.st_size if kind == stat.S_IFREG else 0, data, target, ",".join(xattrs) or "-", same_as.hex())
