"""Odd requests through several sheep. Usage: odd.py URI URI URI; all name one VDI of 64 MiB."""

import errno
import os
import sys

import nbd

from libnbd import SIZE, connect, fails

a, b, c = (connect(uri) for uri in sys.argv[1:4])

# Odd places and lengths, written through one, read through the others.
for number, (offset, length) in enumerate([(1, 1), (511, 2), (4095, 4098), ((4 << 20) - 3, 7), (SIZE - 1, 1), (12345678, 54321)]):
    data = os.urandom(length)
    (a, b, c)[number % 3].pwrite(data, offset)
    for h in (a, b, c):
        assert h.pread(length, offset) == data, (offset, length)

# The largest request there is.
data = os.urandom(32 << 20)
a.pwrite(data, 1)
assert b.pread(32 << 20, 1) == data

# FUA, write zeroes in all kinds, trim.
b.pwrite(b"x" * 70000, 8 << 20, flags=nbd.CMD_FLAG_FUA)
c.zero(4097, (8 << 20) + 1)
assert a.pread(4099, 8 << 20) == b"x" + bytes(4097) + b"x"
a.zero(8192, 9 << 20, flags=nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert b.pread(8192, 9 << 20) == bytes(8192)
b.trim(4 << 20, 16 << 20)
assert c.pread(4 << 20, 16 << 20) == bytes(4 << 20)
c.cache(1 << 20, 0)
a.flush()

# Block status covers what was asked for, in order.
extents = []
a.block_status(SIZE, 0, lambda name, offset, entries, error: extents.extend(entries) or 0)
assert sum(extents[0::2]) <= SIZE and extents, extents

# Beyond the end an errno, and the connection lives; hostile.py has the rest.
fails(errno.EINVAL, lambda: a.pread(2, SIZE - 1))
fails(errno.ENOSPC, lambda: a.pwrite(b"xx", SIZE - 1))
assert a.pread(1, SIZE - 1) == b.pread(1, SIZE - 1)

# Pipelined overlapping writes: the last one acknowledged is not always the last sent, but all see one order.
sent = [(h, h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i]) * 4096), 20 << 20)) for i, h in enumerate((a, b, c) * 20)]
for h, cookie in sent:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
seen = {bytes(h.pread(4096, 20 << 20)) for h in (a, b, c)}
assert len(seen) == 1 and len(set(next(iter(seen)))) == 1, seen

for h in (a, b, c):
    h.shutdown()
print("OK")
