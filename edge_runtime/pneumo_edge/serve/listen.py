"""Why a port cannot be opened: what the options must mend, and what may mend itself."""

from __future__ import annotations

import errno
import socket

from pneumo_edge.errors import PassingError, PneumoError, UsageError


def refused_port(what: str, host: str, port: int, error: OSError) -> PneumoError:
    """Returns the error to be raised where a port cannot be opened.

    Args:
        what: Is to be served there, "DICOM" or "the page".
        host: Address that was given.
        port: That was given.
        error: What the system said.
    """
    option = "--dicom-" if what == "DICOM" else "--"
    start = f"cannot listen for {what} on {host}, port {port}"
    if error.errno == errno.EADDRINUSE:
        return PassingError(f"{start}: another program has it: stop that one, or give another {option}port")
    if error.errno == errno.EADDRNOTAVAIL or (
        isinstance(error, socket.gaierror) and error.errno in (socket.EAI_AGAIN, socket.EAI_NONAME)
    ):
        return PassingError(
            f"{start}: this machine has no such address, or not yet: wait for the network, or give another {option}host"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return UsageError(f"{start} ({error.strerror}): give a {option}port of 1024 or more")
    if isinstance(error, socket.gaierror):
        return UsageError(f"{start} ({error.strerror}): give another {option}host")
    return PassingError(f"{start} ({error.strerror or error})")
