# ruff: noqa: INP001 - a module of the script generate_reference.py, which stands beside it
"""The page of the configuration of data patches."""

from __future__ import annotations

from keikaku_snapshots.config_patches import DEFAULT_FILES, FILE_VARIABLE
from keikaku_snapshots.config_patches_schema import SHIPPED, PatchesFile
from keikaku_snapshots.config_schema import schema

HEAD = """\
# Configuration of data patches

One YAML file, named by `--patch-config` or `{variable}`, else the first of {files} that
exists. Everything is optional. Unknown keys, doubled keys, unknown patches, wrong values, windows, times and
parameters, and missing secrets are refused, all at once, with their paths, and nothing runs (exit code 2).
[`config/data_patches.yml`](../../config/data_patches.yml) is a commented file with the defaults.

`NAME` stands for a name that you give, `N` for the number of an item of a list. A key without a default must
be given.

| key | takes | default | meaning |
|---|---|---|---|
"""
SHIPPED_HEAD = """
## The shipped patches

What a file does not say of these is as here, not as above:

"""
TAIL = """
## Windows

A window is open exactly while a clock on the wall of its time zone shows a time from `start` up to, not
including, `end`, on one of its days. An `end` that is not after `start` is on the next day; the window
belongs to the day on which it opens. In nights of changed clocks the same rule decides:

- A time that the clock jumps over is never shown. A window from 02:30 to 04:00 in New York opens that
  night at 03:00, the first moment after the gap; one from 02:15 to 02:45 does not open.
- A time that the clock shows twice counts both times. A window from 01:00 to 02:00 is open for two
  hours that night; one from 01:30 to 02:30 closes when the clock goes back to 01:00, and opens again at
  the second 01:30.

Several windows may overlap, touch, and lie in different time zones; together they are one.

## Schedule

`keikaku patch worker --once`, started by cron or systemd every few minutes, runs what is due while a
window is open. A time that was missed makes one run, in the next window; several make one. An entry
that is new, or whose times were changed, does not run for what lies in the past. In nights of changed
clocks an entry whose time falls into the gap runs right after it, and one whose time comes twice runs
once.

## Secrets

Channels and keys are named by environment variables, never written into the file. A channel is off
while its variable is not set, unless `required` is true: then nothing runs. A variable that is set but
empty is refused. An address that cannot be reached is reported and never stops a run.
"""


def page() -> str:
    """Return the page."""
    files = ", ".join(f"`{file}`" for file in DEFAULT_FILES)
    lines = []
    for item in schema(PatchesFile):
        empty = '`""`' if item.expected == "a text" and item.path.endswith(".description") else ""
        default = f"`{item.default}`" if item.default else empty
        lines.append(f"| `{item.path}` | {item.expected} | {default} | {item.meaning} |")
    keys = next(iter(SHIPPED.values()))
    shipped = ["| patch | " + " | ".join(f"`{key}`" for key in keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for name, values in SHIPPED.items():
        shipped.append(f"| `{name}` | " + " | ".join(str(values[key]) for key in keys) + " |")
    return (
        HEAD.format(variable=FILE_VARIABLE, files=files)
        + "\n".join(lines)
        + "\n"
        + SHIPPED_HEAD
        + "\n".join(shipped)
        + "\n"
        + TAIL
    )
