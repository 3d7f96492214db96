"""LSTM, GRU and Elman networks, against a recurrence written out step by step in eager torch."""

from __future__ import annotations

import pytest
import torch
from small_nets import net, noise, pruned_like_silenced, require_equal
from torch import nn

from edgeprune.errors import ModelNotSupported, NothingToRemove
from edgeprune.exporting.onnx import export
from edgeprune.graph.analysis import analyze
from edgeprune.graph.capture import capture
from edgeprune.graph.graph_json import graph_from_json, graph_to_json
from edgeprune.graph.module import CapturedModule
from edgeprune.planning.cost import cost
from edgeprune.scoring.scores import score
from edgeprune.surgery.compose import compose
from edgeprune.surgery.prove import prove
from edgeprune.surgery.prune import prune
from edgeprune.surgery.repair import repair

KINDS = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
}
GATES = {"lstm": 4, "gru": 3, "tanh": 1, "relu": 1}
SHAPES = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "two layers, both directions, no bias": {
        "num_layers": 2,
        "bidirectional": True,
        "bias": False,
    },
}


def tagger(kind="lstm", into=8, hidden=12, **options):
    """A sequence (batch, time, into) to 5 numbers a step."""
    make, more = KINDS[kind]
    cell = make(into, hidden, batch_first=True, **more, **options)
    wide = hidden * (2 if cell.bidirectional else 1)
    return net(lambda m, x: m.h(m.r(x)[0]), r=cell, h=nn.Linear(wide, 5))


def classifier(pick, width, **options):
    """Final hidden states h (layers x directions, batch, 12) of a GRU, picked, to 5 numbers."""
    return net(
        lambda m, x: m.h(pick(m.r(x)[1])),
        r=nn.GRU(8, 12, batch_first=True, **options),
        h=nn.Linear(width, 5),
    )


def widths(pruned):
    """Width by group name."""
    return {group.name: group.width for group in pruned.analysis.groups}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_units_go_in_every_kind_of_network(kind, shape):
    """Each layer and direction has 12 units of its own, and loses 6 of them."""
    pruned = pruned_like_silenced(tagger(kind, **SHAPES[shape]), noise(2, 7, 8))

    matrices = [n for n in pruned.model.state_dict() if "weight_hh" in n]
    assert pruned.proof.outcome == "proved"
    assert set(widths(pruned)) == {name.replace("_hh_", "_ih_") for name in matrices}
    assert all(pruned.model.state_dict()[n].shape == (6 * GATES[kind], 6) for n in matrices)


def test_a_hidden_unit_is_a_row_of_each_gate():
    """Unit 3 of 12: four rows of weights and biases, a column of weight_hh and of the reader."""
    slots = set(analyze(tagger(), (noise(2, 7, 8),)).unit_of("r.weight_ih_l0", 0, 15).slots)

    rows = (3, 15, 27, 39)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    assert slots == {(f"r.{name}", 0, rows) for name in names} | {
        ("r.weight_hh_l0", 1, (3,)),
        ("h.weight", 1, (3,)),
    }


def test_the_backward_direction_lies_behind_the_forward_one():
    """Layer 1 reads both directions of layer 0 side by side: unit 3 backwards is column 15."""
    model = tagger("gru", num_layers=2, bidirectional=True)
    slots = analyze(model, (noise(2, 7, 8),)).unit_of("r.weight_hh_l0_reverse", 1, 3).slots

    assert ("r.weight_ih_l1", 1, (15,)) in slots
    assert ("r.weight_ih_l1_reverse", 1, (15,)) in slots
    assert not any("_l0." in slot.parameter for slot in slots)


def test_a_direction_may_be_narrower_than_the_other():
    """Only the backward direction is asked for: the forward one keeps its 12."""
    model = tagger(bidirectional=True)
    pruned = pruned_like_silenced(model, noise(2, 7, 8), only=("r.weight_hh_l0_reverse",))

    assert pruned.model.r.weight_hh_l0.shape == (48, 12)
    assert pruned.model.r.weight_hh_l0_reverse.shape == (24, 6)


def test_the_input_width_goes_with_the_layer_before():
    """Embedding, LSTM: column 3 of both weight_ih is dim 1 of the table."""
    model = net(
        lambda m, x: m.h(m.r(m.e(x))[0]),
        e=nn.Embedding(20, 10),
        r=nn.LSTM(10, 8, batch_first=True, bidirectional=True),
        h=nn.Linear(16, 5),
    )
    pruned = pruned_like_silenced(model, torch.arange(14).reshape(2, 7))

    assert pruned.model.r.weight_ih_l0.shape == pruned.model.r.weight_ih_l0_reverse.shape == (16, 5)
    assert pruned.model.e.weight.shape == (20, 5)


