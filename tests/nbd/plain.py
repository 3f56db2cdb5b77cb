"""The NBD protocol over a plain socket, for what a library never sends."""

import socket
import struct

REQUEST = 0x25609513


def receive(s, count):
    data = b""
    while len(data) < count:
        part = s.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def raw(port, name):
    """A socket in the transmission phase, simple replies."""
    s = socket.create_connection(("127.0.0.1", port), timeout=20)
    assert receive(s, 18) == b"NBDMAGICIHAVEOPT\x00\x03"
    s.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(name)) + name)
    receive(s, 10)
    return s


def request(kind, flags=0, cookie=1, offset=0, length=0):
    return struct.pack(">IHHQQI", REQUEST, flags, kind, cookie, offset, length)


def reply(s):
    """The error and the cookie of a simple reply."""
    magic, number, cookie = struct.unpack(">IIQ", receive(s, 16))
    assert magic == 0x67446698, hex(magic)
    return number, cookie
