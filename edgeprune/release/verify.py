"""Verify a bundle: it is what was sealed, and it computes what was recorded. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import EdgepruneError
from edgeprune.gates.judging import judge
from edgeprune.gates.parity import parity_evidence, read_parity
from edgeprune.gates.verdict import Outcome, Verdict, exit_code
from edgeprune.measure.trial import require_loadable
from edgeprune.planning.plan import read_plan
from edgeprune.recipe.onnx_file import read_model
from edgeprune.release.bundle import Bundle, open_bundle
from edgeprune.release.differences import differences

_MODEL, _PARITY, _PLAN = "model.onnx", "parity.npz", "plan.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The bundle with the verdicts `files`, `plan` and `parity` on it."""

    bundle: Bundle
    verdicts: tuple[Verdict, ...]

    @property
    def outcome(self) -> Outcome:
        """Whether the bundle is as it was made."""
        outcomes = {verdict.outcome for verdict in self.verdicts}
        if "fail" in outcomes:
            return "fail"
        return "inconclusive" if "inconclusive" in outcomes else "pass"

    @property
    def exit_code(self) -> int:
        """1 if it is not as it was made; else what its own gates said when it was made."""
        return exit_code(self.verdicts) or self.bundle.exit_code


def verify(path: Path) -> Verification:
    """Check hashes and sizes of all files, read the plan, and replay parity.npz on model.onnx.

    A pruned model in the report must be there, with its plan and its parity record.
    Raises UsageError for a folder that is no bundle of ours. What is changed, missing or new (a
    file, a folder, a link) is a failed verdict, and one damage does not hide another.
    """
    bundle = open_bundle(path)
    files = _files(bundle)
    names = {entry.name for entry in bundle.manifest.files}
    verdicts = [files]
    if _PLAN in names:
        verdicts.append(_plan(path / _PLAN))
    if {_MODEL, _PARITY} <= names:
        verdicts += _parity(path, _limit_of(bundle))
    return Verification(bundle=bundle, verdicts=tuple(verdicts))


def _files(bundle: Bundle) -> Verdict:
    count = len(bundle.manifest.files)
    said = f"{count} files with the sizes and hashes of the manifest"
    return _verdict("files", list(differences(bundle)), count, said)


def _plan(path: Path) -> Verdict:
    try:
        plan = read_plan(path.read_text(encoding="utf-8"), where=str(path))
    except (OSError, UnicodeDecodeError, EdgepruneError) as error:
        return _verdict("plan", [str(error)], 1, "")
    return _verdict("plan", [], len(plan.groups), f"{len(plan.groups)} groups, readable")


def _limit_of(bundle: Bundle) -> float | None:
    """The limit of parity that the bundle was judged by when it was made; None: it was not."""
    limits = [row.limit for row in bundle.report.verdicts if row.gate == "parity"]
    return limits[0] if limits else None


def _parity(path: Path, limit: float | None) -> tuple[Verdict, ...]:
    try:
        read_model(path / _MODEL)
        require_loadable(path / _MODEL)
        return judge(parity_evidence(path / _MODEL, read_parity(path / _PARITY), limit=limit))
    except EdgepruneError as error:
        return (_verdict("parity", [str(error)], 1, ""),)


def _verdict(gate: str, problems: list[str], count: int, said: str) -> Verdict:
    return Verdict(
        gate=gate,
        outcome="fail" if problems else "pass",
        observed=float(len(problems)),
        limit=0.0,
        unit="differences",
        interval=None,
        count=count,
        why="; ".join(problems) or said,
    )
