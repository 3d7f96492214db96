"""Device profiles: what a target's TOML file may say, and how one is found and read.

A target is a name of a shipped profile (`targets/*.toml`) or the path of a `.toml` file.
Only `status` must be given; every section and key has a default or may be absent (None).
Keys carry their unit in the name, an unknown key is an error, and every `status` except
`generic` must name its `sources`.
"""

from __future__ import annotations

import difflib
import json
import os
import platform
import sys
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from edgeprune.errors import EnvironmentFailed, UsageError
from edgeprune.recipe.complaint import complaints

CPU_PROVIDER = "CPUExecutionProvider"

Status = Literal["measured", "emulated", "facts", "generic"]


def _as_pairs(value: object) -> object:
    """A TOML table as sorted pairs: hashable, frozen, and the same for the same table."""
    return tuple(sorted(value.items())) if isinstance(value, Mapping) else value


# Not strict about the container: TOML has lists, and a frozen section keeps tuples.
AnyList = Field(strict=False)
Names = Annotated[tuple[str, ...], AnyList]
Pair = Annotated[tuple[str, str], AnyList]
SessionOptions = Annotated[tuple[Pair, ...], AnyList, BeforeValidator(_as_pairs)]


class Section(BaseModel):
    """A frozen part of a target; unknown keys and values of another type are errors."""

    # Strict, as recipes are: `threads = true` is a mistake, not 1. 3 is a number of ms, though.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Cluster(Section):
    """Cores of one kind. Sizes of caches in KiB, clock in MHz."""

    core: str
    count: PositiveInt
    mhz: PositiveInt | None = None
    l1_kib: PositiveInt | None = None
    l2_kib: PositiveInt | None = None
    l3_kib: PositiveInt | None = None


class Cpu(Section):
    """The processor: architecture, instruction sets and clusters of cores."""

    arch: str | None = Field(default=None, description="As `uname -m` says: x86_64, aarch64.")
    isa: Names = Field(
        default=(), description="Instruction sets it has, by the names of /proc/cpuinfo."
    )
    isa_absent: Names = Field(
        default=(), description="Instruction sets it lacks: a processor with one is another target."
    )
    clusters: Annotated[tuple[Cluster, ...], AnyList] = ()


class Memory(Section):
    """Main memory in MiB."""

    ram_mib: PositiveInt | None = None


class OperatingSystem(Section):
    """The system the device runs."""

    name: str | None = Field(default=None, description="linux, ...: another is not measured.")
    version: str | None = None


def _as_range(value: str | None) -> str | None:
    try:
        SpecifierSet(value or "")
    except InvalidSpecifier:
        raise ValueError("a range of versions, such as '>=1.20,<2'") from None
    return value


class Runtime(Section):
    """How ONNX Runtime is to be run on the device."""

    onnxruntime: Annotated[str | None, AfterValidator(_as_range)] = Field(
        default=None,
        description="Range of ONNX Runtime versions, such as '>=1.20,<2': others are not measured.",
    )
    max_opset: PositiveInt | None = Field(
        default=None, description="Highest ONNX operator set that the device's runtime takes."
    )
    ep: str = Field(default=CPU_PROVIDER, description="Execution provider; the CPU's is measured.")
    format: Literal["onnx", "ort"] = Field(
        default="onnx", description="What the device loads; builds are onnx, ort is not measured."
    )
    threads: PositiveInt = Field(default=1, description="Threads within an operator, from 1.")
    batch: PositiveInt = Field(default=1, description="Samples per inference, from 1.")
    affinity: str | None = Field(
        default=None, description="Cores to run on, which are not chosen here: not measured."
    )
    session_options: SessionOptions = Field(
        default=(), description="Table of ONNX Runtime's own session entries, passed on unchanged."
    )


class Operators(Section):
    """What the device's runtime takes: `Conv`, or `com.microsoft.FusedConv` with its domain."""

    allowed: Names | None = Field(
        default=None, description="The only operators it has; absent: every one of ONNX."
    )
    denied: Names = Field(default=(), description="Operators it has not.")


class Quant(Section):
    """What int8 looks like on the device: for people, builds are in floating point."""

    scheme: Literal["u8s8", "s8s8", "u8u8"] | None = None
    reduce_range: bool = False
    per_channel: bool = True


class Pruning(Section):
    """Widths the device likes."""

    channel_multiple: PositiveInt = Field(
        default=1, description="Kept channels are a multiple of this many, from 1."
    )
    depthwise_multiple: PositiveInt = Field(
        default=4,
        description="Channels of depthwise convolutions are a multiple of this many: off 4, ONNX "
        "Runtime leaves its blocked path.",
    )


class TargetBudget(Section):
    """Limits that come with the device; each holds where a recipe or a call sets none."""

    p50_ms: PositiveFloat | None = Field(default=None, description="Median latency, ms.")
    p90_ms: PositiveFloat | None = Field(default=None, description="90th percentile, ms.")
    first_ms: PositiveFloat | None = Field(default=None, description="First inference, ms.")
    load_ms: PositiveFloat | None = Field(default=None, description="Making a session, ms.")
    peak_rss_mib: PositiveFloat | None = Field(
        default=None, description="Largest resident size of the process that runs it, MiB."
    )
    model_mib: PositiveFloat | None = Field(default=None, description="The file, MiB.")
    regression_pct: PositiveFloat | None = Field(
        default=None, description="How much slower than the baseline it may be, percent."
    )
    accuracy_min_ratio: float | None = Field(
        default=None, description="Least share of the baseline's accuracy.", gt=0, le=1
    )


