"""Options that several commands share, worded once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

Model: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="path/to/file.py:factory, package.module:factory, torchvision:NAME, timm:NAME, a "
        ".pt2 or an .onnx file.",
        show_default=False,
    ),
]
Weights: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="Trained weights: safetensors, or a state dict. Default: as the factory gives them.",
        show_default=False,
    ),
]
InputShapes: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="SHAPE",
        help="Example input, batch first: 2x3x224x224[:int64], several joined by commas. "
        "Default: the factory's or file's example, or what the zoo knows.",
        show_default=False,
    ),
]
TargetName: TypeAlias = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="TARGET",
        help="Target profile: a shipped name (`edgeprune targets list`) or a .toml file.",
    ),
]
ExactOnly: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--exact-only", help="Pin what redefines a statistic, such as the width of a LayerNorm."
    ),
]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout, all else on stderr.")
]
Quiet: TypeAlias = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but the result's one line and errors.")
]
Verbose: TypeAlias = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, help="Print more; twice: tracebacks too.", show_default=False
    ),
]
