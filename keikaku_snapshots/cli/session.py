"""What every command shares: the options, the settings, the database it works on."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keikaku_snapshots.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from click.shell_completion import CompletionItem

    from keikaku_snapshots.config import Settings
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.manager import SnapshotManager
    from keikaku_snapshots.snapshots.retention import RetentionPolicy

#: Where the embedded server of a working directory lives.
EMBEDDED_DIRECTORY = Path(".keikaku/postgres")
#: The database of the embedded server that commands use.
EMBEDDED_DATABASE = "keikaku"

_META = "keikaku_snapshots."


class Session:
    """One run of one command: its common options and what follows from them."""

    def __init__(self, output: Output, options: Mapping[str, Any]) -> None:
        self.output = output
        self._options = options

    def option(self, name: str) -> Any:
        """Return a common option as it was given; None when it was not."""
        return self._options.get(name)

    @cached_property
    def settings(self) -> Settings:
        """The configuration with the command's own options on top."""
        import dataclasses

        from keikaku_snapshots.config import load_settings

        loaded = load_settings(self._options.get("config"))
        for warning in loaded.warnings:
            self.output.warn(warning)
        directory = self._options.get("snapshot_dir")
        if directory is not None:
            if Path(directory) == Path():
                raise click.UsageError(
                    "--snapshot-dir must name a directory, got an empty text or the working directory itself"
                )
            return dataclasses.replace(loaded.settings, snapshot_dir=Path(directory))
        return loaded.settings

    @property
    def retention(self) -> RetentionPolicy:
        """The configured retention policy."""
        import dataclasses

        from keikaku_snapshots.snapshots.retention import RetentionPolicy

        return RetentionPolicy(**dataclasses.asdict(self.settings.retention))

    @property
    def snapshot_dir(self) -> Path:
        """Where the snapshots are."""
        return self.settings.snapshot_dir

    @cached_property
    def url(self) -> DatabaseURL:
        """The database that was named, or the embedded one where the rules allow it."""
        url = self.named_url
        return self._embedded_url() if url is None else url

    @cached_property
    def named_url(self) -> DatabaseURL | None:
        """The database that was named by option or environment; None when none was."""
        from keikaku_snapshots.config import find_database_url

        found = None if self._options.get("embedded") else find_database_url(self._options.get("db_url"))
        if found is None:
            return None
        from keikaku_snapshots.postgres.url import DatabaseURL

        url = DatabaseURL.parse(found[0])
        self.output.hide_by(url.redact)
        return url

    def require_database(self, why: str = "") -> None:
        """Refuse to fall back to the embedded server: it is used only when --embedded says so.

        Args:
            why: Why not, when the command does not run unattended.

        Raises:
            NoDatabaseError: No database is named.
        """
        from keikaku_snapshots.errors import NoDatabaseError

        if not self._options.get("embedded") and self.named_url is None:
            raise NoDatabaseError(
                "no database is named",
                found=why
                or "this command runs unattended, so an unset variable must never mean an empty database",
            )

    def _embedded_url(self) -> DatabaseURL:
        from keikaku_snapshots.errors import NoDatabaseError

        if not self._options.get("embedded") and not self.output.on_terminal:
            raise NoDatabaseError(
                "no database is named",
                found="without a terminal the embedded server is used only when --embedded says so, "
                "so that an unset variable never works on an empty database",
            )
        from keikaku_snapshots.postgres.embedded import EmbeddedServer

        server = EmbeddedServer(EMBEDDED_DIRECTORY)
        running = server.status() is not None
        status = server.start()
        self.output.say(
            f"{'using' if running else 'started'} the embedded PostgreSQL {status.major} of "
            f"{EMBEDDED_DIRECTORY} (`keikaku server stop` ends it)"
        )
        url = server.url(EMBEDDED_DATABASE, create=True)
        self.output.hide_by(url.redact)
        return url

    def manager(self, *, database: bool = True, **changes: Any) -> SnapshotManager:
        """Make the manager for this command.

        Args:
            database: False for commands that look at files only, which then
                need no database named.
            changes: Further options of `SnapshotManager`.
        """
        from keikaku_snapshots.generate import retry_policy
        from keikaku_snapshots.snapshots.manager import SnapshotManager

        settings = self.settings
        url = self.url if database else self.named_url
        options: dict[str, Any] = {
            "lock_wait_s": settings.lock_wait_s,
            "lock_timeout_s": settings.lock_timeout_s,
            "minimum_free_mb": settings.minimum_free_mb,
            "protected_words": settings.protected_words,
            "allowed_databases": settings.allowed_databases,
            "pg_bin": settings.pg_bin,
            "retention": self.retention,
            "audit": settings.audit,
            "latest": settings.latest,
            "keep_old_minutes": settings.keep_old_minutes,
            "templates": settings.templates,
            # Who switches templates off on the command line need not know of the spares in the file.
            "spare": 0 if changes.get("templates") is False else settings.spare,
        }
        if url is not None:
            options["retry"] = retry_policy(settings)
        options |= {key: value for key, value in changes.items() if value is not None}
        return SnapshotManager(url, snapshot_dir=settings.snapshot_dir, **options)


