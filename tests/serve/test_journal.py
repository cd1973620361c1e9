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

from pneumo_edge.errors import PassingError, UsageError
from pneumo_edge.serve.inbox import Inbox
from pneumo_edge.serve.journal import Delivery, Entry, Journal, Selection, State
from pneumo_edge.serve.spool import ANSWER, FILM, Spool, key_of_instance, new_key

RECORD = {"label": "NORMAL", "probability": 0.25, "in_distribution": True}
WITHHELD = {"label": None, "probability": 0.5, "in_distribution": False}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.db")
    yield opened
    opened.close()


def find(journal: Journal, key: str) -> Entry:
    entry = journal.find(key)
    assert entry is not None
    return entry


# ------------------------------------------------------------------------------------------------------------ journal

BOTH = [("A", "sc"), ("A", "sr")]
KEY = "a" * 32


def test_a_film_goes_its_way(journal: Journal) -> None:
    before = time.time()
    entry, new = journal.add(KEY, "dicom", "digest")
    assert new
    assert (entry.key, entry.source, entry.state, entry.label) == (KEY, "dicom", State.received, None)
    assert before <= entry.received <= time.time()
    assert journal.next_received() == entry
    assert journal.waiting("A") == []

    journal.answered(entry, RECORD, BOTH)
    answered = find(journal, KEY)
    assert (answered.state, answered.label, answered.probability) == (State.answered, "NORMAL", 0.25)
    assert answered.in_distribution is True
    assert journal.next_received() is None
    picture, report = journal.waiting("A")
    assert (picture.object, report.object, picture.key) == ("sc", "sr", KEY)

    journal.not_sent(report, "away")
    journal.sent(picture)
    [waiting] = journal.waiting("A")
    assert (waiting.object, waiting.error, waiting.attempts) == ("sr", "away", 1)
    assert find(journal, KEY).state is State.answered
    assert journal.failures == {"A": 1}

    journal.sent(waiting, "a remark")
    assert find(journal, KEY).state is State.sent
    assert [(each.state, each.error) for each in journal.sendings([KEY])[KEY]] == [
        (Delivery.sent, None),
        (Delivery.sent, "a remark"),
    ]
    assert journal.deliveries() == {("A", Delivery.sent): 2}
    journal.resend(KEY, [("A", "sr"), ("B", "sc")])
    assert find(journal, KEY).state is State.answered
    assert [len(journal.waiting(name)) for name in "AB"] == [1, 1]


def test_an_answer_that_goes_nowhere_is_not_sent(journal: Journal) -> None:
    entry, _ = journal.add(KEY, "page")
    journal.answered(entry, WITHHELD, reason="too-young")
    assert journal.sendings([KEY])[KEY] == []
    found = find(journal, KEY)
    assert (found.in_distribution, found.reason, found.state) == (False, "too-young", State.answered)


def test_a_film_that_cannot_be_judged_stays_failed_when_the_report_is_sent(journal: Journal) -> None:
    entry, _ = journal.add(KEY, "dicom")
    journal.failed(entry, "it is a tooth", [("A", "sr")])
    [report] = journal.waiting("A")
    journal.not_sent(report, "away")
    assert find(journal, KEY).error == "it is a tooth"
    journal.sent(report)
    found = find(journal, KEY)
    assert (found.state, found.error, journal.waiting("A")) == (State.failed, "it is a tooth", [])


def test_what_is_still_told_of_a_film_that_has_come_again_is_not_written_down(journal: Journal) -> None:
    entry, _ = journal.add(KEY, "dicom", "old")
    journal.answered(entry, RECORD, BOTH)
    picture, report = journal.waiting("A")
    assert journal.again(KEY, "new")
    again = find(journal, KEY)
    assert (again.state, again.revision, again.digest, again.label) == (State.received, 1, "new", None)
    journal.sent(picture)
    journal.refused(report, "never")
    journal.begin(entry)
    journal.answered(entry, RECORD, BOTH)
    assert find(journal, KEY) == again
    assert journal.sendings([KEY])[KEY] == []
    journal.answered(again, WITHHELD)
    assert find(journal, KEY).state is State.answered
    assert not journal.again("b" * 32)


