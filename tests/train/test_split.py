"""Which film is learned from: no patient and no copy on both sides."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from places import SHARED
from pneumo_edge.errors import DataError, RunError
from pneumo_train.films import Box, FilmFile, PreparedFilms
from pneumo_train.sources import gather
from pneumo_train.split import (
    CONTRADICTION,
    DUPLICATE,
    LEFT_ASIDE,
    LEFT_OUT,
    TEST,
    TRAIN,
    UNREADABLE,
    UNUSED,
    USABLE_VALIDATION,
    VALIDATION,
    describe_doubtful,
    describe_left_aside,
    read_split,
    split_films,
    write_split,
)

pytest.importorskip("sklearn")

REAL = SHARED / "data" / "chest_xray"


@dataclass
class Set:
    """A data set without pictures: what a split is made from."""

    films: list[FilmFile] = field(default_factory=list)
    sha256: list[str] = field(default_factory=list)
    unreadable: set[int] = field(default_factory=set)

    def add(
        self,
        label: int,
        patient: str,
        films: int = 1,
        folder: str = TRAIN,
        content: str | None = None,
        site: str = "here",
        known: bool = False,
    ) -> None:
        for _ in range(films):
            name = f"{folder}/{('NORMAL', 'PNEUMONIA')[label]}/{patient}_{len(self.films)}.png"
            self.films.append(FilmFile(name, label, patient, folder, site, patient_known=known))
            self.sha256.append(content or f"own {len(self.films)}")

    def patients(self, label: int, films: Sequence[int], folder: str = TRAIN, site: str = "here") -> None:
        for i, count in enumerate(films):
            self.add(label, f"{'np'[label]}{folder}{i}", count, folder, site=site)

    def split(self, seed: int = 0, limit: int | None = None, leave_out: str | None = None) -> list[str]:
        sha256 = tuple("" if i in self.unreadable else content for i, content in enumerate(self.sha256))
        errors = dict.fromkeys(self.unreadable, "cannot be read")
        prepared = PreparedFilms(np.zeros(0, np.uint8), sha256, errors)
        return split_films(self.films, prepared, seed=seed, limit=limit, leave_out=leave_out)

    def identities(self, i: int) -> tuple[str, str]:
        """Whose film it is: a name that is stated holds everywhere, one read off a file at its site and side."""
        film = self.films[i]
        place = "" if film.patient_known else f"{film.site} {film.folder == TEST}"
        return f"patient {place} {film.patient}", f"bytes {self.sha256[i]}"

    def components(self) -> list[set[int]]:
        """Films that are one patient's, over chains of equal patients and equal bytes."""
        members = [i for i in range(len(self.films)) if i not in self.unreadable]
        neighbours = defaultdict(set)
        for i in members:
            for identity in self.identities(i):
                neighbours[identity].add(i)
        left, found = set(members), []
        while left:
            group, waiting = set(), [left.pop()]
            while waiting:
                i = waiting.pop()
                group.add(i)
                new = set.union(*(neighbours[identity] for identity in self.identities(i))) & left
                left -= new
                waiting.extend(new)
            found.append(group)
        return found

    def contradictory(self) -> set[int]:
        """Readable films whose bytes stand under both labels."""
        labels = defaultdict(set)
        readable = [i for i in range(len(self.films)) if i not in self.unreadable]
        for i in readable:
            labels[self.sha256[i]].add(self.films[i].label)
        return {i for i in readable if len(labels[self.sha256[i]]) > 1}


def parts(split: Sequence[str], members: set[int]) -> set[str]:
    return {split[i] for i in members}


@st.composite
def sets(draw: st.DrawFn) -> Set:
    """Two sites, patients with a few films each, some with films of both labels, some known by name and some of them at
    both sites, copies anywhere, some films unreadable."""
    made = Set()
    for site in ("here", "there"):
        for label in (0, 1):
            made.patients(label, draw(st.lists(st.integers(1, 6), min_size=12, max_size=20)), site=site)
            made.patients(label, draw(st.lists(st.integers(1, 3), max_size=4)), TEST, site)
            made.patients(label, draw(st.lists(st.integers(1, 2), max_size=4)), "val", site)
    for i in draw(st.lists(st.integers(0, 5), max_size=2)):
        made.add(0, f"ptrain{i}")  # a patient who was ill and is well
    known = st.tuples(st.integers(0, 1), st.integers(0, 9), st.sampled_from([TRAIN, "val", TEST]), st.booleans())
    for label, name, folder, elsewhere in draw(st.lists(known, max_size=12)):
        made.add(label, f"known {name}", folder=folder, site="there" if elsewhere else "here", known=True)
    place = st.integers(0, len(made.films) - 1)
    for i, j in draw(st.lists(st.tuples(place, place), max_size=8)):
        made.sha256[i] = made.sha256[j]
    made.unreadable = draw(st.sets(place, max_size=3))
    return made


