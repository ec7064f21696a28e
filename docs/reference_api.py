# ruff: noqa: INP001 - a module of the script generate_reference.py, which stands beside it
"""The page of the Python API: everything public, from the real signatures and docstrings."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import json
import re
import types
import typing
from typing import TYPE_CHECKING, Any

from docstrings import comments, inline, markdown, parse

from keikaku_snapshots.errors import KeikakuError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The modules whose ``__all__`` is public.
MODULES = (
    "keikaku_snapshots",
    "keikaku_snapshots.datasets",
    "keikaku_snapshots.patches",
    "keikaku_snapshots.perf",
)
_PACKAGE = "keikaku_snapshots"
_WIDTH = 100
#: The longest line that the formatter leaves alone.
_LONGEST = 110
_NAMES = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class Item:
    """One documented name."""

    #: What people type.
    name: str
    #: Module where it is defined.
    home: str
    #: The class, function or alias.
    value: Any


def page() -> str:
    """Return the page."""
    public = {module: list(_public(module)) for module in MODULES}
    known = {item.name: item for items in public.values() for item in items}
    reached = _reached(list(known.values()))
    writer = _Writer({**known, **{item.name: item for item in reached}})
    lines = [
        "# Python API",
        "",
        "Everything that is meant to be imported, with the signatures and words of the code itself.",
        "Names that begin with an underscore, and modules that are not named here, may change at any time.",
        "Errors are listed in [errors.md](errors.md).",
        "",
    ]
    for module, items in public.items():
        lines.append(f"- [`{module}`](#{_anchor(module)}): {writer.links(items)}")
    lines += [f"- [values they take and return](#{_anchor(_VALUES)}): {writer.links(reached)}", ""]
    for module, items in public.items():
        lines += [f"## {module}", "", *writer.text(importlib.import_module(module).__doc__), ""]
        for item in items:
            lines += writer.section(item)
    lines += [f"## {_VALUES}", "", "They come from the functions above and need no import of your own.", ""]
    for item in reached:
        lines += writer.section(item)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


_VALUES = "Values they take and return"


def _anchor(heading: str) -> str:
    """The address that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _alias_lines(name: str, value: ast.expr) -> list[str]:
    """An alias as the formatter would write it: a long Literal has a line for each of its values."""
    whole = f"{name} = {_double_quoted(ast.unparse(value))}"
    if len(whole) <= _LONGEST or not isinstance(value, ast.Subscript):
        return [whole]
    assert isinstance(value.slice, ast.Tuple)
    parts = (_double_quoted(ast.unparse(part)) for part in value.slice.elts)
    return [f"{name} = {ast.unparse(value.value)}[", *(f"    {part}," for part in parts), "]"]


def _public(module: str) -> Iterator[Item]:
    package = importlib.import_module(module)
    for name in package.__all__:
        if name != "__version__":
            value = getattr(package, name)
            # An alias does not know where it is from.
            alias = _resolve(name, module) if isinstance(value, types.UnionType) else None
            yield alias or Item(name, value.__module__, value)


def _reached(begin: list[Item]) -> list[Item]:
    """Our own types that stand in the signatures and fields of these, and of those in turn."""
    known = {item.name for item in begin}
    waiting, found = list(begin), []
    while waiting:
        item = waiting.pop(0)
        for annotation in _annotations(item.value):
            for name in _NAMES.findall(annotation):
                new = None if name in known else _resolve(name, item.home)
                if new is not None:
                    known.add(name)
                    found.append(new)
                    waiting.append(new)
    return sorted(found, key=lambda item: item.name.lower())


def _annotations(value: Any) -> Iterator[str]:
    if isinstance(value, ast.expr):
        yield ast.unparse(value)
    elif inspect.isclass(value):
        yield from _fields(value).values()
        for _, member in _members(value):
            yield from _annotations(member)
        if not dataclasses.is_dataclass(value) and "__init__" in vars(value):
            yield from _annotations(value.__init__)
    elif callable(value):
        signature = inspect.signature(value)
        yield from (_parameter_type(value, parameter) for parameter in signature.parameters.values())
        yield from map(str, _returns(value, signature))


