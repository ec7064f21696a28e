"""What a round does to the snapshots and the database, and what may be there afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tests.campaigns import bookstore

if TYPE_CHECKING:
    import random

    from tests.campaigns.world import Key, World

Kind = Literal["create", "overwrite", "delete", "prune", "rename", "pin", "sweep", "restore"]

NEW_NAME = "renamed"


@dataclass(frozen=True)
class Action:
    """One operation with its arguments."""

    #: What kind of thing it is.
    kind: Kind
    #: Method of the manager; ``sweep`` of the store.
    method: str
    #: Its arguments.
    arguments: dict[str, Any]
    #: The versions that may change or go.
    touched: frozenset[Key] = frozenset()
    #: Further options of the manager.
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        words = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.method}({words})"

    @property
    def measure(self) -> str:
        """Actions of one measure take about the same time and the same steps."""
        return f"{self.kind} {self.arguments.get('format', '')} {self.arguments.get('strategy', '')}"


def choose(world: World, dice: random.Random) -> Action:
    """An operation on what is listed now."""
    listed = sorted(world.now_listed())
    kinds: dict[Kind, int] = {"create": 25, "restore": 45, "overwrite": 7, "delete": 5, "prune": 7}
    kinds |= {"rename": 6, "pin": 3, "sweep": 2}
    (kind,) = dice.choices(list(kinds), list(kinds.values()))
    if not listed:
        kind = "create"
    return _MAKERS[kind](world, dice, listed)


def _create(_world: World, dice: random.Random, _listed: list[Key]) -> Action:
    options = bookstore.options_of(dice.choice(bookstore.makeable()))
    return Action("create", "create_snapshot", {"name": _name(options), **options})


def _name(options: dict[str, Any]) -> str:
    return "rows" if options["format"] == "json" else "app"


def _overwrite(world: World, dice: random.Random, listed: list[Key]) -> Action:
    name, version = dice.choice(listed)
    same = [kind for kind in bookstore.makeable() if (kind[0] == "json") == (name == "rows")]
    options = bookstore.options_of(dice.choice(same))
    arguments = {"name": name, "version": version, "overwrite": True, **options}
    return Action("overwrite", "create_snapshot", arguments, frozenset({(name, version)}))


def _delete(_world: World, dice: random.Random, listed: list[Key]) -> Action:
    name, version = dice.choice(listed)
    return Action(
        "delete", "delete_snapshot", {"name": name, "version": version}, frozenset({(name, version)})
    )


def _prune(world: World, dice: random.Random, listed: list[Key]) -> Action:
    keep = dice.randint(1, 2)
    by_name: dict[str, list[Key]] = {}
    for one in world.manager().list_snapshots():
        if not one.pinned:
            by_name.setdefault(one.name, []).append((one.name, one.version))
    gone = frozenset(key for keys in by_name.values() for key in keys[1:])
    return Action("prune", "prune", {"policy": {"keep_last": keep}}, gone)


def _rename(_world: World, dice: random.Random, listed: list[Key]) -> Action:
    old = dice.choice(sorted({name for name, _ in listed}))
    new = NEW_NAME if old != NEW_NAME else "app"
    touched = frozenset(key for key in listed if key[0] == old)
    return Action("rename", "rename_snapshot", {"old": old, "new": new}, touched)


def _pin(_world: World, dice: random.Random, listed: list[Key]) -> Action:
    name, version = dice.choice(listed)
    arguments = {"name": name, "version": version, "pinned": dice.random() < 0.5}
    return Action("pin", "pin_snapshot", arguments)


def _sweep(_world: World, _dice: random.Random, _listed: list[Key]) -> Action:
    return Action("sweep", "sweep", {})


def _restore(world: World, dice: random.Random, listed: list[Key]) -> Action:
    formats = {(one.name, one.version): one.format for one in world.manager().list_snapshots()}
    key = dice.choice(listed)
    arguments: dict[str, Any] = {"name": key[0], "version": key[1], "on_schema_mismatch": "ignore"}
    options: tuple[tuple[str, Any], ...] = ()
    if formats[key] != "json":
        strategies = ["swap", "swap", "in_place", "in_place", "auto", "template", "template"]
        arguments["strategy"] = dice.choice(strategies)
        if arguments["strategy"] == "template":
            options = (("spare", dice.choice([0, 1])),)
    return Action("restore", "restore_snapshot", arguments, options=options)


_MAKERS = {
    "create": _create,
    "overwrite": _overwrite,
    "delete": _delete,
    "prune": _prune,
    "rename": _rename,
    "pin": _pin,
    "sweep": _sweep,
    "restore": _restore,
}
