"""Recurrent cells: LSTM, GRU and Elman networks, whole sequences or single steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edgeprune.graph.contraction import Equation, contract
from edgeprune.graph.labels import Value, varying
from edgeprune.graph.operators import CELLS, RECURRENT
from edgeprune.graph.registry import Outcome, rule
from edgeprune.graph.trace import Trace

aten = torch.ops.aten

# Argument numbers of the parameters: a list of whole sequences, one by one of cells.
_LIST = 2
_WEIGHT_HH = 3
_STACKED = "several layers or directions in one operator"
_PROJECTED = "a projected LSTM (proj_size): torch knows it by two states of different width"


@rule(*RECURRENT)
def recurrent(
    t: Trace,
    x: Value,
    states: Value | tuple[Value, ...],
    parameters: Sequence[Value],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Outcome:
    """Hidden unit 3 of an LSTM of 8: rows 3, 11, 19, 27 of weights and biases, column 3 of W_hh.

    x (5, 2, 6), state h (1, 2, 8), W_ih (32, 6), W_hh (32, 8) -> output (5, 2, 8), final states
    (1, 2, 8): position 3 of each is the unit; x[..., 4] and W_ih[:, 4] are another. Time steps
    stay. Several layers or directions in one operator do not come here (graph/unstack.py).
    """
    given = states if isinstance(states, tuple) else (states,)
    time = 1 if batch_first else 0
    shape = list(x.shape)
    shape[2] = given[0].shape[2] * (2 if bidirectional else 1)
    whole = Value(tuple(shape))
    if layers != 1 or bidirectional:
        return _pinned(t, _STACKED, whole, x, given, parameters)
    for layer in x.layers:
        if layer.shape[time] > 1:
            t.labels.pin(layer, t.cause("the recurrence runs along this axis"))
    letters = "tbk" if time == 0 else "btk"
    made = contract(t, x, parameters[0], Equation(letters, "jk", letters[:2] + "j"), 0)
    if len(parameters) != (4 if has_biases else 2):
        return _pinned(t, _PROJECTED, whole, made, given, parameters[1:])
    found = _Cell(t, _LIST, 1).run(_one_step(made, time), given, parameters)
    wide = found if time == 0 else _turned(found)
    return (Value(whole.shape, wide.layers), *(Value(s.shape, found.layers) for s in given))


@rule(*CELLS)
def cell(
    t: Trace,
    x: Value,
    states: Value | tuple[Value, ...],
    weight_ih: Value,
    weight_hh: Value,
    bias_ih: Value | None = None,
    bias_hh: Value | None = None,
) -> Outcome:
    """One step: as `recurrent`, without a time axis.

    x (2, 6), state (2, 8), weight_ih (24, 6), weight_hh (24, 8) of a GRU -> (2, 8): hidden unit 3
    is rows 3, 11, 19 of the weights and biases, column 3 of weight_hh, position 3 of the states.
    """
    given = states if isinstance(states, tuple) else (states,)
    lead = "b" * (len(x.shape) - 1)
    made = contract(t, x, weight_ih, Equation(lead + "k", "jk", lead + "j"), 0)
    biases = [bias for bias in (bias_ih, bias_hh) if bias is not None]
    found = _Cell(t, _WEIGHT_HH, 0).run(made, given, (weight_ih, weight_hh, *biases))
    return found if isinstance(states, Value) else (found,) * len(given)


@dataclass(frozen=True, slots=True)
class _Cell:
    """The recurrent part of a cell at the current node; weight_hh is `operand`'s `member`."""

    trace: Trace
    operand: int
    member: int

    def run(self, made: Value, states: tuple[Value, ...], parameters: Sequence[Value]) -> Value:
        """The labels of the hidden units, from what the input makes for every gate.

        Within a step, hidden unit j meets only itself, but for the product with weight_hh: that is
        the edge on which a unit is silenced, at every step. h W^T with h_j masked is h times W^T
        with column j of weight_hh masked, so the mask is laid on that operand of this node; the
        parameter is what it was for whoever else reads it.
        """
        t = self.trace
        weight_hh, biases = parameters[1], parameters[2:]
        columns = tuple(layer.reshape(-1) for layer in weight_hh.layers if layer.shape[1] > 1)
        rows = tuple(layer.reshape(-1) for layer in weight_hh.layers if layer.shape[0] > 1)
        hidden = weight_hh.shape[1]
        every = t.meet(made, Value((weight_hh.shape[0],), rows), *biases)
        unit = self._of_gates(every, hidden)
        for column in columns:
            t.read(self.operand, column.reshape(1, -1), self.member)
        return t.meet(unit, Value((hidden,), columns), *states)

    def _of_gates(self, every: Value, hidden: int) -> Value:
        """(..., gates x hidden) to (..., hidden): position j of all gates is one unit."""
        layers = []
        for layer in every.layers:
            if layer.shape[-1] > 1:
                gates = layer.reshape(*layer.shape[:-1], -1, hidden)
                self.trace.tie(gates, (gates.dim() - 2,), "gates of one hidden unit")
                layer = gates.narrow(-2, 0, 1).squeeze(-2)
            layers.append(layer)
        return self.trace.settle(Value((*every.shape[:-1], hidden), tuple(layers)))


def _one_step(made: Value, time: int) -> Value:
    """What the input makes at one time step, (1, batch, gates x hidden)."""
    layers = tuple(
        layer.narrow(time, 0, 1).transpose(0, time) for layer in made.layers if varying(layer)
    )
    kept = tuple(layer for layer in layers if varying(layer))
    return Value((1, made.shape[1 - time], made.shape[2]), kept)


def _turned(value: Value) -> Value:
    """Batch before time."""
    return Value(value.shape, tuple(layer.transpose(0, 1) for layer in value.layers))


def _pinned(
    t: Trace,
    why: str,
    whole: Value,
    x: Value,
    states: tuple[Value, ...],
    parameters: Sequence[Value],
) -> tuple[Value, ...]:
    """Results without labels, `whole` first, of operands that all stay."""
    for value in (x, *states, *parameters):
        t.pin(value, why)
    return (whole, *(Value(state.shape) for state in states))