def _fields(kind: type) -> dict[str, str]:
    """The fields of a value: name and type; of other classes the attributes that have a comment."""
    own = vars(kind).get("__annotations__", {})
    if not (dataclasses.is_dataclass(kind) or typing.is_typeddict(kind) or hasattr(kind, "_fields")):
        said = comments(inspect.getsource(kind)) if own else {}
        own = {name: text for name, text in own.items() if name in said}
    # A TypedDict keeps its annotations as references.
    texts = {name: getattr(text, "__forward_arg__", text) for name, text in own.items()}
    return {name: str(text) for name, text in texts.items() if not name.startswith("_")}


def _own(kind: type) -> dict[str, Any]:
    """What a class defines; the methods of one class may be spread over several, called ``…Methods``."""
    found = dict(vars(kind))
    for base in kind.__mro__[1:]:
        if base.__name__.endswith("Methods"):
            found = {**found, **{name: member for name, member in vars(base).items() if name not in found}}
    return found


def _is_property(member: object) -> bool:
    return isinstance(member, property | functools.cached_property)


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties in the order of the source."""
    for name, member in _own(kind).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            yield name, member.fget
        elif isinstance(member, functools.cached_property | classmethod | staticmethod):
            yield name, member.func if isinstance(member, functools.cached_property) else member.__func__
        elif inspect.isfunction(member):
            yield name, member


@functools.cache
def _names_of(module: str) -> dict[str, tuple[str, Any]]:
    """What a module defines or imports from us, for its type checker too: name to home and alias."""
    loaded = importlib.import_module(module)
    found: dict[str, tuple[str, Any]] = {}
    for node in ast.walk(ast.parse(inspect.getsource(loaded))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PACKAGE):
            found.update((alias.name, (str(node.module), None)) for alias in node.names)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = (module, None)
        elif (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and ast.unparse(node.annotation) == "TypeAlias"
        ):
            found[node.target.id] = (module, node.value)
    return found


def _resolve(name: str, module: str) -> Item | None:
    home, alias = _names_of(module).get(name, (None, None))
    if home is None or name.startswith("_"):
        return None
    if home != module:
        return _resolve(name, home)
    if alias is not None:
        return Item(name, home, alias)
    value = getattr(importlib.import_module(home), name, None)
    return Item(name, home, value) if inspect.isclass(value) and not issubclass(value, Exception) else None


class _Writer:
    """Writes sections; knows which names have one."""

    def __init__(self, items: dict[str, Item]) -> None:
        self._items = items
        # A property stands in the section of its class.
        self._methods = {
            f"{item.name}.{name}": _anchor(
                item.name if _is_property(_own(item.value)[name]) else f"{item.name}.{name}"
            )
            for item in items.values()
            if inspect.isclass(item.value)
            for name, _ in _members(item.value)
        }

    def links(self, items: list[Item]) -> str:
        return ", ".join(f"[`{item.name}`](#{_anchor(item.name)})" for item in items)

    def text(self, docstring: str | None, owner: str = "") -> list[str]:
        return markdown(parse(docstring).text, functools.partial(self._link, owner=owner))

    def section(self, item: Item) -> list[str]:
        """The section of one name."""
        lines = [f"### {item.name}", ""]
        if isinstance(item.value, ast.expr):
            module = importlib.import_module(item.home)
            said = comments(inspect.getsource(module)).get(item.name, "")
            lines += ["```py", *_alias_lines(item.name, item.value), "```", ""]
            return lines + ([self._inline(said), ""] if said else [])
        if not inspect.isclass(item.value):
            return lines + self._function(item.value, item.name, "")
        return lines + self._class(item)

    def _class(self, item: Item) -> list[str]:
        kind = item.value
        lines = []
        if not dataclasses.is_dataclass(kind) and inspect.isfunction(vars(kind).get("__init__")):
            lines += ["```py", *_signature(item.name, kind.__init__, method=True), "```", ""]
        lines += [*self.text(kind.__doc__, item.name), ""]
        if issubclass(kind, KeikakuError):
            lines += ["Its children and their remedies: [errors.md](errors.md).", ""]
        lines += self._fields(kind, item.name)
        if not dataclasses.is_dataclass(kind) and "__init__" in vars(kind):
            described = parse(kind.__init__.__doc__) if kind.__init__.__doc__ else parse(kind.__doc__)
            lines += self._details(described, inspect.signature(kind.__init__), item.name)
        if item.name == "AsyncSnapshotManager":
            manager = self._items["SnapshotManager"].value
            own = dict(_members(kind))
            twins = [
                name for name, _ in _members(manager) if hasattr(kind(manager), name) and name not in own
            ]
            listed = ", ".join(self._inline(f"`{name}`", "SnapshotManager") for name in twins)
            lines += [f"To be awaited: {listed}.", ""]
        methods = dict(_members(kind))
        properties = [name for name in methods if _is_property(_own(kind)[name])]
        if properties:
            lines += [
                "Properties:",
                "",
                *(self._property(methods.pop(name), item.name) for name in properties),
                "",
            ]
        for name, member in methods.items():
            title, is_static = f"{item.name}.{name}", isinstance(_own(kind)[name], staticmethod)
            lines += [f"#### {title}", "", *self._function(member, title, item.name, method=not is_static)]
        return lines

    def _property(self, function: Any, owner: str) -> str:
        described = parse(function.__doc__)
        words = " ".join(" ".join(described.text).split())
        for name, said in described.sections.get("Raises", ()):
            words += f" Raises `{name}`: {said}"
        annotation = inspect.signature(function).return_annotation
        return f"- `{function.__name__}: {annotation}`: {self._inline(words, owner)}"

    def _function(self, function: Any, title: str, owner: str, *, method: bool = False) -> list[str]:
        described = parse(function.__doc__)
        lines = ["```py", *_signature(title, function, method=method), "```", ""]
        lines += [*self.text(function.__doc__, owner), ""]
        return lines + self._details(described, inspect.signature(function), owner)

    def _details(self, described: Any, signature: inspect.Signature, owner: str) -> list[str]:
        lines = []
        said = described.entries("Args")
        if said:
            lines += ["Parameters:", ""]
            for name, words in said.items():
                parameter = signature.parameters.get(name)
                stars = "**" if parameter is not None and parameter.kind is parameter.VAR_KEYWORD else ""
                lines.append(f"- `{stars}{name}`: {self._inline(words, owner)}")
            lines.append("")
        for section in ("Returns", "Yields"):
            for _, words in described.sections.get(section, ()):
                types = self._types(str(signature.return_annotation))
                lines += [f"{section}{types}: {self._inline(words, owner)}", ""]
        return lines + self._raises(described, owner)

    def _raises(self, described: Any, owner: str) -> list[str]:
        said = described.sections.get("Raises", ())
        if not said:
            return []
        entries = (f"- {self._inline(f'`{name}`')}: {self._inline(words, owner)}" for name, words in said)
        return ["Raises:", "", *entries, ""]

    def _fields(self, kind: type, owner: str) -> list[str]:
        fields = _fields(kind)
        if not fields:
            return []
        said = comments(inspect.getsource(kind))
        lines = ["Fields:", ""]
        for name, annotation in fields.items():
            default = _default(kind, name)
            words = f": {self._inline(said[name], owner)}" if name in said else ""
            equals = f" = {default}" if default else ""
            lines.append(f"- `{name}: {annotation}{equals}`{words}")
        return [*lines, ""]

    def _types(self, annotation: str) -> str:
        """Links to our own types of an annotation, in brackets."""
        names = dict.fromkeys(name for name in _NAMES.findall(annotation) if name in self._items)
        return f" ({', '.join(self._inline(f'`{name}`') for name in names)})" if names else ""

    def _inline(self, text: str, owner: str = "") -> str:
        return inline(text, functools.partial(self._link, owner=owner))

    def _link(self, name: str, owner: str = "") -> str | None:
        plain = name.removesuffix("()")
        if f"{owner}.{plain}" in self._methods:
            return f"#{self._methods[f'{owner}.{plain}']}"
        if plain in self._methods:
            return f"#{self._methods[plain]}"
        if plain in self._items:
            return f"#{_anchor(plain)}"
        if plain in _errors():
            return f"errors.md#{plain.lower()}"
        return "errors.md" if plain == "keikaku_snapshots.errors" else None


@functools.cache
def _errors() -> frozenset[str]:
    waiting: list[type] = [KeikakuError]
    names = set()
    while waiting:
        kind = waiting.pop()
        if kind.__module__ == "keikaku_snapshots.errors":
            names.add(kind.__name__)
        waiting += kind.__subclasses__()
    return frozenset(names)


def _default(kind: type, name: str) -> str:
    if not dataclasses.is_dataclass(kind):
        return ""
    found = next((item for item in dataclasses.fields(kind) if item.name == name), None)
    if found is None:
        return ""
    if found.default is not dataclasses.MISSING:
        return _shown(found.default)
    if found.default_factory is not dataclasses.MISSING:
        return _shown(found.default_factory())
    return ""


def _double_quoted(source: str) -> str:
    """Texts in the quotes that the formatter wants, because it looks into pages too."""
    return source if '"' in source else source.replace("'", '"')


def _shown(value: object) -> str:
    """A value as one would write it, the same at every run."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, frozenset | set):
        return "{" + ", ".join(sorted(map(repr, value))) + "}"
    text = repr(value)
    return "…" if " at 0x" in text else text


