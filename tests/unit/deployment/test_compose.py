"""compose.yaml: valid, and as strict as it says; its start command is one that the command line takes."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from tests.support.dockerfile import lineage, read_stages
from tests.support.process import QWENKIT, environment
from tests.unit.deployment import seconds

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "compose.yaml").read_text(encoding="utf-8")
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
SERVICES = ("cpu", "gpu")


def filled(**variables: str) -> dict[str, Any]:
    """The file as compose reads it, with the defaults of variables that are not given."""
    text = VARIABLE.sub(lambda match: variables.get(match[1], match[2]), TEXT)
    assert "${" not in text
    return dict(yaml.safe_load(text))


FILE = filled()


def test_the_specification_knows_every_key() -> None:
    parsed = compose_spec.PyCompose.from_json(json.dumps(FILE))
    assert sorted(parsed.service_names()) == sorted(SERVICES)


def test_the_specification_is_asked_at_all() -> None:
    wrong = json.loads(json.dumps(FILE))
    wrong["services"]["cpu"]["read_onlyy"] = True
    with pytest.raises(ValueError, match="read_onlyy"):
        compose_spec.PyCompose.from_json(json.dumps(wrong))


@pytest.mark.parametrize("name", SERVICES)
def test_services_have_no_rights_they_do_not_need(name: str) -> None:
    service = FILE["services"][name]
    assert service["profiles"] == [name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert any(entry.startswith("/tmp") for entry in service["tmpfs"])
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices", "user"} & set(service)
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert service["pids_limit"]
    assert service["shm_size"]
    assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_only_this_machine_may_ask_and_with_a_key(name: str) -> None:
    service = FILE["services"][name]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["secrets"] == ["api_keys"]
    assert "--api-key-file=/run/secrets/api_keys" in service["command"]
    assert set(FILE["secrets"]) == {"api_keys"}


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_built_and_never_looked_for(name: str) -> None:
    service = FILE["services"][name]
    assert service["pull_policy"] == "build"
    build = service["build"]
    stages = read_stages(ROOT / build["context"] / build["dockerfile"])
    assert build["target"] in stages
    assert service["image"] == f"localhost/qwenkit:{build['target']}"
    assert set(build) == {"context", "dockerfile", "target"}


@pytest.mark.parametrize("name", SERVICES)
def test_models_are_kept(name: str) -> None:
    service = FILE["services"][name]
    assert service["volumes"] == ["cache:/cache", "./models:/models:ro"]
    assert FILE["volumes"] == {"cache": {"name": "qwenkit-cache"}}  # as the scripts call it


@pytest.mark.parametrize("name", SERVICES)
def test_the_health_check_is_the_one_of_the_image(name: str) -> None:
    service = FILE["services"][name]
    check = service["healthcheck"]
    stages = read_stages(ROOT / "docker" / "Dockerfile")
    (image,) = [each for stage in lineage(stages, "cpu") for each in stage.all("HEALTHCHECK")]
    assert check["test"] == ["CMD", *json.loads(image.text[image.text.index("[") :])]
    assert seconds(check["start_period"]) >= 600  # a large model has to be fetched first
    assert seconds(check["interval"]) == seconds(image.options["interval"])


@pytest.mark.parametrize("name", SERVICES)
def test_running_replies_get_their_time(name: str) -> None:
    service = FILE["services"][name]
    (drain,) = [word.partition("=")[2] for word in service["command"] if word.startswith("--drain-timeout=")]
    assert seconds(service["stop_grace_period"]) > float(drain) + 5


def test_only_the_gpu_service_asks_for_one() -> None:
    assert "reservations" not in FILE["services"]["cpu"]["deploy"]["resources"]
    (device,) = FILE["services"]["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_variables_are_described_with_their_defaults() -> None:
    described = dict(re.findall(r"^#   (QWENKIT_\w+) .*?\(([^()]+)\)", TEXT, re.MULTILINE))
    assert described == dict(VARIABLE.findall(TEXT))
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    for name, default in described.items():
        assert re.search(rf"^\| `{name}` \|.*\| `{re.escape(default)}` \|$", page, re.MULTILINE), name


def test_a_name_with_blanks_stays_one_argument() -> None:
    command = filled(QWENKIT_MODEL="/models/my model")["services"]["cpu"]["command"]
    assert "--model=/models/my model" in command


def test_the_command_line_takes_the_start_command() -> None:
    """Up to the model, of which there is none."""
    command = filled(QWENKIT_MODEL="/nowhere/model")["services"]["cpu"]["command"]
    words = [
        word.replace("--port=8000", "--port=0").replace("/run/secrets/api_keys", str(ROOT / "LICENSE"))
        for word in command
    ]
    done = subprocess.run([QWENKIT, *words], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 2
    assert "/nowhere/model" in done.stderr
