"""What has been measured so far, in one JSON file that is written after every result."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import edgeprune
from edgeprune.measure.machine import machine_state

PACKAGES = ("torch", "onnx", "onnxruntime", "numpy", "torch-pruning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One variant at one seed. Accuracies and the drop are shares of the test images.

    drop_interval: 95 % paired interval of the drop (Newcombe 1998). speedup: dense / variant, with
    its 95 % interval over `pairs` paired runs. seconds: pruning and training, not the search for
    a width nor the measuring. failed: why there is no result, None if there is one.
    """

    variant: str
    seed: int
    accuracy: float | None = None
    drop: float | None = None
    drop_interval: tuple[float, float] | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    pairs: int | None = None
    params: int | None = None
    macs: int | None = None
    size_bytes: int | None = None
    seconds: float | None = None
    note: str = ""
    failed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A width tried by a search: `amount` is what the variant is cut by, speedup was measured."""

    amount: float
    macs: int
    speedup: float


class Ledger:
    """Results and searches, kept in `path`; a file made under other settings is refused."""

    def __init__(self, path: Path, settings: dict[str, str | int | float]) -> None:
        """Read the file if there is one. Raises SystemExit when it does not belong here."""
        self._path = path
        self._settings = settings
        self.results: list[Result] = []
        self.searches: dict[str, list[Candidate]] = {}
        if path.is_file():
            self._read()

    def _read(self) -> None:
        held = json.loads(self._path.read_text(encoding="utf-8"))
        changed = [k for k, v in self._settings.items() if held["settings"].get(k) != v]
        if changed:
            raise SystemExit(
                f"going on with {self._path} failed at {', '.join(changed)}: expected results of "
                f"the same settings, got others. Name another file with --out, or remove this one."
            )
        self.results = [
            Result(**{**row, "drop_interval": _pair(row["drop_interval"])})
            for row in held["results"]
        ]
        self.searches = {
            name: [Candidate(**row) for row in rows] for name, rows in held["searches"].items()
        }

    def find(self, variant: str, seed: int) -> Result | None:
        """The result of a variant at a seed, if it has been measured."""
        found = (r for r in self.results if (r.variant, r.seed) == (variant, seed))
        return next(found, None)

    def add(self, result: Result) -> None:
        """Keep a result, in place of an older one of the same variant and seed, and save."""
        same = (result.variant, result.seed)
        self.results = [r for r in self.results if (r.variant, r.seed) != same] + [result]
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        document = {
            "schema": 1,
            **environment(),
            "settings": self._settings,
            "searches": {name: [asdict(c) for c in rows] for name, rows in self.searches.items()},
            "results": [asdict(result) for result in self.results],
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f"{self._path.name}.part")
        draft.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        draft.replace(self._path)


def environment() -> dict[str, object]:
    """Date, versions and machine, for the head of a results file."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": _versions(),
        "machine": _machine(),
    }


def _pair(values: list[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


def _versions() -> dict[str, str]:
    versions = {"edgeprune": edgeprune.__version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _machine() -> dict[str, str | int | None]:
    state = machine_state()
    return {
        "cpu": state.cpu_model,
        "arch": state.arch,
        "cores": state.cores,
        "governor": state.governor,
    }
