"""Run the command line program as `python -m edgeprune`."""

from __future__ import annotations

from edgeprune.cli.app import main

if __name__ == "__main__":
    main()
