"""The configuration file and the environment."""

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

from keikaku_snapshots.config import (
    DATABASE_VARIABLES,
    ScaleSettings,
    Settings,
    find_database_url,
    load_settings,
    schema,
)
from keikaku_snapshots.errors import ConfigurationError, NoDatabaseError

ROOT = Path(__file__).parents[2]


def _write(directory: Path, text: str) -> Path:
    file = directory / "keikaku.yml"
    file.write_text(text, encoding="utf-8")
    return file


def _problems(directory: Path, text: str, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(_write(directory, text), environment or {})
    problems: list[str] = caught.value.details["problems"]
    return problems


def test_defaults_hold_without_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing needs to be configured."""
    monkeypatch.chdir(tmp_path)

    loaded = load_settings(environment={"PATH": "/bin"})

    assert loaded.settings == Settings()
    assert loaded.path is None
    assert loaded.warnings == ()


def test_the_shipped_file_holds_the_defaults() -> None:
    """config/keikaku.yml is what the program does without it, besides its two example scales."""
    loaded = load_settings(ROOT / "config" / "keikaku.yml", {})

    assert dataclasses.replace(loaded.settings, scales={}) == Settings()
    assert set(loaded.settings.scales) == {"tiny", "regional"}


def test_the_shipped_file_shows_every_key() -> None:
    """Whoever copies the file sees all there is."""
    data = yaml.safe_load((ROOT / "config" / "keikaku.yml").read_text(encoding="utf-8"))
    shown = {f"{key}.{inner}" for key, value in data.items() if isinstance(value, dict) for inner in value}

    expected = {item.path for item in schema() if ".NAME." not in item.path}
    assert expected <= set(data) | shown


def test_every_problem_is_reported_at_once_with_its_path(tmp_path: Path) -> None:
    """One run of the program shows all that is wrong."""
    problems = _problems(
        tmp_path,
        """
        snapshot_dir: 3
        minimum_free_mb: "3"
        lock_wait_s: -1
        protected_words: [a, 3]
        retry: {attempts: true}
        generate: 7
        on_schema_mismatch: wran
        scales:
          medium: {offices: -3}
        """,
    )

    assert sorted(problems) == [
        "generate: must be keys and values, got 7",
        "lock_wait_s: must be a number of 0 or more, got -1",
        "minimum_free_mb: must be an integer of 0 or more, got '3'",
        "on_schema_mismatch: must be one of warn, error, ignore, got 'wran'",
        "protected_words.1: must be a list of texts, got 3",
        "retry.attempts: must be a positive integer, got True",
        "scales.medium.offices: must be a positive integer, got -3",
        "snapshot_dir: must be a path, got 3",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("snapshot_dri: x", "snapshot_dri: unknown key; did you mean snapshot_dir?"),
        ("retry: {attempt: 3}", "retry.attempt: unknown key; did you mean attempts?"),
        ("scales: {m: {ofices: 3, units: 1}}", "scales.m.ofices: unknown key; did you mean offices?"),
        ("db_url: postgresql://u:canary@h/d", "db_url: unknown key"),
    ],
)
def test_an_unknown_key_is_refused_with_the_near_name(tmp_path: Path, text: str, problem: str) -> None:
    """A misspelt key would silently change nothing; its value is not repeated."""
    assert _problems(tmp_path, text) == [problem]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("keep: 1\nkeep: 2", "keep: stands twice, in line 1 and line 2"),
        ("retry:\n  attempts: 1\n  attempts: 2", "retry.attempts: stands twice, in line 2 and line 3"),
        ("scales:\n  a: {units: 1, units: 2}", "scales.a.units: stands twice, in line 2 and line 2"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    """YAML would keep the last one without a word."""
    assert problem in _problems(tmp_path, text)


def test_spares_without_templates_are_a_problem(tmp_path: Path) -> None:
    """A spare is a copy of a template."""
    problems = _problems(tmp_path, "templates: false\nspare: 1")

    assert problems == ["spare: must be 0 where templates is false, got 1"]


def test_a_switch_is_read_from_the_environment(tmp_path: Path) -> None:
    """As YAML writes it; other words are refused."""
    none = tmp_path / "none.yml"
    none.write_text("", encoding="utf-8")

    assert not load_settings(none, {"KEIKAKU_TEMPLATES": "false"}).settings.templates
    with pytest.raises(ConfigurationError, match="templates: must be true or false, got 'never'"):
        load_settings(none, {"KEIKAKU_TEMPLATES": "never"})


def test_a_scale_needs_exactly_one_size(tmp_path: Path) -> None:
    """A scale without a size, or with two, says nothing."""
    problems = _problems(tmp_path, "scales: {a: {}, b: {units: 1, offices: 2}, c: {units: 1}}")

    assert problems == [
        "scales.a: needs one of offices and units",
        "scales.b: needs one of offices and units",
    ]


def test_scales_without_a_size_are_listed_with_the_other_problems(tmp_path: Path) -> None:
    """All problems at once: none waits for the others to be mended."""
    problems = _problems(tmp_path, "scales: {a: {}, b: {offices: 0}, c: 3}\nretry: {attempts: x}")

    assert "scales.a: needs one of offices and units" in problems
    assert len(problems) == 4


def test_the_shortest_wait_is_not_longer_than_the_longest(tmp_path: Path) -> None:
    """Values that are each right can be wrong together."""
    assert _problems(tmp_path, "retry: {wait_min_s: 5, wait_max_s: 2}") == [
        "retry.wait_min_s: must not be longer than wait_max_s, got 5 and 2"
    ]


@pytest.mark.parametrize("text", ["lock_wait_s: .inf", "lock_wait_s: .nan"])
def test_numbers_are_finite(tmp_path: Path, text: str) -> None:
    """Waiting for ever, or for no number of seconds, is no configuration."""
    (problem,) = _problems(tmp_path, text)

    assert problem.startswith("lock_wait_s: must be a finite number")


@pytest.mark.parametrize("text", ["snapshot_dir: ''", "snapshot_dir: ."])
def test_the_snapshot_directory_has_a_name(tmp_path: Path, text: str) -> None:
    """The sweep and the mode 0700 are for a directory of its own."""
    (problem,) = _problems(tmp_path, text)

    assert problem.startswith("snapshot_dir: must name a directory")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: [1", "line 1"),
        ("\tx: 1", "line 1, column 1"),
        ("!!python/object/apply:os.system ['true']", "constructor"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_line(tmp_path: Path, text: str, found: str) -> None:
    """A broken file says where, and a tag never runs code."""
    with pytest.raises(ConfigurationError, match="no YAML") as caught:
        load_settings(_write(tmp_path, text), {})

    assert found in caught.value.found


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_file_is_the_defaults(tmp_path: Path, text: str) -> None:
    """Commenting everything out works."""
    assert load_settings(_write(tmp_path, text), {}).settings == Settings()


def test_a_list_at_the_top_is_refused(tmp_path: Path) -> None:
    """The file is keys and values."""
    assert _problems(tmp_path, "- a\n- b") == ["(top level): must be keys and values, got ['a', 'b']"]


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """A wrong --config must not silently mean the defaults."""
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_settings(tmp_path / "nowhere.yml", {})
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_settings(environment={"KEIKAKU_CONFIG": str(tmp_path / "nowhere.yml")})


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    """KEIKAKU_ and the path in capitals sets a value, a list by commas."""
    file = _write(tmp_path, "retry: {attempts: 2, wait_max_s: 9}\nsnapshot_dir: here\ngenerate: {keep: 4}")

    found = load_settings(
        file,
        {
            "KEIKAKU_RETRY_ATTEMPTS": "7",
            "KEIKAKU_SNAPSHOT_DIR": "/there",
            "KEIKAKU_ALLOWED_DATABASES": "a_test, b_test",
            "KEIKAKU_GENERATE_KEEP": "null",
        },
    ).settings

    assert found.retry.attempts == 7
    assert found.retry.wait_max_s == 9
    assert found.snapshot_dir == Path("/there")
    assert found.allowed_databases == ("a_test", "b_test")
    assert found.generate.keep is None


@pytest.mark.parametrize("value", ["abc", "-1", "1.5", "true", "1e999", "{"])
def test_a_wrong_variable_is_named(tmp_path: Path, value: str) -> None:
    """A value from the environment is checked like one of the file, and the variable is named."""
    problems = _problems(tmp_path, "lock_wait_s: 1", {"KEIKAKU_RETRY_ATTEMPTS": value})

    assert len(problems) == 1
    assert problems[0].startswith("retry.attempts: must be a ")


def test_an_empty_variable_is_refused(tmp_path: Path) -> None:
    """An unset shell variable must not switch protection off or make the working directory the store."""
    problems = _problems(tmp_path, "{}", {"KEIKAKU_PROTECTED_WORDS": "", "KEIKAKU_SNAPSHOT_DIR": " "})

    assert problems == [
        "protected_words: KEIKAKU_PROTECTED_WORDS is set but empty; unset it or give it a value",
        "snapshot_dir: KEIKAKU_SNAPSHOT_DIR is set but empty; unset it or give it a value",
    ]


def test_an_unknown_variable_is_reported(tmp_path: Path) -> None:
    """A misspelt variable warns with the near name; those of the tests do not."""
    environment = {"KEIKAKU_SNAPSHOTDIR": "x", "KEIKAKU_TEST_X": "y", "KEIKAKU_LANG": "ja"}

    warnings = load_settings(_write(tmp_path, ""), environment).warnings

    assert warnings == (
        "the variable KEIKAKU_SNAPSHOTDIR is unknown and has no effect; did you mean KEIKAKU_SNAPSHOT_DIR?",
    )


def test_scales_are_read_whole(tmp_path: Path) -> None:
    """A scale of one's own has a size, a limit and numbers for each unit (A2)."""
    text = "scales: {huge: {offices: 900, limit_s: 60, per_unit: {staffs: 3}}, shop: {units: 5}}"

    scales = load_settings(_write(tmp_path, text), {}).settings.scales

    assert scales["huge"] == ScaleSettings(offices=900, limit_s=60.0, per_unit={"staffs": 3})
    assert [scales["huge"].count, scales["shop"].count] == [900, 5]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
known_keys = st.sampled_from([field.name for field in dataclasses.fields(Settings)])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(known_keys | st.text(max_size=8), json_values, max_size=4))
def test_any_yaml_gives_settings_or_a_list_of_problems(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, object]
) -> None:
    """Whatever stands in the file, the reader never breaks."""
    file = tmp_path_factory.mktemp("config") / "keikaku.yml"
    file.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")

    with contextlib.suppress(ConfigurationError):
        assert isinstance(load_settings(file, {}).settings, Settings)


