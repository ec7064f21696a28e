"""Remedies in Japanese: every one that stands in the code has its translation."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots import errors
from keikaku_snapshots.cli.output import Output
from keikaku_snapshots.cli.remedies import in_japanese, translations
from keikaku_snapshots.cli.run import REPORT, present
from keikaku_snapshots.postgres.embedded_programs import HOW_TO_INSTALL
from keikaku_snapshots.postgres.tool_search import _HOW_TO_GET

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).parents[2] / "keikaku_snapshots"
BYPASS = "Use a superuser or a role with BYPASSRLS (ALTER ROLE … BYPASSRLS)"
#: Put together from pieces, so that no literal is the whole text.
COMPOSED = {
    _HOW_TO_GET.replace("{major}", "{}"),
    REPORT,
    HOW_TO_INSTALL,
    "`{} --help` shows options and examples.",
    BYPASS + ".",
    BYPASS + "; or, as the owner: ALTER TABLE {} NO FORCE ROW LEVEL SECURITY.",
}
#: What a value stands for in a text that was written with one.
HOLE = "{}"


def texts(node: ast.expr) -> list[str]:
    """The texts that an expression may have, ``{}`` for its values."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)]
    if isinstance(node, ast.IfExp):
        return texts(node.body) + texts(node.orelse)
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in texts(value)]
    if isinstance(node, ast.Dict):
        return [text for value in node.values for text in texts(value)]
    return []


def remedies_of(tree: ast.AST) -> Iterator[ast.expr]:
    """What is given as a remedy, without a Japanese text beside it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            if "hint" in given and "hint_ja" not in given:
                yield given["hint"]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in {"hint", "hints"}:
            yield node.value


def literal_remedies() -> dict[str, str]:
    """Every remedy that stands in the code: its text, and where."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in remedies_of(ast.parse(path.read_text(encoding="utf-8"))):
            for text in texts(node):
                if re.search(r"[A-Za-z]", text):
                    found[text] = f"{path.relative_to(PACKAGE)}:{node.lineno}"
    return found


def test_every_remedy_has_a_japanese_one() -> None:
    """G: whoever writes hint="…" adds a line to cli/remedies_ja.tsv, or hint_ja="…" beside it."""
    known = set(translations())
    missing = {text: place for text, place in literal_remedies().items() if text not in known | {BYPASS}}

    assert missing == {}


def test_no_translation_is_of_a_remedy_that_is_gone() -> None:
    """A row that nothing uses would never be read again."""
    assert set(translations()) - set(literal_remedies()) - COMPOSED == set()


def test_translations_are_japanese_and_fill_in_the_same_values() -> None:
    """A translation without Japanese letters, or with a value more or less, is a slip."""
    for english, japanese in translations().items():
        assert re.search(r"[ぁ-ん]", japanese), english
        assert english.count(HOLE) == len(re.findall(r"\{\d?\}", japanese)), english
        assert japanese == japanese.strip()


@pytest.mark.parametrize(
    ("english", "japanese"),
    [
        ("Correct the name.", "名前を修正してください。"),
        ("Restore into PostgreSQL 18 or newer.", "PostgreSQL 18 以降に復元してください。"),
        (
            "Set is_test_data to true in these rows of public.a, or leave it out.",
            "public.a のこれらの行で is_test_data を true にするか、省略してください。",
        ),
        ("Read /tmp/log and try again.", "/tmp/log を確認して再実行してください。"),
        ("What nobody has translated.", ""),
    ],
)
def test_values_are_filled_in(english: str, japanese: str) -> None:
    """G: names and versions stand in the Japanese text too."""
    assert in_japanese(english) == japanese


def test_a_remedy_that_ends_with_another_one_is_translated_as_a_whole() -> None:
    """G: the search for client tools puts two together."""
    second = _HOW_TO_GET.format(major=18)
    both = in_japanese("Correct the configured path, or leave it out to search. " + second)
    assert both == "設定したパスを修正するか、省略して自動検索にしてください。" + in_japanese(second)
    assert "postgresql-client-18" in both


def test_the_presenter_shows_the_translation_of_the_remedy_that_is_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """G: not the general one of the class; one that comes with the error, or the class's, otherwise."""
    monkeypatch.setenv("KEIKAKU_LANG", "ja")
    present(errors.UsageError("x", hint="Correct the name."), Output())
    assert "対処: 名前を修正してください。" in capsys.readouterr().err
    present(errors.UsageError("x"), Output())
    assert f"対処: {errors.UsageError.hint_ja}" in capsys.readouterr().err
    present(errors.UnknownScaleError("x"), Output())  # "Read {}." and "Use {}." must not catch it
    assert f"対処: {errors.UnknownScaleError.hint_ja}" in capsys.readouterr().err
    present(errors.UsageError("x", hint="Not in the table.", hint_ja="表にない。"), Output())
    assert "対処: 表にない。" in capsys.readouterr().err
    present(ValueError("x"), Output())
    assert "対処: 同じコマンドに -v を" in capsys.readouterr().err
