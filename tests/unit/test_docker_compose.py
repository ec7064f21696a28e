"""docker-compose.test.yml starts the server that the performance tests are calibrated for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

FILE = Path(__file__).parents[2] / "docker-compose.test.yml"

SETTINGS = {
    "max_connections": "200",
    "superuser_reserved_connections": "3",
    "shared_buffers": "2GB",
    "effective_cache_size": "3GB",
    "work_mem": "50MB",
    "maintenance_work_mem": "512MB",
    "wal_buffers": "16MB",
    "checkpoint_completion_target": "0.9",
    "max_wal_size": "2GB",
    "random_page_cost": "1.1",
    "effective_io_concurrency": "200",
    "statement_timeout": "600000",
    "idle_in_transaction_session_timeout": "3600000",
    "log_min_duration_statement": "1000",
    "log_line_prefix": "%t [%p] user=%u,db=%d,app=%a,client=%h ",
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The parsed file."""
    document: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return document


@pytest.fixture(scope="module")
def service(compose: dict[str, Any]) -> dict[str, Any]:
    """Its only service."""
    assert list(compose["services"]) == ["test-performance-db"]
    found: dict[str, Any] = compose["services"]["test-performance-db"]
    return found


def test_image_name_and_database(service: dict[str, Any]) -> None:
    """Image, container, database, account and the cluster's encoding are as documented."""
    assert service["image"] == "postgres:15-alpine"
    assert service["container_name"] == "keikakun_test_performance_db"
    assert service["environment"] == {
        "POSTGRES_DB": "keikakun_test_performance",
        "POSTGRES_USER": "test_user",
        "POSTGRES_PASSWORD": "test_password",
        "POSTGRES_INITDB_ARGS": "--encoding=UTF8 --locale=C",
    }


def test_server_settings(service: dict[str, Any]) -> None:
    """Each configuration parameter is given once, with its value, and no other is."""
    command = service["command"]

    assert command[0] == "postgres"
    assert command[1::2] == ["-c"] * len(SETTINGS)
    assert [text.partition("=")[::2] for text in command[2::2]] == list(SETTINGS.items())


def test_the_planner_is_not_told_of_more_memory_than_there_is(service: dict[str, Any]) -> None:
    """effective_cache_size is below the container's limit, and the file says why."""
    limit_gb = int(service["deploy"]["resources"]["limits"]["memory"].removesuffix("G"))

    assert int(SETTINGS["effective_cache_size"].removesuffix("GB")) < limit_gb
    assert "charged to the container" in FILE.read_text(encoding="utf-8")


def test_port_and_volumes(compose: dict[str, Any], service: dict[str, Any]) -> None:
    """The data are in a named volume; snapshots can be read but not changed."""
    assert service["ports"] == ["5433:5432"]
    assert service["volumes"] == [
        "test_performance_data:/var/lib/postgresql/data",
        "./snapshots:/snapshots:ro",
    ]
    assert compose["volumes"] == {"test_performance_data": None}


def test_health_check(service: dict[str, Any]) -> None:
    """pg_isready is asked every 10 s, may take 5 s, and may fail 5 times."""
    check = service["healthcheck"]

    assert check["test"] == ["CMD-SHELL", "pg_isready -U test_user -d keikakun_test_performance"]
    assert (check["interval"], check["timeout"], check["retries"]) == ("10s", "5s", 5)


def test_resources(service: dict[str, Any]) -> None:
    """At most 2 processors and 4 GB, at least 1 and 2 GB."""
    assert service["deploy"]["resources"] == {
        "limits": {"cpus": "2", "memory": "4G"},
        "reservations": {"cpus": "1", "memory": "2G"},
    }


def _has_compose() -> bool:
    docker = shutil.which("docker")
    if docker is None:
        return False
    return subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _has_compose(), reason="the docker compose plugin is not installed")
def test_docker_compose_accepts_the_file() -> None:
    """`docker compose config` finds no fault with it."""
    result = subprocess.run(
        ["docker", "compose", "-f", FILE, "config", "--quiet"], capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stderr
