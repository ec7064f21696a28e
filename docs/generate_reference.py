# ruff: noqa: INP001, E402 - a script that finds the checkout before it imports from it
"""Write the pages of docs/reference from the code they describe.

    python docs/generate_reference.py            write them
    python docs/generate_reference.py --check    exit 1 when a page is not current

A test checks them too, so a page can never tell another story than the program.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import reference_api
import reference_errors
import reference_patches

from keikaku_snapshots.cli import COMMANDS, keikaku
from keikaku_snapshots.cli.session import Command
from keikaku_snapshots.config import DATABASE_VARIABLES, DEFAULT_FILES, schema
from keikaku_snapshots.testing.options import OPTIONS
from tests.fault_cases import CASES, cases_tested
from tests.peer_cases import ASKS, asks_tested

HEAD = "<!-- Written by docs/generate_reference.py; change the code, not this page. -->\n\n"


def main(arguments: list[str]) -> int:
    """Write or check the pages.

    Args:
        arguments: ``--check`` or nothing.

    Returns:
        The exit code.
    """
    stale = []
    for name, text in pages().items():
        path = ROOT / "docs" / "reference" / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if stale:
        words = "not current" if "--check" in arguments else "written"
        sys.stdout.write(f"{words}: {', '.join(stale)}\n")
    return int(bool(stale) and "--check" in arguments)


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    return {
        "api.md": HEAD + reference_api.page(),
        "errors.md": HEAD + reference_errors.page(),
        "command-line.md": HEAD + command_line_page(),
        "configuration.md": HEAD + configuration_page(),
        "data_patches.md": HEAD + reference_patches.page(),
        "pytest-plugin.md": HEAD + pytest_plugin_page(),
        "faults.md": HEAD + faults_page(),
        "peers.md": HEAD + peers_page(),
    }


def pytest_plugin_page() -> str:
    """Return the page of the pytest plugin's options."""
    lines = [
        "# pytest plugin",
        "",
        "What it does: [Use snapshots in a conftest](../how-to/use-in-conftest.md). An option of the command",
        "line wins over the ini file; URL and directory of the environment come between the two.",
        "",
        "| option | key of the ini file | takes | meaning |",
        "|---|---|---|---|",
    ]
    for option in OPTIONS:
        takes = (
            ", ".join(f"`{one}`" for one in option.choices) or option.metavar or "nothing (ini: a boolean)"
        )
        lines.append(f"| `{option.flag}` | `{option.key}` | {takes} | {option.help} |")
    return "\n".join(lines) + "\n"


