"""Runs a measurement in a process of its own: the job is JSON on stdin, the answer the last line of stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any


def ask(module: str, job: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runs a module in a fresh process and returns its answer, or `{"error": one sentence}`.

    Args:
        module: Name of the module; run as a script, it calls `answer`.
        job: Arguments of the function that measures, as JSON can hold them.
        environment: Variables to add to the environment of this process.
    """
    done = subprocess.run(  # noqa: S603 - our own module and interpreter
        [sys.executable, "-m", module],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | dict(environment or {}),
    )
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        return {"error": f"its process ended with {done.returncode}: {last[:300]}"}
    return found


def answer(measure: Callable[..., dict[str, Any]]) -> None:
    """Does the job on stdin. An error is an answer too."""
    job = json.load(sys.stdin)
    try:
        found = measure(**job)
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        found = {"error": reason.splitlines()[0][:300]}
    # Libraries may have printed something before.
    print("\n" + json.dumps(found), flush=True)
