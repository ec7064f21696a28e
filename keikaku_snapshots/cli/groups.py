"""What all groups of commands share: they help whoever types them wrong."""

from __future__ import annotations

import click

#: What a wrong call ends with.
_USAGE = 2


class HelpfulGroup(click.Group):
    """A group that shows its help when typed alone and says what to type instead of a mistake."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words before the command's name."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True, color=ctx.color)
            ctx.exit(_USAGE)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from keikaku_snapshots.cli.session import common_options

            name = error.option_name
            if any(name in option.opts for option in common_options()):
                ctx.fail(f"{name} follows the command: `{ctx.command_path} COMMAND {name}`")
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest a near name for a misspelt command."""
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            ctx.fail(f"No such command {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
        return super().resolve_command(ctx, args)
