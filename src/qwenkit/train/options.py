"""What a fine-tuning run is told: one dataclass that a YAML file and the command line both fill. Loads neither torch nor transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from qwenkit.core.errors import InputError, did_you_mean

METHODS = ("lora", "qlora", "full")
DTYPES = ("auto", "bfloat16", "float16", "float32")
SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup")
LOSSES = ("all", "last")
FORMATS = ("auto", "qwen", "sharegpt", "openai", "alpaca", "text")
TOO_LONG = ("cut", "drop", "refuse")
TABLES = ("auto", "all", "chatml", "none")
LOGGERS = ("jsonl", "tensorboard")
LEARNING_RATES = {"lora": 3e-4, "qlora": 3e-4, "full": 1e-5}


def _opt(
    default: Any, text: str, group: str = "Run", *, low: float | None = None, among: tuple[str, ...] = ()
) -> Any:
    data = {"help": text, "group": group, "low": low, "among": among}
    if isinstance(default, tuple):
        return field(default_factory=lambda: default, metadata=data)
    return field(default=default, metadata=data)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneOptions:
    """One run. Defaults are those of the Qwen release (spec of its scripts) unless a comment says otherwise.

    Raises:
        InputError: a value is impossible, or two do not go together.
    """

    model: str = _opt("", "Model to start from: folder of weights, hub id, short name or .gguf file.")
    data: tuple[str, ...] = _opt((), "Files (.json, .jsonl) or folders of conversations.")
    out: str = _opt("", "Folder for the result.")
    method: str = _opt("lora", "lora, qlora (on 4- or 8-bit weights) or full.", among=METHODS)
    dtype: str = _opt("auto", "Computing with: auto, bfloat16, float16 or float32.", among=DTYPES)
    seed: int = _opt(42, "Order of samples, dropout and fresh weights.", low=0)
    restart: bool = _opt(False, "Throw away what an earlier run left in the folder.")
    device: str = _opt("auto", "auto, cpu or cuda.", among=("auto", "cpu", "cuda"))
    threads: int | None = _opt(None, "CPU threads to use.", low=1)

    data_format: str = _opt("auto", "auto, qwen, sharegpt, openai, alpaca or text.", "Data", among=FORMATS)
    system: str | None = _opt(None, "System text of samples that have none.", "Data")
    loss: str = _opt("all", "Learn all replies, or only the last of each sample.", "Data", among=LOSSES)
    max_length: int = _opt(512, "Most tokens of a sample.", "Data", low=8)
    too_long: str = _opt(
        "cut", "What happens to longer samples: cut, drop or refuse.", "Data", among=TOO_LONG
    )
    structure_loss: bool | None = _opt(
        None,
        "Learn where messages begin and end too, of all roles; without it as the release did: first generation only.",
        "Data",
    )
    packing: bool = _opt(
        False, "Put short samples side by side, without seeing each other, up to the length.", "Data"
    )
    lazy: bool = _opt(False, "Render samples when they are needed instead of at the start.", "Data")
    skip_bad: bool = _opt(False, "Leave out broken samples instead of refusing them.", "Data")
    eval_data: tuple[str, ...] = _opt((), "Samples to measure the loss on.", "Data")
    eval_share: float = _opt(0.0, "Share of the data to hold out for that instead.", "Data", low=0)

    lora_r: int = _opt(64, "Rank.", "LoRA", low=1)
    lora_alpha: float = _opt(16.0, "Scale: updates are multiplied by alpha / r.", "LoRA", low=0)
    lora_dropout: float = _opt(0.05, "Share of inputs dropped.", "LoRA", low=0)
    lora_targets: tuple[str, ...] = _opt((), "Linear layers to adapt; without it all of the blocks.", "LoRA")
    lora_adapter: str | None = _opt(None, "Adapter to go on from instead of a fresh one.", "LoRA")
    train_tables: str = _opt(
        "auto",
        "Train embedding and head too: all of them, only the rows of the ChatML tokens, or none; auto: all for base models of the first generation.",
        "LoRA",
        among=TABLES,
    )

    epochs: float = _opt(5.0, "Times to go through the data.", "Optimisation", low=0)
    max_steps: int | None = _opt(None, "Stop after so many steps instead.", "Optimisation", low=1)
    batch_size: int = _opt(2, "Samples of one forward pass on one device.", "Optimisation", low=1)
    accumulate: int = _opt(8, "Forward passes of one step.", "Optimisation", low=1)
    learning_rate: float | None = _opt(
        None, "Highest learning rate; 3e-4 for LoRA and 1e-5 for full unless given.", "Optimisation", low=0
    )
    schedule: str = _opt(
        "cosine", "cosine, linear, constant or constant_with_warmup.", "Optimisation", among=SCHEDULES
    )
    warmup_share: float = _opt(
        0.01, "Share of steps in which the learning rate rises.", "Optimisation", low=0
    )
    weight_decay: float = _opt(0.1, "Decay of the weights.", "Optimisation", low=0)
    adam_beta2: float = _opt(0.95, "Second beta of Adam.", "Optimisation", low=0)
    max_grad_norm: float = _opt(1.0, "Longer gradients are shortened; 0: never.", "Optimisation", low=0)
    checkpointing: bool = _opt(
        True, "Compute activations again in the backward pass instead of keeping them.", "Optimisation"
    )

    eval_every: int | None = _opt(
        None, "Steps between evaluations; without it once an epoch.", "Progress", low=1
    )
    patience: int | None = _opt(
        None, "Stop after so many evaluations without a lower loss, and keep the best.", "Progress", low=1
    )
    save_every: int = _opt(100, "Steps between checkpoints to resume from.", "Progress", low=1)
    keep: int = _opt(2, "Checkpoints to keep.", "Progress", low=1)
    log_every: int = _opt(1, "Steps between lines of the log.", "Progress", low=1)
    loggers: tuple[str, ...] = _opt(("jsonl",), "jsonl, tensorboard or both.", "Progress", among=LOGGERS)

    deepspeed: str | None = _opt(None, "zero2, zero3 or a DeepSpeed configuration file.", "Many devices")
    fsdp: bool = _opt(False, "Shard weights, gradients and optimizer with FSDP2.", "Many devices")

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            _check(each.name, getattr(self, each.name), each.metadata)
        self._check_pairs()

    def _check_pairs(self) -> None:
        if not self.model or not self.data or not self.out:
            missing = next(n for n in ("model", "data", "out") if not getattr(self, n))
            raise InputError(
                f"{missing} is not given; add --{missing}, or {missing}: in the configuration file"
            )
        for name in ("eval_share", "lora_dropout", "warmup_share", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be from 0 to below 1, got {getattr(self, name)}")
        if not self.epochs and not self.max_steps:
            raise InputError("epochs 0 trains nothing; give a number above 0, or max_steps")
        evaluates = bool(self.eval_data or self.eval_share)
        for name in ("eval_every", "patience"):
            if getattr(self, name) is not None and not evaluates:
                raise InputError(f"{name} needs samples to measure on; add eval_data or eval_share")
        for one, other in (("deepspeed", "fsdp"), ("lazy", "packing"), ("eval_data", "eval_share")):
            if getattr(self, one) and getattr(self, other):
                raise InputError(f"{one} and {other} exclude each other; give one of them")
        self._refuse_unheard()

    def _refuse_unheard(self) -> None:
        """Options that others silence."""
        lora = [name for name, each in FIELDS.items() if each.metadata["group"] == "LoRA"]
        unheard: dict[str, list[str]] = {}
        if not self.is_lora:
            unheard["method full; leave it out, or use method lora"] = lora
        if self.lora_adapter is not None:
            others = [name for name in lora if name != "lora_adapter"]
            unheard["lora_adapter, which has its own; leave it out"] = others
        if self.schedule == "constant":
            unheard["schedule constant; use constant_with_warmup"] = ["warmup_share"]
        if self.patience is not None:
            unheard["patience, which saves with every evaluation; use eval_every"] = ["save_every"]
        for why, names in unheard.items():
            for name in names:
                if getattr(self, name) != default_of(name):
                    raise InputError(f"{name} says nothing with {why}")

    @property
    def is_lora(self) -> bool:
        """Whether an adapter is trained."""
        return self.method != "full"

    @property
    def top_rate(self) -> float:
        """The learning rate after warming up."""
        return LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    def to_dict(self) -> dict[str, Any]:
        """For JSON and YAML."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


