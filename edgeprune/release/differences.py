"""How a bundle differs from what was sealed: by its manifest, its report and what lies beside."""

from __future__ import annotations

from pathlib import PurePosixPath

from edgeprune.release.bundle import Bundle
from edgeprune.release.manifest import list_files

# What every bundle with a model is delivered with.
_NEEDED = frozenset({"model.onnx", "parity.npz", "plan.json"})


def differences(bundle: Bundle) -> tuple[str, ...]:
    """Each in words, such as `model.onnx is missing`; empty for a bundle as it was made.

    Files by size and hash, links, folders and other strangers, and what manifest and report say
    otherwise of the verdicts.
    """
    wanted = {entry.name: entry for entry in bundle.manifest.files}
    there = {entry.name: entry for entry in list_files(bundle.path)}
    found = [f"{name} is missing" for name in sorted(wanted.keys() - there.keys())]
    found += [
        f"{name} is changed ({wanted[name].size_bytes} bytes when it was made, "
        f"{there[name].size_bytes} now)"
        for name in sorted(wanted.keys() & there.keys())
        if wanted[name] != there[name]
    ]
    found += [f"{name} is new" for name in sorted(there.keys() - wanted.keys())]
    found += _strangers(bundle)
    if bundle.report.pruned is not None:
        lost = sorted(_NEEDED - wanted.keys() - there.keys())
        found += [f"{name} is missing, from the manifest as well" for name in lost]
    if bundle.manifest.verdicts != bundle.report.verdicts:
        found.append("manifest.json and report.json have other verdicts")
    if bundle.manifest.outcome != bundle.report.outcome:
        found.append(
            f"manifest.json says {bundle.manifest.outcome}, report.json {bundle.report.outcome}"
        )
    return tuple(found)


def _strangers(bundle: Bundle) -> list[str]:
    """Links wherever they lead, and folders that no sealed file needs: hashes do not see them."""
    needed = {
        folder.as_posix()
        for entry in bundle.manifest.files
        for folder in PurePosixPath(entry.name).parents
    }
    found = []
    for path in sorted(bundle.path.rglob("*")):
        name = path.relative_to(bundle.path).as_posix()
        if path.is_symlink():
            found.append(f"{name} is a link")
        elif path.is_dir() and name not in needed:
            found.append(f"{name} is a new folder")
        elif not path.is_dir() and not path.is_file():
            found.append(f"{name} is neither file nor folder")
    return found