def _signature(title: str, function: Any, *, method: bool) -> list[str]:
    """The call and what it returns; of a function that can be awaited, both forms."""
    signature = inspect.signature(function)
    parts: list[str] = []
    for parameter in list(signature.parameters.values())[1 if method else 0 :]:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        text = f"{stars}{parameter.name}"
        if parameter.annotation is not parameter.empty:
            text += f": {_parameter_type(function, parameter)}"
        if parameter.default is not parameter.empty:
            text += f" = {_shown(parameter.default)}"
        parts.append(text)
    returned = [str(shape) for shape in _returns(function, signature)]
    end = f") -> {returned[0]}" if returned and returned[0] != "None" else ")"
    one_line = f"{title}({', '.join(parts)}{end}"
    lines = [one_line]
    if len(one_line) > _WIDTH:
        lines = [f"{title}(", *(line for part in parts for line in _broken(f"    {part},")), end]
    return lines + [f"# or, on an asynchronous connection, -> {shape}" for shape in returned[1:]]


def _broken(line: str) -> list[str]:
    """A long union over several lines."""
    lines = [""]
    for part in line.split(" | "):
        if len(lines[-1]) + len(part) > _WIDTH:
            lines.append("       ")
        lines[-1] += f" | {part}" if lines != [""] else part
    return lines


def _returns(function: Any, signature: inspect.Signature) -> list[Any]:
    shapes = [inspect.signature(shape).return_annotation for shape in typing.get_overloads(function)]
    return shapes or ([] if signature.return_annotation is signature.empty else [signature.return_annotation])


def _parameter_type(function: Any, parameter: inspect.Parameter) -> str:
    """Its annotation; where that is Any and there are overloads, what these take."""
    if parameter.annotation != "Any":
        return str(parameter.annotation)
    shapes = (
        inspect.signature(shape).parameters.get(parameter.name) for shape in typing.get_overloads(function)
    )
    kinds = dict.fromkeys(str(shape.annotation) for shape in shapes if shape is not None)
    return " | ".join(kinds) or "Any"
