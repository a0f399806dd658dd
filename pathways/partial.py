"""Evaluations under way: what is measured is kept, so that an interrupted one can go on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathways.runs import GENERATOR, Run, read_json, write_json
from pathways.training.data import Images

PARTIAL = "evaluation.partial.json"
FORMAT_VERSION = 1


class PartialEvaluation:
    """Reports of the methods measured so far, in ``evaluation.partial.json`` until all are.

    An earlier ``evaluation.json`` stays as it is until then.

    Args:
        folder (path): where the results go.
        settings (dict): what the figures depend on; JSON-able.
        resume (bool): keep what is there, instead of starting anew.

    Attributes:
        methods (dict): report (:func:`pathways.pipeline.report`) of every measured method by name.

    Raises:
        ValueError: with ``resume``, what is there is damaged or was made with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool = False) -> None:
        self.file = folder / PARTIAL
        self.settings = {"format_version": FORMAT_VERSION, **settings}
        self.methods: dict[str, Any] = {}
        if resume and self.file.is_file():
            self.methods = self._read()

    def add(self, name: str, report: dict[str, Any]) -> None:
        """Keep a method's report."""
        self.methods[name] = report
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, {"settings": self.settings, "methods": self.methods})

    def finish(self) -> None:
        """Remove the file: the results are where they belong."""
        self.file.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        found = read_json(self.file)
        found = found if isinstance(found, dict) else {}
        settings, methods = found.get("settings"), found.get("methods")
        if not (isinstance(settings, dict) and isinstance(methods, dict)):
            raise ValueError(f"{self.file} is damaged; start anew without --resume")
        for name in [*self.settings, *settings]:
            if settings.get(name) != self.settings.get(name):
                raise ValueError(
                    f"{self.file} was made with {name} = {settings.get(name)!r}, not "
                    f"{self.settings.get(name)!r}; start anew without --resume"
                )
        return methods


def settings_of(run: Run, images: Images, **settings: Any) -> dict[str, Any]:
    """What the figures of a run's evaluation depend on, with digests of generator and images."""
    return {
        "fingerprint": run.description.fingerprint,
        "generator": hashlib.sha256((run.path / GENERATOR).read_bytes()).hexdigest(),
        "data": images.digest(),
        **settings,
    }
