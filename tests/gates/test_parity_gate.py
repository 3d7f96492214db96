"""The parity gate: what it accepts, and everything that must never pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import DataError
from edgeprune.gates import (
    ParityEvidence,
    ParityRecord,
    Verdict,
    compare_outputs,
    judge,
    parity_evidence,
    read_parity,
    write_parity,
)

VARIED = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)


def verdict_on(reference: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> Verdict:
    """The gate's verdict on two sets of outputs."""
    (verdict,) = judge(ParityEvidence(outputs=compare_outputs(reference, actual), samples=4))
    return verdict


def test_error_is_the_largest_difference_over_the_spread() -> None:
    """Reference 0, 2, 4, 6 spreads by sqrt(5); an error of 0.001 is 0.001 / sqrt(5)."""
    reference = np.array([[0.0, 2.0], [4.0, 6.0]])
    actual = reference + np.array([[0.0, 0.0], [0.001, 0.0]])

    (output,) = compare_outputs({"y": reference}, {"y": actual})

    assert output.finding == "compared"
    assert output.error == pytest.approx(0.001 / np.sqrt(5))


def test_equal_outputs_pass_and_others_fail() -> None:
    """Agreement passes with an error of 0; a difference of one standard deviation fails."""
    same = verdict_on({"y": VARIED}, {"y": VARIED})
    other = verdict_on({"y": VARIED}, {"y": VARIED + VARIED.std()})

    assert (same.outcome, same.observed, same.count) == ("pass", 0.0, 4)
    assert other.outcome == "fail"
    assert other.observed == pytest.approx(1.0, rel=1e-5)


@given(scale=st.floats(min_value=1e-3, max_value=1e3), shift=st.floats(-10, 10))
@settings(deadline=None, max_examples=60)
def test_error_does_not_depend_on_the_outputs_unit(scale: float, shift: float) -> None:
    """Scaling and shifting both sides alike leaves the error unchanged."""
    reference = VARIED.astype(np.float64)
    actual = reference + 1e-3 * np.sin(np.arange(20)).reshape(4, 5)

    (before,) = compare_outputs({"y": reference}, {"y": actual})
    (after,) = compare_outputs({"y": reference * scale + shift}, {"y": actual * scale + shift})

    assert after.error == pytest.approx(before.error, rel=1e-6)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ({}, "output 'y' is missing from the model"),
        ({"y": VARIED[:, :4]}, "output 'y' has shape (4, 4), expected (4, 5)"),
        ({"y": np.full((4, 5), np.nan)}, "output 'y' is NaN or infinite in ONNX Runtime"),
        ({"y": np.where(VARIED > 1, np.inf, VARIED)}, "is NaN or infinite in ONNX Runtime"),
    ],
)
def test_wrong_outputs_fail_with_the_reason(actual: dict[str, np.ndarray], expected: str) -> None:
    """A missing output, a wrong shape and NaN are failures that name the output."""
    verdict = verdict_on({"y": VARIED}, actual)

    assert verdict.outcome == "fail"
    assert expected in verdict.line()


def test_nan_in_the_reference_fails() -> None:
    """NaN = NaN proves nothing and is never agreement."""
    broken = np.full((4, 5), np.nan)

    assert verdict_on({"y": broken}, {"y": broken}).outcome == "fail"


@pytest.mark.parametrize(
    "constant",
    [
        np.zeros((4, 5)),
        np.full((4, 5), 7.0),
        np.tile(VARIED[:1], (4, 1)),  # a bias: it varies, but never with the input
        1e4 + 1e-6 * VARIED.astype(np.float64),  # rounding noise on a constant
        np.array(3.0),
    ],
)
def test_a_constant_output_can_never_pass(constant: np.ndarray) -> None:
    """Equal constants are inconclusive, with the remedy."""
    verdict = verdict_on({"y": constant}, {"y": constant})

    assert (verdict.outcome, verdict.observed) == ("inconclusive", None)
    assert "output 'y' is constant, which shows nothing" in verdict.line()


def test_a_constant_that_differs_fails() -> None:
    """Where the reference is constant and the runtime is not equal to it, it is wrong."""
    verdict = verdict_on({"y": np.zeros((4, 5))}, {"y": VARIED})

    assert verdict.outcome == "fail"
    assert "is constant in the reference and differs from it by" in verdict.line()


