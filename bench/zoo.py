"""The zoo: every model of bench/zoo.txt, taken with no hint, one process a model.

    pip install -e ".[torch,bench]"
    python bench/zoo.py                      # or: make zoo
    python bench/zoo.py timm/levit_384_s8    # these only, again

Each model is pruned by half with nothing said, proved, trained a step, pruned again, composed,
exported and compared with ONNX Runtime (zoo_trial.py). Results are kept in
bench/results/zoo.json after every model: what is there is not done again, so stop it and start
it as you like; --fresh starts over. A process that takes more time or memory than it may is
stopped, and that is its result. At the end docs/zoo.md is written.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from zoo_models import Entry, build, entries
from zoo_table import Row, passed, report

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "zoo.json"
TABLE = HERE.parent / "docs" / "zoo.md"
_POLL_SECONDS = 0.5
_REGRESSION = 0.005
console = Console()


def main() -> int:
    """Run what is missing; write results and table; 0 if the zoo's demands are met."""
    options = _options()
    if options.worker:
        return _work(options.worker)
    last = _read()
    rows = {} if options.fresh else dict(last)
    known = entries()
    chosen = [e for e in known if not options.names or _matches(e, options.names)]
    if options.names and not chosen:
        sys.exit(f"zoo at {', '.join(options.names)}: expected models of {HERE / 'zoo.txt'}.")
    missing = [e for e in chosen if options.names or e.key not in rows]
    # Those that took longest the last time go first, so that none is left alone at the end.
    missing.sort(key=lambda entry: -float(last.get(entry.key, {}).get("wall_seconds", 0.0)))
    with ThreadPoolExecutor(options.jobs) as pool:
        running = [pool.submit(_run, e, options.seconds, options.mib) for e in missing]
        for done in as_completed(running):
            row = done.result()
            rows[row["key"]] = row
            _say(row, last.get(row["key"]))
            _write(rows, known)
    kept = [rows[e.key] for e in known if e.key in rows]
    text, met = report(kept, len(known))
    TABLE.write_text(text, encoding="utf-8")
    console.print(text.split("\n## ", 1)[0], markup=False)
    return 0 if met else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="library/model, or a part of it: done again")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once, one thread each")
    parser.add_argument("--seconds", type=int, default=5400, help="limit for one model")
    parser.add_argument("--mib", type=int, default=12000, help="resident memory for one model")
    parser.add_argument("--fresh", action="store_true", help="forget the results that are there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def _matches(entry: Entry, names: list[str]) -> bool:
    return any(name in entry.key for name in names)


def _work(key: str) -> int:
    """In the process of its own: one model, its record as the last line of stdout (a file)."""
    import torch
    from zoo_trial import trial

    torch.set_num_threads(1)
    entry = next(e for e in entries() if e.key == key)
    record = trial(build(entry))
    print(json.dumps(asdict(record) | {"passed": record.passed}))
    return 0


def _run(entry: Entry, seconds: int, mib: int) -> Row:
    """One model in a process of its own, watched."""
    start = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", entry.key]
    log = HERE.parent / "build" / "zoo" / f"{entry.key.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    said = log.with_suffix(".json")
    # Into files: a record may be longer than a pipe holds, and nobody reads before the end.
    with log.open("w", encoding="utf-8") as stream, said.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=stream, env=environment, start_new_session=True
        )
        peak, stopped = _watch(process, start + seconds, mib)
    row: Row = {"key": entry.key, "shape": entry.shape, "peak_mib": peak}
    row["wall_seconds"] = round(time.monotonic() - start, 1)
    row["date"] = datetime.now(UTC).strftime("%Y-%m-%d")
    last = said.read_text(encoding="utf-8").strip().rpartition("\n")[2]
    if stopped or process.returncode or not last.startswith("{"):
        tail = log.read_text(encoding="utf-8", errors="replace").strip()[-800:]
        why = stopped or f"the process ended with {process.returncode}: {tail}"
        return row | {"passed": False, "failures": {"process": why}}
    return row | json.loads(last)


def _watch(process: subprocess.Popen[bytes], deadline: float, mib: int) -> tuple[int, str]:
    """Peak resident memory in MiB, and why the process was stopped ("" if it was not)."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident_mib(process.pid))
        why = ""
        if time.monotonic() > deadline:
            why = "took longer than it may"
        elif peak > mib:
            why = f"took {peak} MiB of memory"
        if why:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return peak, why
        time.sleep(_POLL_SECONDS)
    return peak, ""


def _resident_mib(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def _read() -> dict[str, Row]:
    if not RESULTS.exists():
        return {}
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["models"]
    return {row["key"]: row for row in rows}


def _write(rows: dict[str, Row], known: tuple[Entry, ...]) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    kept = [rows[e.key] for e in known if e.key in rows]
    draft = RESULTS.with_suffix(".draft")
    lines = ",\n".join(json.dumps(row) for row in kept)
    draft.write_text(f'{{"schema": 1, "models": [\n{lines}\n]}}\n', encoding="utf-8")
    draft.replace(RESULTS)


def _say(row: Row, before: Row | None) -> None:
    """One line a model; a share that fell since the last run is a regression."""
    removed = f"{100 * float(row.get('removed', 0.0)):.0f} % removed"
    verdict = "passed" if passed(row) else f"FAILED {row['failures']}"
    fell = float((before or {}).get("removed", 0.0)) - float(row.get("removed", 0.0))
    if fell > _REGRESSION:
        removed = f"{removed} (REGRESSION: {100 * fell:.1f} points less than before)"
    console.print(
        f"{row['key']}: {verdict}, {removed}, {row['wall_seconds']} s, {row['peak_mib']} MiB",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