def test_a_film_has_failed_where_a_destination_takes_nothing_of_it(journal: Journal) -> None:
    entry, _ = journal.add(KEY, "dicom")
    journal.answered(entry, RECORD, [*BOTH, ("B", "sr")])
    picture, report = journal.waiting("A")
    [other] = journal.waiting("B")
    journal.sent(picture)
    journal.refused(report, "no reports")
    journal.sent(other)
    assert find(journal, KEY).state is State.sent
    journal.resend(KEY, [("B", "sr")])
    journal.refused(other, "no")
    assert find(journal, KEY).state is State.failed


def test_what_waits_for_a_destination_that_is_no_more_goes_to_those_of_today(journal: Journal) -> None:
    first, _ = journal.add(KEY, "dicom")
    journal.answered(first, RECORD, [*BOTH, ("B", "sr")])
    second, _ = journal.add("b" * 32, "dicom")
    journal.answered(second, RECORD, BOTH)
    assert journal.retarget({}) == []
    assert journal.retarget({"B": ("sr",), "C": ("sc",)}) == [("A", 2)]
    assert [(each.key, each.object) for each in journal.waiting("B")] == [(KEY, "sr"), ("b" * 32, "sr")]
    assert [(each.key, each.object) for each in journal.waiting("C")] == [(KEY, "sc"), ("b" * 32, "sc")]
    assert journal.waiting("A") == []


def test_the_list_is_sorted_filtered_and_turned_over(journal: Journal) -> None:
    for number, probability in enumerate((0.9, 0.1, 0.5)):
        entry, _ = journal.add(f"{number:032x}", "page")
        label = "PNEUMONIA" if probability > 0.4 else "NORMAL"
        journal.answered(entry, RECORD | {"label": label, "probability": probability})
    withheld, _ = journal.add(f"{3:032x}", "page")
    journal.answered(withheld, WITHHELD | {"probability": 0.99})
    journal.add(f"{4:032x}", "page")

    def keys(**asked: Any) -> tuple[list[int], int]:
        found, total = journal.select(Selection(**asked))
        return [int(entry.key, 16) for entry in found], total

    assert keys() == ([4, 3, 2, 1, 0], 5)
    assert keys(limit=2, offset=1) == ([3, 2], 5)
    assert keys(ascending=True, limit=2) == ([0, 1], 5)
    assert keys(by_probability=True) == ([0, 2, 1, 3, 4], 5)
    assert keys(by_probability=True, ascending=True) == ([1, 2, 0, 3, 4], 5)
    assert keys(verdict="PNEUMONIA") == ([2, 0], 2)
    assert keys(verdict="none") == ([3], 1)
    assert keys(state=State.received) == ([4], 1)
    assert keys(keys=[f"{number:032x}" for number in (1, 9)]) == ([1], 1)
    assert keys(keys=[]) == ([], 0)


