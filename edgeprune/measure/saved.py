"""Samples on disk: what `bench --save` writes on a device and `check --import` reads here.

Also the CSV of ONNX Runtime's own `onnxruntime_perf_test`, which has no header: model, seconds,
peak bytes, CPU share, number of the run.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeprune.errors import DataError
from edgeprune.measure.lineup import Lineup
from edgeprune.measure.machine import MachineState
from edgeprune.measure.samples import PairedSamples, Samples
from edgeprune.measure.settings import Settings

_COLUMNS = 5
_UNKNOWN = MachineState(cpu_model="unknown", arch="", cores=1, load_average=None, governor=None)


class SavedModel(BaseModel):
    """One model's samples, a process each; `name` is that of the file, of a CSV its path."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    samples: tuple[Samples, ...] = Field(min_length=1)


class Saved(BaseModel):
    """A measurement as a file: whose, where, how; entry r of all models is one round."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    saved_by: Literal["edgeprune bench"] = "edgeprune bench"
    version: Literal[1] = 1
    isa: tuple[str, ...] = ()
    threads: int = Field(ge=1)
    batch: int = Field(ge=1)
    settings: Settings
    before: MachineState
    after: MachineState
    models: tuple[SavedModel, ...] = Field(min_length=1)


def saved_text(lineup: Lineup, isa: Sequence[str]) -> str:
    """A measurement as JSON, with the instruction sets of the machine that it was made on."""
    saved = Saved(
        isa=tuple(isa),
        threads=lineup.threads,
        batch=lineup.batch,
        settings=lineup.settings,
        before=lineup.before,
        after=lineup.after,
        models=tuple(
            SavedModel(name=model.name, samples=samples)
            for model, samples in zip(lineup.models, lineup.samples, strict=True)
        ),
    )
    return saved.model_dump_json(indent=1) + "\n"


def read_saved(path: Path) -> Saved:
    """A measurement from a file: ours by its content, else a CSV of onnxruntime_perf_test.

    Raises DataError for a file that is neither, or is not whole.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, str(error)) from error
    if text.lstrip().startswith("{"):
        try:
            saved = Saved.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise _unreadable(path, f"{where}: {first['msg']}") from error
        return _whole(path, saved)
    return _whole(path, _from_csv(path, text))


def _whole(path: Path, saved: Saved) -> Saved:
    counts = {len(model.samples) for model in saved.models}
    empty = [m.name for m in saved.models if not all(s.times_ms for s in m.samples)]
    times = [t for m in saved.models for s in m.samples for t in s.times_ms]
    if len(counts) > 1 or empty or min(times) <= 0:
        got = f"{sorted(counts)} rounds" if len(counts) > 1 else "a process without a time above 0"
        raise _unreadable(path, f"expected as many whole rounds of every model, got {got}")
    return saved


def _from_csv(path: Path, text: str) -> Saved:
    """Rows by model; a run number that does not rise begins another process."""
    processes: dict[str, list[list[float]]] = {}
    last: dict[str, int] = {}
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        if not row:
            continue
        try:
            if len(row) != _COLUMNS:
                raise ValueError(f"{len(row)} columns")
            # The whole path: two files of one name are two models.
            name = PureWindowsPath(row[0].strip()).as_posix()
            seconds, run = float(row[1]), int(row[4])
            if not math.isfinite(seconds):
                raise ValueError(f"{seconds} seconds")
        except ValueError as error:
            what = f"line {number}: expected model, seconds, peak bytes, CPU share, run; {error}"
            raise _unreadable(path, what) from error
        piles = processes.setdefault(name, [])
        if not piles or run <= last[name]:
            piles.append([])
        last[name] = run
        piles[-1].append(seconds * 1e3)
    if not processes:
        raise _unreadable(path, "no row")
    return Saved(
        threads=1,
        batch=1,
        settings=Settings(),
        before=_UNKNOWN,
        after=_UNKNOWN,
        models=tuple(
            SavedModel(name=name, samples=tuple(map(_process, piles)))
            for name, piles in processes.items()
        ),
    )


def _process(times_ms: list[float]) -> Samples:
    """onnxruntime_perf_test tells no hash, no times to load and begin, no memory: "" and 0."""
    return Samples(
        model_sha256="",
        times_ms=tuple(times_ms),
        load_ms=0.0,
        first_ms=0.0,
        peak_rss_mib=0.0,
        onnxruntime="unknown",
    )


def paired_of(
    saved: Saved, path: Path, candidate: tuple[str, str], baseline: tuple[str, str] | None
) -> PairedSamples:
    """The samples of two files, each given as (name, sha256); by hash where the file has hashes.

    Raises DataError where a model was not measured, or another file of its name was.
    """
    first = () if baseline is None else _find(saved, path, *baseline)
    second = _find(saved, path, *candidate)
    if baseline is not None and first is second and baseline[1] != candidate[1]:
        raise DataError(
            f"reading measurements at {path}: expected samples of both files, got one row of names "
            f"for the two files called {candidate[0]}. Rename one of them and measure again.",
            where=str(path),
        )
    return PairedSamples(
        baseline=first,
        candidate=second,
        baseline_first=(),
        settings=saved.settings,
        threads=saved.threads,
        batch=saved.batch,
        before=saved.before,
        after=saved.after,
    )


def _find(saved: Saved, path: Path, name: str, sha256: str) -> tuple[Samples, ...]:
    for model in saved.models:
        if all(samples.model_sha256 == sha256 for samples in model.samples):
            return model.samples
    named = [m for m in saved.models if PurePosixPath(m.name).name in (name, Path(name).stem)]
    if any(samples.model_sha256 for model in named for samples in model.samples):
        raise DataError(
            f"reading measurements at {path}: expected samples of this very {name}, got those "
            f"of another file of that name. Measure the file that is to be shipped.",
            where=str(path),
        )
    if len(named) > 1:
        raise DataError(
            f"reading measurements at {path}: expected samples of one {name}, got those of "
            f"{' and '.join(model.name for model in named)}. Keep the rows of the right one.",
            where=str(path),
        )
    if named:
        return named[0].samples
    known = ", ".join(model.name for model in saved.models)
    raise DataError(
        f"reading measurements at {path}: expected samples of {name}, got {known}. Measure it on "
        f"the device with edgeprune bench --save.",
        where=str(path),
    )


def _unreadable(path: Path, got: str) -> DataError:
    return DataError(
        f"reading measurements at {path}: expected a file of edgeprune bench --save, or a CSV of "
        f"onnxruntime_perf_test, got: {got}. Measure again.",
        where=str(path),
    )
