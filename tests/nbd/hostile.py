"""What well-behaved clients never send. Usage: hostile.py PORT; `vol` is 64 MiB, `frozen` is read-only."""

import errno
import os
import socket
import struct
import sys

import nbd

import libnbd
import plain
from libnbd import SIZE, fails
from plain import receive, reply, request

PORT = int(sys.argv[1])


def connect(name="vol", structured=True):
    return libnbd.connect(f"nbd://127.0.0.1:{PORT}/{name}", structured)


def raw(name=b"vol"):
    return plain.raw(PORT, name)


def closed(s):
    try:
        return s.recv(1) == b""
    except ConnectionResetError:
        return True


def ranges_are_checked():
    for structured in (True, False):
        h = connect(structured=structured)
        top = (1 << 64) - 1
        for offset, length in ((SIZE, 1), (SIZE - 1, 2), (top, 1), (top - 4095, 4096), (1 << 63, 512)):
            fails(errno.EINVAL, lambda: h.pread(length, offset))
            fails(errno.ENOSPC, lambda: h.pwrite(b"x" * length, offset))
            fails(errno.ENOSPC, lambda: h.zero(length, offset))
            fails(errno.EINVAL, lambda: h.trim(length, offset))
            fails(errno.EINVAL, lambda: h.cache(length, offset))
        fails(errno.EINVAL, lambda: h.trim((1 << 32) - 1, SIZE - 1))
        assert h.pread(1, SIZE - 1) == b"\0"
        h.pwrite(b"", 0)
        h.pwrite(b"", SIZE)
        h.pwrite(b"odd", 4095)
        assert h.pread(5, 4094) == b"\0odd\0"
        h.zero(3, 4095)
        h.shutdown()


def fast_zero_is_honest():
    h = connect()
    h.pwrite(b"x" * 8192, 8192)
    h.zero(8192, 8192, nbd.CMD_FLAG_FAST_ZERO)
    fails(errno.EOPNOTSUPP, lambda: h.zero(8192, 8192, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE))
    h.shutdown()


def holes_arrive_as_holes():
    h = connect()
    h.pwrite(b"x" * 4096, 1 << 20)
    seen = []
    h.pread_structured(12288, (1 << 20) - 4096, lambda data, offset, status, err: seen.append((offset, status)))
    base = 1 << 20
    assert seen == [(base - 4096, nbd.READ_HOLE), (base, nbd.READ_DATA), (base + 4096, nbd.READ_HOLE)], seen
    seen.clear()
    h.pread_structured(12288, base - 4096, lambda *chunk: seen.append(chunk[2]), nbd.CMD_FLAG_DF)
    assert seen == [nbd.READ_DATA], seen
    extents = []
    h.block_status(12288, base - 4096, lambda context, offset, entries, err: extents.append(entries))
    assert extents == [[4096, 3, 4096, 0, 4096, 3]], extents
    extents.clear()
    h.block_status(12288, base - 4096, lambda c, o, entries, e: extents.append(entries), nbd.CMD_FLAG_REQ_ONE)
    assert extents == [[4096, 3]], extents
    h.trim(4096, 1 << 20)
    h.shutdown()


def read_only_means_eperm():
    h = connect("frozen")
    assert h.is_read_only()
    for act in (
        lambda: h.pwrite(b"x", 0),
        lambda: h.pwrite(b"x", SIZE),
        lambda: h.trim(1, 0),
        lambda: h.zero(1, 0),
    ):
        fails(errno.EPERM, act)
    h.flush()
    h.shutdown()


def unknown_commands_and_flags_are_invalid():
    s = raw()
    for kind, flags in ((8, 0), (9, 0), (0xFFFF, 0), (0, 1 << 15), (0, 4), (3, 2), (4, 16), (7, 0)):
        s.sendall(request(kind, flags, cookie=77, length=0 if kind == 3 else 1))
        assert reply(s) == (errno.EINVAL, 77), (kind, flags)
    s.sendall(request(1, 1 << 9, cookie=5, length=1000) + b"x" * 1000 + request(3, cookie=6))
    assert reply(s) == (errno.EINVAL, 5)
    assert reply(s) == (0, 6)
    s.sendall(request(2))
    assert closed(s)


def oversized_writes_keep_the_stream_in_step():
    s = raw()
    s.sendall(request(1, cookie=1, length=(32 << 20) + 1))
    for _ in range(32):
        s.sendall(bytes(1 << 20))
    s.sendall(b"x" + request(0, cookie=2, length=512))
    assert reply(s) == (errno.EINVAL, 1)
    assert reply(s) == (0, 2) and receive(s, 512) == bytes(512)
    s.sendall(request(0, cookie=3, length=(32 << 20) + 1))
    assert reply(s) == (errno.EINVAL, 3)
    s.sendall(request(1, cookie=4, length=0xFFFFFFFF))
    assert closed(s)


def garbage_closes_only_its_own_connection():
    for _ in range(100):
        s = socket.create_connection(("127.0.0.1", PORT), timeout=20)
        s.sendall(os.urandom(200))
        s.shutdown(socket.SHUT_WR)
        try:
            while s.recv(4096):
                pass
        except ConnectionResetError:
            pass
        s.close()
    for _ in range(20):
        s = raw()
        s.sendall(b"\0" + os.urandom(200))
        assert closed(s)
        s.close()
    for name in (b"", b"none", b"a/b", b"vol,attach=x", b"\xff", b"x" * 4096):
        try:
            raw(name)
        except (EOFError, ConnectionResetError):
            continue
        raise AssertionError(f"{name!r} was exported")


for test in (
    ranges_are_checked,
    fast_zero_is_honest,
    holes_arrive_as_holes,
    read_only_means_eperm,
    unknown_commands_and_flags_are_invalid,
    oversized_writes_keep_the_stream_in_step,
    garbage_closes_only_its_own_connection,
):
    print(test.__name__, flush=True)
    test()
