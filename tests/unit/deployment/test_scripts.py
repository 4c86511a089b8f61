"""The helper scripts, with a container engine that only writes down what it is told."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docker"
SERVERS = ("docker_openai_api.sh", "docker_web_demo.sh")
CHAT = "docker_cli_demo.sh"
ALL = (*SERVERS, CHAT)
FAKE = """#!/bin/bash
for argument; do printf '%s\\0' "$argument"; done >>"$CALLS"; printf '\\n' >>"$CALLS"
case "$*" in
    version*) exit "${FAKE_VERSION:-0}" ;;
    image*) exit "${FAKE_IMAGE:-0}" ;;
    container*) exit "${FAKE_CONTAINER:-1}" ;;
    pull*) exit "${FAKE_PULL:-0}" ;;
    run*) exit "${FAKE_RUN:-0}" ;;
esac
"""


@dataclass(frozen=True)
class Engine:
    """A folder for PATH with engines in it, and what they were told."""

    folder: Path

    @property
    def calls(self) -> list[list[str]]:
        text = (self.folder / "calls").read_text() if (self.folder / "calls").exists() else ""
        return [line.split("\0") for line in text.split("\0\n") if line]

    @property
    def run(self) -> list[str]:
        """What `run` was told."""
        (call,) = [call for call in self.calls if call[0] == "run"]
        return call

    def add(self, name: str) -> None:
        file = self.folder / name
        file.write_text(FAKE)
        file.chmod(0o755)

    def start(
        self, script: str, *arguments: str, cwd: Path = ROOT, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.folder}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "CALLS": str(self.folder / "calls"),
            **variables,
        }
        return subprocess.run(
            [FOLDER / script, *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=cwd,
            timeout=20,
            check=False,
        )


@pytest.fixture
def docker(tmp_path: Path) -> Engine:
    folder = tmp_path / "bin"
    folder.mkdir()
    engine = Engine(folder)
    engine.add("docker")
    return engine


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A model folder with everything in its name that quoting could get wrong."""
    folder = tmp_path / 'it\'s my, "model" $(x)'
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def pairs(call: list[str]) -> dict[str, str]:
    """Each word with the one behind it."""
    return dict(itertools.pairwise(call))


def test_the_linter_finds_nothing() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    files = sorted(FOLDER.glob("*.sh"))
    assert len(files) == 5
    done = subprocess.run([shellcheck, "-x", *files], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ALL)
@pytest.mark.parametrize(
    "spelling", [("-i", "-c", "-n"), ("--image-name", "--checkpoint", "--container-name")]
)
def test_the_options_of_the_qwen_release(
    script: str, spelling: tuple[str, str, str], docker: Engine, checkpoint: Path
) -> None:
    image, model, name = spelling
    port = () if script == CHAT else ("--port", "8123")
    done = docker.start(script, image, "some/image:1", model, str(checkpoint), name, "my-qwen", *port)
    assert done.returncode == 0, done.stderr
    call = docker.run
    assert "some/image:1" in call
    assert pairs(call)["--name"] == "my-qwen"
    source = str(checkpoint).replace('"', '""')
    inside = "/models/it_s_my___model____x_"
    assert pairs(call)["--mount"] == f'type=bind,"source={source}",target={inside},readonly'
    assert pairs(call)["--model"] == inside
    if script != CHAT:
        assert pairs(call)["--publish"] == "127.0.0.1:8123:8000"
        assert "http://127.0.0.1:8123" in done.stdout


@pytest.mark.parametrize(("script", "port"), [(SERVERS[0], 8000), (SERVERS[1], 8901)])
def test_a_server_without_options(script: str, port: int, docker: Engine) -> None:
    done = docker.start(script)
    assert done.returncode == 0, done.stderr
    call = docker.run
    at = call.index("localhost/qwenkit:cpu")
    page = ["--no-page"] if script == "docker_openai_api.sh" else []
    assert call[at + 1 :] == ["serve", "--host", "0.0.0.0", "--port", "8000", *page]
    assert {"--detach", "--read-only", "no-new-privileges"} <= set(call[:at])
    found = pairs(call[:at])
    assert found["--publish"] == f"127.0.0.1:{port}:8000"
    assert found["--cap-drop"] == "ALL"
    assert found["--volume"] == "qwenkit-cache:/cache"
    assert found["--tmpfs"].startswith("/tmp:")
    assert int(found["--stop-timeout"]) > 30 + 5  # the server's drain timeout, and its patience after it
    assert "pull" not in [call[0] for call in docker.calls]
    assert "docker logs -f qwen" in done.stdout


