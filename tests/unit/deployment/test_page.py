"""docs/deployment.md: its commands and examples fit the files they speak of."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.support.dockerfile import lineage, read_stages
from tests.unit.deployment.test_scripts import Engine

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SHELL = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]
SCRIPTS = [line for line in SHELL if line.startswith("docker/")]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    folder = tmp_path / "bin"
    folder.mkdir()
    made = Engine(folder)
    made.add("docker")
    return made


@pytest.mark.parametrize("line", SCRIPTS)
def test_the_scripts_take_what_the_page_says(line: str, engine: Engine, tmp_path: Path) -> None:
    for name in re.findall(r"/srv/models/(\S+)", line):
        folder = tmp_path / "srv" / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (tmp_path / "srv").mkdir(exist_ok=True)
    (tmp_path / "srv" / "keys").write_text("key\n")
    script, *arguments = shlex.split(line.replace("/srv/", f"{tmp_path}/srv/"))
    done = engine.start(script.removeprefix("docker/"), *arguments)
    assert done.returncode == 0, done.stderr
    assert {"run", "build"} & {call[0] for call in engine.calls}


def test_the_page_shows_every_script() -> None:
    shown = {line.split()[0].removeprefix("docker/") for line in SCRIPTS}
    assert shown == {file.name for file in (ROOT / "docker").glob("*.sh")} - {"common.sh"}


def test_compose_is_called_with_profiles_that_exist() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    profiles = {profile for service in services.values() for profile in service["profiles"]}
    used = set(re.findall(r"--profile (\w+)", PAGE))
    assert used == profiles


def test_the_pod_fits_the_image() -> None:
    (text,) = [text for language, text in BLOCKS if language == "yaml"]
    pod = yaml.safe_load(text)
    (container,) = pod["containers"]
    image = {
        each.keyword: each
        for stage in lineage(read_stages(ROOT / "docker" / "Dockerfile"), "cpu")
        for each in stage.instructions
    }
    user, group = image["USER"].text.split(":")
    assert pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": int(user), "fsGroup": int(group)}
    assert container["args"][: len(image["CMD"].words) - 2] == ["serve", "--host=0.0.0.0", "--port=8000"]
    assert str(container["ports"][0]["containerPort"]) == image["EXPOSE"].text
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 600
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > 30 + 5 + pause
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/cache", "/tmp"}


def test_options_of_the_server_on_the_page_exist() -> None:
    known = set(re.findall(r"--[a-z-]+", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")))
    text = PAGE[PAGE.index("## nginx") :]
    named = {name for name in re.findall(r"`(--[a-z-]+)", text) if name not in {"--bind"}}
    assert named <= known, named - known
