"""config/data_patches.yml: what stands in it, and everything that can be wrong with it."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from keikaku_snapshots.config import load_settings
from keikaku_snapshots.config_patches import PatchConfiguration, load_patch_configuration
from keikaku_snapshots.config_patches_schema import SHIPPED, EngineGroup, PatchesFile
from keikaku_snapshots.config_schema import schema
from keikaku_snapshots.errors import ConfigurationError
from keikaku_snapshots.patches import settings as values
from keikaku_snapshots.patches.windows import Window, Windows

ROOT = Path(__file__).parents[2]
SHIPPED_FILE = ROOT / "config" / "data_patches.yml"


def _write(directory: Path, text: str) -> Path:
    file = directory / "data_patches.yml"
    file.write_text(text, encoding="utf-8")
    return file


def _problems(directory: Path, text: str, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_patch_configuration(_write(directory, text), environment or {})
    problems: list[str] = caught.value.details["problems"]
    assert caught.value.exit_code == 2
    assert caught.value.found.splitlines() == problems
    return problems


def _shown(found: PatchConfiguration) -> PatchConfiguration:
    """What the file decides: without the file itself and the classes of the patches."""
    return dataclasses.replace(found, path=None, registry=None)


def test_the_shipped_file_holds_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config/data_patches.yml is what the program does without it."""
    monkeypatch.chdir(tmp_path)

    shipped = load_patch_configuration(SHIPPED_FILE, {})
    without = load_patch_configuration(None, {})

    assert shipped.path == SHIPPED_FILE
    assert without.path is None
    assert _shown(shipped) == _shown(without)


def test_the_shipped_file_shows_every_key() -> None:
    """Whoever copies the file sees all there is; the keys of a schedule stand in a comment."""
    text = SHIPPED_FILE.read_text(encoding="utf-8")
    data = yaml.safe_load(text)

    def paths(level: object, prefix: str, kind: str) -> set[str]:
        found = set()
        if isinstance(level, dict):
            for name, value in level.items():
                key = "NAME" if kind == "a table" else name
                path = f"{prefix}{key}"
                found |= {path} | paths(value, f"{path}.", expected.get(path, ""))
        elif isinstance(level, list):
            for value in level:
                found |= paths(value, f"{prefix}N.", "")
        return found

    expected = {item.path: item.expected for item in schema(PatchesFile)}
    missing = set(expected) - paths(data, "", "")

    assert {path for path in missing if ".schedule.N." not in path} == {
        "scheduling.maintenance_windows.N.timezone"
    }
    assert all(f"{path.rpartition('.')[2]}: " in text for path in missing)


def test_the_promised_defaults() -> None:
    """Windows, encryption, 90 days, channels that are off, and the limits of the shipped patches."""
    found = load_patch_configuration(SHIPPED_FILE, {})

    assert found.windows == Windows((Window(days=("sunday", "wednesday"), start="02:00", end="04:00"),))
    assert (found.audit.log_encryption, found.audit.audit_retention_days) == (True, 90)
    assert [(one.name, one.required) for one in found.notify.channels] == [("slack", False), ("email", False)]
    prices = found.settings_of("inventory_price_adjustment")
    assert (prices.memory_limit_mb, prices.batch_size, prices.estimated_records) == (1024, 2000, 100_000)
    expiry = found.settings_of("batch_expiry_update")
    assert (expiry.memory_limit_mb, expiry.batch_size, expiry.estimated_records) == (512, 1000, 50_000)
    other = found.settings_of("another")
    assert (other.memory_limit_mb, other.batch_size) == (500, 1000)