class Command(click.Command):
    """A command with the common options and a section of examples in its help."""

    #: Names of the options that stand in the section "Everywhere".
    common: frozenset[str] = frozenset()

    def __init__(
        self,
        *arguments: Any,
        examples: Sequence[tuple[str, str]] = (),
        database: bool = True,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.examples = tuple(examples)
        added = [
            option for option in common_options() if database or option.name not in {"db_url", "embedded"}
        ]
        own = {name for parameter in self.params for name in parameter.opts}
        added = [option for option in added if not own & set(option.opts)]
        self.params = [*self.params, *added]
        self.common = frozenset(str(option.name) for option in added)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options first, then those that every command has."""
        sections: tuple[tuple[str, list[tuple[str, str]]], ...] = (("Options", []), ("Everywhere", []))
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Argument):
                continue  # stands in the usage line; not every click leaves it out here
            record = parameter.get_help_record(ctx)
            if record is not None:
                everywhere = parameter.name in self.common or parameter.name == "help"
                sections[everywhere][1].append(record)
        for title, records in sections:
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self.examples:
            with formatter.section("Examples"):
                for line, meaning in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
                    formatter.write(f"{'':>{formatter.current_indent + 4}}{meaning}\n")
        super().format_epilog(ctx, formatter)


def pass_session(function: Callable[..., Any]) -> Callable[..., Any]:
    """Hand a command its `Session` as the first argument."""
    import functools

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        context = click.get_current_context()
        options = {
            key.removeprefix(_META): value for key, value in context.meta.items() if key.startswith(_META)
        }
        output = context.find_object(Output) or Output()
        output.as_json = bool(options.get("as_json"))
        output.quiet = bool(options.get("quiet"))
        output.verbose = int(options.get("verbose") or 0)
        output.log_format = str(options.get("log_format") or "text")
        output.start_logging()
        return function(Session(output, options), *arguments, **keywords)

    return call


def common_options() -> list[click.Option]:
    """Make the options that every command has.

    Returns:
        Fresh options; their values go to the `Session`.
    """

    def remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        context.meta[_META + str(parameter.name)] = value

    def option(*names: str, **keywords: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=remember, **keywords)

    return [
        option(
            "--db-url",
            metavar="URL",
            help="Database, as postgresql://USER:PASSWORD@HOST:PORT/NAME. "
            "[env: KEIKAKU_DB_URL, PERFORMANCE_TEST_DATABASE_URL, TEST_DATABASE_URL]",
        ),
        option("--embedded", is_flag=True, help="Use the embedded PostgreSQL of this directory."),
        option(
            "--snapshot-dir",
            metavar="DIR",
            shell_complete=_leave_to_shell("dir"),
            help="Directory of the snapshots. [env: KEIKAKU_SNAPSHOT_DIR]",
        ),
        option(
            "--config",
            metavar="FILE",
            shell_complete=_leave_to_shell("file"),
            help="Configuration file. [env: KEIKAKU_CONFIG]",
        ),
        option(
            "--json", "as_json", is_flag=True, help="Print one JSON document on stdout; words go to stderr."
        ),
        option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors."),
        option("-v", "--verbose", count=True, help="Say more; -vv also what only developers need."),
        option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            default="text",
            help="Words on stderr as text or as JSON lines.",
        ),
    ]


def complete_snapshot_name(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Offer the names of the snapshots for shell completion.

    Args:
        context: The command line so far.
        incomplete: What is typed of the name.

    Returns:
        Names that begin so; none when the directory cannot be read.
    """
    return sorted({name for name, _ in _on_disk(context) if name.startswith(incomplete)})


def complete_version(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Offer the versions of the name that was typed, newest first.

    Args:
        context: The command line so far.
        incomplete: What is typed of the version.

    Returns:
        Versions that begin so; none when the directory cannot be read.
    """
    # An option that still waits for its value keeps click from filling in the arguments.
    wanted = context.params.get("name") or next(iter(context.args), None)
    versions = {
        version for name, version in _on_disk(context) if name == wanted and version.startswith(incomplete)
    }
    return sorted(versions, reverse=True)


def _on_disk(context: click.Context) -> list[tuple[str, str]]:
    """Name and version of what lies in the directory, without opening any of it."""
    directory = Path(
        context.meta.get(_META + "snapshot_dir") or os.environ.get("KEIKAKU_SNAPSHOT_DIR") or "snapshots"
    )
    import re

    try:
        files = [file.name for file in directory.iterdir()]
    except OSError:
        return []
    found = (re.match(r"([A-Za-z0-9][\w.-]*?)_(\d{8}_\d{6}(?:_\d+)?)\.", file) for file in files)
    return [(match[1], match[2]) for match in found if match]


def _leave_to_shell(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(
        _context: click.Context, _parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type=kind)]

    return complete