def test_the_clock_of_the_journal_knows_no_time_of_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board without a battery: received 400 days ago, by its clock, and a moment ago in truth."""
    opened = Journal(tmp_path / "journal.db")
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1.7e9 - 400 * 86400)
        entry, _ = opened.add(KEY, "page")
    opened.answered(entry, RECORD)
    device = opened.device_uid
    opened.close()
    again = Journal(tmp_path / "journal.db")
    assert again.clock() >= entry.since
    assert again.device_uid == device
    assert again.forget_before(again.clock() - 86400) == []
    assert again.forget_before(again.clock() + 1) == [KEY]
    again.close()


def test_a_journal_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "journal.db") as db:
        db.executescript(
            "CREATE TABLE films (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, source TEXT NOT NULL,"
            " received REAL NOT NULL, state TEXT NOT NULL, label TEXT, probability REAL, in_distribution INTEGER,"
            " error TEXT, attempts INTEGER NOT NULL, next_attempt REAL);"
            "CREATE INDEX films_by_state ON films (state, id);"
            "CREATE INDEX films_to_send ON films (next_attempt) WHERE next_attempt IS NOT NULL;"
            "INSERT INTO films VALUES"
            " (1, 'sent', 'dicom', 5.0, 'sent', 'NORMAL', 0.1, 1, NULL, 1, NULL),"
            " (2, 'waits', 'dicom', 5.0, 'answered', 'NORMAL', 0.1, 1, 'away', 7, 9.0),"
            " (3, 'refused', 'dicom', 5.0, 'failed', 'NORMAL', 0.1, 1, 'C001', 1, NULL),"
            " (4, 'tooth', 'dicom', 5.0, 'failed', NULL, NULL, NULL, 'it is a tooth', 1, 9.0),"
            " (5, 'new', 'page', 5.0, 'received', NULL, NULL, NULL, NULL, 2, NULL);"
            "PRAGMA user_version = 1;"
        )
    db.close()
    journal = Journal(tmp_path / "journal.db")
    assert journal.retarget({"A": ("sc", "sr")}) == [("", 2)]
    assert [(each.key, each.object) for each in journal.waiting("A")] == [
        ("waits", "sc"), ("waits", "sr"), ("tooth", "sr")
    ]  # fmt: skip
    assert {entry.key: (entry.state, entry.error, entry.attempts) for entry in journal.recent()} == {
        "sent": (State.sent, None, 0),
        "waits": (State.answered, None, 0),
        "refused": (State.failed, None, 0),
        "tooth": (State.failed, "it is a tooth", 0),
        "new": (State.received, None, 2),
    }
    assert [each.error for each in journal.sendings(["refused"])["refused"]] == ["C001"]
    journal.close()


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


ACTS = ("add", "begin", "answered", "answered to send", "failed", "failed to send", "not_sent", "sent", "refused",
        "again", "resend", "retarget", "delete", "forget")  # fmt: skip
STEPS = st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 2)), max_size=25)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_nothing_that_waits_is_ever_forgotten(tmp_path: Path, steps: list[tuple[str, int]]) -> None:
    path = tmp_path / f"{new_key()}.db"
    journal = Journal(path)
    for step, film in steps:
        key = f"{film:032x}"
        known = journal.find(key)
        sendings = journal.sendings([key])[key]
        waiting = [each for each in sendings if each.state is Delivery.waiting]
        send = [("A", "sc"), ("B", "sr")] if step.endswith("send") else []
        if step == "add":
            _, new = journal.add(key, "dicom")
            assert new == (known is None)
        elif step == "forget":
            gone = journal.forget_before(journal.clock() + 1)
            assert (key in gone) == (known is not None and known.state is not State.received and not waiting)
        elif step == "retarget":
            journal.retarget({"B": ("sc", "sr")})
            # Nothing waits for nobody.
            assert journal.waiting("A") == []
        elif step in ("again", "delete"):
            assert getattr(journal, step)(key) == (known is not None)
        elif step == "resend":
            journal.resend(key, [("A", "sc")])
        elif step in ("not_sent", "sent", "refused"):
            for each in sendings:
                getattr(journal, step)(each, "why")
        elif known is not None and step == "begin":
            journal.begin(known)
        elif known is not None and step.startswith("answered"):
            journal.answered(known, RECORD, send)
        elif known is not None:
            journal.failed(known, "why", send)
        entry = journal.find(key)
        if entry is not None and entry.state is State.sent:
            assert {each.state for each in journal.sendings([key])[key]} >= {Delivery.sent}
            assert not [each for each in journal.sendings([key])[key] if each.state is Delivery.waiting]
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
    # Of an earlier judgement nothing is left beside this one.
    spool.write(key, {ANSWER: b"[]"})
    assert sorted(path.name for path in spool.path(key).parent.iterdir()) == ["answer.json", "film"]
    spool.replace(key, b"another one")
    assert spool.read(key, FILM) == b"another one"
    assert [path.name for path in spool.path(key).parent.iterdir()] == ["film"]
    spool.remove(key)
    assert spool.read(key, FILM) is None
    spool.replace(key, b"it was away")
    assert spool.read(key, FILM) == b"it was away"


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
        with pytest.raises(PassingError, match="in use by another pneumo-serve"):
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


def test_old_films_go_with_their_rows(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pneumo_edge")
    journal = Journal(spool.journal)
    inbox = Inbox(journal, spool)
    entries = []
    for _ in range(3):
        key = new_key()
        spool.add(key, b"film")
        entries.append(journal.add(key, "dicom")[0])
    answered, waiting, received = entries
    journal.answered(answered, RECORD)
    journal.answered(waiting, RECORD, [("A", "sr")])
    inbox.tidy(1)
    assert len(journal.keys()) == 3
    inbox.tidy(-1)
    assert journal.keys() == {waiting.key, received.key}
    assert {path.name for path in (spool.root / "films").iterdir()} == {waiting.key, received.key}
    assert f"film {answered.key[:8]}: deleted after" in caplog.text
    assert inbox.delete(waiting.key)
    assert not inbox.delete(waiting.key)
    assert {path.name for path in (spool.root / "films").iterdir()} == {received.key}
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
        "id", "key", "source", "received", "since", "state", "label", "probability", "in_distribution", "reason",
        "error", "attempts", "revision", "digest",
    }  # fmt: skip
