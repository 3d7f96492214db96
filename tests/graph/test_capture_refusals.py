"""What cannot be captured is refused with the reason, never captured wrongly."""

from __future__ import annotations

import copy
import gc
import warnings

import pytest
import torch
from small_nets import net, noise
from torch import nn

from edgeprune.errors import DrawsNumbers, ModelNotSupported, UsageError
from edgeprune.graph.analysis import analyze
from edgeprune.graph.capture import capture
from edgeprune.surgery.prune import prune


def test_args_must_be_a_tuple():
    """A bare tensor is the commonest mistake: the message shows what to write."""
    with pytest.raises(UsageError, match=r"analyze\(model, \(x,\)\)"):
        analyze(nn.Linear(4, 3), noise(2, 4))


def test_a_value_baked_from_the_input_is_refused():
    """float(x.max()) as a Python number would freeze the example's maximum."""
    model = net(lambda m, x: m.a(x) * float(x.max()), a=nn.Linear(4, 3))

    try:
        captured = capture(model, (noise(2, 4),))
    except ModelNotSupported:
        return
    x = noise(2, 4, seed=11) * 3
    assert torch.allclose(captured.module(x), model(x), atol=1e-5)


def test_control_flow_on_data_is_refused(capfd):
    """An if on the input's sign has no one graph: the line is named, and nothing else printed."""

    def run(m, x):
        return m.a(x) if x.sum() > 0 else m.a(-x)

    with pytest.raises(ModelNotSupported, match="the same way through the model") as caught:
        capture(net(run, a=nn.Linear(4, 3)), (noise(2, 4),))

    line = run.__code__.co_firstlineno + 1
    assert f"test_capture_refusals.py:{line}" in str(caught.value)
    assert f"test_capture_refusals.py:{line}" in caught.value.where
    assert caught.value.exit_code == 4
    assert capfd.readouterr() == ("", "")


def test_a_way_that_rare_inputs_leave_is_refused():
    """A branch that inputs like the example take, and larger ones do not, is a branch."""

    def run(m, x):
        return m.a(x) if x.abs().max() < 6 else m.a(x).clamp(-1, 1)

    with pytest.raises(ModelNotSupported, match="depends on values: True, as for the example"):
        capture(net(run, a=nn.Linear(4, 3)), (noise(2, 4).clamp(-2, 2),))


def test_a_check_that_never_fails_is_no_choice(capfd):
    """An if that every input answers alike is captured, and what was taken for granted is told."""

    def run(m, x):
        y = m.a(x).relu()
        if y.sum() < 0:
            raise ValueError("a sum of nothing below zero is below zero")
        return m.b(y)

    model = net(run, a=nn.Linear(8, 6), b=nn.Linear(6, 4))

    pruned = prune(model, (noise(2, 8),))

    captured = pruned.analysis.captured
    line = run.__code__.co_firstlineno + 2
    assert captured.dynamic_batch
    assert any(f"test_capture_refusals.py:{line}" in note for note in captured.lost)
    assert pruned.proof.outcome == "proved"
    assert capfd.readouterr() == ("", "")


def test_a_refused_draft_leaves_no_file_open():
    """torch opens a trace for a draft; it is closed by the time the refusal is raised."""

    def run(m, x):
        y = m.a(x)
        if y.sum() < 1e9 and x.data_ptr() == 0:
            raise ValueError("where is it?")
        return y

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ModelNotSupported, match="draft: |draft, ") as refusal:
            capture(net(run, a=nn.Linear(4, 3)), (noise(2, 4),))
        del refusal
        gc.collect()

    assert [str(w.message) for w in caught if w.category is ResourceWarning] == []


def test_what_nothing_can_capture_names_every_way_tried():
    """torch.export in two ways and a draft: each with its own reason, and the user's line."""

    def run(m, x):
        if x.data_ptr() == 0:
            raise RuntimeError("where is it?")
        return m.a(x)

    with pytest.raises(ModelNotSupported, match="the way of eager, draft: .*strict: ") as caught:
        capture(net(run, a=nn.Linear(4, 3)), (noise(2, 4),))

    assert "test_capture_refusals.py:" in caught.value.where


def test_inputs_that_the_model_does_not_take_are_the_users_mistake():
    """Export is not blamed for what eager raises on the example."""
    with pytest.raises(UsageError, match="expected the model to run on the example") as caught:
        capture(net(lambda m, x: m.a(x), a=nn.Linear(4, 3)), (noise(2, 5),))

    assert "shapes cannot be multiplied" in str(caught.value)


def test_noise_in_eval_is_refused():
    """A model that draws random numbers cannot be compared with itself."""
    model = net(lambda m, x: m.a(x) + torch.rand(3), a=nn.Linear(4, 3))

    with pytest.raises(ModelNotSupported, match="draws random numbers in eval mode"):
        capture(model, (noise(2, 4),))


def test_noise_beside_control_flow_is_told_as_noise():
    """A draft takes the `if` for granted; what differs is the noise, and that is what is said."""

    def run(m, x):
        y = m.a(x) + torch.randn(x.shape[0], 3)
        return y if bool(x.sum() < 1e9) else -y

    with pytest.raises(ModelNotSupported, match="draws random numbers in eval mode"):
        capture(net(run, a=nn.Linear(4, 3)), (noise(2, 4),))


def test_random_numbers_that_export_itself_refuses_are_the_reason():
    """torch.export's complaint about the generator would send the user after the wrong thing."""
    drawn = torch.Generator().manual_seed(0)
    model = net(
        lambda m, x: m.a(x) + torch.randn((x.shape[0], 4), generator=drawn), a=nn.Linear(8, 4)
    )

    with pytest.raises(DrawsNumbers, match="draws random numbers in eval mode"):
        capture(model, (noise(2, 8),))