class Measure(Section):
    """How much measuring a verdict on this device gets (`edgeprune.measure.settings`)."""

    preset: Literal["normal", "quick", "rapid"] = Field(
        default="normal", description="normal, quick or rapid: how many pairs and runs."
    )


class Device(Section):
    """How the device is reached; profiles that ship name no real host."""

    transport: Literal["local", "ssh", "adb", "qemu"] = Field(
        default="local", description="local, ssh, adb or qemu; only local is measured."
    )


class Target(Section):
    """One device profile. `name` defaults to the stem of the file it was read from."""

    name: str
    status: Status = Field(
        description="measured (here, on the device), emulated, facts (read, never measured) or "
        "generic (claims nothing)."
    )
    sources: Names = Field(
        default=(), description="Where the facts come from; needed unless generic."
    )
    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    os: OperatingSystem = OperatingSystem()
    runtime: Runtime = Runtime()
    operators: Operators = Operators()
    quant: Quant = Quant()
    pruning: Pruning = Pruning()
    budget: TargetBudget = TargetBudget()
    measure: Measure = Measure()
    device: Device = Device()

    @model_validator(mode="after")
    def _sources_are_named(self) -> Target:
        if self.status != "generic" and not self.sources:
            raise ValueError(f"`sources` (where its facts come from) beside status '{self.status}'")
        return self


def target_schema() -> dict[str, object]:
    """The JSON schema of a target's TOML file (draft 2020-12), for editors.

    `python -m edgeprune.targets > docs/target.schema.json` writes it anew.
    """
    schema: dict[str, object] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Target.model_json_schema(),
    }
    # The name comes from the file's, unless it is given.
    schema["required"] = ["status"]
    return schema


def target_names() -> tuple[str, ...]:
    """Names of the shipped profiles, sorted."""
    return tuple(sorted(path.stem for path in _shipped_directory().glob("*.toml")))


def load_target(name_or_path: str | Path) -> Target:
    """Read a shipped profile by name, or any profile by the path of its `.toml` file.

    Raises UsageError for an unknown name, an unreadable file, an unknown key (the nearest
    known one is suggested) or a bad value, and EnvironmentFailed when the target would run
    on this machine with more threads than it has cores.
    """
    return _checked(read_target(name_or_path))


def read_target(name_or_path: str | Path) -> Target:
    """A profile as it is written, whether or not it could run here; errors as `load_target`'s."""
    return _read(_path_of(name_or_path))


def override(target: Target, *, threads: int | None = None, batch: int | None = None) -> Target:
    """The same target with other threads or batch (None keeps the target's own).

    Raises EnvironmentFailed as `load_target` does.
    """
    changed = target.runtime.model_copy(
        update={
            "threads": threads if threads is not None else target.runtime.threads,
            "batch": batch if batch is not None else target.runtime.batch,
        }
    )
    return _checked(target.model_copy(update={"runtime": changed}))


def available_cores() -> int:
    """Cores that this process may use, not merely those that the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _checked(target: Target) -> Target:
    """`target`, if this machine has the cores that it asks for, or it does not run here at all."""
    here = (
        target.device.transport == "local"
        and target.status in ("measured", "generic")
        and target.cpu.arch in (None, platform.machine())
        and (target.os.name or platform.system()).lower() == platform.system().lower()
        and (target.runtime.format, target.runtime.affinity) == ("onnx", None)
    )
    cores = available_cores()
    if here and target.runtime.threads > cores:
        raise EnvironmentFailed(
            f"target '{target.name}' cannot run here at runtime.threads: expected at most {cores} "
            f"(the cores of this machine), got {target.runtime.threads}. "
            "Ask for fewer threads or choose another target.",
            where="runtime.threads",
        )
    return target


def _path_of(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or os.sep in text:
        return Path(name_or_path)
    names = target_names()
    if text not in names:
        near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
        advice = f"Did you mean '{near[0]}'?" if near else "Choose one of those."
        raise UsageError(
            f"target lookup failed at '{text}': expected one of {', '.join(names)} or the path "
            f"of a .toml file, got '{text}'. {advice}",
            where=text,
        )
    return _shipped_directory() / f"{text}.toml"


def _shipped_directory() -> Path:
    """`edgeprune/_targets` in an installed wheel, the top-level `targets/` in a checkout."""
    installed = Path(str(resources.files("edgeprune") / "_targets"))
    checkout = Path(__file__).resolve().parent.parent / "targets"
    for place in (installed, checkout):
        if place.is_dir():
            return place
    raise EnvironmentFailed(
        f"target profiles cannot be read at {installed}: expected a directory of .toml files, "
        "got nothing. Install edgeprune again.",
        where=str(installed),
    )


def _read(path: Path) -> Target:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        got = f"a readable .toml file, got {error.strerror or error}. Check the path."
        raise UsageError(f"reading the target {path}: expected {got}", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        got = f"TOML, got: {error}. Mend that line."
        raise UsageError(f"reading the target {path}: expected {got}", where=str(path)) from error
    try:
        return Target.model_validate({"name": path.stem, **table})
    except ValidationError as error:
        first, *rest = complaints(error, Target)
        more = "".join(f"\n  also {complaint}" for complaint in rest)
        raise UsageError(f"reading the target {path} {first}{more}", where=first.key) from None


if __name__ == "__main__":
    sys.stdout.write(json.dumps(target_schema(), indent=2, ensure_ascii=False) + "\n")
