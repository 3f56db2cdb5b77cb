"""Writes to a read-only export all the same. Usage: readonly.py URI URI; the first is read-only, both name one VDI of 64 MiB."""

import errno
import sys

import nbd

from libnbd import SIZE, connect, fails

frozen, other = (connect(uri) for uri in sys.argv[1:3])
assert frozen.is_read_only() and not other.is_read_only()

before = frozen.pread(8 << 20, 0)
for fua in (0, nbd.CMD_FLAG_FUA):
    fails(errno.EPERM, lambda: frozen.pwrite(b"x" * 4096, 0, flags=fua))
    fails(errno.EPERM, lambda: frozen.trim(4 << 20, 0, flags=fua))
    fails(errno.EPERM, lambda: frozen.zero(4 << 20, 0, flags=fua))
# Beyond the end too, and nothing of it is an error of the connection.
fails(errno.EPERM, lambda: frozen.pwrite(b"x", SIZE))
frozen.flush()
frozen.cache(4096, 0)
assert frozen.pread(8 << 20, 0) == other.pread(8 << 20, 0) == before

# It shows what others write.
other.pwrite(b"seen", 50 << 20)
assert frozen.pread(4, 50 << 20) == b"seen"
other.trim(4 << 20, 48 << 20)
other.zero(4096, 50 << 20)
assert frozen.pread(4, 50 << 20) == bytes(4)

for h in (frozen, other):
    h.shutdown()
print("OK")
