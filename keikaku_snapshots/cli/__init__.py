"""The command line: one lazy group; each command's module is imported when it is called.

`keikaku --help` is typed often and must answer at once, so nothing here
imports more than click; the words of the list below stand here for the same
reason, and a test holds them to the commands themselves.
"""

from __future__ import annotations

import gc
import importlib
import sys
from typing import TYPE_CHECKING

import click

from keikaku_snapshots.cli.groups import HelpfulGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

#: New objects between two searches for garbage; with Python's 700 one comes every millisecond of an import.
_OBJECTS_BETWEEN_SEARCHES = 50_000

#: Name of each command: its module, its attribute there, and what the list of commands says.
COMMANDS = {
    "generate": ("generate", "generate", "Generate a dataset and snapshot it."),
    "create": ("snapshots", "create", "Make a snapshot of a database."),
    "restore": ("snapshots", "restore", "Bring a database back to a snapshot, exactly."),
    "checkpoint": (
        "rewind",
        "checkpoint",
        "Make the present state the one that `keikaku rewind` goes back to.",
    ),
    "rewind": (
        "rewind",
        "rewind",
        "Undo every change that was committed since the checkpoint, whoever made it.",
    ),
    "templates": ("templates", "templates", "List or drop the copies from which restores are quick."),
    "list": ("listing", "list_", "List the snapshots, newest first; a damaged one with the reason."),
    "show": ("listing", "show", "Show everything that is known of one snapshot."),
    "verify": ("verify", "verify", "Check snapshots' files: size, checksum, completeness."),
    "diff": ("diff", "diff", "Say how two snapshots, or a snapshot and the database, differ."),
    "delete": ("snapshots", "delete", "Delete one version of a snapshot, all but the newest, or all."),
    "rename": ("labels", "rename", "Give all versions of a snapshot another name."),
    "pin": ("labels", "pin", "Keep a version from retention, or let it go again (--off)."),
    "tag": ("labels", "tag", "Add free words to a version, or remove them."),
    "describe": ("labels", "describe", "Say what a version is for."),
    "prune": ("prune", "prune", "Delete the versions that no retention rule keeps."),
    "refresh": ("operations", "refresh", "Make a snapshot anew without anybody watching."),
    "check": (
        "operations",
        "check",
        "Look whether the newest snapshot is fresh and large enough, for monitoring.",
    ),
    "patch": ("patch", "patch", "Change live data in small, verified, reversible batches."),
    "perf": ("perf", "perf", "Measure generation, restore and a workload; compare two reports."),
    "doctor": ("doctor", "doctor", "Check tools, server, rights and disk; say what to do."),
    "server": ("server", "server", "Start, stop and look at the embedded PostgreSQL."),
    "completion": ("completion", "completion", "Print the shell's completion script."),
}


class LazyGroup(HelpfulGroup):
    """A group that imports a command only when it is called or its own help is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which one meets them, not the alphabet's."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command and return it."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{attribute} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing one."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, _, words) in COMMANDS.items()])


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        import keikaku_snapshots

        click.echo(f"keikaku {keikaku_snapshots.__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    # The mark keeps click from joining the lines behind it.
    help="""Make realistic test data in PostgreSQL, freeze it, bring it back exactly.

    \b
      keikaku generate --scale medium       100 offices, snapshotted
      keikaku restore medium_100_offices    the database as it was then
    """,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`keikaku COMMAND --help` shows examples. Exit codes: docs/reference/errors.md",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Print the version and exit.",
)
def keikaku() -> None:
    """Hold the commands."""


def main(arguments: Sequence[str] | None = None, program: str = "keikaku") -> None:
    """Run the command line and leave the process with its exit code.

    Args:
        arguments: What was typed after the program's name; the process's own
            arguments when None.
        program: The name that help and errors show.
    """
    from keikaku_snapshots.cli.run import run

    gc.set_threshold(_OBJECTS_BETWEEN_SEARCHES)
    code = run(keikaku, sys.argv[1:] if arguments is None else list(arguments), program)
    # An interpreter that ends searches all that is alive: a tenth of a short command's time.
    gc.freeze()
    sys.exit(code)