def test_a_convolution_before_and_a_residual_behind():
    """Speech: channels x frequencies are the input; a residual joins the units with its own."""
    model = net(
        lambda m, x: m.h((y := m.a(m.c(x).relu().permute(0, 3, 1, 2).flatten(2))) + m.r(y)[0]),
        c=nn.Conv2d(1, 6, 3, padding=1),
        a=nn.Linear(24, 10),
        r=nn.GRU(10, 10, batch_first=True),
        h=nn.Linear(10, 5),
    )
    pruned = pruned_like_silenced(model, noise(2, 1, 4, 7))

    assert ("r.weight_hh_l0", 1, (3,)) in pruned.analysis.unit_of("a.weight", 0, 3).slots


PICKS = {
    "last layer": (lambda h: h[-1], 12, {"num_layers": 2}),
    "last of both directions": (
        lambda h: torch.cat([h[-2], h[-1]], 1),
        24,
        {"num_layers": 2, "bidirectional": True},
    ),
    "unbind": (lambda h: torch.cat(h.unbind(0), 1), 24, {"bidirectional": True}),
    "slice of one": (lambda h: h[1:2].squeeze(0), 12, {"num_layers": 2}),
}


@pytest.mark.parametrize("pick", PICKS)
def test_a_picked_final_state_ties_no_layers(pick):
    """h[-1] reads the last layer's units: every layer and direction keeps its own."""
    run, width, options = PICKS[pick]
    pruned = pruned_like_silenced(classifier(run, width, **options), noise(2, 7, 8))

    recurrent = [name for name in pruned.model.state_dict() if "weight_hh" in name]
    for name in recurrent:
        others = {slot.parameter for slot in pruned.analysis.unit_of(name, 1, 3).slots}
        assert not others & (set(recurrent) - {name})


TOGETHER = {
    "summed": (lambda h: h.sum(0), 12),
    "flattened": (lambda h: h.transpose(0, 1).flatten(1), 48),
    "viewed": (lambda h: h.view(2, 2, -1, 12)[-1].sum(0), 12),
    "slice of two": (lambda h: h[2:].mean(0), 12),
}


@pytest.mark.parametrize("use", TOGETHER)
def test_final_states_read_together_are_one_width(use):
    """All states in one tensor: position 3 of those read together is one unit."""
    run, width = TOGETHER[use]
    model = classifier(run, width, num_layers=2, bidirectional=True)
    slots = pruned_like_silenced(model, noise(2, 7, 8)).analysis.unit_of("r.weight_hh_l1", 1, 3)

    assert ("r.weight_hh_l1_reverse", 1, (3,)) in slots.slots


def test_initial_zeros_shrink_with_their_layer():
    """zeros(2, batch, 12) written by the user, moved to a device: each layer has a width."""

    def run(m, x):
        h = torch.zeros(2, x.shape[0], 12).to(x.device)
        return m.h(m.r(x, (h, torch.zeros_like(h)))[0])

    model = net(run, r=nn.LSTM(8, 12, num_layers=2, batch_first=True), h=nn.Linear(12, 5))
    pruned_like_silenced(model, noise(2, 7, 8))


def test_an_initial_state_from_a_layer_is_the_unit():
    """h0 = s(z): row 3 of s is hidden unit 3."""
    model = net(
        lambda m, x, z: m.h(m.r(x, m.s(z).unsqueeze(0))[0]),
        r=nn.GRU(8, 12, batch_first=True),
        s=nn.Linear(4, 12),
        h=nn.Linear(12, 5),
    )
    pruned = pruned_like_silenced(model, noise(2, 7, 8), noise(2, 4))

    assert ("r.weight_hh_l0", 1, (3,)) in pruned.analysis.unit_of("s.weight", 0, 3).slots


def test_a_learned_initial_state_shrinks_and_is_one_width():
    """s (2, 1, 12) for two layers is one tensor: both layers lose the same positions."""
    model = net(
        lambda m, x: m.h(m.r(x, m.s.expand(-1, x.shape[0], -1).contiguous())[0]),
        r=nn.GRU(8, 12, num_layers=2, batch_first=True),
        s=nn.Parameter(torch.zeros(2, 1, 12)),
        h=nn.Linear(12, 5),
    )
    pruned = pruned_like_silenced(model, noise(2, 7, 8))

    assert pruned.model.s.shape == (2, 1, 6)
    assert widths(pruned) == {"r.weight_ih_l0": 12}


def test_an_initial_state_from_the_caller_pins():
    """h0 is an input of the model: its width is the caller's, and the pin says so."""
    model = net(
        lambda m, x, h: m.h(m.r(x, h)[0]), r=nn.GRU(8, 12, batch_first=True), h=nn.Linear(12, 5)
    )
    analysis = analyze(model, (noise(2, 7, 8), noise(1, 2, 12)), dynamic_batch=False)

    assert analysis.groups == ()
    pin = next(p for p in analysis.pins if p.parameter == "r.weight_hh_l0" and p.dim == 1)
    assert "full size that cannot shrink" in pin.reason


