"""The timers of pynetdicom, by a clock that nobody can set.

They read the time of day: where that was set back, a peer that fell silent kept its association, and with it one of the
few that there are, for as long as the clock had jumped; where it was set forward, films were cut off on their way.
"""

from __future__ import annotations

import time

from pynetdicom import timer


class _Steady:
    time = staticmethod(time.monotonic)


def steady_timers() -> None:
    """Lets every association of this process measure its waits by `time.monotonic`."""
    timer.time = _Steady  # type: ignore[assignment,attr-defined]