def cut(made: Set, *arguments: Any, **named: Any) -> list[str]:
    """The split; of few patients, some of both classes, hardly any cut serves: one set in hundreds here."""
    try:
        return made.split(*arguments, **named)
    except DataError as error:
        assert "no cut by patient" in str(error)
        reject()


@settings(deadline=None, max_examples=60)
@given(sets(), st.integers(0, 2**32 - 1), st.sampled_from([None, "here", "there"]))
def test_nobody_stands_on_both_sides(made: Set, seed: int, leave_out: str | None) -> None:
    split = cut(made, seed, leave_out=leave_out)
    contradictory = made.contradictory()
    aside = {DUPLICATE, CONTRADICTION}
    for group in made.components():
        used = {"measured" if part in {TEST, LEFT_OUT} else part for part in parts(split, group) - aside}
        assert len(used) <= 1
        # Nobody is left out but for those who are met elsewhere.
        for i in group:
            if split[i] == DUPLICATE:
                assert parts(split, group) & {VALIDATION, TEST, LEFT_OUT, CONTRADICTION}
    for i, (part, film) in enumerate(zip(split, made.films, strict=True)):
        assert (part == UNREADABLE) == (i in made.unreadable)
        assert (part == CONTRADICTION) == (i in contradictory)
        if part not in {UNREADABLE, CONTRADICTION}:
            assert (part == TEST) == (film.folder == TEST)
            assert (part == LEFT_OUT) == (film.folder != TEST and film.site == leave_out)
    for part in (TRAIN, VALIDATION):
        assert {made.films[i].label for i, p in enumerate(split) if p == part} == {0, 1}
    assert split == made.split(seed, leave_out=leave_out)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 8), min_size=30, max_size=60),
    st.lists(st.integers(1, 8), min_size=30, max_size=90),
    st.integers(0, 2**32 - 1),
)
def test_a_tenth_of_each_class_is_cut(normal: list[int], pneumonia: list[int], seed: int) -> None:
    made = Set()
    made.patients(0, normal)
    made.patients(1, pneumonia)
    split = made.split(seed)
    for label, counts in enumerate((normal, pneumonia)):
        chosen = sum(part == VALIDATION and f.label == label for part, f in zip(split, made.films, strict=True))
        assert abs(chosen - sum(counts) / 10) <= max(counts)  # whole patients cannot be cut closer


@settings(deadline=None, max_examples=25)
@given(sets(), st.integers(0, 1000), st.integers(20, 80))
def test_a_limit_keeps_whole_patients(made: Set, seed: int, limit: int) -> None:
    split, whole = cut(made, seed, limit), cut(made, seed)
    largest = 0
    for component in made.components():
        for site in ("here", "there"):
            own = {i for i in component if made.films[i].site == site}
            # Whole patients, but for what is left out of training since it is met in the validation of another site.
            assert len(parts(split, own) & {TRAIN, VALIDATION, UNUSED} - {TRAIN}) <= 1
            assert UNUSED not in parts(split, own) or not parts(split, own) & {TRAIN, VALIDATION}
            largest = max(largest, len(own))
    used, pool = (sum(part in {TRAIN, VALIDATION} for part in found) for found in (split, whole))
    met_elsewhere = sum(part == DUPLICATE for part in split) - sum(
        part == DUPLICATE and other == DUPLICATE for part, other in zip(split, whole, strict=True)
    )
    # Each class of each site stops at the first patient with whom it reaches its share, or has its second.
    assert min(limit, pool) - 4 * largest - met_elsewhere <= used <= limit + 8 * largest
    for part in (TRAIN, VALIDATION):
        assert {made.films[i].label for i, p in enumerate(split) if p == part} == {0, 1}
    for part, other in zip(split, whole, strict=True):
        assert (part in {TEST, UNREADABLE, CONTRADICTION}) == (other in {TEST, UNREADABLE, CONTRADICTION})


