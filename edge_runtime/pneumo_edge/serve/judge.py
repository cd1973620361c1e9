"""Judges the films that have been received, one after the other, in a thread of its own."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from typing import TYPE_CHECKING

from pneumo_edge.classifier import Failure
from pneumo_edge.errors import ImageError, MissingExtraError
from pneumo_edge.overlay import mark_layer, screen_film
from pneumo_edge.serve.spool import ANSWER, CAPTURE, FILM, HEATMAP, PICTURE, REPORT

if TYPE_CHECKING:
    from PIL import Image

    from pneumo_edge.classifier import Classifier, Prediction
    from pneumo_edge.serve.journal import Entry, Journal
    from pneumo_edge.serve.spool import Spool

_MAX_BEGINNINGS = 5
"""A film that was being judged so often when the process ended is taken to be what ends it."""

_PATIENCE = 10.0
"""Seconds until a disk that could not be written is tried again."""

_HOUSEKEEPING = 3600.0
"""Seconds between two looks for films that are old enough to be deleted."""

_log = logging.getLogger(__name__)


class Judge:
    """A thread that turns what is received into what is answered or failed."""

    def __init__(
        self, classifier: Classifier, journal: Journal, spool: Spool, *, send: bool, keep_days: float | None
    ) -> None:
        """Prepares it; `start` begins.

        Args:
            classifier: Judges.
            journal: Says which films are received, and is told what became of them.
            spool: Holds films and answers.
            send: DICOM films get an answer in DICOM too.
            keep_days: Older films are deleted, except those that still wait for something; None for never.
        """
        self._classifier, self._journal, self._spool = classifier, journal, spool
        self._send, self._keep_days = send, keep_days
        self._begun: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="judge")

    def start(self) -> None:
        """Begins to judge."""
        self._thread.start()

    def stop(self) -> None:
        """Returns when the film that is being judged is done; the others stay received."""
        self._stopping.set()
        self._journal.wake()
        self._thread.join()

    def _run(self) -> None:
        tidied = None
        while True:
            seen = self._journal.changes()
            if self._stopping.is_set():
                return
            entry = None
            try:
                if self._keep_days is not None and (tidied is None or time.monotonic() - tidied >= _HOUSEKEEPING):
                    self._spool.forget(self._journal, self._keep_days)
                    tidied = time.monotonic()
                entry = self._journal.next_received()
                if entry is None:
                    self._journal.wait(seen, _HOUSEKEEPING)
                else:
                    self._judge(entry)
            except Exception as error:
                # A full disk, most likely: neither answer nor row could be written, and the film stays received.
                film = "" if entry is None else f"film {entry.key[:8]}: "
                _log.error("%snothing can be written (%s), tried again", film, type(error).__name__)
                _log.debug("because of", exc_info=True)
                self._stopping.wait(_PATIENCE)

    def _judge(self, entry: Entry) -> None:
        key, name = entry.key, f"film {entry.key[:8]}"
        film = self._spool.read(key, FILM)
        screen = None
        answer: Prediction | Failure
        if film is None:
            answer = Failure(name, f"{name} is not in the spool any more: send it again")
        elif key != self._begun and entry.attempts >= _MAX_BEGINNINGS:
            answer = Failure(name, f"{name} was being judged {entry.attempts} times when pneumo-serve ended")
        else:
            if key != self._begun:
                self._journal.begin(key)
                self._begun = key
            answer, screen = self._answer(film, name)
        files = {}
        if film is not None and self._send and entry.source == "dicom":
            files = self._in_dicom(film, screen, answer)
        files[ANSWER] = json.dumps(answer.record(), indent=2).encode()
        if screen is not None and not isinstance(answer, Failure):
            files[PICTURE] = _png(screen)
            files[HEATMAP] = _png(mark_layer(screen.size, answer))
        if film is not None:
            self._spool.write(key, files)
        if isinstance(answer, Failure):
            self._journal.failed(key, answer.error, send=REPORT in files)
            _log.info("%s: failed: %s", name, answer.error)
        else:
            self._journal.answered(key, answer.record(), send=REPORT in files)
            _log.info("%s: answered, %s", name, answer.label or "no verdict")

    def _answer(self, film: bytes, name: str) -> tuple[Prediction | Failure, Image.Image | None]:
        try:
            return self._classifier.predict(film, name), screen_film(film, name)
        except (ImageError, MissingExtraError) as error:
            return Failure(name, str(error)), None
        except Exception as error:
            _log.debug("%s: because of", name, exc_info=True)
            return Failure(name, f"{name} cannot be judged, by an error in pneumo ({type(error).__name__})"), None

    def _in_dicom(self, film: bytes, screen: Image.Image | None, answer: Prediction | Failure) -> dict[str, bytes]:
        """Returns what goes to the PACS; nothing where the film does not say enough of itself to be answered."""
        from pneumo_edge.serve.answers import make_capture, make_report, read_header

        try:
            header = read_header(film)
            files = {REPORT: make_report(header, answer, self._classifier)}
            if screen is not None and not isinstance(answer, Failure):
                files[CAPTURE] = make_capture(header, screen, answer, self._classifier)
        except Exception as error:
            _log.error("%s: no answer in DICOM can be made (%s)", answer.path, type(error).__name__)
            _log.debug("because of", exc_info=True)
            return {}
        return files


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