def test_the_file_and_the_engine_agree_on_every_default() -> None:
    """An empty file, and settings made in code, are the same."""
    (name,) = SHIPPED.keys() - {"batch_expiry_update"}
    entry = load_patch_configuration(SHIPPED_FILE, {}).settings_of(name)
    changed = {"memory_limit_mb": 1024, "batch_size": 2000, "estimated_records": 100_000}

    assert entry == values.PatchSettings(**changed)  # type: ignore[arg-type]
    assert dataclasses.asdict(EngineGroup()) == dataclasses.asdict(values.EngineSettings())
    assert load_patch_configuration(SHIPPED_FILE, {}).audit == values.AuditSettings()
    assert (
        dataclasses.replace(load_patch_configuration(SHIPPED_FILE, {}).notify, channels=())
        == values.NotifySettings()
    )
    assert load_patch_configuration(SHIPPED_FILE, {}).notify.channels[0].events == values.EVENTS


def test_every_problem_is_reported_at_once_with_its_path(tmp_path: Path) -> None:
    """Types, unknown keys and what is missing; none hides an unknown patch or a wrong time."""
    problems = _problems(
        tmp_path,
        """
        patch_modules: shop.patches
        patches:
          inventory_price_adjustment: {memory_limit: "1 GB", batch_sise: 3, inconsistency_limit: 2}
          other: 7
        scheduling:
          maintenance_windows:
            - {days: sunday, start: 02:00}
            - sunday
            - {days: [sun], start: 2 a.m., end: 04:00}
          schedule: [{patch: x}]
        security:
          notification_channels: {slack: {url: "https://hooks.example/canary"}}
        engin: {}
        """,
    )

    assert sorted(problems) == [
        "engin: unknown key; did you mean engine?",
        "patch_modules: must be a list of texts, got 'shop.patches'",
        "patches.inventory_price_adjustment.batch_sise: unknown key; did you mean batch_size?",
        "patches.inventory_price_adjustment.inconsistency_limit: must be a positive number up to 1, got 2",
        "patches.inventory_price_adjustment.memory_limit: must be a positive integer, got '1 GB'",
        "patches.other: must be keys and values, got 7",
        "patches.other: unknown patch",
        "scheduling.maintenance_windows.0.days: must be a list of texts, got 'sunday'",
        "scheduling.maintenance_windows.0.end: is missing",
        "scheduling.maintenance_windows.1: must be keys and values, got 'sunday'",
        "scheduling.maintenance_windows.2.start: must be a time such as 02:00, got '2 a.m.'",
        "scheduling.schedule.0.cron: is missing",
        "scheduling.schedule.0.patch: unknown patch 'x'",
        "security.notification_channels.slack.url: unknown key",
        "security.notification_channels.slack.url_variable: is missing",
    ]


