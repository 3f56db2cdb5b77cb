"""What the tests through libnbd share: disks of 64 MiB, and nothing checked on the client's side."""

import errno

import nbd

SIZE = 64 << 20


def connect(uri, structured=True):
    h = nbd.NBD()
    h.set_strict_mode(0)
    if structured:
        h.add_meta_context("base:allocation")
    else:
        h.set_request_structured_replies(False)
    h.connect_uri(uri)
    assert h.get_size() == SIZE
    return h


def fails(number, act):
    try:
        act()
    except nbd.Error as error:
        assert error.errnum == number, f"{errno.errorcode[number]} expected, got {error}"
    else:
        raise AssertionError(f"{errno.errorcode[number]} expected, nothing failed")