def test_a_final_state_returned_pins_its_layers_only_where_returned():
    """The caller gets layer 1's state; layer 0 stays removable."""
    model = net(lambda m, x: m.r(x)[1][0][-1], r=nn.LSTM(8, 12, num_layers=2, batch_first=True))
    pruned = pruned_like_silenced(model, noise(2, 7, 8))

    assert widths(pruned) == {"r.weight_ih_l0": 12}


def test_a_decoder_starts_where_the_encoder_ended():
    """Layer k of both is one width, and the two layers are not tied to each other."""

    def run(m, x, y):
        _, states = m.e(x)
        return m.h(m.d(y, states)[0])

    model = net(
        run,
        e=nn.LSTM(8, 12, num_layers=2, batch_first=True),
        d=nn.LSTM(6, 12, num_layers=2, batch_first=True),
        h=nn.Linear(12, 5),
    )
    pruned = pruned_like_silenced(model, noise(2, 7, 8), noise(2, 5, 6))

    slots = pruned.analysis.unit_of("e.weight_hh_l0", 1, 3).slots
    assert ("d.weight_hh_l0", 1, (3,)) in slots
    assert ("d.weight_hh_l1", 1, (3,)) not in slots


@pytest.mark.parametrize("make", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("bias", [True, False])
def test_cells_called_in_a_loop(make, bias):
    """Four calls share their weights: a unit is silenced at every step."""

    def run(m, x):
        states, outs = None, []
        for step in x.unbind(1):
            states = m.r(step, states)
            outs.append(states[0] if make is nn.LSTMCell else states)
        return m.h(torch.stack(outs, 1))

    model = net(run, r=make(8, 12, bias=bias), h=nn.Linear(12, 5))
    pruned = pruned_like_silenced(model, noise(2, 4, 8))

    assert pruned.proof.outcome == "proved"
    assert pruned.model.r.weight_hh.shape[1] == 6


def test_time_steps_stay():
    """A layer over time before an LSTM: the recurrence runs along that axis."""
    model = net(
        lambda m, x: m.h(m.r(m.a(x.transpose(1, 2)).transpose(1, 2))[0][:, -1]),
        a=nn.Linear(7, 9),
        r=nn.LSTM(8, 12, batch_first=True),
        h=nn.Linear(12, 5),
    )
    pruned = pruned_like_silenced(model, noise(2, 7, 8))

    assert pruned.model.a.weight.shape == (9, 7)
    assert "the recurrence runs along this axis" in {pin.reason for pin in pruned.analysis.pins}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projection_pins_with_its_reason_and_the_input_goes():
    """proj_size: torch recognises it by two states of different width, so no width may change."""
    model = net(
        lambda m, x: m.h(m.r(m.e(x))[0]),
        e=nn.Linear(8, 10),
        r=nn.LSTM(10, 12, proj_size=6, batch_first=True),
        h=nn.Linear(6, 5),
    )
    pruned = prune(model, (noise(2, 7, 8),), criterion="random")

    assert pruned.proof.holds
    assert widths(pruned) == {"e.weight": 10}
    assert any("projected LSTM (proj_size)" in pin.reason for pin in pruned.analysis.pins)
    with pytest.raises(ModelNotSupported, match="got one with a projection"):
        export(pruned, "never.onnx")


def test_two_calls_that_feed_each_other_are_the_width_of_the_data():
    """r(r(x)): output and input are one width, which is the data's."""
    cell = nn.GRU(8, 8, batch_first=True)
    model = net(lambda m, x: m.h(m.r(m.r(x)[0])[0]), r=cell, h=nn.Linear(8, 5))
    with pytest.raises(NothingToRemove, match="its width is that of data"):
        prune(model, (noise(2, 7, 8),))


def test_weight_norm_inside_an_lstm_is_folded():
    """The effective weight is what the cell uses; its parts go, and nothing is pinned by them."""
    model = tagger()
    nn.utils.parametrizations.weight_norm(model.r, "weight_hh_l0")
    pruned = prune(model, (noise(2, 7, 8),), criterion="random")

    assert pruned.proof.outcome == "proved"
    assert not any("parametrizations" in name for name in pruned.model.state_dict())
    assert pruned.model.r.weight_hh_l0.shape == (24, 6)


def test_multiply_accumulates_by_hand():
    """7 steps of 4 gates of 12 units that hear 8 + 12 numbers, then 12 x 5."""
    assert cost(capture(tagger(), (noise(2, 7, 8),))).macs == 7 * (4 * 12 * (8 + 12) + 12 * 5)
    both = tagger("gru", num_layers=2, bidirectional=True)
    layers = 2 * 36 * (8 + 12) + 2 * 36 * (24 + 12)
    assert cost(capture(both, (noise(2, 7, 8),))).macs == 7 * (layers + 24 * 5)
    step = net(lambda m, x: m.r(x), r=nn.GRUCell(8, 12))
    assert cost(capture(step, (noise(2, 8),))).macs == 36 * (8 + 12)


def test_names_order_and_dropout_of_the_original_are_kept():
    """State dict as in eager; dropout between layers acts in train mode, and only there."""
    model = tagger(num_layers=2, bidirectional=True, dropout=0.5)
    module, x = capture(model, (noise(2, 7, 8),)).module, noise(2, 7, 8)

    assert list(module.state_dict()) == list(model.state_dict())
    assert module(x).equal(module(x))
    module.train()
    assert not module(x).equal(module(x))
    module.eval()
    require_equal(module(x), model(x))


def test_a_second_prune_a_training_step_and_the_composed_plan():
    """Training moves every weight; pruning again proves, and so do both plans together."""
    x = noise(2, 7, 8)
    first = prune(tagger("gru", num_layers=2, bidirectional=True), (x,), criterion="random")
    second = prune(first.model, (x,), criterion="random", keep_fraction=0.7)
    both = compose(first.analysis, first.plan, second.plan)

    assert second.proof.outcome == "proved"
    assert prove(first.analysis, both, second.model).outcome == "proved"
    before = {name: p.detach().clone() for name, p in second.model.named_parameters()}
    second.model.train()
    second.model(x).square().mean().backward()
    torch.optim.SGD(second.model.parameters(), lr=0.1).step()
    assert not any(p.equal(before[name]) for name, p in second.model.named_parameters())


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor"])
def test_hidden_units_are_scored(criterion):
    """One finite number a unit; those of l1 by hand."""
    model = tagger()
    analysis = analyze(model, (noise(2, 7, 8),))
    batches = [(noise(2, 7, 8), torch.zeros(2, 7, 5))]
    values = score(
        analysis, criterion, batches, lambda out, want: (out - want).square().mean()
    ).values["r.weight_ih_l0"]

    assert values.shape == (12,)
    if criterion == "l1":
        r = dict(model.r.named_parameters())
        rows = sum(p.reshape(4, 12, -1).abs().sum((0, 2)) for p in r.values())
        columns = r["weight_hh_l0"].abs().sum(0) + model.h.weight.abs().sum(0)
        assert torch.allclose(torch.from_numpy(values).float(), rows + columns, rtol=1e-5)


def test_repair_leaves_cells_alone_and_says_so():
    """The layer behind is refitted; weights inside the cell are named as not refitted."""
    pruned = prune(tagger(num_layers=2), (noise(2, 7, 8),), criterion="random")
    repaired = repair(pruned, [noise(64, 7, 8, seed=s) for s in range(4)])

    layers = {layer.name: layer for layer in repaired.repaired.layers}
    assert layers["h.weight"].error_after is not None
    assert "inside a recurrent cell" in layers["r.weight_hh_l1"].why
    assert repaired.model.r.weight_hh_l1.equal(pruned.model.r.weight_hh_l1)


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime_agrees(kind, tmp_path):
    """Two layers, both directions, after pruning: within 1e-4 of torch, on another batch too."""
    ort = pytest.importorskip("onnxruntime")
    pruned = prune(
        tagger(kind, num_layers=2, bidirectional=True), (noise(2, 7, 8),), criterion="random"
    )
    export(pruned, tmp_path / "m.onnx")
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])

    for batch in (1, 3):
        x = noise(batch, 7, 8, seed=9)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            require_equal(torch.from_numpy(got), pruned.model(x))


def test_time_before_samples_is_no_free_dim():
    """torch fixes the number of steps; calling that dim dynamic would be wrong."""
    model = net(lambda m, x: m.h(m.r(x)[0]), r=nn.LSTM(8, 12, num_layers=2), h=nn.Linear(12, 5))
    captured = capture(model, (noise(7, 2, 8),))

    assert not captured.dynamic_batch
    assert any("fixes its batch size" in lost for lost in captured.lost)
    pruned_like_silenced(model, noise(7, 2, 8))


def test_the_graph_survives_json():
    """What a bundle stores of a pruned LSTM gives the same outputs back."""
    pruned = prune(tagger(num_layers=2, bidirectional=True), (noise(2, 7, 8),), criterion="random")
    again = CapturedModule(pruned.model, graph_from_json(graph_to_json(pruned.model.graph)))

    assert again(noise(3, 7, 8)).equal(pruned.model(noise(3, 7, 8)))
