"""Evaluations under way: what is measured is kept, so that an interrupted one can go on."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pathways
from pathways.runs import GENERATOR, PARTIAL_EVALUATION, Run, read_json, write_json
from pathways.training.data import Images


class PartialEvaluation:
    """Reports of the methods measured so far, in ``evaluation.partial.json`` until all are.

    An earlier ``evaluation.json`` stays as it is until then.

    Args:
        folder (path): where the results go.
        settings (dict): what the figures depend on; JSON-able.
        resume (bool): keep what is there.
        overwrite (bool): start anew in the place of what is there.

    Attributes:
        methods (dict): by name, :func:`pathways.measuring.method_report` of every measured method.

    Raises:
        FileExistsError: something is there, with neither ``resume`` nor ``overwrite``.
        ValueError: to resume from, what is there is damaged or was made with other settings.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.file = folder / PARTIAL_EVALUATION
        self.settings = dict(settings)
        self.methods: dict[str, Any] = {}
        if overwrite or not self.file.is_file():
            return
        if not resume:
            raise FileExistsError(
                f"{self.file} has what an interrupted evaluation measured; go on with --resume, or "
                "start anew with --overwrite"
            )
        self.methods = self._read()

    def add(self, name: str, report: dict[str, Any]) -> None:
        """Keep a method's report."""
        self.methods[name] = report
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, {"settings": self.settings, "methods": self.methods})

    def finish(self, names: Collection[str]) -> None:
        """Remove the file: these reports are where they belong. It stays if it has others too."""
        if set(self.methods) <= set(names):
            self.file.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        found = read_json(self.file)
        if not _is_partial(found):
            raise ValueError(f"{self.file} is damaged; start anew with --overwrite")
        settings = found["settings"]
        for name in [*self.settings, *settings]:
            if settings.get(name) != self.settings.get(name):
                raise ValueError(
                    f"{self.file} was made with {name} = {settings.get(name)!r}, not "
                    f"{self.settings.get(name)!r}; start anew with --overwrite, or name another "
                    "folder"
                )
        methods: dict[str, Any] = found["methods"]
        return methods


def _is_partial(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("settings"), dict):
        return False
    methods = value.get("methods")
    return isinstance(methods, dict) and all(
        isinstance(report, dict) and isinstance(report.get("metrics"), dict)
        for report in methods.values()
    )


def settings_of(run: Run, images: Images, **settings: Any) -> dict[str, Any]:
    """What the figures of a run's evaluation depend on, with digests of generator and data."""
    labels = images.test_labels.contiguous().numpy().tobytes()
    return {
        "version": pathways.__version__,
        "fingerprint": run.description.fingerprint,
        "generator": hashlib.sha256((run.path / GENERATOR).read_bytes()).hexdigest(),
        "images": images.digest(),
        "labels": hashlib.sha256(labels).hexdigest(),
        **settings,
    }
