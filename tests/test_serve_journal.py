"""Journal and spool: what they hold is what was told, whatever happens in between."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pneumo_edge.errors import UsageError
from pneumo_edge.serve.journal import Entry, Journal, State
from pneumo_edge.serve.spool import ANSWER, FILM, Spool, key_of_instance, new_key

RECORD = {"label": "NORMAL", "probability": 0.25, "in_distribution": True}
WITHHELD = {"label": None, "probability": 0.5, "in_distribution": False}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.db")
    yield opened
    opened.close()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool")
    yield opened
    opened.close()


def find(journal: Journal, key: str) -> Entry:
    entry = journal.find(key)
    assert entry is not None
    return entry


# ------------------------------------------------------------------------------------------------------------ journal


def test_a_film_goes_its_way(journal: Journal) -> None:
    before = time.time()
    entry, new = journal.add("a" * 32, "dicom")
    assert new
    assert (entry.key, entry.source, entry.state, entry.label) == ("a" * 32, "dicom", State.received, None)
    assert before <= entry.received <= time.time()
    assert journal.next_received() == entry
    assert journal.next_to_send(time.time()) is None

    journal.answered(entry.key, RECORD, send=True)
    answered = find(journal, entry.key)
    assert (answered.state, answered.label, answered.probability) == (State.answered, "NORMAL", 0.25)
    assert answered.in_distribution is True
    assert journal.next_received() is None
    assert journal.next_to_send(time.time()) == answered

    journal.not_sent(entry.key, "away", time.time() + 60)
    waiting = find(journal, entry.key)
    assert (waiting.state, waiting.error, waiting.attempts) == (State.answered, "away", 1)
    assert journal.next_to_send(time.time()) is None
    assert journal.next_due() == waiting.next_attempt
    assert journal.next_to_send(time.time() + 61) == waiting

    journal.sent(entry.key)
    sent = find(journal, entry.key)
    assert (sent.state, sent.error, sent.label) == (State.sent, None, "NORMAL")
    assert journal.next_due() is None


def test_an_answer_that_goes_nowhere_is_not_sent(journal: Journal) -> None:
    journal.add("a" * 32, "page")
    journal.answered("a" * 32, WITHHELD)
    assert journal.next_to_send(time.time() + 1e9) is None
    assert find(journal, "a" * 32).in_distribution is False


def test_a_film_that_cannot_be_judged_stays_failed_when_the_report_is_sent(journal: Journal) -> None:
    journal.add("a" * 32, "dicom")
    journal.failed("a" * 32, "it is a tooth", send=True)
    journal.not_sent("a" * 32, "away", 0.0)
    assert find(journal, "a" * 32).error == "it is a tooth"
    assert journal.next_to_send(time.time()) is not None
    journal.sent("a" * 32)
    entry = find(journal, "a" * 32)
    assert (entry.state, entry.error, entry.next_attempt) == (State.failed, "it is a tooth", None)

    journal.again("a" * 32)
    assert find(journal, "a" * 32).state is State.received
    # What the sender still had to say of the time before that.
    journal.sent("a" * 32)
    journal.not_sent("a" * 32, "away", 0.0)
    journal.refused("a" * 32, "never")
    assert find(journal, "a" * 32).state is State.received
    assert journal.next_due() is None
    journal.answered("a" * 32, RECORD)
    journal.again("a" * 32)
    assert find(journal, "a" * 32).state is State.answered


def test_what_the_pacs_refuses_for_good_has_failed(journal: Journal) -> None:
    journal.add("a" * 32, "dicom")
    journal.answered("a" * 32, RECORD, send=True)
    journal.refused("a" * 32, "the PACS says no")
    entry = find(journal, "a" * 32)
    assert (entry.state, entry.error, entry.next_attempt) == (State.failed, "the PACS says no", None)
    journal.again("a" * 32)
    journal.failed("a" * 32, "it is a tooth", send=True)
    journal.refused("a" * 32, "the PACS says no")
    assert find(journal, "a" * 32).error == "it is a tooth; the PACS says no"


def test_the_oldest_comes_first_and_the_newest_is_shown_first(journal: Journal) -> None:
    keys = [new_key() for _ in range(5)]
    for key in keys:
        journal.add(key, "page")
    assert [entry.key for entry in journal.recent(3)] == keys[:1:-1]
    first = journal.next_received()
    assert first is not None
    assert first.key == keys[0]
    assert journal.keys() == set(keys)


def test_many_threads_add_one_film_once(journal: Journal) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: journal.add("a" * 32, "dicom"), range(64)))
    assert sum(new for _, new in found) == 1
    assert len({entry.id for entry, _ in found}) == 1
    assert journal.counts() == {State.received: 1, State.answered: 0, State.sent: 0, State.failed: 0}


def test_waiting_ends_with_the_next_change(journal: Journal) -> None:
    seen = journal.changes()
    thread = threading.Thread(target=journal.wait, args=(seen, 60.0))
    thread.start()
    journal.add("a" * 32, "page")
    thread.join(30)
    assert not thread.is_alive()
    journal.wait(seen, 60.0)  # what has changed since then is not waited for


def test_a_row_is_there_after_kill_9(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from pneumo_edge.serve.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for i in range(20):\n"
        "    journal.add(f'{i:032x}', 'dicom')\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "journal.db"], check=False)
    assert done.returncode != 0
    journal = Journal(tmp_path / "journal.db")
    assert journal.counts()[State.received] == 20
    journal.close()


@pytest.mark.parametrize("damage", [b"this is a letter and no database" * 40, None])
def test_a_file_that_is_no_journal_is_named(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "journal.db"
    if damage is None:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 99")
        db.close()
    else:
        path.write_bytes(damage)
    with pytest.raises(UsageError, match=r"journal\.db"):
        Journal(path)


ACTS = (
    "add",
    "begin",
    "answered",
    "answered to send",
    "failed",
    "failed to send",
    "not_sent",
    "sent",
    "refused",
    "again",
    "forget",
)
STEPS = st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 2)), max_size=25)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_nothing_that_waits_is_ever_forgotten(tmp_path: Path, steps: list[tuple[str, int]]) -> None:
    path = tmp_path / f"{new_key()}.db"
    journal = Journal(path)
    for step, film in steps:
        key = f"{film:032x}"
        known = journal.find(key)
        waits = known is not None and (known.state is State.received or known.next_attempt is not None)
        if step == "add":
            _, new = journal.add(key, "dicom")
            assert new == (known is None)
        elif step == "forget":
            gone = journal.forget_before(time.time() + 1)
            assert (key in gone) == (known is not None and not waits)
        elif step.startswith("answered"):
            journal.answered(key, RECORD, send=step.endswith("send"))
        elif step.startswith("failed"):
            journal.failed(key, "why", send=step.endswith("send"))
        elif step == "not_sent":
            journal.not_sent(key, "away", 0.0)
        elif step == "refused":
            journal.refused(key, "never")
        else:
            getattr(journal, step)(key)
        # What one connection has been told, another one reads: it is in the file.
        assert sum(journal.counts().values()) == len(journal.recent())
    rows = journal.recent()
    journal.close()
    again = Journal(path)
    assert again.recent() == rows
    again.close()


# -------------------------------------------------------------------------------------------------------------- spool


def test_a_film_is_kept_once(spool: Spool) -> None:
    key = key_of_instance("1.2.3")
    assert spool.add(key, b"fi", memoryview(b"lm"))
    assert not spool.add(key, b"another one")
    assert spool.read(key, FILM) == b"film"
    spool.write(key, {ANSWER: b"{}", "film.png": b"png"})
    assert spool.read(key, ANSWER) == b"{}"
    assert sorted(path.name for path in spool.path(key).parent.iterdir()) == ["answer.json", "film", "film.png"]
    spool.remove(key)
    assert spool.read(key, FILM) is None


def test_a_film_that_comes_over_many_associations_at_once_is_kept_once(spool: Spool) -> None:
    key = new_key()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: spool.add(key, bytes([i]) * 100_000), range(16)))
    assert sum(found) == 1
    film = spool.read(key, FILM)
    assert film is not None
    assert len(film) == 100_000
    assert len(set(film)) == 1
    assert [path.name for path in (spool.root / "films").iterdir()] == [key]


def test_the_key_of_an_instance_is_always_the_same_and_says_nothing() -> None:
    assert key_of_instance("1.2.3") == key_of_instance("1.2.3") != key_of_instance("1.2.4")
    assert "1.2.3" not in key_of_instance("1.2.3")
    assert new_key() != new_key()


@pytest.mark.parametrize(
    "key", ["", "..", "../../../etc", "A" * 32, "a" * 31, "a" * 33, "a" * 32 + "\n", "/" + "a" * 31]
)
def test_a_key_leads_nowhere_else(spool: Spool, key: str) -> None:
    assert spool.read(key, FILM) is None
    for act in (lambda: spool.add(key, b""), lambda: spool.path(key), lambda: spool.remove(key)):
        with pytest.raises(ValueError, match="no key"):
            act()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_its_owner_alone_reads_it(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir(mode=0o755)
    before = os.umask(0)
    try:
        spool = Spool(tmp_path / "spool")
        journal = Journal(spool.journal)
        key = new_key()
        spool.add(key, b"film")
        spool.write(key, {ANSWER: b"{}"})
        journal.add(key, "page")
    finally:
        os.umask(before)
    everything = [spool.root, *spool.root.rglob("*")]
    assert len(everything) > 6
    for path in everything:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    journal.close()
    spool.close()


def test_two_processes_never_share_a_spool(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from pneumo_edge.serve.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    )
    line = [sys.executable, "-c", script, str(tmp_path / "spool")]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match="in use by another pneumo-serve"):
            Spool(tmp_path / "spool")
        holder.kill()
        holder.wait()
        # However it ended: the next one can go on.
        Spool(tmp_path / "spool").close()


def test_what_no_row_knows_is_swept_away(spool: Spool) -> None:
    known, stray = new_key(), new_key()
    spool.add(known, b"film")
    spool.add(stray, b"film")
    (spool.root / "films" / f".{stray}.0000.tmp").mkdir()
    assert spool.sweep({known}) == 2
    assert [path.name for path in (spool.root / "films").iterdir()] == [known]


def test_old_films_go_with_their_rows(spool: Spool) -> None:
    journal = Journal(spool.journal)
    answered, waiting, received = new_key(), new_key(), new_key()
    for key in (answered, waiting, received):
        spool.add(key, b"film")
        journal.add(key, "dicom")
    journal.answered(answered, RECORD)
    journal.answered(waiting, RECORD, send=True)
    spool.forget(journal, 1)
    assert len(journal.keys()) == 3
    spool.forget(journal, -1)
    assert journal.keys() == {waiting, received}
    assert {path.name for path in (spool.root / "films").iterdir()} == {waiting, received}
    journal.close()


@pytest.mark.skipif(os.name != "posix", reason="the limit is POSIX's")
def test_of_a_film_that_the_disk_has_no_room_for_nothing_is_left(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path; from pneumo_edge.serve.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]))\n"
        "spool.add('a' * 32, b'film')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "large = bytes(5000)\n"
        "for act in (lambda: spool.add('b' * 32, large), lambda: spool.write('a' * 32, {'answer.json': large})):\n"
        "    try:\n"
        "        act()\n"
        "    except OSError:\n"
        "        print('refused')\n"
    )
    line = [sys.executable, "-c", script, str(tmp_path / "spool")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.stdout == "refused\nrefused\n", done.stderr
    films = tmp_path / "spool" / "films"
    assert sorted(path.relative_to(films).as_posix() for path in films.rglob("*")) == ["a" * 32, f"{'a' * 32}/film"]


def test_a_spool_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UsageError, match="cannot be written"):
        Spool(tmp_path / "file" / "spool")


def test_an_entry_holds_nothing_of_the_patient() -> None:
    fields: dict[str, Any] = Entry.__dataclass_fields__
    assert set(fields) == {
        "id", "key", "source", "received", "state", "label", "probability", "in_distribution", "error", "attempts",
        "next_attempt",
    }  # fmt: skip