def test_what_no_type_shows_is_reported_at_once_too(tmp_path: Path) -> None:
    """Patches, parameters, windows, times, zones and secrets."""
    problems = _problems(
        tmp_path,
        """
        patches:
          inventory_price_adjustmnt: {}
          batch_expiry_update: {target_tables: [inventory_logs]}
        scheduling:
          default_timezone: Asia/Tokio
          maintenance_windows:
            - {days: [sonntag], start: "2:00", end: "04:00"}
            - {days: [sun], start: 22:00, end: 22:00, timezone: Mars/Base}
          schedule:
            - {patch: nothing, cron: "61 * * * *"}
            - {patch: inventory_price_adjustment, cron: "0 2 * *", parameters: {percent: lots, x: 1}}
            - {patch: inventory_price_adjustment, cron: "0 2 * * *"}
        security:
          audit_key_required: true
          notification_channels:
            slack: {url_variable: KEIKAKU_SLACK_URL, required: true}
            email: {url_variable: KEIKAKU_EMAIL_URL}
            pager: {url_variable: "https://canary@pager.example"}
        engine: {lease_s: 3}
        """,
        {"KEIKAKU_EMAIL_URL": ""},
    )

    assert [problem.partition(":")[0] for problem in problems] == [
        "scheduling.default_timezone",
        "scheduling.maintenance_windows.0.days",
        "scheduling.maintenance_windows.0.start",
        "scheduling.maintenance_windows.1.end",
        "scheduling.maintenance_windows.1.timezone",
        "scheduling.schedule.0.cron",
        "scheduling.schedule.1.cron",
        "scheduling.schedule.2.name",
        "security.audit_key_variable",
        "security.notification_channels.slack.url_variable",
        "security.notification_channels.email.url_variable",
        "security.notification_channels.pager.url_variable",
        "patches.batch_expiry_update.target_tables",
        "engine.lease_s",
        "patches.inventory_price_adjustmnt",
        "scheduling.schedule.0.patch",
        "scheduling.schedule.1.parameters.x",
        "scheduling.schedule.1.parameters.percent",
    ]
    assert "did you mean Asia/Tokyo?" in problems[0]
    assert problems[8:10] == [
        "security.audit_key_variable: KEIKAKU_AUDIT_KEY is not set, but required",
        "security.notification_channels.slack.url_variable: KEIKAKU_SLACK_URL is not set, but required",
    ]
    assert "canary" not in str(problems)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("patches: {x: {}}", "patches.x: unknown patch"),
        (
            "patches: {batch_expiry_updat: {}}",
            "patches.batch_expiry_updat: unknown patch; did you mean batch_expiry_update?",
        ),
        (
            "patches: {batch_expiry_update: {memory_limit_mb: 3}}",
            "patches.batch_expiry_update.memory_limit_mb: unknown key; did you mean memory_limit?",
        ),
        ("security: {log_encryption: 1}", "security.log_encryption: must be true or false, got 1"),
        (
            "engine: {heartbeat_s: 2}\nengine: {heartbeat_s: 3}",
            "engine: stands twice, in line 1 and line 2",
        ),
        (
            "scheduling: {maintenance_windows: [{days: [], start: '02:00', end: '03:00'}]}",
            "scheduling.maintenance_windows.0.days: must name at least one day",
        ),
        (
            "security: {delivery: {backoff_s: 5000}}",
            "security.delivery.backoff_s: must not be longer than backoff_max_s, got 5000 and 3600",
        ),
    ],
)
def test_a_single_problem_is_a_single_line(tmp_path: Path, text: str, problem: str) -> None:
    """Nothing follows from it that would be reported too."""
    assert _problems(tmp_path, text) == [problem]


def test_times_need_no_quotation_marks(tmp_path: Path) -> None:
    """YAML itself would read 22:00 as the number 1320."""
    text = "scheduling: {maintenance_windows: [{days: [sat], start: 22:00, end: 4:00}]}"

    assert _problems(tmp_path, text) == [
        "scheduling.maintenance_windows.0.end: must be a time such as 02:00, got '4:00'"
    ]
    (window,) = load_patch_configuration(_write(tmp_path, text.replace("4:00", "04:00")), {}).windows.windows
    assert (window.start, window.end) == ("22:00", "04:00")


def test_a_module_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    """Its patches are not called unknown as well; what needs no patches still works."""
    file = _write(tmp_path, "patch_modules: [no.such.module]\npatches: {one_of_its: {}}")

    with pytest.raises(ConfigurationError) as caught:
        load_patch_configuration(file, {})

    (problem,) = caught.value.details["problems"]
    assert problem.startswith("patch_modules.0: ")
    found = load_patch_configuration(file, {}, with_patches=False)
    assert found.registry is None
    assert "one_of_its" in found.patches


def test_own_patches_are_known(tmp_path: Path) -> None:
    """A file of patches that the configuration names; its settings are taken."""
    module = tmp_path / "own_patches.py"
    module.write_text(
        "from keikaku_snapshots.patches.definition import SqlPatch, data_patch\n"
        "@data_patch('rename_sector')\n"
        "class RenameSector(SqlPatch):\n"
        "    table, set = 'public.t', {'sector': \"'x'\"}\n",
        encoding="utf-8",
    )

    found = load_patch_configuration(
        _write(
            tmp_path,
            f"patch_modules: ['{module}']\n"
            "patches: {rename_sector: {max_runtime: 90, memory_limit: 64, estimated_duration: 3}}\n"
            "scheduling: {schedule: [{patch: rename_sector, cron: '0 2 * * sun'}]}\n",
        ),
        {},
    )

    assert found.registry is not None
    assert found.registry.find("rename_sector").name == "rename_sector"
    entry = found.settings_of("rename_sector")
    assert (entry.max_runtime_s, entry.memory_limit_mb, entry.estimated_duration_s) == (90, 64, 3)
    assert [(one.name, one.time_zone) for one in found.schedule] == [("rename_sector", "Asia/Tokyo")]


