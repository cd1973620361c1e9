"""Every error that pneumo raises on purpose.

    PneumoError
    ├── ImageError         this picture cannot be read or judged
    ├── BundleError        this model folder is broken, incomplete or no bundle
    ├── DataError          this folder of films cannot be trained on or measured with
    ├── RunError           this training run cannot be resumed, exported or measured
    ├── MissingExtraError  a package of an optional extra is not installed
    ├── PassingError       the machine is not ready now: a full disk, an address that it does not have yet
    └── UsageError         options that contradict each other or name what does not exist

Each message is one sentence (or two) that names the file and the remedy: the commands print it as it is.
"""

from __future__ import annotations


class PneumoError(Exception):
    """Base of all errors that a user can mend. A command that ends with one exits with 2; see `PassingError`."""


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
        # Pickle keeps the arguments: with these, the error comes out of another process as it went in.
        super().__init__(package, extra, purpose)

    def __str__(self) -> str:
        package, extra, purpose = self.args
        return f"{purpose} needs the package {package}: pip install 'pneumo[{extra}]'"


class PassingError(PneumoError):
    """A fault that may pass while the options stay the same. A command that ends with one exits with 1."""


class UsageError(PneumoError):
    """Options that contradict each other or name what does not exist."""


def one_line(error: Exception) -> str:
    """Returns the first line of an error message of a library, at most 200 characters of it."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
