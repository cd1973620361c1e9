"""Every error that pneumo raises on purpose.

    PneumoError
    ├── ImageError         this picture cannot be read, or is nothing we can judge
    ├── BundleError        this model folder is broken, incomplete or not ours
    ├── DataError          this folder of films cannot be trained on or measured with
    ├── RunError           this training run cannot be resumed, exported or measured
    ├── MissingExtraError  a package of an optional extra is not installed
    ├── PassingError       the machine is not ready: a full disk, an address that is not there yet
    └── UsageError         options that contradict each other or ask for what is not there

Each message is one sentence (or two) that names the file and the remedy: the commands print it as it is.
"""

from __future__ import annotations


class PneumoError(Exception):
    """Base of all errors that a user can mend. A command that one ends exits with 2, but for `PassingError`."""


class ImageError(PneumoError):
    """A picture that cannot be read or judged. One bad picture does not stop the others."""


class BundleError(PneumoError):
    """A model folder that is broken, incomplete or of another format version."""


class DataError(PneumoError):
    """A folder of films that cannot be trained on or measured with."""


class RunError(PneumoError):
    """A training run that cannot be resumed, exported or measured."""


class MissingExtraError(PneumoError):
    """A package that an optional extra brings is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        # What is pickled are the arguments: an error must come out of another process as it went in.
        super().__init__(package, extra, purpose)

    def __str__(self) -> str:
        package, extra, purpose = self.args
        return f"{purpose} needs the package {package}: pip install 'pneumo[{extra}]'"


class PassingError(PneumoError):
    """What may pass without a change of the options. A command that one ends exits with 1: it may be tried again."""


class UsageError(PneumoError):
    """Options that contradict each other or ask for what is not there."""


def one_line(error: Exception) -> str:
    """Returns what a library says of a failure, in one line: the rest is a dump that helps nobody at a terminal."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