def faults_page() -> str:
    """Return the catalogue of faults with the files that test them."""
    lines = [
        "# Faults",
        "",
        "What goes wrong with pg_dump, psql and live databases, each case reproduced with the raw tools of",
        "PostgreSQL 15, 16 and 18, and what must happen here. Code and tests name a case by its number",
        '("FAULTS 5").',
        "",
        "| case | what goes wrong | what must happen | tested in |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *_catalogue(CASES, cases_tested(ROOT / "tests"))]) + "\n"


def peers_page() -> str:
    """Return the catalogue of what users of other tools ask for, with the files that test it."""
    lines = [
        "# What users of other tools ask for",
        "",
        "Asked in public threads of snapshot, backup and test tools; what is shown here, and where it is",
        'tested. Tests name an ask by its number ("PEERS 16"). How long it takes beside those tools:',
        "[performance](../performance.md).",
        "",
        "| ask | what is asked | what is shown | tested in |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *_catalogue(ASKS, asks_tested(ROOT / "tests"))]) + "\n"


def _catalogue(cases: Mapping[int, str], tests: Mapping[int, list[str]]) -> Iterator[str]:
    for number, text in cases.items():
        first, _, second = (part.strip().replace("|", "\\|") for part in text.partition("->"))
        files = sorted({test.partition("::")[0] for test in tests[number]})
        where = ", ".join(f"`{file}`" for file in files) or "with the part it belongs to"
        yield f"| {number} | {first} | {second} | {where} |"


def command_line_page() -> str:
    """Return the page of commands and options."""
    lines = [
        "# Command line",
        "",
        "`keikaku`, or `python -m keikaku_snapshots`. Data go to stdout, words to stderr; with `--json`",
        "stdout is exactly one JSON document. Exit codes: [errors.md](errors.md).",
        "",
        "## Options of every command",
        "",
        *_options([option for option in _some_command().params if option.name in _some_command().common]),
        f"Where no database is named, the environment is asked: {_database_variables()}.",
        "With none of them, a terminal gets the embedded PostgreSQL of the directory; without a terminal",
        "`--embedded` must be said, so that a cron line with an unset variable never works on an empty",
        "database. On a terminal `restore` and `delete` show what goes and ask (`--yes` skips); without one",
        "they run, so that cron works.",
        "",
        "`NO_COLOR` switches colour off. `KEIKAKU_LANG=ja` adds the remedy of an error in Japanese.",
        "",
    ]
    context = click.Context(keikaku, info_name="keikaku")
    for name in COMMANDS:
        command = keikaku.get_command(context, name)
        if command is not None:
            lines += _command_or_group(f"keikaku {name}", command, "##")
    return "\n".join(lines).rstrip() + "\n"


def _command_or_group(title: str, command: click.Command, level: str) -> list[str]:
    if not isinstance(command, click.Group):
        return _command_section(title, command, level)
    lines = [f"{level} {title}", "", *_help_text(command), ""]
    for child in command.commands.values():
        lines += _command_or_group(f"{title} {child.name}", child, level + "#")
    return lines


def _some_command() -> Command:
    command = keikaku.get_command(click.Context(keikaku), "create")
    if not isinstance(command, Command):
        raise TypeError("create is no command of ours")
    return command


def _help_text(command: click.Command) -> list[str]:
    return inspect.cleandoc((command.help or "").replace("\b", "")).splitlines()


def _command_section(title: str, command: click.Command, level: str) -> list[str]:
    lines = [f"{level} {title}", "", *_help_text(command), ""]
    context = click.Context(command, info_name=title)
    lines += ["```text", command.get_usage(context).removeprefix("Usage: "), "```", ""]
    if isinstance(command, Command):
        lines += _options([option for option in command.params if option.name not in command.common])
        if command.examples:
            lines += ["```text"]
            for line, meaning in command.examples:
                lines += [f"# {meaning}", line]
            lines += ["```", ""]
    return lines


def _options(parameters: list[click.Parameter]) -> list[str]:
    lines = []
    for parameter in parameters:
        if isinstance(parameter, click.Argument):
            continue  # stands in the usage line
        record = parameter.get_help_record(click.Context(keikaku, info_name="keikaku"))
        if record is not None:
            names, words = record
            lines.append(f"- `{names}`" + (f": {' '.join(words.split())}" if words else ""))
    return [*lines, ""] if lines else []


def _database_variables() -> str:
    return ", ".join(f"`{variable}`" for variable in DATABASE_VARIABLES)


def configuration_page() -> str:
    """Return the page of settings."""
    files = ", ".join(f"`{file}`" for file in DEFAULT_FILES)
    lines = [
        "# Configuration",
        "",
        f"One YAML file, named by `--config` or `KEIKAKU_CONFIG`, else the first of {files} that exists.",
        "Everything is optional. An environment variable wins over the file, an option of the command line",
        "over both. Unknown keys, doubled keys and wrong values are refused, all at once, with their paths.",
        "[`config/keikaku.yml`](../../config/keikaku.yml) is a commented file with the defaults.",
        "",
        "| key | takes | default | variable | meaning |",
        "|---|---|---|---|---|",
    ]
    for item in schema():
        variable = f"`{item.variable}`" if item.variable else ""
        default = f"`{item.default}`" if item.default else ""
        lines.append(f"| `{item.path}` | {item.expected} | {default} | {variable} | {item.meaning} |")
    lines += [
        "",
        "A list in a variable is separated by commas. A variable that is set but empty is refused, because",
        "half of these come from another variable that was not set. An unknown `KEIKAKU_` variable is",
        "reported and has no effect.",
        "",
        "The database URL is no setting: "
        + ", ".join(f"`{v}`" for v in DATABASE_VARIABLES)
        + " are asked in this order.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