def test_a_chat_takes_its_standard_input(docker: Engine) -> None:
    assert docker.start(CHAT, "--", "--greedy", "two words").returncode == 0
    call = docker.run
    assert {"--rm", "--interactive", "--no-healthcheck"} <= set(call)
    assert "--tty" not in call  # the test has no terminal
    assert call[call.index("localhost/qwenkit:cpu") + 1 :] == ["chat", "--greedy", "two words"]


def test_options_behind_two_dashes_go_to_the_server(docker: Engine) -> None:
    assert docker.start(SERVERS[0], "-m", "org/name", "--", "--max-context", "4096").returncode == 0
    assert docker.run[-4:] == ["--model", "org/name", "--max-context", "4096"]


def test_keys_come_from_a_file(docker: Engine, tmp_path: Path) -> None:
    keys = tmp_path / "my keys"
    keys.write_text("secret\n")
    assert docker.start(SERVERS[0], "-k", "my keys", cwd=tmp_path).returncode == 0
    found = pairs(docker.run)
    assert found["--mount"] == f"type=bind,source={keys},target=/run/secrets/api_keys,readonly"
    assert found["--api-key-file"] == "/run/secrets/api_keys"
    assert not any("secret\n" in word for word in docker.run)


def test_a_file_of_weights(docker: Engine, tmp_path: Path) -> None:
    (tmp_path / "small model.gguf").write_bytes(b"GGUF")
    assert docker.start(SERVERS[0], "-c", "small model.gguf", cwd=tmp_path).returncode == 0
    found = pairs(docker.run)
    assert found["--mount"].startswith(f"type=bind,source={tmp_path}/small model.gguf,")
    assert found["--model"] == "/models/small_model.gguf"
    assert found["--served-model-name"] == "small_model"


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [("all", ["--gpus", "all"]), ("0,1", ["--gpus", '"device=0,1"']), ("2", ["--gpus", '"device=2"'])],
)
def test_gpus_with_docker(gpus: str, expected: list[str], docker: Engine) -> None:
    assert docker.start(SERVERS[0], "--gpus", gpus).returncode == 0
    at = docker.run.index("--gpus")
    assert docker.run[at : at + 2] == expected
    assert "localhost/qwenkit:cuda" in docker.run


def test_gpus_with_podman(docker: Engine) -> None:
    docker.add("podman")
    assert docker.start(CHAT, "-g", "0,1", CONTAINER_ENGINE="podman").returncode == 0
    devices = [b for a, b in itertools.pairwise(docker.run) if a == "--device"]
    assert devices == ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]


@pytest.mark.parametrize(
    ("address", "shown"), [("0.0.0.0", "localhost"), ("::1", "[::1]"), ("[::1]", "[::1]")]
)
def test_addresses(address: str, shown: str, docker: Engine) -> None:
    done = docker.start(SERVERS[0], "--bind", address, "--port=080")
    assert pairs(docker.run)["--publish"] == f"{shown if ':' in address else address}:80:8000"
    assert f"http://{shown}:80/v1" in done.stdout


def test_tokens_of_a_hub_are_passed_by_name_only(docker: Engine) -> None:
    docker.start(SERVERS[0], HF_TOKEN="hf_secret")
    assert pairs(docker.run)["--env"] == "HF_TOKEN"
    assert not any("hf_secret" in word for word in docker.run)


