"""Parameters of a patch: from texts and YAML into its pydantic model, every problem at once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from keikaku_snapshots.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import BaseModel

    from keikaku_snapshots.patches.definition import Patch
    from keikaku_snapshots.patches.execution import Execution

#: What is shown and stored in place of a secret.
HIDDEN: Final = "***"

#: What pydantic writes in place of a secret.
_MASK: Final = "**********"


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of one run."""

    #: The patch's model, filled; None when it has none.
    model: BaseModel | None
    #: Values for ``%(name)s`` in SQL, secrets in clear.
    values: dict[str, Any] = field(repr=False)
    #: What may be shown and stored, as JSON; secrets masked.
    shown: dict[str, Any]
    #: SHA-256 of all that is no secret.
    hash: str

    def secrets_among(self, given: Iterable[str]) -> list[str]:
        """Return which of these names are those of secrets.

        Args:
            given: Names of parameters.
        """
        return sorted(name for name in given if self.shown.get(name) == HIDDEN)

    def without_secrets(self, what: Any) -> Any:
        """Return texts, and lists and dictionaries of texts, with every secret masked.

        Args:
            what: What is to be stored or shown, such as the server's plan, which quotes parameters.
        """
        if isinstance(what, dict):
            return {name: self.without_secrets(value) for name, value in what.items()}
        if isinstance(what, list):
            return [self.without_secrets(value) for value in what]
        if isinstance(what, str):
            for name, value in self.values.items():
                if self.shown[name] == HIDDEN and str(value):
                    # The second form is the one within quotes of SQL.
                    for text in (str(value), str(value).replace("'", "''")):
                        what = what.replace(text, HIDDEN)
        return what


def read_parameters(patch: Patch, given: Mapping[str, Any] | None) -> Parameters:
    """Check the parameters of a patch and fill in its defaults.

    Args:
        patch: The patch.
        given: Values by name; texts, as the command line gives them, are converted.

    Returns:
        The parameters.

    Raises:
        UsageError: Some are unknown, missing or of the wrong type; each is named with its path.
    """
    values = dict(given or {})
    if patch.params is None:
        if values:
            raise UsageError(
                f"data patch {patch.name!r} takes no parameters", found=f"Given: {', '.join(sorted(values))}"
            )
        return _parameters(None, {}, {})
    unknown = sorted(set(values) - _known(patch.params))
    from pydantic import ValidationError

    problems = [f"parameters.{name}: unknown" for name in unknown]
    try:
        model = patch.params.model_validate({name: values[name] for name in values if name not in unknown})
    except ValidationError as error:
        # The value itself is left out: it may be a secret.
        problems += [
            f"parameters.{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        ]
        raise _wrong(patch, problems) from None
    if problems:
        raise _wrong(patch, problems)
    plain = {name: getattr(model, name) for name in type(model).model_fields}
    return _parameters(model, plain, model.model_dump(mode="json"))


def check_secrets(execution: Execution, given: Mapping[str, Any]) -> None:
    """Refuse to go on without secrets that a run began with; a default in their place would be another value.

    Args:
        execution: The run, which knows the names of the secrets that it was given.
        given: What it is resumed with.

    Raises:
        UsageError: One is missing.
    """
    missing = [name for name in execution.findings.get("secrets", []) if name not in given]
    if missing:
        raise UsageError(
            f"data patch {execution.patch_name} is resumed with the secrets that it began with",
            found=f"Not given: {', '.join(missing)}; secrets are not stored",
            hint="Give them again, with the same values: --param name=value.",
            hint_ja="同じ値をもう一度指定してください(--param name=value)。",
        )


def _known(model: type[BaseModel]) -> set[str]:
    fields = model.model_fields
    return set(fields) | {field.alias for field in fields.values() if field.alias}


def _wrong(patch: Patch, problems: list[str]) -> UsageError:
    return UsageError(
        f"the parameters of data patch {patch.name!r} are wrong",
        found="\n".join(problems),
        hint=f"`keikaku patch show {patch.name}` lists its parameters with their types.",
        hint_ja=f"`keikaku patch show {patch.name}` でパラメータと型を確認してください。",
    )


def _parameters(model: BaseModel | None, plain: dict[str, Any], as_json: dict[str, Any]) -> Parameters:
    values, shown, hashed = {}, {}, {}
    for name, value in plain.items():
        is_plain = not hasattr(value, "get_secret_value")
        values[name] = value if is_plain else value.get_secret_value()
        # A model or list may hold a secret further down.
        is_secret = not is_plain or _MASK in json.dumps(as_json[name])
        shown[name] = HIDDEN if is_secret else as_json[name]
        if not is_secret:
            hashed[name] = as_json[name]
    text = json.dumps(hashed, sort_keys=True, ensure_ascii=False)
    return Parameters(model, values, shown, hashlib.sha256(text.encode()).hexdigest())
