"""The state of the machine around a measurement."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from edgeprune.targets import available_cores

_CPUINFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """What a reader must know to judge a latency; None where the system does not say.

    `cores` counts those that this process may use. `load_average` is over 1, 5 and 15 minutes.
    """

    cpu_model: str
    arch: str
    cores: int
    load_average: tuple[float, float, float] | None
    governor: str | None


def machine_state(*, cpuinfo: Path = _CPUINFO, governor: Path = _GOVERNOR) -> MachineState:
    """Read the machine's state now. The two paths are Linux's; elsewhere they are absent."""
    return MachineState(
        cpu_model=_cpu_model(cpuinfo),
        arch=platform.machine(),
        cores=available_cores(),
        load_average=os.getloadavg() if hasattr(os, "getloadavg") else None,
        governor=_text(governor),
    )


def _cpu_model(cpuinfo: Path) -> str:
    """Linux names the model per core; ARM kernels often do not name it at all."""
    for line in (_text(cpuinfo) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.processor() or "unknown"


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
