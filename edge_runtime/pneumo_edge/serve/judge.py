"""Judges the films that have been received, one after the other, in a thread of its own."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from pneumo_edge.classifier import Failure, Prediction
from pneumo_edge.errors import ImageError, MissingExtraError
from pneumo_edge.overlay import glow_layer, screen_film
from pneumo_edge.serve.journal import Selection
from pneumo_edge.serve.rules import Rules, Ruling, header_of, withhold
from pneumo_edge.serve.spool import ANSWER, CAPTURE, FILM, HEATMAP, OBJECTS, PICTURE, REPORT
from pneumo_edge.watch import LAST

if TYPE_CHECKING:
    from PIL import Image
    from pydicom.dataset import Dataset

    from pneumo_edge.classifier import Classifier
    from pneumo_edge.serve.inbox import Inbox
    from pneumo_edge.serve.journal import Entry
    from pneumo_edge.watch import Watch
    from pneumo_edge.words import Words

_MAX_BEGINNINGS = 5
"""A film that was being judged so often when the process ended is taken to be what ends it."""

_PATIENCE = 10.0
"""Seconds until a disk that could not be written is tried again."""

_HOUSEKEEPING = 3600.0
"""Seconds between two looks for films that are old enough to be deleted."""

UNLIKE = "unlike-training"
"""Of `rules.REASONS`: what the model itself withholds."""

_log = logging.getLogger(__name__)


class Judge:
    """A thread that turns what is received into what is answered or failed."""

    def __init__(
        self,
        classifier: Classifier,
        inbox: Inbox,
        *,
        send: Mapping[str, Collection[str]] | None = None,
        rules: Rules | None = None,
        words: Words | None = None,
        keep_days: float | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Prepares it; `start` begins.

        Args:
            classifier: Judges.
            inbox: Holds the films, and is told what became of them.
            send: The objects ("sc", "sr") that each destination gets of a film that came over DICOM.
            rules: Which films get no verdict.
            words: The language of what is written as DICOM; English by default.
            keep_days: Older films are deleted, except those that still wait for something; None for never.
            watch: Is told of every answer but to films that the rules let pass.
        """
        self._classifier, self._inbox = classifier, inbox
        self._journal, self._spool = inbox.journal, inbox.spool
        self._send, self._rules, self._keep_days = send or {}, rules or Rules(), keep_days
        self._words, self._watch = words, watch
        self._begun: tuple[str, int] | None = None
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
                    self._inbox.tidy(self._keep_days)
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
        this = key, entry.revision
        film = self._spool.read(key, FILM)
        screen = ruling = header = None
        answer: Prediction | Failure
        if film is None:
            answer = Failure(name, f"{name} is not in the spool any more: send it again")
        elif this != self._begun and entry.attempts >= _MAX_BEGINNINGS:
            answer = Failure(name, f"{name} was being judged {entry.attempts} times when pneumo-serve ended")
        else:
            if this != self._begun:
                self._journal.begin(entry)
                self._begun = this
            header = header_of(film)
            answer, screen = self._answer(film, name)
            ruling = None if header is None else self._rules.apply(header)
        if isinstance(answer, Prediction):
            self._tell_watch(key, answer, ruling)
            answer = withhold(answer, ruling)
        reason = None if ruling is None else ruling.code
        if reason is None and isinstance(answer, Prediction) and answer.label is None:
            reason = UNLIKE
        files = {}
        if header is not None and self._send and entry.source != "page" and not (ruling and ruling.silent):
            files = self._in_dicom(header, screen, answer, reason)
        send = [(to, kind) for to, kinds in self._send.items() for kind in kinds if OBJECTS[kind] in files]
        files[ANSWER] = json.dumps(answer.record(), indent=2).encode()
        if screen is not None and isinstance(answer, Prediction):
            files[PICTURE] = _png(screen)
            files[HEATMAP] = _png(glow_layer(screen.size, answer))
        if film is not None:
            try:
                self._spool.write(key, files)
            except FileNotFoundError:
                # Deleted in the meantime, with its row: there is nothing to note.
                return
        if isinstance(answer, Failure):
            self._journal.failed(entry, answer.error, send)
            _log.info("%s: failed: %s", name, answer.error)
        else:
            self._journal.answered(entry, answer.record(), send, reason=reason)
            _log.info("%s: answered, %s", name, answer.label or f"no verdict ({reason})")

    def _answer(self, film: bytes, name: str) -> tuple[Prediction | Failure, Image.Image | None]:
        try:
            return self._classifier.predict(film, name), screen_film(film, name)
        except (ImageError, MissingExtraError) as error:
            return Failure(name, str(error)), None
        except Exception as error:
            _log.debug("%s: because of", name, exc_info=True)
            return Failure(name, f"{name} cannot be judged, by an error in pneumo ({type(error).__name__})"), None

    def _tell_watch(self, key: str, answer: Prediction, ruling: Ruling | None) -> None:
        """Tells the watch of an answer that no rule withholds, and the log where the films have changed."""
        if self._watch is not None and ruling is None:
            said = self._watch.add(key, answer.logit, answer.novelty, answer.contrast, answer.label)
            if said is not None:
                _log.warning("%s", said)

    def _in_dicom(
        self, header: Dataset, screen: Image.Image | None, answer: Prediction | Failure, reason: str | None
    ) -> dict[str, bytes]:
        """Returns what goes to the PACS; nothing where the film does not say enough of itself to be answered."""
        from pneumo_edge.serve.answers import Answer

        try:
            device = self._journal.device_uid
            made = Answer(header, answer, self._classifier, device, screen=screen, reason=reason, words=self._words)
            for keyword in made.left_out:
                _log.warning("%s: its %s breaks the rules of DICOM and is left out of the answer", answer.path, keyword)
            files = {REPORT: made.report()}
            if screen is not None and isinstance(answer, Prediction):
                files[CAPTURE] = made.capture()
        except Exception as error:
            _log.error("%s: no answer in DICOM can be made (%s)", answer.path, type(error).__name__)
            _log.debug("because of", exc_info=True)
            return {}
        return files


def remember(watch: Watch, inbox: Inbox) -> Watch:
    """Tells a watch of the last films of before, as far as their answers are still there, and returns it."""
    entries, _ = inbox.journal.select(Selection(limit=LAST))
    for entry in reversed(entries):
        if entry.in_distribution is None or (entry.reason or UNLIKE) != UNLIKE:
            continue
        try:
            record = json.loads(inbox.spool.read(entry.key, ANSWER) or b"null")
            watch.add(entry.key, record["logit"], record["novelty"], record["contrast"], record["label"])
        except (ValueError, KeyError, TypeError):
            # An answer of an older pneumo, which did not look at the contrast.
            continue
    return watch


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
