"""The examples for cron, systemd and Kubernetes, tried as far as one machine allows."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import psycopg
import pytest
import yaml

from keikaku_snapshots.cli import keikaku
from keikaku_snapshots.config import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.servers import Server

EXAMPLES = Path(__file__).parents[2] / "examples"
CRONTAB = EXAMPLES / "cron" / "keikaku"
KUBERNETES = EXAMPLES / "kubernetes" / "keikaku.yaml"
UNITS = sorted((EXAMPLES / "systemd").iterdir())


def _parsed(words: list[str]) -> None:
    """Let the command line read words as it would, without running them."""
    assert Path(words[0]).name == "keikaku"
    parent, command, rest = (
        click.Context(keikaku),
        keikaku.get_command(click.Context(keikaku), words[1]),
        words[2:],
    )
    if isinstance(command, click.Group):
        parent, command, rest = click.Context(command, parent=parent), command.commands[rest[0]], rest[1:]
    assert command is not None
    command.make_context(words[1], rest, parent=parent, obj=None)


def _crontab() -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The environment and the lines of the crontab: account and command."""
    environment, lines = {}, []
    for line in CRONTAB.read_text(encoding="utf-8").splitlines():
        if setting := re.fullmatch(r"([A-Z_]+)=(.*)", line):
            environment[setting[1]] = setting[2]
        elif line and not line.startswith("#"):
            *when, account, command = line.split(None, 6)
            assert len(when) == 5
            lines.append((account, command))
    return environment, lines


def test_the_crontab_runs_as_cron_runs_it(server: Server, database: DatabaseURL, tmp_path: Path) -> None:
    """PEERS 18; refresh: /bin/sh, the crontab's own environment and nothing else; silent, with a snapshot."""
    with psycopg.connect(**database.connect_arguments()) as connection:
        connection.execute("CREATE TABLE t AS SELECT * FROM generate_series(1, 100) AS id")
    etc, state = tmp_path / "etc", tmp_path / "state"
    etc.mkdir()
    (etc / "environment").write_text(
        f"KEIKAKU_DB_URL='{database.text}'\nPATCH_DB_URL='{database.text}'\nKEIKAKU_AUDIT_KEY={'7a' * 32}\n",
        encoding="utf-8",
    )
    (etc / "data_patches.yml").write_text(
        "scheduling: {schedule: [{patch: batch_expiry_update, cron: '5 2 * * sun'}]}\n", encoding="utf-8"
    )
    (etc / "keikaku.yml").write_text(f"pg_bin: {server.bin}\n", encoding="utf-8")
    program = tmp_path / "keikaku"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m keikaku_snapshots "$@"\n', encoding="utf-8")
    program.chmod(0o755)

    def here(text: str) -> str:
        text = text.replace("/opt/keikaku/bin/keikaku", str(program)).replace("/etc/keikaku", str(etc))
        return text.replace("/var/lib/keikaku", str(state))

    environment, lines = _crontab()
    variables = {name: here(value) for name, value in environment.items() if name != "MAILTO"}
    variables["PYTHONPATH"] = str(EXAMPLES.parent)
    assert len(lines) == 3
    for _account, command in lines:
        assert "%" not in command, "cron takes it for the end of the line"
        done = subprocess.run(
            [environment["SHELL"], "-c", here(command)],
            env=variables,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), command

    assert list(state.glob("nightly_*.sql"))
    with psycopg.connect(**database.connect_arguments()) as connection:
        seen = connection.execute("SELECT entry FROM keikaku_patches.schedule").fetchall()
    assert seen == [("batch_expiry_update",)]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_every_unit_is_whole(unit: Path) -> None:
    """A timer has its service of the same name, and a service a command that can be typed."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text(encoding="utf-8"))

    if unit.suffix == ".timer":
        assert unit.with_suffix(".service").exists()
        assert parser["Install"]["WantedBy"] == "timers.target"
    else:
        assert unit.with_suffix(".timer").exists()
        _parsed(shlex.split(parser["Service"]["ExecStart"]))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing; the program's place is this machine's."""
    program = shutil.which("true") or "/bin/true"
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace("/opt/keikaku/bin/keikaku", program)
        text = text.replace("User=keikaku", "User=root")
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(tmp_path.iterdir()))],
        env={"PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    told = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "keikaku" in line]
    assert told == []
    assert done.returncode == 0, done.stderr


def _containers() -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Each CronJob's spec, pod and container."""
    for document in yaml.safe_load_all(KUBERNETES.read_text(encoding="utf-8")):
        if document["kind"] == "CronJob":
            pod = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]
            for container in pod["containers"]:
                yield document["spec"], pod, container


def test_the_manifests_say_what_a_cluster_needs() -> None:
    """No overlap, no blind repetition, no root, and commands that can be typed."""
    found = list(_containers())
    assert len(found) == 2
    for spec, pod, container in found:
        assert spec["concurrencyPolicy"] == "Forbid"
        assert re.fullmatch(r"(\S+ ){4}\S+", spec["schedule"])
        assert spec["jobTemplate"]["spec"]["backoffLimit"] == 0
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert all(isinstance(word, str) for word in container["args"])
        _parsed(container["args"])


def test_the_manifests_refer_to_what_they_define() -> None:
    """Secret and claim are there under the names that the jobs use."""
    documents = list(yaml.safe_load_all(KUBERNETES.read_text(encoding="utf-8")))
    names = {(document["kind"], document["metadata"]["name"]) for document in documents}
    text = KUBERNETES.read_text(encoding="utf-8")

    assert set(re.findall(r"claimName: ([\w-]+)", text)) == {
        name for kind, name in names if kind == "PersistentVolumeClaim"
    }
    assert set(re.findall(r"secretKeyRef: \{name: ([\w-]+)", text)) == {
        name for kind, name in names if kind == "Secret"
    }


def test_their_variables_are_ours() -> None:
    """A misspelt KEIKAKU_ variable would be silent in a cluster."""
    names = set()
    for path in (CRONTAB, KUBERNETES, *UNITS):
        names |= set(re.findall(r"\bKEIKAKU_[A-Z_]+", path.read_text(encoding="utf-8")))
    variables = dict.fromkeys(names - {"KEIKAKU_CONFIG"}, "x")

    assert load_settings(None, variables).warnings == ()
