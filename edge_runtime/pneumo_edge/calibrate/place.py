"""From a bundle and the films of a place to what fits there: the steps in the order in which they happen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from pneumo_edge.bundle import (
    LABELS,
    Bundle,
    Description,
    Interval,
    LocalSite,
    OperatingPoint,
)
from pneumo_edge.calibrate.films import LocalFilm, LocalFilms, patients_by_class
from pneumo_edge.calibrate.fit import (
    BALANCED,
    Answers,
    Before,
    Fit,
    Wish,
    Worth,
    area,
    cross_fit,
    fit,
    share_of,
    worth,
)
from pneumo_edge.calibrate.judge import FileAnswers, NewLimit, accepting, ask, runnable, withheld
from pneumo_edge.calibrate.measure import ece
from pneumo_edge.calibrate.plan import patients_for
from pneumo_edge.calibrate.platt import Floats, log_odds, moved, probabilities
from pneumo_edge.errors import DataError
from pneumo_edge.reference import make_reference

FEWEST = 5
"""Patients of each class without whom nothing is done."""
GROUP = 20
"""Films of each class that a group needs for results of its own."""
GOOD_ENOUGH = 0.8
"""Area under the ROC curve from which on discrimination is called excellent (Hosmer and Lemeshow, "Applied logistic
regression", 2nd edition 2000, chapter 5). A convention: no area says that a model does more good than harm."""
MARGIN = 0.05


@dataclass(frozen=True)
class GroupResult:
    """What the default operating point gives in a group of the films."""

    column: str
    value: str
    normal: int
    ill: int
    auc: Interval | None
    """None, as the two below, where it has fewer than `GROUP` films of a class."""
    sensitivity: Interval | None
    specificity: Interval | None


@dataclass(frozen=True)
class Result:
    """What came of a calibration. All figures come from films that have not taken part in choosing what they judge."""

    name: str
    films: tuple[LocalFilm, ...]
    """All of them; N below counts those that get a verdict."""
    description: Description
    """Of the new bundle."""
    file: str
    """The model file whose answers were used."""
    judged: npt.NDArray[np.int64]
    """(N,), places of the films with a verdict among all films."""
    answers: Answers
    """(N,)"""
    probabilities: Floats
    """(N,), cross-fitted, at the prevalence of the films."""
    called: dict[str, npt.NDArray[np.bool_]]
    """Operating point -> (N,), cross-fitted."""
    fit: Fit
    worths: dict[str, Worth]
    auc: Interval
    ece_before: float
    """As the bundle was."""
    ece_moved: float
    """As the bundle was, told the prevalence of the films."""
    ece_after: float
    """Cross-fitted."""
    before: Before
    groups: tuple[GroupResult, ...]
    withheld: dict[int, str]
    """Place among all films -> why it gets no verdict."""
    unreadable: dict[int, str]
    limits: dict[str, NewLimit]
    """File -> its new limit of novelty; empty where it was not to be moved."""
    not_run: tuple[str, ...]
    """Files whose engine is not installed here."""
    remarks: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Whether the model may be used here, in one sentence."""
        auc = self.auc
        figures = f"AUC {auc.value:.2f} ({auc.low:.2f} to {auc.high:.2f})"
        if auc.low >= GOOD_ENOUGH:
            return f"{figures}: it tells pneumonia from normal well enough here to be tried, under supervision."
        if auc.high < GOOD_ENOUGH:
            return f"{figures}: surely below {GOOD_ENOUGH}, which is not good enough: do not use it here."
        return (
            f"{figures}: these films cannot tell whether it reaches {GOOD_ENOUGH}: collect more before anybody uses it "
            "here."
        )


def calibrate(
    bundle: Bundle,
    found: LocalFilms,
    name: str,
    wishes: Mapping[str, Wish],
    *,
    prevalence: float | None = None,
    accept_films: bool = False,
) -> Result:
    """Judges the films of a place and fits a bundle to them.

    Args:
        bundle: As it was exported, or calibrated before: then what it was before that is the start again, so that no
            film counts twice.
        found: The films.
        name: Of the place.
        wishes: Operating point -> what it is to do; `balanced` among them.
        prevalence: Share of films with pneumonia where the model is to be used; that of the films by default.
        accept_films: Move the limit of novelty so that these films get verdicts.

    Raises:
        DataError: Too few films or patients of a class, or the model does no better than chance on them.
    """
    _check_enough(found.films, "")
    files = runnable(bundle)
    answers = {file: ask(bundle, file, found.films) for file in files}
    file = files[0]
    limits = {each: accepting(bundle, each, answers[each]) for each in files} if accept_films else {}
    own = answers[file]
    limit = limits[file].limit if limits else bundle.description.files[file].novelty_limit
    silent = withheld(own, limit)
    judged = np.array([i for i in range(len(found.films)) if i not in silent and i not in own.errors], np.int64)
    _check_enough([found.films[i] for i in judged], " that get a verdict")
    kept = Answers(
        np.array([found.films[i].label for i in judged], np.int64),
        own.logits[judged],
        tuple(found.films[i].patient for i in judged),
    )
    auc = area(kept)
    if auc.low <= 0.5:
        raise DataError(
            f"AUC {auc.value:.2f} ({auc.low:.2f} to {auc.high:.2f}): on these films the model cannot be told from "
            "chance: do not use it here, or look whether the labels are right"
        )
    before = start_of(bundle.description)
    fitted = fit(kept, before, wishes, prevalence)
    p, called = cross_fit(kept, before, wishes, prevalence)
    share = float(kept.labels.mean())
    worths = {each: worth(kept, called[each], fitted.calibration.prevalence) for each in wishes}
    description = _describe(bundle.description, fitted, worths, answers, limits, found, judged, name, auc, before)
    return Result(
        name=name,
        films=found.films,
        description=description,
        file=file,
        judged=judged,
        answers=kept,
        probabilities=p,
        called=called,
        fit=fitted,
        worths=worths,
        auc=auc,
        ece_before=_ece(kept, probabilities(kept.logits, before.calibration)),
        ece_moved=_ece(kept, probabilities(kept.logits, moved(before.calibration, share))),
        ece_after=_ece(kept, p),
        before=before,
        groups=tuple(_groups(found.films, judged, kept, called[description.default_operating_point])),
        withheld=silent,
        unreadable=own.errors,
        limits=limits,
        not_run=tuple(each for each in bundle.description.files if each not in answers),
        remarks=found.remarks + tuple(_warnings(found, kept)),
    )


def start_of(description: Description) -> Before:
    """Returns what a bundle said when it was exported: the start of every calibration."""
    site = description.site
    calibration = description.calibration if site is None else site.was
    points = description.operating_points if site is None else site.was_operating_points
    return Before(
        calibration,
        {name: (log_odds(point.threshold) - calibration.offset) / calibration.scale for name, point in points.items()},
    )


def _check_enough(films: list[LocalFilm] | tuple[LocalFilm, ...], which: str) -> None:
    for label, patients in zip(LABELS, patients_by_class(films), strict=True):
        if patients < FEWEST:
            raise DataError(
                f"too few films: {patients} patients with {label} films{which}, {FEWEST} of each label are the least, "
                "and many more are wanted: see pneumo-calibrate --plan"
            )


def _warnings(found: LocalFilms, kept: Answers) -> list[str]:
    said = []
    if not found.patients_known:
        said.append(
            "No film names its patient: each stands for a patient of its own. Where some are of one patient, all "
            "intervals are too narrow: give a manifest with a column patient."
        )
    wanted = patients_for(0.95, MARGIN)
    for label, what in ((1, "sensitivity"), (0, "specificity")):
        people = kept.people(label)
        if people < wanted:
            said.append(
                f"Few films: {people} patients with {LABELS[label]} films; to know a {what} of 95 % to within "
                f"{100 * MARGIN:g} points takes {wanted}."
            )
    said.append(
        "Whether the model has learned from some of these films cannot be known: its bundle keeps no hashes of the "
        "films of its training. If it has, all figures here are too good."
    )
    return said


def _ece(answers: Answers, p: Floats) -> float:
    return float(ece(answers.labels.astype(np.float64), p, np.ones((1, len(p))))[0])


def _groups(
    films: tuple[LocalFilm, ...], judged: npt.NDArray[np.int64], answers: Answers, called: npt.NDArray[np.bool_]
) -> list[GroupResult]:
    results = []
    columns = dict.fromkeys(column for film in films for column in film.groups)
    for column in columns:
        values = np.array([films[i].groups.get(column, "") for i in judged])
        for value in sorted(set(values.tolist()) - {""}):
            here = values == value
            part, names = answers.part(here), np.array(answers.patients)
            normal, ill = (int((part.labels == label).sum()) for label in (0, 1))
            measured: list[Interval | None] = [None] * 3
            if min(normal, ill) >= GROUP:
                sick, well = here & (answers.labels == 1), here & (answers.labels == 0)
                measured = [
                    area(part),
                    share_of(called[sick], names[sick].tolist()),
                    share_of(~called[well], names[well].tolist()),
                ]
            results.append(GroupResult(column, value, normal, ill, *measured))
    return results


def _describe(
    old: Description,
    fitted: Fit,
    worths: Mapping[str, Worth],
    answers: Mapping[str, FileAnswers],
    limits: Mapping[str, NewLimit],
    found: LocalFilms,
    judged: npt.NDArray[np.int64],
    name: str,
    auc: Interval,
    before: Before,
) -> Description:
    files = {}
    for file, stated in old.files.items():
        reference = None
        if file in answers:
            # All films that could be read: those that get no verdict, too, are what will come.
            read = np.isfinite(answers[file].logits)
            reference = make_reference(
                answers[file].logits[read], answers[file].novelty[read], answers[file].contrast[read], [""] * read.sum()
            )
        limit = limits[file].limit if file in limits else stated.novelty_limit
        files[file] = replace(stated, reference=reference, novelty_limit=limit)
    points = old.operating_points if old.site is None else old.site.was_operating_points
    site = LocalSite(
        name=name,
        films=dict(Counter(LABELS[found.films[i].label] for i in judged)),
        patients=len({found.films[i].patient for i in judged}),
        prevalence=fitted.calibration.prevalence,
        calibrated=datetime.now(UTC).date().isoformat(),
        was=before.calibration,
        was_operating_points=dict(points),
        auc=auc,
    )
    return replace(
        old,
        calibration=fitted.calibration,
        operating_points={
            each: OperatingPoint(fitted.threshold(each), worths[each].sensitivity, worths[each].specificity)
            for each in worths
        },
        default_operating_point=old.default_operating_point if old.default_operating_point in worths else BALANCED,
        files=files,
        site=site,
    )
