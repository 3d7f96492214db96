"""`edgeprune verify`: whether a bundle is the one that was made, and still computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli.options import Json, Quiet, Verbose
from edgeprune.cli.session import session


def verify_command(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder of a finished run.", show_default=False)
    ],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Check every file's hash, the plan and the report, and replay the recorded outputs.

    Says also what the bundle itself says: one that failed a gate verifies as what it is, a failed
    one, and ends with its exit code.
    """
    with session(json=json, quiet=quiet, verbose=verbose) as current:
        from edgeprune.cli.tables import outcome_text, verdicts_table
        from edgeprune.release.report import VerdictRow
        from edgeprune.release.verify import verify

        found = verify(bundle)
        rows = tuple(VerdictRow.of(verdict) for verdict in found.verdicts)
        current.data(
            {
                "bundle": str(bundle),
                "outcome": found.outcome,
                "exit_code": found.exit_code,
                "made_outcome": found.bundle.outcome,
                "verdicts": [row.model_dump(mode="json") for row in rows],
            }
        )
        current.show(verdicts_table(rows), "")
        current.line(
            f"{outcome_text(found.exit_code)}: {bundle}; "
            + ("it is as it was made" if found.outcome == "pass" else "it is not as it was made")
            + f", and when it was made its gates were: {found.bundle.outcome}"
        )
        raise typer.Exit(found.exit_code)
