"""What became of every film: one row each, on disk before anybody is told. The only module that knows SQL.

    received ── judge ──► answered ── senders ──► sent
        └──────────┴──────────► failed ◄───────────┘

A row goes from left to right, and a restart goes on from where each row stands. Beside it there is one row for each
object that a destination is to get: waiting, sent or refused. A film is sent once every destination has at least one
object of it and nothing waits, and has failed where a destination takes none.

A film that comes again in another form, or is to be judged again, goes back to the start under the next `revision`:
what judge and senders still report of the one before is not written down.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from pneumo_edge.errors import PassingError, UsageError


class State(StrEnum):
    """Where a film stands."""

    received = "received"
    answered = "answered"
    sent = "sent"
    failed = "failed"


class Delivery(StrEnum):
    """Where an object for a destination stands."""

    waiting = "waiting"
    sent = "sent"
    refused = "refused"


@dataclass(frozen=True)
class Entry:
    """One film. Nothing in it tells whose film it is."""

    id: int
    key: str
    source: str
    """"dicom", "dicomweb" or "page"."""
    received: float
    """Seconds since the epoch, UTC, as the clock of this machine had it: to be shown, and to decide nothing."""
    since: float
    """The same on the clock of the journal (`Journal.clock`)."""
    state: State
    label: str | None
    """"NORMAL" or "PNEUMONIA"; None before the answer, and where the verdict is withheld."""
    probability: float | None
    in_distribution: bool | None
    reason: str | None
    """Code of what withholds its verdict: see `rules.REASONS`."""
    error: str | None
    """Why it could not be judged."""
    attempts: int
    """Judgements begun while it is received."""
    revision: int
    """Grows when it comes again in another form, or is to be judged again."""
    digest: str | None
    """SHA-256 of the film that the row speaks of; None where an older pneumo took it."""


@dataclass(frozen=True)
class Sending:
    """An object of an answer on its way to one destination."""

    key: str
    revision: int
    destination: str
    object: str
    """"sc" or "sr"."""
    state: Delivery
    attempts: int
    error: str | None
    """Why the last try did not succeed, or what was said of the object that was sent."""


@dataclass(frozen=True)
class Selection:
    """Which rows of the list are asked for, and in which order."""

    limit: int = 50
    offset: int = 0
    by_probability: bool = False
    """Largest probability first, films without a verdict last; else by time."""
    ascending: bool = False
    """The other way round; films without a verdict stay last."""
    verdict: str | None = None
    """"NORMAL", "PNEUMONIA", or "none" for those that were answered without one."""
    state: State | None = None
    keys: Collection[str] | None = None
    """No others than these."""


_VERSION = 2

_SCHEMA = f"""
CREATE TABLE films (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    source TEXT NOT NULL,
    received REAL NOT NULL,
    since REAL NOT NULL,
    state TEXT NOT NULL,
    label TEXT,
    probability REAL,
    in_distribution INTEGER,
    reason TEXT,
    error TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    revision INTEGER NOT NULL DEFAULT 0,
    digest TEXT
);
CREATE INDEX films_by_state ON films (state, id);
CREATE INDEX films_by_probability ON films (probability);
CREATE TABLE sendings (
    film INTEGER NOT NULL REFERENCES films (id) ON DELETE CASCADE,
    destination TEXT NOT NULL,
    object TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    PRIMARY KEY (film, destination, object)
) WITHOUT ROWID;
CREATE INDEX sendings_that_wait ON sendings (destination, film) WHERE state = 'waiting';
CREATE TABLE device (clock REAL NOT NULL, uid TEXT NOT NULL);
PRAGMA user_version = {_VERSION};
"""

_FROM_1 = """
ALTER TABLE films RENAME TO films_1;
DROP INDEX films_by_state;
DROP INDEX films_to_send;
{schema}
INSERT INTO films (id, key, source, received, since, state, label, probability, in_distribution, error, attempts)
    SELECT id, key, source, received, 0, state, label, probability, in_distribution,
        CASE WHEN state = 'failed' AND in_distribution IS NULL THEN error END,
        CASE state WHEN 'received' THEN attempts ELSE 0 END FROM films_1;
