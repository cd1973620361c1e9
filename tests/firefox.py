"""Firefox, for a test of a page: driven by Marionette, its own protocol, since Debian has no geckodriver."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

FIREFOX = shutil.which("firefox-esr")

_PATIENCE = 180.0
"""Seconds for one answer, on a machine of any speed."""


class Firefox:
    """Asks a Firefox that listens at a port of this machine."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE)
        self._file = self._socket.makefile("rwb")
        self._asked = 0
        self._receive()  # its greeting
        self.ask("WebDriver:NewSession")
        self.ask("WebDriver:SetTimeouts", script=1000 * _PATIENCE, pageLoad=1000 * _PATIENCE)

    def ask(self, command: str, **what: Any) -> Any:
        """Returns what the command gives, of https://firefox-source-docs.mozilla.org/testing/marionette/."""
        self._asked += 1
        text = json.dumps([0, self._asked, command, what]).encode()
        self._file.write(b"%d:%b" % (len(text), text))
        self._file.flush()
        _, _, error, result = self._receive()
        if error is not None:
            raise RuntimeError(f"{command}: {error['message']}")
        return result.get("value", result)

    def _receive(self) -> Any:
        length = b""
        while not length.endswith(b":"):
            length += self._file.read(1)
        return json.loads(self._file.read(int(length[:-1])))

    def run(self, script: str) -> Any:
        """Returns what a script of the page returns."""
        return self.ask("WebDriver:ExecuteScript", script=script, args=[])

    def wait(self, script: str) -> None:
        """Waits until the expression is true."""
        promise = f"return (async () => {{ while (!({script})) await new Promise((r) => setTimeout(r, 200)); }})()"
        self.run(promise)

    def hand_in(self, selector: str, path: Path) -> None:
        """Chooses a file in an input of the page."""
        found = self.ask("WebDriver:FindElement", using="css selector", value=selector)
        self.ask("WebDriver:ElementSendKeys", id=next(iter(found.values())), text=str(path))

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@contextmanager
def firefox(profile: Path) -> Iterator[Firefox]:
    """A Firefox without a window, with a new profile."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    profile.mkdir()
    (profile / "user.js").write_text(
        f'user_pref("marionette.port", {port});\n'
        # Not a word to anybody.
        'user_pref("app.update.enabled", false);\nuser_pref("network.captive-portal-service.enabled", false);\n'
        'user_pref("network.connectivity-service.enabled", false);\n'
    )
    assert FIREFOX
    started = subprocess.Popen(
        [FIREFOX, "--headless", "--marionette", "--no-remote", "--profile", str(profile)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                driven = Firefox(port)
                break
            except OSError:
                assert started.poll() is None, "Firefox has ended"
                assert time.monotonic() < until, "Firefox does not listen"
                time.sleep(0.2)
        with closing(driven):
            yield driven
    finally:
        started.terminate()
        started.wait(_PATIENCE)
