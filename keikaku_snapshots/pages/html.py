"""What pages are made of: the document, tables, figures and what the numbers mean; the style is page.css."""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the numbers say."""

    #: ``good``, ``note`` for what to know, ``act`` for what to do something about.
    kind: Literal["good", "note", "act"]
    #: What it is.
    text: str
    #: What to do; empty when there is nothing.
    advice: str = ""
    #: What it is, in Japanese.
    text_ja: str = ""
    #: What to do, in Japanese.
    advice_ja: str = ""


def document(title: str, body: Iterable[str]) -> str:
    """A page that needs nothing else.

    Args:
        title: What the window is called.
        body: Its parts as HTML.

    Returns:
        The HTML text.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_style()}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


def _style() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def findings_list(findings: Iterable[Finding]) -> str:
    """What the numbers mean and what to do, in English and with ``KEIKAKU_LANG=ja`` in Japanese too."""
    items = []
    in_japanese = os.environ.get("KEIKAKU_LANG", "").lower().startswith("ja")
    for finding in findings:
        words = [escape(finding.text)]
        if finding.advice:
            words.append(f'<span class="advice">→ {escape(finding.advice)}</span>')
        if in_japanese and finding.text_ja:
            advice_ja = f"<br>→ {escape(finding.advice_ja)}" if finding.advice_ja else ""
            words.append(f'<span class="ja" lang="ja">{escape(finding.text_ja)}{advice_ja}</span>')
        items.append(f'<li class="{finding.kind}">{"<br>".join(words)}</li>')
    return f'<ul class="findings">{"".join(items)}</ul>'


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: frozenset[int]) -> str:
    """A table; its cells are HTML already, those of the columns `numbers` stand to the right."""

    def cells(row: Sequence[str], tag: str) -> str:
        kinds = (' class="number"' if index in numbers else "" for index in range(len(row)))
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{cells(headers, 'th')}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>{lines}</tbody></table></div>'


def figure(chart: str, caption: str) -> str:
    """A chart with its caption; empty when there is no chart."""
    return f"<figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>" if chart else ""


def facts(entries: Mapping[str, object]) -> str:
    """Names and what belongs to them."""
    lines = (f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in entries.items())
    return f"<dl>{''.join(lines)}</dl>"
