"""Whether this machine is a target, and what this machine would be as one."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

import onnxruntime as ort
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from edgeprune.measure.machine import machine_state
from edgeprune.measure.transport import runner_names
from edgeprune.targets import CPU_PROVIDER, Target, available_cores

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_MEMORY = Path("/proc/meminfo")
_SAME_ARCH = {"amd64": "x86_64", "arm64": "aarch64"}

# What ONNX Runtime's kernels are chosen by; the hundred other flags say nothing about latency.
_TELLING = (
    *("avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni"),
    *("amx_int8", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
)
# Widths of ONNX Runtime's blocked convolutions, by instruction set.
_BLOCKS = (("avx512f", 16), ("avx2", 8), ("asimd", 16))


def why_not_here(target: Target, *, cpuinfo: Path = _CPUINFO) -> str | None:
    """Why a clock on this machine says nothing about `target`; None if it does."""
    if target.runtime.ep != CPU_PROVIDER:
        return f"it runs on {target.runtime.ep}, and only the CPU provider is measured"
    if target.status in ("facts", "emulated"):
        return f"its profile holds {'facts' if target.status == 'facts' else 'an emulation'} only"
    transport = target.device.transport
    if transport != "local" and transport not in runner_names():
        return f"it is reached by {transport}, which this version does not do"
    return _other_system(target) or _other_processor(target, cpuinfo)


def _other_system(target: Target) -> str | None:
    """What the target runs, and how, that this machine does not."""
    runtime = target.runtime
    if runtime.format != "onnx":
        return f"it loads {runtime.format} files, and builds are onnx"
    if runtime.affinity is not None:
        return f"it runs on cores {runtime.affinity}, which are not chosen here"
    system = platform.system()
    if target.os.name is not None and target.os.name.lower() != system.lower():
        return f"it runs {target.os.name}, this machine runs {system.lower()}"
    if not in_range(runtime.onnxruntime, ort.__version__):
        return f"it runs ONNX Runtime {runtime.onnxruntime}, this machine has {ort.__version__}"
    return None


def _other_processor(target: Target, cpuinfo: Path) -> str | None:
    arch = same_arch(platform.machine())
    if target.cpu.arch is not None and same_arch(target.cpu.arch) != arch:
        return f"it is {target.cpu.arch}, this machine is {arch}"
    flags = cpu_flags(cpuinfo)
    if missing := [name for name in target.cpu.isa if name not in flags]:
        return f"this machine has no {', '.join(missing)}"
    cores = [cluster.core for cluster in target.cpu.clusters]
    here = machine_state().cpu_model
    if target.status == "measured" and cores and here not in cores:
        return f"it is {', '.join(cores)}, this machine is {here}"
    if extra := [name for name in target.cpu.isa_absent if name in flags]:
        return f"this machine has {', '.join(extra)}, which the target lacks"
    return None


def in_range(wanted: str | None, version: str) -> bool:
    """Whether a version of ONNX Runtime is in a range such as '>=1.20,<2'; None: any is."""
    try:
        return wanted is None or SpecifierSet(wanted).contains(version, prereleases=True)
    except InvalidVersion:
        return False


def how_to_measure(target: Target, model: str) -> str:
    """What to do where the target is not this machine."""
    runtime = target.runtime
    batch = "" if runtime.batch == 1 else f"--batch {runtime.batch} "
    return (
        f"On the device: edgeprune bench {model} --threads {runtime.threads} {batch}"
        f"--save samples.json, then here: --import samples.json"
    )


def cpu_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Instruction sets of this processor, as Linux names them; empty where it does not."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    return frozenset(lines[0].split()) if lines else frozenset()


def telling_flags() -> tuple[str, ...]:
    """Of `cpu_flags`, those that ONNX Runtime's kernels are chosen by."""
    flags = cpu_flags()
    return tuple(name for name in _TELLING if name in flags)


def profile_of_this_machine() -> str:
    """A target profile of this machine as TOML, with what the system tells about it."""
    state = machine_state()
    flags = cpu_flags()
    block = next((width for name, width in _BLOCKS if name in flags), 4)
    lines = [
        "# What this machine says of itself. Rename the file to name the target.",
        'status = "measured"',
        f"sources = [{json.dumps(f'edgeprune targets probe, ONNX Runtime {ort.__version__}')}]",
        "",
        "[cpu]",
        f"arch = {json.dumps(same_arch(state.arch))}",
        f"isa = {json.dumps(telling_flags())}",
        "",
        "[[cpu.clusters]]",
        f"core = {json.dumps(state.cpu_model)}",
        f"count = {available_cores()}",
        *(f"l{level}_kib = {size}" for level, size in _caches()),
        "",
        *_memory(),
        "[os]",
        f"name = {json.dumps(platform.system().lower())}",
        f"version = {json.dumps(platform.release())}",
        "",
        "[runtime]",
        f"onnxruntime = {json.dumps('>=' + ort.__version__)}",
        "threads = 1",
        "batch = 1",
        "",
        "[pruning]",
        f"channel_multiple = {block}",
        "depthwise_multiple = 4",
    ]
    return "\n".join(lines) + "\n"


def same_arch(name: str) -> str:
    """One name for an architecture that systems call by several: x86_64, aarch64, ..."""
    return _SAME_ARCH.get(name.lower(), name.lower())


def _caches() -> list[tuple[int, int]]:
    """(level, KiB) of the data and unified caches of the first core."""
    found: dict[int, int] = {}
    for index in sorted(_CACHES.glob("index*")):
        try:
            kind = (index / "type").read_text(encoding="utf-8").strip()
            level = int((index / "level").read_text(encoding="utf-8"))
            size = re.fullmatch(r"(\d+)K", (index / "size").read_text(encoding="utf-8").strip())
        except (OSError, ValueError):
            continue  # the system does not tell this one
        if kind != "Instruction" and size is not None and 1 <= level <= 3:
            found[level] = int(size.group(1))
    return sorted(found.items())


def _memory() -> list[str]:
    try:
        text = _MEMORY.read_text(encoding="utf-8")
    except OSError:
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        return [] if pages <= 0 else _ram(pages * os.sysconf("SC_PAGE_SIZE") // 2**20)
    total = re.search(r"^MemTotal:\s+(\d+) kB", text, flags=re.MULTILINE)
    return [] if total is None else _ram(int(total.group(1)) // 1024)


def _ram(mib: int) -> list[str]:
    return ["[memory]", f"ram_mib = {mib}", ""]