def test_a_shipped_patch_keeps_what_the_file_does_not_say_of_it(tmp_path: Path) -> None:
    """Naming one key of it, or another patch, does not lower its limits."""
    found = load_patch_configuration(
        _write(tmp_path, "patches: {inventory_price_adjustment: {batch_size: 10}, batch_expiry_update:}"), {}
    )

    assert found.settings_of("inventory_price_adjustment").batch_size == 10
    assert found.settings_of("inventory_price_adjustment").memory_limit_mb == 1024
    assert found.settings_of("batch_expiry_update").memory_limit_mb == 512


def test_the_file_is_found_in_the_documented_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument, KEIKAKU_PATCH_CONFIG, ./data_patches.yml, ./config/data_patches.yml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    places = [
        tmp_path / "a.yml",
        tmp_path / "b.yml",
        Path("data_patches.yml"),
        Path("config/data_patches.yml"),
    ]
    for place in places:
        place.write_text("", encoding="utf-8")
    environment = {"KEIKAKU_PATCH_CONFIG": str(places[1])}

    assert load_patch_configuration(places[0], environment, with_patches=False).path == places[0]
    assert load_patch_configuration(None, environment, with_patches=False).path == places[1]
    for place in places[2:]:
        assert load_patch_configuration(None, {}, with_patches=False).path == place
        place.unlink()
    assert load_patch_configuration(None, {}, with_patches=False).path is None
    places[1].unlink()
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_patch_configuration(None, environment)


def test_a_secret_is_nowhere_in_what_was_loaded() -> None:
    """Variables are named; what they hold is read by who needs it."""
    found = load_patch_configuration(SHIPPED_FILE, {"KEIKAKU_SLACK_URL": "slack://canary"})

    assert "canary" not in repr(found)


def test_the_variables_are_known_to_the_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Naming them does not warn of an unknown variable."""
    monkeypatch.chdir(tmp_path)
    names = {item.default for item in schema(PatchesFile) if item.path.endswith("_variable")} - {""}
    names |= {"KEIKAKU_PATCH_CONFIG", "KEIKAKU_SLACK_URL", "KEIKAKU_EMAIL_URL"}

    assert load_settings(environment=dict.fromkeys(names, "x")).warnings == ()


def test_every_key_says_what_it_means() -> None:
    """The reference page has a meaning for each."""
    for item in schema(PatchesFile):
        assert item.meaning.endswith("."), item.path
        assert item.variable == ""


def test_the_defaults_need_no_pydantic(tmp_path: Path) -> None:
    """Without a file nothing is checked, so nothing heavy is loaded."""
    code = (
        "import sys; from keikaku_snapshots.config_patches import load_patch_configuration as load;"
        "load(environment={}, with_patches=False); print({'pydantic', 'yaml', 'cronsim'} & set(sys.modules))"
    )

    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert result.stdout.strip() == "set()"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([item.path.rpartition(".")[2] for item in schema(PatchesFile)])
            | st.text(max_size=8),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([field.name for field in dataclasses.fields(PatchesFile)]), json_values, max_size=4
    )
)
def test_any_yaml_gives_a_configuration_or_a_list_of_problems(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, object]
) -> None:
    """Whatever stands in the file, the reader never breaks."""
    file = tmp_path_factory.mktemp("config") / "data_patches.yml"
    file.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")

    with contextlib.suppress(ConfigurationError):
        assert load_patch_configuration(file, {}).path == file
