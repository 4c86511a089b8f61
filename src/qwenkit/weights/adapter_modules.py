"""The modules of a network that an adapter may change, and the low-rank update of each one.

Reads what adapter_config.json asks for; knows nothing of how updates are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from qwenkit.config.families import Family
from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import CheckpointError, ConfigError, UnsupportedModelError
from qwenkit.weights.adapter_file import AdapterReader


@dataclass(frozen=True, slots=True)
class AdaptedLinear:
    """One linear of the network, and the modules of the checkpoint that are stacked into it."""

    layer: int
    part: str
    modules: tuple[str, ...]
    rows: tuple[int, ...]
    """Of each module."""
    columns: int
    """Inputs; the same for all."""


def linears_of(family: Family, config: ModelConfig) -> Iterator[AdaptedLinear]:
    """Every linear of the network that an adapter may change."""
    q, kv, width, ffn = config.q_size, config.kv_size, config.hidden_size, config.ffn_size
    sizes = {
        "attn.qkv": (q + 2 * kv, width),
        "attn.out": (width, q),
        "ffn.gate_up": (2 * ffn, width),
        "ffn.down": (width, ffn),
    }
    for layer in range(config.num_layers):
        for part, (rows, columns) in sizes.items():
            sources = family.tensors[f"layers.{{i}}.{part}.weight"]
            modules = tuple(s.replace("{i}", str(layer)).removesuffix(".weight") for s in sources)
            split = {1: (rows,), 2: (ffn, ffn), 3: (q, kv, kv)}[len(modules)]
            yield AdaptedLinear(layer, part.rpartition(".")[2], modules, split, columns)


def check_names(
    reader: AdapterReader, family: Family, config: ModelConfig, linears: Sequence[AdaptedLinear]
) -> None:
    """Names what cannot be served better than "unexpected tensor" would.

    Raises:
        ConfigError: the configuration names what cannot be replaced.
        CheckpointError: there are weights for modules that the model does not have.
    """
    tables = table_modules(family)
    for name in reader.config.modules_to_save:
        if not any(ends_with(table, name) for table in tables):
            raise UnsupportedModelError(
                f"{reader.folder}: modules_to_save names {name!r}; only {' and '.join(tables)} of a {family.name} model "
                "can be replaced by an adapter; merge it into the model with PEFT's merge_and_unload"
            )
    for name in reader.config.token_rows:
        if name and not any(ends_with(table, name) for table in tables):
            raise ConfigError(
                f"{reader.folder}: trainable_token_indices names {name!r}; a {family.name} model has {' and '.join(tables)}"
            )
    modules = {module for linear in linears for module in linear.modules} | set(tables)
    lora = [n for n in reader.names if ".lora_" in n]
    foreign = [n for n in lora if n.rpartition(".")[0] not in modules and not n.endswith(".bias")]
    if foreign:
        raise CheckpointError(
            f"{reader.file.path} holds {reader.names[foreign[0]]!r}, for a module that this {family.name} model of "
            f"{config.num_layers} layers does not have; the adapter was trained on {reader.config.base_model or 'another model'!r:.200}"
        )


def table_modules(family: Family) -> tuple[str, str]:
    """What the family calls embedding and output head."""
    embed, head = (
        family.tensors[name][0].removesuffix(".weight") for name in ("embed.weight", "head.weight")
    )
    return embed, head


def ends_with(module: str, name: str) -> bool:
    """Whether ``name`` is the module or its last names."""
    return module == name or (bool(name) and module.endswith("." + name))


@dataclass(frozen=True, slots=True)
class Update:
    """What an adapter adds to a module: scale * b a."""

    a: Tensor
    """(r, in) float32"""
    b: Tensor
    """(rows, r) float32"""
    scale: float


def read_update(reader: AdapterReader, module: str, rows: int, columns: int) -> Update | None:
    """The update of a module of ``rows`` outputs and ``columns`` inputs; None: the adapter leaves it alone.

    Raises:
        CheckpointError: it is not there, of another shape, or not finite.
    """
    config = reader.config
    if not config.targets(module):
        return None
    rank = config.rank_of(module)
    return Update(
        a=reader.read(f"{module}.lora_A", (rank, columns)),
        b=reader.read(f"{module}.lora_B", (rows, rank)),
        scale=config.scale_of(module),
    )


def refuse_without_effect(reader: AdapterReader, family: Family, *, changes_something: bool) -> None:
    """Raises when a tensor was not asked for, or the adapter changes nothing.

    Raises:
        CheckpointError: the file holds more than the configuration names.
        ConfigError: the configuration names no module of the model.
    """
    reader.refuse_unread()
    if not changes_something:
        raise ConfigError(
            f"{reader.folder}: target_modules={reader.config.target_modules!r:.200} name no module of a {family.name} model"
        )
