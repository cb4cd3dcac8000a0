"""The services for looking at experiments. Without an engine of Docker they cannot be started here: what is checked is
that the file says what it must.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tracking.mongodb.upload import find_url

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXAMPLE = (REPOSITORY / ".env.example").read_text(encoding="utf-8")
# What the specification of Compose lets stand in a service, as far as it is used here.
KEYS = {"image", "build", "restart", "environment", "ports", "volumes", "healthcheck", "depends_on"}
HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period"}
PASSWORDS = {"MONGO_ROOT_PASSWORD", "MONGO_PASSWORD", "OMNIBOARD_PASSWORD"}


def settings(text: str) -> dict[str, str]:
    return dict(re.findall(r"^#?([A-Z_]+)=(.*)$", text, re.M))


def find_compose() -> list[str]:
    """The command of Docker's own, or of the older program that stands alone; none if neither is there."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0:
            return command
    return []


def test_only_keys_of_the_compose_specification_are_used() -> None:
    assert set(COMPOSE) == {"services", "volumes"}
    assert set(SERVICES) == {"mongo", "omniboard", "tensorboard"}
    for service in SERVICES.values():
        assert set(service) <= KEYS
        assert ("image" in service) != ("build" in service)
        assert set(service["healthcheck"]) == HEALTH_KEYS
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        assert all(
            re.fullmatch(r"\d+s", service["healthcheck"][key]) for key in ("interval", "timeout", "start_period")
        )


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_on_this_machine_only(name: str) -> None:
    for port in SERVICES[name]["ports"]:
        assert re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z]+_PORT:-\d+\}:\d+", port)


def test_services_have_different_ports() -> None:
    defaults = re.findall(r"_PORT:-(\d+)", TEXT)
    assert len(defaults) == len(set(defaults)) == 3


def test_passwords_are_required_variables() -> None:
    asked_for = re.findall(r"\$\{(\w*PASSWORD)(.*?)\}", TEXT)
    assert {name for name, _ in asked_for} == PASSWORDS
    assert all(rule.startswith(":?") for _, rule in asked_for)
    users = (REPOSITORY / "docker" / "mongo_users.js").read_text(encoding="utf-8")
    assert set(re.findall(r"pwd: (.*?),", users)) == {"process.env.WRITER_PASSWORD", "process.env.READER_PASSWORD"}


def test_the_example_names_every_setting_and_holds_no_secret() -> None:
    used, named = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", TEXT)), settings(EXAMPLE)
    assert used | {"MONGO_URL"} == set(named)
    assert all(named[name] == "" for name in PASSWORDS)


def test_run_experiment_reads_the_completed_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONGO_URL", raising=False)
    assert find_url(None, REPOSITORY / ".env.example") is None
    env_file = tmp_path / ".env"
    env_file.write_text(EXAMPLE.replace("#MONGO_URL", "MONGO_URL").replace(":MONGO_PASSWORD@", ":secret@"))
    assert find_url(None, env_file) == "mongodb://neomesh:secret@127.0.0.1:27017/sacred"


def test_git_ignores_the_passwords() -> None:
    assert "/.env" in (REPOSITORY / ".gitignore").read_text().splitlines()


def test_omniboard_is_read_only() -> None:
    users = (REPOSITORY / "docker" / "mongo_users.js").read_text(encoding="utf-8")
    roles = dict(re.findall(r'user: "(\w+)".*?roles: \[(.*?)\]', users))
    assert roles == {"neomesh": '{ role: "readWrite", db: "sacred" }', "omniboard": '{ role: "read", db: "sacred" }'}
    assert SERVICES["omniboard"]["environment"]["MONGO_URI"].startswith("mongodb://omniboard:${OMNIBOARD_PASSWORD:?")
    assert "omniboard@2.16.1" in (REPOSITORY / "docker" / "omniboard.Dockerfile").read_text()


def test_data_is_in_named_volumes_and_mounted_files_exist() -> None:
    data = [volume.split(":")[0] for volume in SERVICES["mongo"]["volumes"] if not volume.startswith("./")]
    assert set(data) == set(COMPOSE["volumes"])
    for service in SERVICES.values():
        mounted = [volume.split(":")[0] for volume in service.get("volumes", []) if volume.startswith("./")]
        built = [f"{service['build']['context']}/{service['build']['dockerfile']}"] if "build" in service else []
        assert all((REPOSITORY / path).is_file() for path in [*mounted, *built])


def test_omniboard_waits_for_mongo() -> None:
    assert SERVICES["omniboard"]["depends_on"] == {"mongo": {"condition": "service_healthy"}}


@pytest.mark.skipif(not find_compose(), reason="neither docker compose nor docker-compose is installed")
def test_compose_accepts_the_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    place = ["--file", str(REPOSITORY / "docker-compose.yml"), "--env-file", str(tmp_path / "empty")]
    command, environment = [*find_compose(), *place, "config"], {"PATH": os.environ["PATH"]}
    without = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert without.returncode != 0 and "set it in .env" in without.stderr
    given = {**environment, **dict.fromkeys(PASSWORDS, "secret")}
    done = subprocess.run(command, capture_output=True, text=True, env=given)
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load(done.stdout)["services"]
    assert resolved["omniboard"]["environment"]["MONGO_URI"] == "mongodb://omniboard:secret@mongo:27017/sacred"
    assert "$READER_PASSWORD" in resolved["mongo"]["healthcheck"]["test"][1]
