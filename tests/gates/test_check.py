"""A build before it ships: what is asked for is judged, what is not is named."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeprune.errors import DataError, OutputsNotFinite, UsageError
from edgeprune.gates.check import Limits, Request, check
from edgeprune.gates.contract import Interface, Port, interface_of
from edgeprune.gates.judging import judge
from edgeprune.gates.latency_check import LatencyLimits
from edgeprune.gates.parity import ParityRecord, write_parity
from edgeprune.measure.settings import Settings
from edgeprune.recipe.onnx_file import operators_of
from edgeprune.targets import Operators, TargetBudget, load_target

LEAST = Settings(
    runs=64, least_runs=64, seconds=0.05, warmup=1, pilot_pairs=2, least_pairs=2, most_pairs=2
)
RNG = np.random.default_rng(0)
LOCAL = load_target("local")


def _check(model, target=LOCAL, **given):
    found = check(Request(model=model, target=target, measuring=LEAST, **given))
    return {verdict.gate: verdict for verdict in found.verdicts}, found.not_judged


def _data(path, samples=40, **changes):
    """Samples whose label is the class of the largest of three inputs."""
    x = RNG.normal(size=(samples, 3)).astype(np.float32)
    arrays = {"x": x, "target": x.argmax(axis=1), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_nothing_asked_is_said(make_linear):
    """Only the operators are judged by themselves; everything else is named as not judged."""
    verdicts, said = _check(make_linear(np.eye(3)))

    assert {name: v.outcome for name, v in verdicts.items()} == {"operators": "pass"}
    assert [note.partition(":")[0] for note in said] == [
        "contract",
        "size",
        "parity",
        "accuracy",
        "latency",
    ]


def test_everything_asked_is_judged(make_linear, tmp_path):
    """An identity against itself: right on every sample, no flip, same size, same outputs."""
    model, baseline = make_linear(np.eye(3)), make_linear(np.eye(3), "base.onnx")
    x = RNG.normal(size=(4, 3)).astype(np.float32)
    write_parity(tmp_path / "p.npz", ParityRecord(inputs={"x": x}, outputs={"y": x}))
    limits = Limits(
        latency=LatencyLimits(p50_ms=1e3, p90_ms=1e3, speedup=1e-3),
        size_mib=1.0,
        size_ratio=1.0,
        accuracy_min=1.0,
        accuracy_drop=0.0,
        flips=0.0,
    )

    verdicts, said = _check(
        model,
        baseline=baseline,
        data=_data(tmp_path / "d.npz"),
        parity=tmp_path / "p.npz",
        limits=limits,
    )

    assert said == ()
    assert {v.outcome for v in verdicts.values()} == {"pass"}
    assert set(verdicts) == {
        "operators",
        "contract",
        "size",
        "size_ratio",
        "parity",
        "accuracy_min",
        "accuracy",
        "flips",
        "latency",
        "speedup",
        "latency_p90",
    }
    assert verdicts["latency_p90"].observed >= 0.5 * verdicts["latency"].observed


def test_accuracy_and_flips_are_counted_by_sample(make_linear, tmp_path):
    """A model that swaps classes 0 and 1 is right on class 2 only: NumPy counts the same."""
    swap = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    data = _data(tmp_path / "d.npz")
    target = np.load(data)["target"]
    limits = Limits(accuracy_min=0.9, accuracy_drop=0.1, flips=0.1)

    verdicts, _ = _check(
        make_linear(swap), baseline=make_linear(np.eye(3), "b.onnx"), data=data, limits=limits
    )

    right = float((target == 2).mean())
    assert verdicts["accuracy_min"].observed == pytest.approx(right)
    assert verdicts["accuracy"].observed == pytest.approx(1 - right)
    assert verdicts["flips"].observed == pytest.approx(1 - right)
    assert {verdicts[g].outcome for g in ("accuracy_min", "accuracy", "flips")} == {"fail"}


def test_flips_are_told_also_without_a_limit(make_linear, tmp_path):
    """With a baseline and samples, how many predictions changed is always said."""
    data = _data(tmp_path / "d.npz", target=None)

    _, said = _check(make_linear(-np.eye(3)), baseline=make_linear(np.eye(3), "b.onnx"), data=data)

    assert any("40 of 40 predictions differ" in note for note in said)


def test_without_labels_accuracy_is_inconclusive(make_linear, tmp_path):
    """No `target` in the file: nothing is claimed of accuracy, in both ways of asking."""
    limits = Limits(accuracy_min=0.5, accuracy_drop=0.1)

    verdicts, _ = _check(
        make_linear(np.eye(3)),
        baseline=make_linear(np.eye(3), "b.onnx"),
        data=_data(tmp_path / "d.npz", target=None),
        limits=limits,
    )

    assert {verdicts[g].outcome for g in ("accuracy_min", "accuracy")} == {"inconclusive"}


@pytest.mark.parametrize("name", ["raspberry-pi-4", "raspberry-pi-5"])
def test_a_target_that_is_not_here_gets_no_time(make_linear, name):
    """Inconclusive for every limit, no number, and the two commands that would measure it."""
    limits = Limits(latency=LatencyLimits(p50_ms=5.0, p90_ms=6.0, speedup=1.0))
    model = make_linear(np.eye(3))

    verdicts, _ = _check(model, load_target(name), baseline=model, limits=limits)

    for gate in ("latency", "latency_p90", "speedup"):
        assert (verdicts[gate].outcome, verdicts[gate].observed) == ("inconclusive", None)
        assert "--threads 4 --save samples.json" in verdicts[gate].why
        assert "--import samples.json" in verdicts[gate].why


def test_the_budget_of_a_target_is_judged_where_the_call_names_no_limit(make_linear):
    """p50_ms, model_mib and regression_pct of the profile become limits."""
    budget = LOCAL.budget.model_copy(
        update={"p50_ms": 1e3, "model_mib": 1e-6, "regression_pct": 9900.0}
    )
    model = make_linear(np.eye(3))

    verdicts, _ = _check(model, LOCAL.model_copy(update={"budget": budget}), baseline=model)

    assert (verdicts["latency"].limit, verdicts["latency"].outcome) == (1e3, "pass")
    assert verdicts["size"].outcome == "fail"
    assert verdicts["speedup"].limit == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("limits", "missing"),
    [
        (Limits(latency=LatencyLimits(speedup=1.0)), "--baseline"),
        (Limits(size_ratio=1.0), "--baseline"),
        (Limits(accuracy_min=0.5), "--data"),
        (Limits(flips=0.1), "--baseline"),
    ],
)
def test_a_limit_without_its_evidence_is_a_mistake_of_the_call(make_linear, limits, missing):
    """No gate is quietly left out: the option that is missing is named."""
    with pytest.raises(UsageError, match=f"expected {missing} beside it"):
        _check(make_linear(np.eye(3)), limits=limits)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"x": None}, "an array for each input"),
        ({"target": np.zeros(3)}, "as many samples in every array"),
        ({"x": np.full((40, 3), np.nan, np.float32)}, "120 NaN or infinite"),
        ({"target": np.full(40, 7)}, "labels from 0 to 2"),
        ({"target": np.full(40, 99.0)}, "labels from 0 to 2"),
        ({"target": np.arange(40) % 3 + 0.5}, "whole numbers as labels, got 40 of 40 .* 0.5"),
        ({"target": np.full(40, 1j)}, r"whole numbers as labels, got 1j \(complex128\)"),
        ({"x": np.full((40, 3), 1e39)}, r"values of float32, .* got 1e\+39 \(120 of 120"),
        ({"x": np.zeros((40, 3), "U1")}, "expected numbers in 'x', got dtype <U1"),
        ({"x": np.zeros((40, 3), np.complex64)}, "expected float32, got complex64"),
        ({"x": np.zeros((40, 5), np.float32)}, "inputs that fit its shapes"),
        ({"z": np.zeros((40, 3), np.float32)}, "expected inputs x"),
        ({"x": np.array([{}] * 40)}, "plain arrays"),
    ],
)
def test_samples_that_do_not_fit_are_one_clear_error(make_linear, tmp_path, changes, problem):
    """What the file must hold and what it holds; nothing in it is unpickled."""
    data = tmp_path / "d.npz"
    if isinstance(changes.get("x"), np.ndarray) and changes["x"].dtype == object:
        np.savez(data, **changes)
    else:
        _data(data, **changes)

    with pytest.raises(DataError, match=problem):
        _check(make_linear(np.eye(3)), data=data, limits=Limits(accuracy_min=0.5))


@pytest.mark.parametrize("content", [b"", b"no archive at all"])
def test_a_file_that_holds_no_samples_is_one_clear_error(make_linear, tmp_path, content):
    """Empty or not an archive: DataError with the path."""
    (tmp_path / "d.npz").write_bytes(content)

    with pytest.raises(DataError, match=r"d\.npz: expected an \.npz file"):
        _check(make_linear(np.eye(3)), data=tmp_path / "d.npz", limits=Limits(accuracy_min=0.5))


def test_a_build_that_answers_nan_fails(make_linear, tmp_path):
    """A build that overflows is a verdict, with the output; nothing of it is counted as right."""
    model = make_linear(np.full((3, 3), 3e38))

    verdicts, said = _check(model, data=_data(tmp_path / "d.npz"), limits=Limits(accuracy_min=0.1))

    assert verdicts["finite"].outcome == "fail"
    assert "output 'y': expected finite numbers" in verdicts["finite"].why
    assert "accuracy_min" not in verdicts
    assert any(note.startswith("accuracy and flips") for note in said)


def test_a_baseline_that_answers_nan_is_a_mistake(make_linear, tmp_path):
    """There is nothing to hold a build against: DataError with the baseline's name."""
    broken = make_linear(np.full((3, 3), 3e38), "broken.onnx")

    with pytest.raises(OutputsNotFinite, match=r"model broken\.onnx .* output 'y'"):
        _check(make_linear(np.eye(3)), baseline=broken, data=_data(tmp_path / "d.npz"))