FIELDS: Mapping[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(FinetuneOptions)}


def field_types() -> dict[str, Any]:
    """The type of every option."""
    return get_type_hints(FinetuneOptions)


def _default(each: dataclasses.Field[Any]) -> Any:
    if each.default_factory is not dataclasses.MISSING:
        return each.default_factory()
    return each.default


def default_of(name: str) -> Any:
    """What an option is when nobody says."""
    return _default(FIELDS[name])


def _check(name: str, value: Any, rules: Mapping[str, Any]) -> None:
    low, among = rules["low"], rules["among"]
    if low is not None and value is not None and not value >= low:
        raise InputError(f"{name} must be {low} or more, got {value}")
    for each in value if isinstance(value, tuple) else (value,):
        if among and each not in among:
            raise InputError(
                f"{name} {each!r} is unknown; use {', '.join(among)}{did_you_mean(str(each), among)}"
            )


def read_options(file: Path | None, given: Mapping[str, Any]) -> FinetuneOptions:
    """Options of a YAML file and those of the command line, which win.

    Args:
        file: mapping of option names to values.
        given: options by name, of their types.

    Raises:
        InputError: the file is no such mapping, names an unknown option or a value of another type.
    """
    values: dict[str, Any] = {}
    if file is not None:
        types = field_types()
        for key, value in _read_yaml(file).items():
            name = str(key).replace("-", "_")
            if name not in FIELDS:
                raise InputError(f"{file}: option {key!r} is unknown{did_you_mean(name, FIELDS)}")
            values[name] = _typed(f"{file}: {key}", value, types[name])
    return FinetuneOptions(**(values | dict(given)))


def _read_yaml(file: Path) -> dict[Any, Any]:
    import yaml

    try:
        loaded = yaml.safe_load(file.read_text("utf-8"))
    except UnicodeDecodeError:
        raise InputError(f"{file} is not text in UTF-8; save it as such") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{file}{where}: {getattr(error, 'problem', None) or 'this is not YAML'}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{file} must hold options such as 'model: NAME', one on a line")
    return loaded


def _typed(where: str, value: Any, wanted: Any) -> Any:
    """A value of YAML as the type an option has."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if wanted == tuple[str, ...]:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return tuple(items)
        raise InputError(f"{where} must be a list of texts, got {value!r}")
    choices = [kind for kind in names if kind == wanted or kind in getattr(wanted, "__args__", ())]
    if value is None and type(None) in getattr(wanted, "__args__", ()):
        return None
    kind = choices[0]
    if kind is float and isinstance(value, str):  # YAML reads 3e-4 as text
        value = _number(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{where} must be {names[kind]}, got {value!r}")
    return value


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
