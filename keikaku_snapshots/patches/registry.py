"""Which patches there are: shipped ones, those of packages, and those that the configuration names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keikaku_snapshots.errors import KeikakuError, PatchDefinitionError, UnknownPatchError
from keikaku_snapshots.patches.definition import Patch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

#: Packages register modules of patches, or single classes, under this group.
ENTRY_POINTS: Final = "keikaku_snapshots.patches"
_SHIPPED: Final = (
    "keikaku_snapshots.patches.shipped.inventory_price_adjustment",
    "keikaku_snapshots.patches.shipped.batch_expiry_update",
)


class DataPatchRegistry:
    """The patches that can be run, by name.

    Args:
        patches: Classes made by `data_patch`.
        modules: Dotted names of modules, or paths of ``.py`` files, whose patches are added.
        shipped: Whether the two patches of this library belong to it.
        entry_points: Whether those of installed packages do.

    Raises:
        PatchDefinitionError: A module cannot be imported, or a name is given twice.
    """

    def __init__(
        self,
        patches: Iterable[type[Patch]] = (),
        *,
        modules: Iterable[str | Path] = (),
        shipped: bool = True,
        entry_points: bool = True,
    ) -> None:
        self._patches: dict[str, type[Patch]] = {}
        if shipped:
            for name in _SHIPPED:
                self.add_module(name)
        if entry_points:
            self._add_entry_points()
        for module in modules:
            self.add_module(module)
        self.add(*patches)

    def list(self) -> tuple[Patch, ...]:
        """Return all patches, sorted by name."""
        return tuple(self._patches[name]() for name in sorted(self._patches))

    def find(self, name: str) -> Patch:
        """Return a patch.

        Args:
            name: Its name.

        Returns:
            A new instance.

        Raises:
            UnknownPatchError: There is none of this name.
        """
        if name not in self._patches:
            near = get_close_matches(name, self._patches, n=1)
            known = ", ".join(sorted(self._patches)) or "none"
            raise UnknownPatchError(
                f"there is no data patch {name!r}",
                found=f"Known: {known}" + (f"\nDid you mean {near[0]}?" if near else ""),
            )
        return self._patches[name]()

    def add(self, *patches: type[Patch]) -> None:
        """Add patches, all or none.

        Args:
            patches: Classes made by `data_patch`.

        Raises:
            PatchDefinitionError: One is no patch, or its name is taken.
        """
        # Filled aside and taken over at once, so that an error leaves nothing behind.
        filled = dict(self._patches)
        for patch in patches:
            if not getattr(patch, "name", ""):
                raise PatchDefinitionError(
                    "this is no data patch", found=f"Found: {patch!r}; it must be decorated with data_patch."
                )
            other = filled.setdefault(patch.name, patch)
            if other is not patch:
                raise PatchDefinitionError(
                    f"two data patches are called {patch.name!r}",
                    found=f"{_place(other)}\n{_place(patch)}",
                    hint="Give one of them another name.",
                    hint_ja="どちらかの名前を変更してください。",
                )
        self._patches = filled

    def add_module(self, module: str | Path) -> None:
        """Add the patches that a module defines.

        Args:
            module: Dotted name, or the path of a ``.py`` file.

        Raises:
            PatchDefinitionError: It cannot be imported, has no patches, or a name is taken.
        """
        loaded = _load(module)
        found = list(_patches_of(loaded))
        if not found:
            raise PatchDefinitionError(f"{module} defines no data patch")
        self.add(*found)

    def _add_entry_points(self) -> None:
        from importlib.metadata import entry_points

        for entry in entry_points(group=ENTRY_POINTS):
            try:
                loaded = entry.load()
            except Exception as error:
                raise _not_imported(f"{entry.name} = {entry.value}", error) from error
            self.add(*([loaded] if isinstance(loaded, type) else _patches_of(loaded)))


def _patches_of(module: ModuleType) -> Iterator[type[Patch]]:
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, Patch)
            and value.__module__ == module.__name__
            and "name" in vars(value)
        ):
            yield value


def _load(module: str | Path) -> ModuleType:
    path = Path(module)
    try:
        if path.suffix != ".py":
            return importlib.import_module(str(module))
        resolved = path.resolve(strict=True)
        # Under its full path, so that two files of the same name are two modules.
        name = "keikaku_patches_" + "_".join(resolved.with_suffix("").parts[1:])
        spec = importlib.util.spec_from_file_location(name, resolved)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[name] = loaded
        try:
            spec.loader.exec_module(loaded)
        except BaseException:
            del sys.modules[name]
            raise
    except KeikakuError:
        raise
    except Exception as error:
        raise _not_imported(str(module), error) from error
    return loaded


def _not_imported(what: str, error: Exception) -> PatchDefinitionError:
    return PatchDefinitionError(
        f"the data patches of {what} cannot be loaded", found=f"{type(error).__name__}: {error}"
    )


def _place(patch: type[Patch]) -> str:
    return f"{patch.__module__}.{patch.__qualname__}"