MISTAKES = {
    "no such option": (("--prot", "1"), "--prot is no option"),
    "no value": (("--port",), "--port needs a value"),
    "an empty value": (("--name=",), "--name needs a value"),
    "port as a word": (("-p", "http"), "port 'http' is not possible"),
    "port 0": (("-p", "0"), "port '0' is not possible"),
    "a large port": (("-p", "65536"), "port '65536' is not possible"),
    "a very large port": (("-p", "18446744073709551617"), "is not possible"),
    "a negative port": (("-p", "-1"), "port '-1' is not possible"),
    "a name with a blank": (("-n", "my qwen"), "container name 'my qwen' is not possible"),
    "a name that is an option": (("-n", "-rm"), "container name '-rm' is not possible"),
    "gpus": (("-g", "some"), "--gpus 'some' is not possible"),
    "no such checkpoint": (("-c", "/nowhere"), "there is no '/nowhere'"),
    "an empty folder": (("-c", "EMPTY"), "holds neither config.json nor a .gguf file"),
    "some other file": (("-c", "/etc/hostname"), "is a file but not a .gguf"),
    "two models": (("-c", "EMPTY", "-m", "org/name"), "two ways to name one model"),
    "no key file": (("-k", "/nowhere"), "there is no file '/nowhere'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_sentence(mistake: str, docker: Engine, tmp_path: Path) -> None:
    arguments, sentence = MISTAKES[mistake]
    (tmp_path / "EMPTY").mkdir()
    done = docker.start(SERVERS[0], *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.startswith("docker_openai_api.sh: ")
    assert done.stderr.count("\n") == 1
    assert "run" not in [call[0] for call in docker.calls]


@pytest.mark.parametrize("option", ["-p", "--bind", "-k"])
def test_a_chat_has_no_port(option: str, docker: Engine) -> None:
    done = docker.start(CHAT, option, "1")
    assert done.returncode == 2
    assert f"{option} is for the servers" in done.stderr


def test_links_that_lead_out_of_the_folder_are_refused(docker: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (tmp_path / "blob").write_text("{}")
    (folder / "config.json").symlink_to(tmp_path / "blob")
    done = docker.start(SERVERS[0], "-c", str(folder))
    assert done.returncode == 2
    assert "a container cannot follow" in done.stderr
    (folder / "config.json").unlink()
    (folder / "real.json").write_text("{}")
    (folder / "config.json").symlink_to("real.json")
    assert docker.start(SERVERS[0], "-c", str(folder)).returncode == 0


@pytest.mark.parametrize(
    ("variables", "arguments", "sentence"),
    [
        ({"FAKE_IMAGE": "1"}, (), "is not built yet; run docker/build.sh cpu"),
        ({"FAKE_IMAGE": "1", "FAKE_PULL": "1"}, ("-i", "some/image:1"), "cannot be fetched"),
        ({"FAKE_CONTAINER": "0"}, (), "there is a container 'qwen' already"),
        ({"FAKE_VERSION": "1"}, (), "does not answer"),
        ({"FAKE_RUN": "125"}, (), "could not start the container"),
        ({"CONTAINER_ENGINE": "nerdctl"}, (), "there is no 'nerdctl' here"),
    ],
)
def test_what_the_engine_lacks(
    variables: dict[str, str], arguments: tuple[str, ...], sentence: str, docker: Engine
) -> None:
    done = docker.start(SERVERS[1], *arguments, **variables)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ALL)
def test_help_names_every_option_and_needs_no_engine(script: str, docker: Engine) -> None:
    done = docker.start(script, "--help", CONTAINER_ENGINE="nothing")
    assert done.returncode == 0
    for option in ("--checkpoint", "--model", "--image", "--name", "--gpus", "--help"):
        assert option in done.stdout
    assert ("--port" in done.stdout) == (script != CHAT)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_building(target: str, docker: Engine, tmp_path: Path) -> None:
    done = docker.start("build.sh", target, "--build-arg", "EXTRAS=server,hub", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (call,) = [call for call in docker.calls if call[0] == "build"]
    assert pairs(call)["--target"] == target
    assert pairs(call)["--tag"] == f"localhost/qwenkit:{target}"
    assert call[-3:] == ["--build-arg", "EXTRAS=server,hub", "."]
    assert os.fspath(ROOT / pairs(call)["--file"]) == os.fspath(FOLDER / "Dockerfile")


def test_building_something_else(docker: Engine) -> None:
    done = docker.start("build.sh", "rocm")
    assert done.returncode == 2
    assert done.stderr == "build.sh: 'rocm' is no image of ours; use cpu or cuda\n"