INSERT INTO sendings (film, destination, object, state)
    SELECT id, '', object, 'waiting' FROM films_1, (SELECT 'sc' AS object UNION SELECT 'sr')
    WHERE next_attempt IS NOT NULL AND (object = 'sr' OR in_distribution IS NOT NULL);
INSERT INTO sendings (film, destination, object, state, error)
    SELECT id, '', 'sr', 'refused', error FROM films_1
    WHERE state = 'failed' AND in_distribution IS NOT NULL AND next_attempt IS NULL;
DROP TABLE films_1;
"""
"""Version 1 knew one destination, and that not by its name: `retarget` gives those rows one."""

_COLUMNS = ", ".join(field.name for field in fields(Entry))

_SENDINGS = (
    "SELECT key, revision, destination, object, sendings.state, sendings.attempts, sendings.error"
    " FROM sendings JOIN films ON film = id"
)


class Journal:
    """The rows of one spool. Usable from several threads; each method is one transaction, synced before it returns."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it, readable by its owner alone; one of an older version is brought up to date.

        Raises:
            UsageError: It is no journal, or one of a newer version.
            PassingError: The disk is full or broken.
        """
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._changes = 0
        self.failures: Counter[str] = Counter()
        """Tries to send that did not succeed since the start, by destination."""
        try:
            path.touch(mode=0o600)
        except OSError as error:
            raise PassingError(f"{path} cannot be written ({error.strerror}): make room on the disk") from None
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            # In WAL mode NORMAL would lose the last rows in a power cut, after Success had gone back for them.
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version not in (0, 1, _VERSION):
                raise UsageError(f"{path} is of version {version}, this pneumo knows {_VERSION}: give another spool")
            if version != _VERSION:
                script = _SCHEMA if version == 0 else _FROM_1.format(schema=_SCHEMA)
                self._db.executescript(f"BEGIN IMMEDIATE; {script} COMMIT;")
            self._clock, self.device_uid = self._read_device()
        except sqlite3.OperationalError as error:
            self._db.close()
            raise PassingError(f"{path} cannot be used ({error}): make room on the disk, and look after it") from None
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise UsageError(f"{path} is no journal of pneumo-serve ({error}): move it away") from None
        except UsageError:
            self._db.close()
            raise
        self._opened = time.monotonic()

    def _read_device(self) -> tuple[float, str]:
        row = self._db.execute("SELECT clock, uid FROM device").fetchone()
        if row is None:
            # PS3.5 B.2: a UID made from a random UUID.
            row = 0.0, f"2.25.{uuid.uuid4().int}"
            self._db.execute("INSERT INTO device VALUES (?, ?)", row)
        return float(row[0]), str(row[1])

    def clock(self) -> float:
        """Returns for how many seconds this spool has been in use, all in all.

        It counts while the process runs and stands still in between, whatever becomes of the time of day: a board
        without a battery may wake up in 1970 and jump. What was counted since the last row is lost by `kill -9`.
        """
        return self._clock + time.monotonic() - self._opened

    # ------------------------------------------------------------------------------------------------------- films

    def add(self, key: str, source: str, digest: str | None = None) -> tuple[Entry, bool]:
        """Puts a film on the list, as received.

        Returns:
            Its row, and False if it was there already.
        """
        with self._transaction() as db:
            new = db.execute(
                "INSERT INTO films (key, source, received, since, state, digest) VALUES (?, ?, ?, ?, 'received', ?)"
                " ON CONFLICT (key) DO NOTHING",
                (key, source, time.time(), self.clock(), digest),
            ).rowcount
            self._keep_clock()
            (entry,) = self._rows("WHERE key = ?", key)
            return entry, bool(new)

    def again(self, key: str, digest: str | None = None) -> bool:
        """Puts a film back to received, to be judged again; what waited to be sent of it waits no more.

        Args:
            key: Of the film.
            digest: Of the film that has come in place of the one before; None where it is the same.

        Returns:
            Whether there is such a film.
        """
        with self._transaction() as db:
            found = db.execute(
                "UPDATE films SET state = 'received', label = NULL, probability = NULL, in_distribution = NULL,"
                " reason = NULL, error = NULL, attempts = 0, revision = revision + 1, digest = coalesce(?, digest)"
                " WHERE key = ?",
                (digest, key),
            ).rowcount
            db.execute("DELETE FROM sendings WHERE film = (SELECT id FROM films WHERE key = ?)", (key,))
        return bool(found)

    def delete(self, key: str) -> bool:
        """Takes a film off the list, whatever it waits for, and tells whether there was one."""
        with self._transaction() as db:
            return bool(db.execute("DELETE FROM films WHERE key = ?", (key,)).rowcount)

    def find(self, key: str) -> Entry | None:
        """Returns the row of one film."""
        return self._one("WHERE key = ?", key)

    def recent(self, limit: int = 100) -> list[Entry]:
        """Returns the rows, newest first."""
        return self._rows("ORDER BY id DESC LIMIT ?", limit)

    def select(self, selection: Selection) -> tuple[list[Entry], int]:
        """Returns the rows that were asked for, and how many there are without `limit` and `offset`."""
        conditions, values = ["1"], []
        if selection.verdict == "none":
            conditions.append("label IS NULL AND state IN ('answered', 'sent')")
        elif selection.verdict is not None:
            conditions.append("label = ?")
            values.append(selection.verdict)
        if selection.state is not None:
            conditions.append("state = ?")
            values.append(selection.state.value)
        with self._lock:
            if selection.keys is not None:
                # A list of any length: SQLite takes a limited number of values.
                self._db.execute("CREATE TEMP TABLE IF NOT EXISTS wanted (key TEXT PRIMARY KEY)")
                self._db.execute("DELETE FROM wanted")
                self._db.executemany("INSERT OR IGNORE INTO wanted VALUES (?)", ((key,) for key in selection.keys))
                conditions.append("key IN (SELECT key FROM wanted)")
            where = f"WHERE {' AND '.join(conditions)}"
            (total,) = self._db.execute(f"SELECT count(*) FROM films {where}", values).fetchone()  # noqa: S608
            way = "ASC" if selection.ascending else "DESC"
            order = f"id {way}"
            if selection.by_probability:
                order = f"label IS NULL, probability IS NULL, probability {way}, {order}"
            found = self._rows(f"{where} ORDER BY {order} LIMIT ? OFFSET ?", *values, selection.limit, selection.offset)
        return found, total

    def keys(self) -> set[str]:
        """Returns the keys of all films."""
        with self._lock:
            return {key for (key,) in self._db.execute("SELECT key FROM films")}

    def next_received(self) -> Entry | None:
        """Returns the row that has waited longest for its judgement."""
        return self._one("WHERE state = 'received' ORDER BY id LIMIT 1")

    def begin(self, entry: Entry) -> None:
        """Counts that judging it begins: a film that ends the process each time is known by that."""
        with self._transaction() as db:
            db.execute(
                "UPDATE films SET attempts = attempts + 1 WHERE id = ? AND revision = ? AND state = 'received'",
                (entry.id, entry.revision),
            )

    def answered(
        self,
        entry: Entry,
        record: Mapping[str, Any],
        send: Iterable[tuple[str, str]] = (),
        *,
        reason: str | None = None,
    ) -> None:
        """Notes the answer.

        Args:
            entry: The film as it was when its judgement began.
            record: What `Prediction.record()` gave.
            send: Destination and object ("sc", "sr") of all that is to be sent.
            reason: Code of what withholds the verdict.
        """
        found = record["label"], record["probability"], record["in_distribution"], reason, None
        self._judged(entry, State.answered, found, send)

    def failed(self, entry: Entry, why: str, send: Iterable[tuple[str, str]] = ()) -> None:
        """Notes that a film cannot be judged, and why, in one sentence; the rest as in `answered`."""
        self._judged(entry, State.failed, (None, None, None, None, why), send)

    def _judged(self, entry: Entry, state: State, found: tuple[Any, ...], send: Iterable[tuple[str, str]]) -> None:
        with self._transaction() as db:
            done = db.execute(
                "UPDATE films SET state = ?, label = ?, probability = ?, in_distribution = ?, reason = ?, error = ?,"
                " attempts = 0 WHERE id = ? AND revision = ? AND state = 'received'",
                (state.value, *found, entry.id, entry.revision),
            ).rowcount
            if done:
                self._put_on_the_way(entry.id, send)

    # ---------------------------------------------------------------------------------------------------- sendings

    def waiting(self, destination: str, limit: int = 1000) -> list[Sending]:
        """Returns what waits to be sent to a destination, the oldest film first."""
        with self._lock:
            found = self._db.execute(
                f"{_SENDINGS} WHERE destination = ? AND sendings.state = 'waiting' ORDER BY film, object LIMIT ?",
                (destination, limit),
            ).fetchall()
        return [_sending(row) for row in found]

    def sendings(self, keys: Iterable[str]) -> dict[str, list[Sending]]:
        """Returns all that was or is to be sent, by the key of the film."""
        found: dict[str, list[Sending]] = {}
        with self._lock:
            for key in keys:
                rows = self._db.execute(f"{_SENDINGS} WHERE key = ? ORDER BY destination, object", (key,)).fetchall()
                found[key] = [_sending(row) for row in rows]
        return found

    def resend(self, key: str, send: Iterable[tuple[str, str]]) -> None:
        """Lets an answer be sent once more: destination and object of each part, as in `answered`."""
        with self._transaction() as db:
            for (film,) in db.execute("SELECT id FROM films WHERE key = ? AND state != 'received'", (key,)).fetchall():
                self._put_on_the_way(film, send)
                self._settle(film)

    def not_sent(self, sending: Sending, why: str) -> None:
        """Notes that a sending did not succeed, and why; it is tried again."""
        self._delivered(sending, Delivery.waiting, why)

    def sent(self, sending: Sending, remark: str | None = None) -> None:
        """Notes that a destination has an object, and what it said of it."""
        self._delivered(sending, Delivery.sent, remark)

    def refused(self, sending: Sending, why: str) -> None:
        """Notes that a destination will not take an object: it is not tried again."""
        self._delivered(sending, Delivery.refused, why)

    def _delivered(self, sending: Sending, state: Delivery, why: str | None) -> None:
        if state is not Delivery.sent:
            self.failures[sending.destination] += 1
        with self._transaction() as db:
            changed = db.execute(
                "UPDATE sendings SET state = ?, error = ?, attempts = attempts + 1 WHERE destination = ? AND object = ?"
                " AND state = 'waiting' AND film = (SELECT id FROM films WHERE key = ? AND revision = ?)"
                " RETURNING film",
                (state.value, why, sending.destination, sending.object, sending.key, sending.revision),
            ).fetchall()
            for (film,) in changed:
                self._settle(film)

    def retarget(self, destinations: Mapping[str, Collection[str]]) -> list[tuple[str, int]]:
        """Lets what waits for a destination that is no more go to those of today that the film has nothing for.

        Args:
            destinations: The objects that each of today's destinations takes.

        Returns:
            Each destination that is no more, and how many films waited for it; "" is that of a journal of version 1.
        """
        gone: dict[str, set[int]] = {}
        with self._transaction() as db:
            rows = db.execute("SELECT film, destination, object FROM sendings WHERE state = 'waiting'").fetchall()
            for film, destination, kind in rows:
                if destination in destinations or not destinations:
                    continue
                gone.setdefault(destination, set()).add(film)
                db.execute(
                    "DELETE FROM sendings WHERE film = ? AND destination = ? AND object = ?", (film, destination, kind)
                )
                for name, kinds in destinations.items():
                    if kind in kinds:
                        db.execute(
                            "INSERT OR IGNORE INTO sendings (film, destination, object, state)"
                            " VALUES (?, ?, ?, 'waiting')",
                            (film, name, kind),
                        )
                self._settle(film)
        return [(name, len(films)) for name, films in sorted(gone.items())]

    def _put_on_the_way(self, film: int, send: Iterable[tuple[str, str]]) -> None:
        self._db.executemany(
            "INSERT INTO sendings (film, destination, object, state) VALUES (?, ?, ?, 'waiting')"
            " ON CONFLICT DO UPDATE SET state = 'waiting', attempts = 0, error = NULL",
            [(film, destination, kind) for destination, kind in send],
        )

    def _settle(self, film: int) -> None:
        """Works out where a film stands from where its objects stand. One that could not be judged stays failed."""
        rows = self._db.execute("SELECT destination, state FROM sendings WHERE film = ?", (film,)).fetchall()
        states = {state for _, state in rows}
        served = {destination for destination, state in rows if state == Delivery.sent}
        if not rows or Delivery.waiting in states:
            state = State.answered
        else:
            state = State.sent if served == {destination for destination, _ in rows} else State.failed
        self._db.execute(
            "UPDATE films SET state = ? WHERE id = ? AND state != 'received' AND error IS NULL",
            (state.value, film),
        )

    # ------------------------------------------------------------------------------------------------------ counts

    def counts(self) -> dict[State, int]:
        """Returns how many films there are in each state."""
        with self._lock:
            found = dict(self._db.execute("SELECT state, count(*) FROM films GROUP BY state").fetchall())
        return {state: found.get(state.value, 0) for state in State}

    def deliveries(self) -> dict[tuple[str, Delivery], int]:
        """Returns how many objects there are of each destination in each state."""
        with self._lock:
            rows = self._db.execute("SELECT destination, state, count(*) FROM sendings GROUP BY 1, 2").fetchall()
        return {(destination, Delivery(state)): count for destination, state, count in rows}

    def oldest_unanswered(self) -> float:
        """Returns for how many seconds the oldest film has waited for its judgement; 0 where none waits."""
        with self._lock:
            (since,) = self._db.execute("SELECT min(since) FROM films WHERE state = 'received'").fetchone()
        return 0.0 if since is None else max(self.clock() - since, 0.0)

    def forget_before(self, since: float) -> list[str]:
        """Removes the rows of films that came before `since` on the clock of the journal and wait for nothing.

        Returns:
            Their keys.
        """
        with self._transaction() as db:
            self._keep_clock()
            found = db.execute(
                "DELETE FROM films WHERE since < ? AND state != 'received' AND NOT EXISTS"
                " (SELECT 1 FROM sendings WHERE film = id AND sendings.state = 'waiting') RETURNING key",
                (since,),
            ).fetchall()
        return [key for (key,) in found]

    def _keep_clock(self) -> None:
        self._db.execute("UPDATE device SET clock = ?", (self.clock(),))

    # ----------------------------------------------------------------------------------------------------- changes

    def changes(self) -> int:
        """Returns a number that grows with every change that this process makes."""
        with self._lock:
            return self._changes

    def wait(self, seen: int, seconds: float) -> None:
        """Waits until `changes` differs from `seen`, at most so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != seen, seconds)

    def wake(self) -> None:
        """Ends every `wait`: the process is about to stop."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            try:
                self._keep_clock()
            except sqlite3.Error:
                # A full disk: films are kept a little longer than they would have been.
                pass
            finally:
                self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._changed:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self.wake()

    def _one(self, condition: str, *values: Any) -> Entry | None:
        return next(iter(self._rows(condition, *values)), None)

    def _rows(self, condition: str, *values: Any) -> list[Entry]:
        with self._lock:
            found = self._db.execute(f"SELECT {_COLUMNS} FROM films {condition}", values).fetchall()  # noqa: S608
        return [_entry(row) for row in found]


def _entry(row: tuple[Any, ...]) -> Entry:
    values = dict(zip((field.name for field in fields(Entry)), row, strict=True))
    inside = values["in_distribution"]
    return Entry(
        **values | {"state": State(values["state"]), "in_distribution": None if inside is None else bool(inside)}
    )


def _sending(row: tuple[Any, ...]) -> Sending:
    key, revision, destination, kind, state, attempts, error = row
    return Sending(key, revision, destination, kind, Delivery(state), attempts, error)