@pytest.mark.parametrize("place", range(len(DATABASE_VARIABLES)))
def test_the_database_is_looked_up_in_order(place: int) -> None:
    """KEIKAKU_DB_URL comes before PERFORMANCE_TEST_DATABASE_URL before TEST_DATABASE_URL."""
    environment = {name: f"postgresql://{name}" for name in DATABASE_VARIABLES[place:]}

    assert find_database_url(None, environment) == (
        f"postgresql://{DATABASE_VARIABLES[place]}",
        DATABASE_VARIABLES[place],
    )


def test_the_argument_comes_first_and_nothing_is_none() -> None:
    """An argument wins over every variable; without any there is no database."""
    assert find_database_url("postgresql://a", {"KEIKAKU_DB_URL": "postgresql://b"}) == (
        "postgresql://a",
        "--db-url",
    )
    assert find_database_url(None, {}) is None


@pytest.mark.parametrize(("given_url", "environment"), [("", {}), (None, {"KEIKAKU_DB_URL": " "})])
def test_an_empty_url_is_never_another_database(given_url: str | None, environment: dict[str, str]) -> None:
    """FAULTS 42: `--db-url "$UNSET"` must not fall through to the next place."""
    environment["TEST_DATABASE_URL"] = "postgresql://real"

    with pytest.raises(NoDatabaseError, match="empty"):
        find_database_url(given_url, environment)


def test_every_setting_says_what_it_means() -> None:
    """The reference page has a meaning and a default for each value."""
    for item in schema():
        assert item.meaning.endswith("."), item.path
        assert item.default or item.expected == "a group", item.path


def test_defaults_need_no_pydantic() -> None:
    """Without a file nothing is checked, so nothing heavy is loaded (C3)."""
    code = (
        "import sys; from keikaku_snapshots.config import load_settings; load_settings(environment={}); "
        "print({'pydantic', 'yaml', 'psycopg'} & set(sys.modules))"
    )

    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert result.stdout.strip() == "set()"