def test_a_limit_smaller_than_one_patient_still_leaves_two_to_cut_between() -> None:
    made = Set()
    made.patients(0, [1] * 200)
    made.patients(1, [30] * 20)
    for seed in range(10):
        split = made.split(seed, limit=20)
        assert set(split) == {TRAIN, VALIDATION, UNUSED}


def test_another_seed_is_another_cut() -> None:
    made = Set()
    made.patients(0, [2] * 30)
    made.patients(1, [2] * 30)
    assert len({tuple(made.split(seed)) for seed in range(4)}) == 4


# ------------------------------------------------------------------------------------------------- val/ and copies


def big(val: int) -> Set:
    """A set whose val/ holds so many films, one patient each."""
    made = Set()
    made.patients(0, [2] * 200)
    made.patients(1, [2] * 400)
    made.patients(0, [1] * (val // 2), "val")
    made.patients(1, [1] * (val - val // 2), "val")
    return made


def test_a_val_of_sixteen_joins_the_pool() -> None:
    made = big(16)
    split = made.split()
    given = [part for part, f in zip(split, made.films, strict=True) if f.folder == "val"]
    assert Counter(given)[TRAIN] > 8
    assert any(part == VALIDATION for part, f in zip(split, made.films, strict=True) if f.folder == "train")


def test_a_val_of_a_hundred_is_used_as_it_is() -> None:
    made = big(USABLE_VALIDATION)
    for part, film in zip(made.split(), made.films, strict=True):
        assert part == {"val": VALIDATION, "train": TRAIN}[film.folder]


@pytest.mark.parametrize(("val", "train", "used"), [(20, 90, True), (20, 110, True), (18, 20, False), (40, 380, False)])
def test_a_smaller_val_is_used_where_it_is_as_much_as_would_be_cut(val: int, train: int, used: bool) -> None:
    made = Set()
    for label in (0, 1):
        made.patients(label, [1] * (train // 2))
        made.patients(label, [1] * (val // 2), "val")
    split = made.split()
    given = [f for f in made.films if f.folder == "val"]
    assert ([f for f, p in zip(made.films, split, strict=True) if p == VALIDATION] == given) == used
    assert (TRAIN in {p for f, p in zip(made.films, split, strict=True) if f.folder == "val"}) != used


def test_films_that_cannot_be_read_do_not_count_for_val() -> None:
    made = big(USABLE_VALIDATION)
    made.unreadable = {len(made.films) - 1}
    split = made.split()
    assert any(part == TRAIN for part, f in zip(split, made.films, strict=True) if f.folder == "val")


def test_a_limit_leaves_a_given_val_both_classes() -> None:
    made = big(USABLE_VALIDATION)
    for seed in range(20):
        split = made.split(seed, limit=20)
        for part in (TRAIN, VALIDATION):
            assert {f.label for p, f in zip(split, made.films, strict=True) if p == part} == {0, 1}


def test_a_patient_of_a_given_val_is_not_learned_from() -> None:
    made = big(USABLE_VALIDATION)
    made.add(1, "nval3")
    assert made.split()[-1] == DUPLICATE
    assert made.split().count(VALIDATION) == USABLE_VALIDATION


def test_whose_films_are_copies_is_one_patient_over_any_chain() -> None:
    made = big(USABLE_VALIDATION)
    copied = made.sha256[-1]  # a film of val/
    made.add(1, "a", content=copied)
    made.add(1, "a", content="shared by a and b")
    made.add(1, "b", content="shared by a and b")
    made.add(1, "b")
    assert made.split()[-4:] == [DUPLICATE] * 4


def test_a_copy_of_a_test_film_is_not_learned_from_and_not_chosen_by() -> None:
    for val in (16, USABLE_VALIDATION):
        made = big(val)
        made.add(1, "tested", folder=TEST, content="shown")
        made.add(1, "a", content="shown")
        made.add(1, "b", folder="val", content="shown")
        assert made.split()[-3:] == [TEST, DUPLICATE, DUPLICATE]


def test_whoever_is_tested_is_left_out_with_all_films() -> None:
    for val in (16, USABLE_VALIDATION):
        made = big(val)
        made.add(1, "tested", folder=TEST, content="shown")
        made.add(1, "a", content="shown")
        made.add(1, "a", films=2)
        made.add(1, "a", folder="val")
        assert made.split()[-5:] == [TEST, *[DUPLICATE] * 4]


def test_who_is_known_by_name_is_the_same_at_every_site() -> None:
    made = big(16)
    for label in (0, 1):
        made.patients(label, [2] * 20, site="there")
    made.add(1, "Ann", folder=TEST, known=True)
    made.add(1, "Ann", films=2, site="there", known=True)
    made.add(1, "Bea", folder=TEST)  # a name read off a file says nothing elsewhere, nor of the other side
    made.add(1, "Bea", site="there")
    made.add(1, "Bea")
    split = made.split()
    assert split[-5:-3] == [DUPLICATE, DUPLICATE]
    assert not {DUPLICATE, TEST} & set(split[-2:])


def test_whoever_validates_at_one_site_is_not_learned_from_at_another() -> None:
    made = Set()
    for site in ("here", "there"):
        for label in (0, 1):
            for i in range(20):
                made.add(label, f"{label} {i}", site=site, known=True)
    split = made.split()
    where = defaultdict(set)
    for part, film in zip(split, made.films, strict=True):
        where[film.patient].add(part)
    assert {TRAIN, VALIDATION} not in where.values()
    assert VALIDATION in split[:40]
    assert VALIDATION in split[40:]


def test_the_site_that_is_left_out_is_only_measured() -> None:
    made = big(16)
    for label in (0, 1):
        made.patients(label, [2] * 10, site="there")
        made.patients(label, [1] * 5, TEST, "there")
        made.patients(label, [1] * USABLE_VALIDATION, "val", "there")
    made.add(1, "a", films=3, content="shown there")
    made.add(1, "b", site="there", content="shown there")
    split = made.split(leave_out="there")
    for part, film in zip(split[:-4], made.films, strict=False):
        if film.site == "there":
            assert part == (TEST if film.folder == TEST else LEFT_OUT)
        else:
            assert part in {TRAIN, VALIDATION, TEST}
    assert split[-4:] == [DUPLICATE] * 3 + [LEFT_OUT]
    # What is learned from does not depend on the films that are only measured.
    alone = replace(made, films=made.films[: len(big(16).films)], sha256=made.sha256[: len(big(16).films)])
    assert split[: len(alone.films)] == alone.split()


def test_every_site_is_cut_for_itself() -> None:
    made = Set()
    for site, patients in (("large", 100), ("small", 10), ("given", 10)):
        for label in (0, 1):
            made.patients(label, [1] * patients, site=site)
    for label in (0, 1):
        made.patients(label, [1] * (USABLE_VALIDATION // 2), "val", "given")
    cells = Counter((f.site, f.label) for f, p in zip(made.films, made.split(), strict=True) if p == VALIDATION)
    assert cells == {(site, y): n for site, n in (("large", 10), ("small", 1), ("given", 50)) for y in (0, 1)}


def test_the_same_bytes_under_both_labels_are_named_and_used_nowhere() -> None:
    made = big(16)
    made.add(0, "a", content="both", site="there")
    made.add(1, "b", content="both")
    made.add(1, "c", content="tested as both", folder=TEST)
    made.add(0, "d", content="tested as both", folder=TEST)
    split = made.split()
    assert split[-4:] == [CONTRADICTION] * 4
    [said] = describe_left_aside(made.films, split, made.sha256)
    assert said.startswith("not used: 4 films whose very same bytes stand under both labels: ")
    first = len(made.films) - 4
    assert f"train/NORMAL/a_{first}.png (there) = train/PNEUMONIA/b_{first + 1}.png (here)" in said
    for i in range(20):
        for label in (0, 1):
            made.add(label, f"more {label} {i}", content=f"more {i}")
    [said] = describe_left_aside(made.films, made.split(), made.sha256)
    assert "44 films" in said
    assert said.endswith("; and 12 more, in split.csv")
    assert "(there) = " in said


def test_how_many_are_left_out_as_patients_of_the_test_is_said() -> None:
    made = big(16)
    made.add(1, "tested", folder=TEST, content="shown")
    made.add(1, "a", content="shown")
    assert describe_left_aside(made.films, made.split(), made.sha256) == [
        "not used: 1 films of patients who stand, or of which a copy stands, nearer to the test"
    ]
    assert describe_left_aside(big(16).films, big(16).split(), big(16).sha256) == []


def test_films_that_are_used_and_doubtful_are_counted_by_kind() -> None:
    films = [FilmFile(f"{i}.dcm", i % 2, f"p{i}", TRAIN, "here") for i in range(5)]
    split = [TRAIN, VALIDATION, TEST, DUPLICATE, TRAIN]
    tiny, raw = "the picture is tiny ({0} x {0} pixels)", "the file holds raw values"
    remarks = {0: [tiny.format(50)], 1: [tiny.format(60), raw], 2: [tiny.format(70)], 3: [raw]}
    assert describe_doubtful(films, split, remarks) == [
        "used all the same: 3 films, such as 0.dcm (here): the picture is tiny (50 x 50 pixels)",
        "used all the same: 1 film, such as 1.dcm (here): the file holds raw values",
    ]
    assert describe_doubtful(films, split, {}) == []


def test_a_site_of_one_class_is_learned_from() -> None:
    made = big(16)
    made.patients(1, [1] * 30, site="there")
    assert Counter(p for p, f in zip(made.split(), made.films, strict=True) if f.site == "there") == {
        TRAIN: 27,
        VALIDATION: 3,
    }
    one = Set()
    one.patients(0, [1] * 20, site="well")
    one.patients(1, [1] * 20, site="ill")
    with pytest.raises(DataError, match="no site has validation films of both classes"):
        one.split()
    with pytest.raises(DataError, match="--leave-out there: the site has no NORMAL film"):
        made.split(leave_out="there")


def test_what_cannot_be_split_is_a_sentence() -> None:
    made = Set()
    made.patients(1, [2] * 10)
    made.patients(0, [8])
    with pytest.raises(DataError, match="here: one class has films of a single patient"):
        made.split()
    made.unreadable = set(range(len(made.films)))
    for limit in (None, 20):
        with pytest.raises(DataError, match="no NORMAL film can be trained on"):
            made.split(limit=limit)
    one_sided = Set()
    one_sided.patients(0, [1] * 10)
    one_sided.patients(1, [1] * 10)
    one_sided.patients(1, [1] * USABLE_VALIDATION, "val")
    with pytest.raises(DataError, match="the validation split has no NORMAL film"):
        one_sided.split()


# ------------------------------------------------------------------------------------------------------ split.csv

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n/"), min_size=1, max_size=12)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12)
# As a CSV file holds it: six digits.
SHARE = st.integers(0, 10**5).map(lambda n: n / 10**5)


@st.composite
def described(draw: st.DrawFn, columns: tuple[str, ...]) -> FilmFile:
    """All that a manifest can say of a film."""
    return FilmFile(
        path=f"train/{draw(NAMES)}",
        label=draw(st.integers(0, 1)),
        patient=draw(NAMES),
        folder=draw(st.sampled_from([TRAIN, "val", TEST])),
        site=draw(TEXT),
        source=draw(st.integers(0, 9)),
        patient_known=draw(st.booleans()),
        age=draw(st.none() | st.integers(0, 1300).map(lambda n: n / 10)),
        sex=draw(TEXT),
        view=draw(TEXT),
        licence=draw(TEXT),
        other=tuple((name, draw(TEXT)) for name in columns),
        boxes=tuple(draw(st.lists(st.builds(Box, SHARE, SHARE, SHARE, SHARE), max_size=3))),
    )


@given(st.data())
def test_split_csv_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    columns = tuple(data.draw(st.sampled_from([(), ("finding",), ("finding", "reader")])))
    films = data.draw(st.lists(described(columns), min_size=1, max_size=5))
    states = st.sampled_from([TRAIN, VALIDATION, TEST, LEFT_OUT, *LEFT_ASIDE])
    split = data.draw(st.lists(states, min_size=len(films), max_size=len(films)))
    path = tmp_path_factory.mktemp("split") / "split.csv"
    write_split(path, films, split)
    assert read_split(path) == (films, split)
    assert [p.name for p in path.parent.iterdir()] == ["split.csv"]


HEADER = b"path,label,patient,split,folder,site,source,patient_known,age,sex,view,licence,boxes\n"
ROW = b"train/NORMAL/a.png,NORMAL,a,train,train,here,0,0,,,,,\n"


def test_what_is_damaged_below_is_whole(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_bytes(HEADER + ROW)
    films = [FilmFile("train/NORMAL/a.png", 0, "a", TRAIN, "here")]
    assert read_split(tmp_path / "split.csv") == (films, [TRAIN])


@pytest.mark.parametrize(
    "damage",
    [
        None,
        b"",
        HEADER,
        b"path,label,patient\ntrain/NORMAL/a.png,NORMAL,a\n",
        HEADER + ROW.replace(b"NORMAL,a", b"SICK,a"),
        HEADER + ROW.replace(b"a,train,train", b"a,elsewhere,train"),
        HEADER + ROW.replace(b"here,0", b"here,first"),
        HEADER + ROW.replace(b",,,,,\n", b",old,,,,\n"),
        HEADER + ROW.replace(b",,,,,\n", b",,,,,0 0 1\n"),
        HEADER + ROW.replace(b",,,,,\n", b"\n"),
        HEADER + ROW + b"train/NO",
        HEADER + b",NORMAL\n",
        b"\xff\xfe\x00\x01",
        HEADER + b"x" * 200_000 + ROW,
    ],
)
def test_a_damaged_split_csv_is_a_sentence(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "split.csv"
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(RunError, match=r"split\.csv is missing or damaged: train again"):
        read_split(path)


# ------------------------------------------------------------------------------------------------ the real set


@pytest.fixture(scope="module")
def real() -> Set:
    if not REAL.is_dir():
        pytest.skip(f"no real films in {REAL}")
    gathered = gather([str(REAL)])
    hashes = [hashlib.sha256((gathered.roots[0] / f.path).read_bytes()).hexdigest() for f in gathered.films]
    return Set(list(gathered.films), hashes)


def test_the_real_set_has_the_films_that_its_readme_counts(real: Set) -> None:
    assert len(real.films) == 5840
    assert Counter(f.path.rsplit("/", 1)[0] for f in real.films) == {
        "train/NORMAL": 1341, "train/PNEUMONIA": 3875, "test/NORMAL": 234, "test/PNEUMONIA": 390,
    }  # fmt: skip
    kinds = Counter(kind for f in real.films for kind in ("bacteria", "virus") if f.folder == TRAIN and kind in f.path)
    assert kinds == {"bacteria": 2530, "virus": 1345}
    patients = {folder: {f.patient for f in real.films if f.folder == folder} for folder in (TRAIN, TEST)}
    assert {folder: len(names) for folder, names in patients.items()} == {TRAIN: 2846, TEST: 427}
    assert len(patients[TRAIN] & patients[TEST]) == 170
    copies = defaultdict(list)
    for content, film in zip(real.sha256, real.films, strict=True):
        copies[content].append(film.folder)
    groups = Counter(tuple(sorted(set(folders))) for folders in copies.values() if len(folders) > 1)
    assert groups == {(TRAIN,): 24, (TEST,): 6}  # 30 in all, none across


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nobody_of_the_real_set_stands_on_both_sides(real: Set, seed: int) -> None:
    split = real.split(seed)
    assert Counter(split)[TEST] == 624
    assert set(split) == {TRAIN, VALIDATION, TEST}
    for group in real.components():
        assert len(parts(split, group)) == 1
    for label, total in ((0, 1341), (1, 3875)):
        chosen = sum(part == VALIDATION and f.label == label for part, f in zip(split, real.films, strict=True))
        assert 0.08 <= chosen / total <= 0.12
    limited = real.split(seed, limit=100)
    assert 90 <= sum(part in {TRAIN, VALIDATION} for part in limited) <= 140


def test_a_set_without_val_and_test_can_be_split() -> None:
    made = big(16)
    without = replace(made, films=[f for f in made.films if f.folder == TRAIN])
    without.sha256 = made.sha256[: len(without.films)]
    assert set(without.split()) == {TRAIN, VALIDATION}