def test_a_random_size_in_eval_is_not_called_baked():
    """A model that draws how long its output is: eager differs from itself, so it is to blame."""

    def run(m, x):
        return m.a(x).repeat_interleave(torch.randint(1, 9, (4,)), 1)

    with pytest.raises(ModelNotSupported, match="draws random numbers in eval mode"):
        capture(net(run, a=nn.Linear(4, 4)), (noise(2, 4),))


def test_a_fixed_batch_is_said():
    """A model that only takes two samples is captured for two, and says so."""
    model = net(lambda m, x: m.a(x).reshape(2, 3) + torch.ones(2, 3), a=nn.Linear(4, 3))
    captured = capture(model, (noise(2, 4),))

    assert not captured.dynamic_batch
    assert any("fixes its batch size" in note for note in captured.lost)


def _of_one(m, x):
    (only,) = x
    return m.a(only)


def test_a_graph_of_one_sample_stays_so():
    """Its graph runs on two and leaves the second out; captured again it is still one for one."""
    captured = capture(net(_of_one, a=nn.Linear(4, 3)), (noise(1, 4),))
    again = capture(copy.deepcopy(captured.module), (noise(1, 4),))

    assert captured.module(noise(2, 4)).shape == (3,)
    assert not captured.dynamic_batch
    assert not again.dynamic_batch
    assert any("fixes its batch size" in note for note in again.lost)


@pytest.mark.parametrize(
    ("model", "x", "text"),
    [
        (None, noise(2, 4), "expected a torch.nn.Module that runs Python code, got NoneType"),
        (nn.Linear, noise(2, 4), "got type"),
        (torch.jit.ScriptModule(), noise(2, 4), "got .*ScriptModule"),
        (nn.LazyLinear(3), noise(2, 4), "at weight: expected a tensor with a shape, got a lazy"),
        (nn.Linear(4, 3), noise(0, 4), "at least one sample, got a batch of 0"),
    ],
)
def test_what_is_no_model_or_no_sample_is_the_users_mistake(model, x, text):
    """One error that says what was given; a lazy layer is not made real behind the user's back."""
    with pytest.raises(UsageError, match=text):
        capture(model, (x,))

    assert not isinstance(model, nn.LazyLinear) or model.has_uninitialized_params()


ODD = {
    "sparse_coo": lambda x: x.to_sparse(),
    "on the meta device": lambda x: x.to("meta"),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "nested": lambda x: torch.nested.nested_tensor([x]),
}


@pytest.mark.filterwarnings("ignore:.*(deprecated|prototype)")
@pytest.mark.parametrize("kind", ODD)
def test_an_input_that_is_not_dense_is_named(kind):
    """The place in the arguments and what it is, before anything runs."""
    model = net(lambda m, x, more: m.a(x) + m.a(more["y"]), a=nn.Linear(4, 3))
    with pytest.raises(UsageError, match=rf"at kwargs\['more'\]\['y'\]: .* is {kind}") as caught:
        capture(model, (noise(2, 4),), {"more": {"y": ODD[kind](noise(2, 4))}})

    assert caught.value.where == "kwargs['more']['y']"


def test_a_graph_says_which_inputs_it_takes():
    """Of a captured model too: another number, or another size, is no fault of its graph."""
    module = capture(net(lambda m, x: m.a(x), a=nn.Linear(4, 3)), (noise(2, 4),)).module

    with pytest.raises(UsageError, match=r"expected 1 \(.*\), got 2"):
        capture(module, (noise(2, 4), noise(2, 4)))
    with pytest.raises(UsageError, match="expected the model to run on the example inputs, got"):
        capture(module, (noise(2, 5),))


def test_packed_sequences_are_refused_with_what_to_do():
    """No way of torch.export takes them: the remedy is not about control flow."""

    def run(m, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, False)
        return m.b(m.a(packed)[1])

    model = net(run, a=nn.GRU(4, 8, batch_first=True), b=nn.Linear(8, 3))
    with pytest.raises(ModelNotSupported, match="recurrent layer on the padded sequence"):
        capture(model, (noise(3, 5, 4), torch.tensor([5, 4, 3])))


def test_named_inputs_are_a_dict():
    """A list in their place is refused with the way to write it."""
    with pytest.raises(UsageError, match="expected a dict of inputs by name, got list"):
        capture(nn.Linear(4, 3), (noise(2, 4),), [1])


def test_the_users_random_numbers_go_on_as_they_were():
    """A draft draws values; nobody's next random number depends on whether one was tried."""
    model = net(lambda m, x: m.a(x), a=nn.Linear(6, 3))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    capture(model, (noise(6),))

    assert torch.equal(torch.rand(2), expected)


def test_weights_without_values_are_refused():
    """A model made on the meta device has shapes only: the first such tensor is named."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0] = nn.Linear(4, 3)

    with pytest.raises(UsageError, match=r"at 1\.weight: .* one on the meta device"):
        capture(model, (noise(2, 4),))


def test_code_that_asks_whether_it_is_traced_goes_the_way_of_eager():
    """A default that is left out under tracing (masks of T5's relatives) is there in the graph."""

    def run(m, x, mask=None):
        if mask is None and not torch.compiler.is_compiling():
            mask = torch.ones(x.shape[0], 1)
        return m.b(m.a(x).relu()) * mask[:, :1]

    model = net(run, a=nn.Linear(6, 8), b=nn.Linear(8, 4))
    asks = torch.compiler.is_compiling
    pruned = prune(model, (noise(3, 6),))

    assert pruned.proof.outcome == "proved"
    assert pruned.analysis.captured.dynamic_batch
    assert torch.compiler.is_compiling is asks
