"""`keikaku completion`: the script that a shell loads for completion."""

from __future__ import annotations

import click

from keikaku_snapshots.cli.session import Command, Session, pass_session

#: Where each shell looks for the script.
_PLACES = {
    "bash": "~/.local/share/bash-completion/completions/keikaku",
    "zsh": "a file _keikaku in a directory of $fpath",
    "fish": "~/.config/fish/completions/keikaku.fish",
}


@click.command(
    "completion",
    cls=Command,
    database=False,
    examples=[
        ('eval "$(keikaku completion bash)"', "In ~/.bashrc; zsh alike."),
        ("keikaku completion fish > ~/.config/fish/completions/keikaku.fish", "Once, for fish."),
    ],
)
@click.argument("shell", type=click.Choice(sorted(_PLACES)))
@pass_session
def completion(session: Session, shell: str) -> None:
    """Print the shell's completion script.

    It completes commands, options and the names of snapshots.
    """
    from click.shell_completion import get_completion_class

    from keikaku_snapshots.cli import keikaku

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    script = kind(keikaku, {}, "keikaku", "_KEIKAKU_COMPLETE").source()
    if session.output.as_json:
        session.output.document({"shell": shell, "script": script, "place": _PLACES[shell]})
    session.output.data(script)
