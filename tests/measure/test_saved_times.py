"""Times from a device: ours or onnxruntime_perf_test's, whole, and of this very file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgeprune.errors import DataError
from edgeprune.measure.here import cpu_flags, profile_of_this_machine, telling_flags, why_not_here
from edgeprune.measure.intervals import latency_ms, ratio
from edgeprune.measure.lineup import measure_lineup
from edgeprune.measure.result import file_sha256
from edgeprune.measure.samples import Samples
from edgeprune.measure.saved import paired_of, read_saved, saved_text
from edgeprune.measure.settings import Settings
from edgeprune.targets import load_target, read_target

LEAST = Settings(
    runs=11, least_runs=11, seconds=0.05, warmup=1, pilot_pairs=2, least_pairs=3, most_pairs=3
)


class Device:
    """Takes 1 ms for a file whose name begins with a, 2 ms with b, and so on; some noise."""

    def __init__(self):
        self.rng, self.order = np.random.default_rng(0), []

    def run(self, job):
        name = job.model.rpartition("/")[2]
        self.order.append(name)
        base = 1.0 + ord(name[0]) - ord("a")
        return Samples(
            model_sha256=job.model_sha256,
            times_ms=tuple(base * self.rng.lognormal(0, 0.01, 11)),
            load_ms=1.0,
            first_ms=1.0,
            peak_rss_mib=1.0,
            onnxruntime="1.32.0",
        )


@pytest.fixture
def lineup(make_model):
    """Three files measured by turns on the scripted device."""
    models = [make_model(name, shape=("batch", 3 + i)) for i, name in enumerate(("a", "b", "c"))]
    device = Device()
    return measure_lineup(models, load_target("local"), LEAST, runner=device), device


def test_every_round_runs_every_model_once(lineup):
    """Nine processes: each third of them holds all three files, not always in one order."""
    found, device = lineup
    thirds = [device.order[i : i + 3] for i in (0, 3, 6)]

    assert all(sorted(third) == ["a", "b", "c"] for third in thirds)
    assert len({tuple(third) for third in thirds}) > 1
    assert ratio(found.pair(0, 1)).ratio == pytest.approx(0.5, rel=0.03)
    assert latency_ms(found.pair(None, 2).candidate).ms == pytest.approx(3.0, rel=0.03)


def test_what_was_saved_is_read_back_whole(lineup, tmp_path):
    """Every sample, and which file is which by its hash, whatever it is called now."""
    found, _ = lineup
    (tmp_path / "s.json").write_text(saved_text(found, ("avx2",)))

    saved = read_saved(tmp_path / "s.json")
    paired = paired_of(
        saved,
        tmp_path / "s.json",
        ("renamed.onnx", file_sha256(found.models[2])),
        ("a", file_sha256(found.models[0])),
    )

    assert (paired.baseline, paired.candidate) == (found.samples[0], found.samples[2])
    assert saved.isa == ("avx2",)


def test_times_of_another_file_are_refused(lineup, tmp_path):
    """The same name with other content, or a name that was not measured: DataError says which."""
    found, _ = lineup
    (tmp_path / "s.json").write_text(saved_text(found, ()))
    saved = read_saved(tmp_path / "s.json")

    with pytest.raises(DataError, match="another file of that name"):
        paired_of(saved, tmp_path / "s.json", ("a", "0" * 64), None)
    with pytest.raises(DataError, match=r"samples of z\.onnx, got a, b, c"):
        paired_of(saved, tmp_path / "s.json", ("z.onnx", "0" * 64), None)


def test_a_csv_of_perf_test_is_read_by_process(tmp_path):
    """Headerless rows; a run number that starts over is another process; seconds become ms."""
    rows = [("m.onnx", 0.001 * (1 + p), 1, 2, run) for p in range(3) for run in range(11)]
    path = tmp_path / "t.csv"
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))

    paired = paired_of(read_saved(path), path, ("m.onnx", "0" * 64), None)

    assert [len(samples.times_ms) for samples in paired.candidate] == [11, 11, 11]
    assert latency_ms(paired.candidate).ms == pytest.approx(6 ** (1 / 3), rel=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m.onnx,0.001,1\n",
        "m.onnx,fast,1,2,0\n",
        "m.onnx,0.0,1,2,0\n",
        "{",
        "{}",
        "m.onnx,nan,1,0,0\n",
        "m.onnx,inf,1,0,0\n",
        '{"saved_by": "edgeprune bench"}',
    ],
)
def test_a_file_that_is_not_whole_is_refused(tmp_path, text):
    """Empty, too few columns, no number, no time, JSON that is cut or lacks its parts."""
    (tmp_path / "t").write_text(text)

    with pytest.raises(DataError, match="reading measurements at"):
        read_saved(tmp_path / "t")


def test_rounds_that_are_not_whole_are_refused(lineup, tmp_path):
    """A process that is missing for one of the models breaks the pairs."""
    (tmp_path / "s.json").write_text(saved_text(lineup[0], ()))
    table = json.loads((tmp_path / "s.json").read_text())
    del table["models"][1]["samples"][0]
    (tmp_path / "s.json").write_text(json.dumps(table))

    with pytest.raises(DataError, match="as many whole rounds"):
        read_saved(tmp_path / "s.json")


def test_this_machine_is_what_it_says_it_is(tmp_path):
    """The probe's profile loads, names this machine's instruction sets, and is measurable here."""
    (tmp_path / "me.toml").write_text(profile_of_this_machine())

    me = load_target(tmp_path / "me.toml")

    assert me.cpu.isa == telling_flags()
    assert set(me.cpu.isa) <= cpu_flags()
    assert why_not_here(me) is None


@pytest.mark.parametrize(
    ("flags", "avx2", "vnni"),
    [
        ("flags : avx2 fma", None, "has no avx512f"),
        ("flags\t\t: avx2 fma avx512f avx512bw avx512vl avx512_vnni", "which the target", None),
        ("Features : asimd asimddp", "has no avx2", "has no avx2"),
    ],
)
def test_instruction_sets_decide_whether_a_machine_is_a_target(tmp_path, flags, avx2, vnni):
    """Those it must have, and those it must not."""
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    for name, expected in (("x86-avx2", avx2), ("x86-avx512-vnni", vnni)):
        target = read_target(name)
        target = target.model_copy(update={"cpu": target.cpu.model_copy(update={"arch": None})})
        reason = why_not_here(target, cpuinfo=tmp_path / "cpuinfo")
        assert (reason is None) is (expected is None)
        assert expected is None or expected in reason


def test_another_architecture_is_another_machine():
    """An Arm profile on x86, or the other way round, is told so."""
    pi = read_target("raspberry-pi-5").model_copy(update={"status": "measured"})
    other = pi.model_copy(update={"cpu": pi.cpu.model_copy(update={"arch": "mips"})})

    assert "it is mips, this machine is" in why_not_here(other)


def test_a_measured_board_is_not_this_machine_for_having_its_instructions(tmp_path):
    """A profile measured on another processor is another target, though the sets agree."""
    here = profile_of_this_machine()
    core = next(line for line in here.splitlines() if line.startswith("core = "))
    (tmp_path / "board.toml").write_text(here.replace(core, 'core = "Atom x7425E"'))

    assert "it is Atom x7425E, this machine is" in why_not_here(
        read_target(tmp_path / "board.toml")
    )


def test_one_row_of_names_is_not_two_files(tmp_path):
    """Baseline and build of one base name in a CSV that has no hashes: refused, not 1x."""
    path = tmp_path / "t.csv"
    path.write_text("".join(f"model.onnx,0.001,1,2,{run}\n" for run in range(11)) * 3)
    files = (("model.onnx", "0" * 64), ("model.onnx", "1" * 64))

    with pytest.raises(DataError, match="Rename one of them"):
        paired_of(read_saved(path), path, *files)


@pytest.mark.parametrize("other", ["old/a.onnx", "old\\a.onnx", "a"])
def test_files_of_one_name_in_a_csv_are_not_one_model(tmp_path, other):
    """Rows of two paths whose base name is asked for: both are named, neither is chosen."""
    path = tmp_path / "t.csv"
    rows = [f"{name},0.001,1,2,{run}\n" for name in (other, "m/a.onnx") for run in range(11)]
    path.write_text("".join(rows * 3))

    with pytest.raises(DataError, match=r"one a\.onnx, got those of .* and m/a\.onnx") as caught:
        paired_of(read_saved(path), path, ("a.onnx", "0" * 64), None)
    assert other.replace("\\", "/") in str(caught.value)


def test_two_spellings_of_one_path_in_a_csv_are_one_model(tmp_path):
    """./m/a.onnx is m/a.onnx, and files of other names do not stand in the way."""
    path = tmp_path / "t.csv"
    rows = [
        f"{name},0.001,1,2,{run}\n"
        for name in ("m/a.onnx", "old/b.onnx", "./m/a.onnx", "old/b.onnx")
        for run in range(11)
    ]
    path.write_text("".join(rows))

    paired = paired_of(read_saved(path), path, ("a.onnx", "0" * 64), None)
    assert [len(samples.times_ms) for samples in paired.candidate] == [11, 11]