def test_one_bad_output_outweighs_good_ones() -> None:
    """A vacuous output next to a good one is inconclusive; a wrong one makes it a failure."""
    zeros = np.zeros((4, 5))

    vacuous = verdict_on({"a": VARIED, "b": zeros}, {"a": VARIED, "b": zeros})
    wrong = verdict_on({"a": VARIED, "b": zeros}, {"a": VARIED + 1, "b": zeros})

    assert vacuous.outcome == "inconclusive"
    assert wrong.outcome == "fail"


def test_an_output_without_a_reference_is_not_passed_over() -> None:
    """What the model returns beyond the record has not been compared."""
    verdict = verdict_on({"a": VARIED}, {"a": VARIED, "b": VARIED})

    assert verdict.outcome == "inconclusive"
    assert "output 'b' has no recorded reference" in verdict.line()


def test_no_outputs_at_all_are_inconclusive() -> None:
    """Nothing compared is not agreement."""
    assert verdict_on({}, {}).outcome == "inconclusive"


def test_a_model_is_run_and_compared(make_linear) -> None:
    """y = x @ w by ONNX Runtime agrees with NumPy in double precision; other weights do not."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((6, 3))
    x = rng.standard_normal((4, 6)).astype(np.float32)
    record = ParityRecord(inputs={"x": x}, outputs={"y": x @ weight.astype(np.float32)})

    (right,) = judge(parity_evidence(make_linear(weight), record))
    (wrong,) = judge(parity_evidence(make_linear(weight + 0.01), record))

    assert (right.outcome, right.count) == ("pass", 4)
    assert wrong.outcome == "fail"


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    """What is read is what was written, dtypes and odd names included."""
    record = ParityRecord(
        inputs={"input:0": np.arange(6, dtype=np.int64).reshape(2, 3)}, outputs={"a/b": VARIED}
    )
    write_parity(tmp_path / "parity.npz", record)

    found = read_parity(tmp_path / "parity.npz")

    assert list(found.inputs) == ["input:0"]
    assert found.inputs["input:0"].dtype == np.int64
    np.testing.assert_array_equal(found.inputs["input:0"], record.inputs["input:0"])
    np.testing.assert_array_equal(found.outputs["a/b"], VARIED)


def test_other_files_are_not_parity_data(tmp_path: Path) -> None:
    """A damaged file and an archive of other arrays are refused by name."""
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 cut off")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))

    with pytest.raises(DataError, match=r"bad\.npz: expected an \.npz file, got"):
        read_parity(tmp_path / "bad.npz")
    with pytest.raises(DataError, match=r"expected keys 'input\.NAME' .* got \['x'\]"):
        read_parity(tmp_path / "other.npz")


def test_no_pickle_is_ever_read(tmp_path: Path) -> None:
    """An archive of Python objects is refused: reading it would run code."""
    np.savez(tmp_path / "objects.npz", **{"input.x": np.array([print], dtype=object)})

    with pytest.raises(DataError, match="allow_pickle=False"):
        read_parity(tmp_path / "objects.npz")


@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 1e-4), (np.float16, 1e-2)])
def test_the_default_limit_is_what_the_precision_allows(make_linear, dtype, limit) -> None:
    """Outputs in float16 carry three digits: what is rounding there is a fault in float32."""
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    record = ParityRecord(inputs={"x": x}, outputs={"y": (1.002 * x).astype(dtype)})

    (verdict,) = judge(parity_evidence(make_linear(np.eye(3)), record))

    assert verdict.limit == limit
    assert verdict.outcome == ("pass" if dtype == np.float16 else "fail")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("array", [1j * VARIED, VARIED.astype("U"), VARIED.astype("S")])
@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_a_record_of_anything_but_real_numbers_is_refused(
    tmp_path: Path, array: np.ndarray, kind: str
) -> None:
    """A complex reference would lose its imaginary part, and text has no difference."""
    arrays = {"inputs": {"x": VARIED}, "outputs": {"y": VARIED}}
    arrays[kind] = {"z": array}
    write_parity(tmp_path / "p.npz", ParityRecord(**arrays))

    with pytest.raises(
        DataError, match=f"real numbers in '{kind[:-1]}.z', got dtype {array.dtype}"
    ):
        read_parity(tmp_path / "p.npz")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("odd", [VARIED + 1j, VARIED.astype(object).astype(str).astype(object)])
def test_outputs_that_are_no_real_numbers_never_pass(odd: np.ndarray) -> None:
    """On either side they are a failure with their dtype, not a traceback."""
    for reference, actual in ((odd, VARIED), (VARIED, odd)):
        verdict = verdict_on({"y": reference}, {"y": actual})
        assert verdict.outcome == "fail"
        assert f"is {odd.dtype}" in verdict.line()
