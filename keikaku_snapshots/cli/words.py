"""Options whose words are spelled with a hyphen or an underscore, as people remember them."""

from __future__ import annotations

from typing import Any

import click


class Words(click.Choice):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.2
    """A choice among words: ``test_data`` is ``test-data``, and ``in-place`` is ``in_place``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the word as the library spells it."""
        if isinstance(value, str):
            spelled = value.replace("_", "-")
            value = next((word for word in self.choices if word.replace("_", "-") == spelled), value)
        return super().convert(value, param, ctx)
