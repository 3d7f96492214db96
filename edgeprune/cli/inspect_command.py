"""`edgeprune inspect`: what can go, together with what, and what cannot, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeprune.cli.options import ExactOnly, InputShapes, Json, Model, Quiet, Verbose, Weights
from edgeprune.cli.session import session


def inspect_command(
    model: Model,
    weights: Weights = None,
    input: InputShapes = None,  # noqa: A002 (the option's name)
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain",
            metavar="NAME",
            help="Why this tensor, module or graph node cannot be pruned, or what goes with it, "
            "step by step.",
            show_default=False,
        ),
    ] = None,
    exact_only: ExactOnly = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """List the groups of a model with what a unit saves, and the pins with reason and line.

    -v lists every coupled tensor and every pinned one, and repeated blocks one by one.
    """
    with session(json=json, quiet=quiet, verbose=verbose) as current:
        from dataclasses import asdict

        from edgeprune.cli.explain_view import explain_lines
        from edgeprune.cli.inspect_view import headline, inspect_lines
        from edgeprune.cli.inspection import inspection
        from edgeprune.graph.analysis import analyze
        from edgeprune.graph.explain import explain as explained
        from edgeprune.recipe.model import load_model

        loaded = load_model(model, weights=weights, input=input)
        analysis = analyze(loaded.module, loaded.args, loaded.kwargs, exact_only=exact_only)
        every = verbose > 0
        if explain is not None:
            answer = explained(analysis, explain)
            current.data({"model": loaded.name, **asdict(answer)})
            current.lines(explain_lines(answer, current.width, every=every))
            if quiet:
                current.line(answer.summary)
            return
        found = inspection(loaded.name, analysis)
        current.data(asdict(found))
        current.lines(inspect_lines(found, current.width, every=every))
        current.line(headline(found))
