"""Import every family, so that its rules are in the table."""

from edgeprune.graph.rules import (
    attention,
    convolution,
    creation,
    distance,
    joining,
    lookup,
    matrix,
    movement,
    normalisation,
    pointwise,
    recurrent,
    reduction,
    scattering,
    spread,
    summation,
    window,
)

FAMILIES = (
    attention,
    convolution,
    creation,
    distance,
    joining,
    lookup,
    matrix,
    movement,
    normalisation,
    pointwise,
    recurrent,
    reduction,
    scattering,
    spread,
    summation,
    window,
)
