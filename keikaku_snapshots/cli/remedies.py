"""What to do, in Japanese: the translations of the remedies that stand in the code, by their English text.

Remedies of whole classes stand beside the English ones in `errors`. Those that
only one place gives are in ``remedies_ja.tsv``, English and Japanese in two
columns; ``{}`` stands for what the place fills in.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources


def in_japanese(remedy: str) -> str:
    """Translate a remedy.

    Args:
        remedy: The English text, as the error has it.

    Returns:
        The Japanese text; empty when there is none.
    """
    exact = translations().get(remedy)
    if exact is not None:
        return exact
    for pattern, japanese in _patterns():
        match = pattern.fullmatch(remedy)
        if match is not None:
            # A remedy may end with another one.
            return japanese.format(*(in_japanese(value) or value for value in match.groups()))
    return ""


@cache
def translations() -> dict[str, str]:
    """Return all translations by their English text, ``{}`` in both where something is filled in."""
    text = resources.files(__package__ or __name__).joinpath("remedies_ja.tsv").read_text(encoding="utf-8")
    lines = (line.partition("\t") for line in text.splitlines())
    return {english: japanese for english, _, japanese in lines}


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """Texts with something to fill in; the longest first, because it says most."""
    found = []
    for english, japanese in sorted(translations().items(), key=lambda pair: -len(pair[0])):
        if "{}" in english:
            pattern = "(.+?)".join(re.escape(part) for part in english.split("{}"))
            found.append((re.compile(pattern, re.DOTALL), japanese))
    return found
