"""A crowd that means no good, at one sheep at once, through libnbd and through plain sockets.

Usage: crowd.py URI PORT NAME SECONDS; the VDI is 64 MiB. Ends with OK when all of them did what they wanted for that
long; whether anybody else noticed is for the caller to see.
"""

import errno
import socket
import sys
import threading
import time

import nbd

import plain
from libnbd import SIZE, connect, fails
from plain import reply, request

URI, PORT, NAME, UNTIL = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode(), time.monotonic() + float(sys.argv[4])
LARGEST = 32 << 20
counts = {}
failures = []


def rounds(what):
    """Goes on until the time is over, and counts."""
    while time.monotonic() < UNTIL:
        yield
        counts[what] = counts.get(what, 0) + 1


def raw():
    return plain.raw(PORT, NAME)


def wraps_around():
    h = connect(URI)
    top = (1 << 64) - 1
    for _ in rounds("requests that wrap around"):
        for offset, length in ((top, 1), (top - 511, 512), (1 << 63, 4096), (SIZE, 1), (SIZE - 1, LARGEST)):
            fails(errno.EINVAL, lambda: h.pread(length, offset))
            fails(errno.ENOSPC, lambda: h.zero(length, offset))
            fails(errno.EINVAL, lambda: h.trim(length, offset))
            fails(errno.EINVAL, lambda: h.cache(length, offset))
        fails(errno.ENOSPC, lambda: h.pwrite(b"x" * 512, top - 511))
    h.shutdown()


def knows_other_flags():
    s = raw()
    for _ in rounds("unknown commands and flags"):
        for kind, flags in ((8, 0), (0xFFFF, 0), (0, 1 << 15), (3, 2), (4, 16), (6, 1 << 7)):
            s.sendall(request(kind, flags, cookie=9, length=0 if kind == 3 else 1))
            assert reply(s) == (errno.EINVAL, 9), (kind, flags)
    s.close()


def says_half():
    """Announces the largest write, sends half of it, and waits to be thrown out."""
    for _ in rounds("halves of requests"):
        s = raw()
        try:
            s.sendall(request(1, length=LARGEST))
            s.sendall(bytes(LARGEST // 2))
            s.settimeout(max(1.0, min(15.0, UNTIL - time.monotonic())))
            assert s.recv(1) == b""
        except (ConnectionResetError, BrokenPipeError, socket.timeout):
            pass
        s.close()


def never_reads():
    """Asks for all it may, and takes none of it."""
    for _ in rounds("clients that never read"):
        s = raw()
        s.settimeout(1)
        try:
            for cookie in range(1000):
                s.sendall(request(0, cookie=cookie, length=LARGEST))
            time.sleep(max(0, min(5, UNTIL - time.monotonic())))
        except (ConnectionResetError, BrokenPipeError, socket.timeout):
            pass
        s.close()


def floods():
    """Small requests, as fast as libnbd sends them, 1,000 at a time; what the sheep does not take yet waits here."""
    h = connect(URI)
    for _ in rounds("floods"):
        cookies = [h.aio_pread(nbd.Buffer(512), 512 * n) for n in range(1000)]
        for cookie in cookies:
            while not h.aio_command_completed(cookie):
                h.poll(-1)
    h.shutdown()


def comes_and_goes():
    for n in (n for n, _ in enumerate(rounds("connections"))):
        s = socket.create_connection(("127.0.0.1", PORT), timeout=20)
        if n % 3:
            s.sendall(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0"[: n % 19])
        s.close()


def watched(act):
    try:
        act()
    except BaseException as error:
        failures.append(f"{act.__name__}: {error!r}")


crowd = [wraps_around, knows_other_flags, floods, comes_and_goes] + [says_half] * 6 + [never_reads] * 6
threads = [threading.Thread(target=watched, args=(act,)) for act in crowd]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(counts)
assert not failures, failures
# Everybody got to work.
assert len(counts) == 6 and all(counts.values()), counts
print("OK")