def test_a_fixed_batch_gets_whole_batches(make_linear, tmp_path):
    """40 samples through a model of 8: five batches; through one of 7: refused with the number."""
    data, limits = _data(tmp_path / "d.npz"), Limits(accuracy_min=1.0)

    verdicts, _ = _check(make_linear(np.eye(3), batch=8), data=data, limits=limits)

    assert (verdicts["accuracy_min"].outcome, verdicts["accuracy_min"].count) == ("pass", 40)
    with pytest.raises(DataError, match="expected a multiple of 7"):
        _check(make_linear(np.eye(3), "seven.onnx", batch=7), data=data, limits=limits)


def _model(path, inputs, outputs, nodes, domains=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(d, 1) for d in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def _value(name, dtype=TensorProto.FLOAT, shape=("batch", 3, 8, 9)):
    return helper.make_tensor_value_info(name, dtype, list(shape))


@pytest.mark.parametrize(
    ("port", "problem"),
    [
        (_value("x", shape=("N", 3, 8, 9)), None),
        (_value("z"), "input 'x' is missing; input 'z' is new"),
        (_value("x", TensorProto.DOUBLE), "input 'x' is double, expected float"),
        (_value("x", shape=("batch", 3, 8)), "input 'x' has 3 axes, expected 4"),
        (_value("x", shape=("batch", 8, 9, 3)), "has the layout ?x8x9x3, expected ?x3x8x9"),
        (_value("x", shape=(1, 3, 8, 9)), "axis 0 is fixed at 1, expected dynamic"),
        (_value("x", shape=("batch", 3, "h", 9)), "axis 2 is dynamic, expected fixed at 8"),
        (_value("x", shape=(-1, 3, 8, 9)), None),
        (_value("x", shape=(0, 3, 8, 9)), None),
    ],
)
def test_the_contract_names_every_difference(tmp_path, port, problem):
    """Names, dtypes, rank, layout, fixed and dynamic axes.

    Another symbol is no difference, nor is -1 or 0, which old exporters write for a dynamic axis.
    """
    interfaces = [
        interface_of(
            onnx.load(
                _model(
                    tmp_path / f"{index}.onnx",
                    [value],
                    [_value("y", value.type.tensor_type.elem_type, ("batch",))],
                    [helper.make_node("Identity", [value.name], ["y"])],
                )
            )
        )
        for index, value in enumerate((_value("x"), port))
    ]

    from edgeprune.gates.contract import ContractEvidence

    (verdict,) = judge(ContractEvidence(baseline=interfaces[0], candidate=interfaces[1]))

    assert (verdict.outcome == "pass") is (problem is None)
    assert problem is None or problem in verdict.why


def test_the_order_of_inputs_is_part_of_the_contract():
    """The same ports in another order break a caller that passes them by position."""
    from edgeprune.gates.contract import ContractEvidence

    a, b = (Port(name=name, dtype="float", shape=(None,)) for name in "ab")
    (verdict,) = judge(
        ContractEvidence(
            baseline=Interface(inputs=(a, b), outputs=()),
            candidate=Interface(inputs=(b, a), outputs=()),
        )
    )

    assert (verdict.outcome, verdict.why) == ("fail", "inputs come as b, a, expected a, b")


def test_operators_are_counted_in_subgraphs_and_judged_by_the_target(tmp_path, make_linear):
    """An operator inside an If counts; one that is denied, or not allowed, fails with its name."""
    branch = [
        helper.make_graph([helper.make_node(op, ["x"], ["o"])], op, [], [_value("o", shape=("n",))])
        for op in ("Relu", "Neg")
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch[0], else_branch=branch[1])
    path = _model(
        tmp_path / "if.onnx",
        [_value("x", shape=("n",)), _value("c", TensorProto.BOOL, ())],
        [_value("y", shape=("n",))],
        [node],
    )
    assert operators_of(onnx.load(path)) == {"If": 1, "Neg": 1, "Relu": 1}

    for operators, outcome in (
        (Operators(), "pass"),
        (Operators(denied=("Neg",)), "fail"),
        (Operators(allowed=("If", "Relu")), "fail"),
        (Operators(allowed=("If", "Relu", "Neg")), "pass"),
    ):
        verdicts, _ = _check(path, LOCAL.model_copy(update={"operators": operators}))
        assert verdicts["operators"].outcome == outcome
        assert outcome == "pass" or "Neg (1)" in verdicts["operators"].why


def test_an_operator_set_that_is_too_new_fails(make_linear):
    """Operator set 20 on a runtime that reads up to 17."""
    runtime = LOCAL.runtime.model_copy(update={"max_opset": 17})

    verdicts, _ = _check(make_linear(np.eye(3)), LOCAL.model_copy(update={"runtime": runtime}))

    assert verdicts["operators"].outcome == "fail"
    assert "operator set 20, the target reads up to 17" in verdicts["operators"].why


@pytest.mark.parametrize(
    ("limits", "gate"),
    [
        (Limits(size_mib=0.0), "size"),
        (Limits(latency=LatencyLimits(p50_ms=0.0)), "latency"),
        (Limits(latency=LatencyLimits(p90_ms=0.0)), "latency_p90"),
    ],
)
def test_a_limit_of_zero_is_a_limit(make_linear, limits, gate):
    """Zero is not "no limit": nothing meets it, whatever the target's own budget allows."""
    generous = TargetBudget(p50_ms=1e6, p90_ms=1e6, model_mib=1e6)
    target = LOCAL.model_copy(update={"budget": generous})

    verdicts, _ = _check(make_linear(np.eye(3)), target, limits=limits)

    assert (verdicts[gate].limit, verdicts[gate].outcome) == (0.0, "fail")


@pytest.mark.parametrize(
    ("limit", "gate", "outcome"),
    [
        ({"load_ms": 1e6}, "process_load", "pass"),
        ({"load_ms": 1e-6}, "process_load", "fail"),
        ({"first_ms": 1e6}, "process_first", "pass"),
        ({"first_ms": 1e-6}, "process_first", "fail"),
        ({"peak_rss_mib": 1e6}, "process_memory", "pass"),
        ({"peak_rss_mib": 1.0}, "process_memory", "fail"),
        ({"p90_ms": 1e-6}, "latency_p90", "fail"),
    ],
)
def test_what_starting_costs_is_judged_where_the_target_sets_it(make_linear, limit, gate, outcome):
    """load_ms, first_ms and peak_rss_mib of a profile, on processes that ran the build."""
    target = LOCAL.model_copy(update={"budget": TargetBudget(**limit)})

    verdicts, _ = _check(make_linear(np.eye(3)), target)

    assert verdicts[gate].outcome == outcome
    assert set(verdicts) == {"operators", gate}


def test_a_share_of_the_baselines_accuracy_is_judged_where_the_target_sets_it(
    make_linear, tmp_path
):
    """A build that is right on a third of what the baseline is; without data that is said."""
    target = LOCAL.model_copy(update={"budget": TargetBudget(accuracy_min_ratio=0.9)})
    dense, same = make_linear(np.eye(3), "dense.onnx"), make_linear(2 * np.eye(3), "same.onnx")
    turned = make_linear(np.roll(np.eye(3), 1, axis=0), "turned.onnx")
    data = _data(tmp_path / "d.npz")

    good, _ = _check(same, target, baseline=dense, data=data)
    bad, _ = _check(turned, target, baseline=dense, data=data)
    _, said = _check(same, target, baseline=dense)

    assert (good["accuracy_ratio"].outcome, good["accuracy_ratio"].observed) == ("pass", 1.0)
    assert (bad["accuracy_ratio"].outcome, bad["accuracy_ratio"].observed) == ("fail", 0.0)
    assert any(note.startswith("accuracy_ratio: the target asks for 0.9") for note in said)


def test_an_import_that_no_limit_would_judge_is_a_mistake_of_the_call(make_linear, tmp_path):
    """No limit of time, in the call or the target: the file would never be opened."""
    nothing = tmp_path / "nothing.json"

    with pytest.raises(UsageError, match="--import: expected a latency limit beside it"):
        _check(make_linear(np.eye(3)), imported=nothing)
    budget = LOCAL.model_copy(update={"budget": TargetBudget(p90_ms=1.0)})
    with pytest.raises(DataError, match=r"nothing\.json"):
        _check(make_linear(np.eye(3)), budget, imported=nothing)


@pytest.mark.parametrize("limits", [Limits(), Limits(latency=LatencyLimits(p50_ms=1e3))])
def test_a_budget_against_the_baseline_without_one_is_named(make_linear, limits):
    """regression_pct needs --baseline; without it the verdict is missing, and said to be."""
    target = LOCAL.model_copy(update={"budget": TargetBudget(regression_pct=5.0)})
    model = make_linear(np.eye(3))

    verdicts, said = _check(model, target, limits=limits)

    assert "speedup" not in verdicts
    assert any(note.startswith("speedup: the target allows 5 %") for note in said)
    _, said = _check(model, target, baseline=model, limits=limits)
    assert not any(note.startswith("speedup") for note in said)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("matmul", "Did you mean 'MatMul'?"),
        ("Sofmax", "Did you mean 'Softmax'?"),
        ("ai.onnx.Conv", "Did you mean 'Conv'?"),
        ("Qqqqqqqq", "Write its domain before its name."),
    ],
)
@pytest.mark.parametrize("key", ["allowed", "denied"])
def test_a_name_that_no_operator_has_is_refused(make_linear, key, name, advice):
    """It would deny nothing, and the build would pass: the nearest operator of ONNX is named."""
    target = LOCAL.model_copy(update={"operators": Operators(**{key: ("MatMul", name)})})

    with pytest.raises(UsageError, match=f"operators.{key}") as caught:
        _check(make_linear(np.eye(3)), target)
    assert f"got '{name}'" in str(caught.value)
    assert advice in str(caught.value)


@pytest.mark.parametrize("name", ["com.microsoft.Whatever", "ai.onnx.ml.Scaler", "Upsample"])
def test_operators_of_other_domains_and_old_ones_are_names(make_linear, name):
    """A domain's operators are not known here and taken as written; old ones of ONNX are."""
    target = LOCAL.model_copy(update={"operators": Operators(denied=(name,))})

    assert _check(make_linear(np.eye(3)), target)[0]["operators"].outcome == "pass"
