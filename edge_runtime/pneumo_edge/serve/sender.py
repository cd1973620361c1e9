"""Sends what has been answered to one destination, in a thread of its own, until it has it all."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from pneumo_edge.serve.peers import LaterError, NeverError
from pneumo_edge.serve.spool import OBJECTS

if TYPE_CHECKING:
    from pneumo_edge.serve.inbox import Inbox
    from pneumo_edge.serve.journal import Sending
    from pneumo_edge.serve.peers import Destination, Link

_FIRST_DELAY, _LONGEST_DELAY = 1.0, 300.0
"""Seconds: each try waits twice as long as the one before it."""

_GRACE, _CUT = 2.0, 3.0
"""Seconds that an object on its way has to arrive when it is to stop, and then the thread to end."""

_log = logging.getLogger(__name__)


class Sender:
    """A thread that turns what is answered into what is sent.

    When something is tried again is counted by the clock that cannot be set (`time.monotonic`), and in memory alone:
    after a restart all of it is tried at once.
    """

    def __init__(self, inbox: Inbox, destination: Destination, link: Link) -> None:
        """Prepares it; `start` begins.

        Args:
            inbox: Says what waits, is told what became of it, and holds the objects.
            destination: Who gets them.
            link: The way there.
        """
        self._journal, self._spool = inbox.journal, inbox.spool
        self._name, self._link = destination.name, link
        self._due: dict[tuple[str, int, str], float] = {}
        self._failures = 0
        self._stopping = threading.Event()
        # An operating system that takes its time to give up a call must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"sender to {self._name}", daemon=True)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def stop(self) -> None:
        """Returns when the object that is on its way has arrived or failed; what is left is sent after a restart."""
        self._stopping.set()
        self._journal.wake()
        self._thread.join(_GRACE)
        if self._thread.is_alive():
            self._link.cut()
            self._thread.join(_CUT)

    def _run(self) -> None:
        self._greet()
        while True:
            seen = self._journal.changes()
            if self._stopping.is_set():
                break
            try:
                sending, pause = self._next()
                if sending is not None:
                    self._send(sending)
                else:
                    self._link.close()
                    self._journal.wait(seen, pause)
            except Exception as error:
                if self._stopping.is_set():
                    break
                # The journal cannot be written, most likely: the disk is full.
                _log.error("to %s nothing can be sent (%s), tried again", self._name, type(error).__name__)
                _log.debug("because of", exc_info=True)
                self._stopping.wait(_LONGEST_DELAY / 30)
        self._link.close()

    def _greet(self) -> None:
        try:
            remark = self._link.greet()
        except LaterError as error:
            _log.warning("%s: %s; answers wait until it does", self._name, error)
        except Exception as error:
            _log.error("%s cannot be greeted (%s)", self._name, type(error).__name__)
            _log.debug("because of", exc_info=True)
        else:
            _log.log(
                logging.WARNING if remark else logging.INFO,
                "%s is there%s",
                self._name,
                f"; it {remark}" * bool(remark),
            )

    def _next(self) -> tuple[Sending | None, float]:
        """Returns what is due and has waited longest, or else for how long nothing will be."""
        now, pause = time.monotonic(), _LONGEST_DELAY
        # All of those that have been tried may come first in this list: behind them there is one that has not.
        limit = len(self._due) + 1
        found = self._journal.waiting(self._name, limit)
        if len(found) < limit:
            self._due = {which: due for each in found if (due := self._due.get(which := _which(each))) is not None}
        for sending in found:
            due = self._due.get(_which(sending), 0.0)
            if due <= now:
                return sending, 0.0
            pause = min(pause, due - now)
        return None, pause

    def _send(self, sending: Sending) -> None:
        name = f"film {sending.key[:8]}"
        data = self._spool.read(sending.key, OBJECTS[sending.object])
        if data is None:
            self._journal.refused(sending, "the answer is not in the spool any more: judge the film again")
            return
        try:
            self._link.open()
        except LaterError as error:
            # That concerns every answer alike: none is tried until this one's time has come.
            self._failures += 1
            delay = _delay(self._failures)
            self._journal.not_sent(sending, str(error))
            _log.warning("%s: %s; tried again in %.0f s", self._name, error, delay)
            self._stopping.wait(delay)
            return
        self._failures = 0
        try:
            remark = self._link.send(sending.object, data)
        except NeverError as error:
            self._journal.refused(sending, str(error))
            self._due.pop(_which(sending), None)
            _log.error("%s, to %s: %s", name, self._name, error)
        except LaterError as error:
            self._link.close()
            delay = _delay(sending.attempts + 1)
            self._due[_which(sending)] = time.monotonic() + delay
            self._journal.not_sent(sending, str(error))
            if not self._stopping.is_set():
                _log.warning("%s, to %s: %s; tried again in %.0f s", name, self._name, error, delay)
        else:
            self._journal.sent(sending, remark)
            self._due.pop(_which(sending), None)
            what = "picture" if sending.object == "sc" else "report"
            _log.info("%s: %s sent to %s%s", name, what, self._name, f" ({remark})" if remark else "")


def stop_all(senders: Collection[Sender]) -> None:
    """Stops several at the same time: what one waits for, the others wait for too."""
    threads = [threading.Thread(target=sender.stop) for sender in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _which(sending: Sending) -> tuple[str, int, str]:
    return sending.key, sending.revision, sending.object


def _delay(failures: int) -> float:
    return min(_FIRST_DELAY * 2.0 ** min(failures - 1, 30), _LONGEST_DELAY)
