"""Copies the int8 files of a bundle into the package, as the model that comes with pneumo.

python -m pneumo_export.default_model BUNDLE
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

from pneumo_edge.atomic import replacing_folder, write_text
from pneumo_edge.bundle import DEFAULT_BUNDLE, Description, read_bundle, write_description
from pneumo_edge.errors import PneumoError, UsageError
from pneumo_train.backbones import find_backbone


def install(bundle_folder: Path, target: Path = DEFAULT_BUNDLE) -> None:
    """Writes a bundle with the int8 files alone, and a NOTICE on data and weights.

    Raises:
        BundleError: The bundle is broken.
        UsageError: It has no int8 file, or was trained on phantoms.
    """
    bundle = read_bundle(bundle_folder)
    description = bundle.description
    if "phantom" in description.provenance.data:
        raise UsageError(f"{bundle_folder} was trained on phantoms: give a bundle that has learned from real films")
    small = {name: file for name, file in description.files.items() if file.precision == "int8"}
    if not small:
        raise UsageError(f"{bundle_folder} has no int8 file: export the run with --int8")
    with replacing_folder(target) as folder:
        for name in small:
            (folder / name).write_bytes(bundle.read_file(name))
        write_description(folder, dataclasses.replace(description, files=small))
        for name in ("parity.json", "MODEL_CARD.md"):
            shutil.copy(bundle_folder / name, folder / name)
        write_text(
            folder / "NOTICE",
            f"{description.name}, trained by the pneumo project on {description.provenance.trained}.\n\n"
            f"Data: {description.provenance.data}. No film is part of this package.\n"
            f"Started from: {description.provenance.weights}. {find_backbone(description.backbone).licence}\n"
            f"{_terms(description)}\n"
            "For education and research. Not a diagnosis.\n",
        )


def _terms(description: Description) -> str:
    """Returns under what terms the model files may be used: those of the films hold for what has learned from them."""
    licence = description.provenance.licence
    if not licence:
        return "The model files are licensed under the Apache License, Version 2.0."
    return (
        f"Terms: {licence}.\n"
        "A model that was trained on films for non-commercial research and education is for that alone. The code of "
        "pneumo is licensed under the Apache License, Version 2.0."
    )


if __name__ == "__main__":
    try:
        install(Path(sys.argv[1]))
    except (IndexError, PneumoError) as error:
        sys.exit(str(error) if isinstance(error, PneumoError) else __doc__)
