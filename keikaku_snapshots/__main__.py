"""`python -m keikaku_snapshots` is the command line."""

from __future__ import annotations

from keikaku_snapshots.cli import main

if __name__ == "__main__":
    main(program="python -m keikaku_snapshots")
