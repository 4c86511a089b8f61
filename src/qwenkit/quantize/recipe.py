"""What a quantisation run is asked to do: method, numbers and file layout, checked together.

Knows which choices go with which, and nothing of how any of them works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qwenkit.core.errors import InputError, did_you_mean

METHODS: Mapping[str, str] = {"gptq": "gptq", "awq": "awq-gemm", "rtn": "gptq"}
"""Each method and the layout it writes unless told otherwise."""
LAYOUTS = ("gptq", "gptq_v2", "awq-gemm", "awq-gemv")
"""File layouts; any method can write any of them."""
GEMV_GROUPS = (32, 64, 128)
"""The group sizes that the GEMV layout can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the bytes of a quantised model, besides the model and the calibration text.

    Raises:
        InputError: a value is impossible, or two do not go together.
    """

    method: str = "gptq"
    """gptq, awq, or rtn (round to nearest)"""
    bits: int = 4
    """4 or 8"""
    group_size: int = 128
    """Inputs that share a scale; -1: all of a row."""
    layout: str | None = None
    """One of LAYOUTS; None: the method's own."""
    symmetric: bool | None = None
    """Every zero in the middle; None: yes for gptq and rtn. awq is never symmetric."""
    desc_act: bool = False
    """gptq: quantise the columns with the largest activations first."""
    static_groups: bool = False
    """gptq: fix every group's scale before any column is quantised."""
    damp: float = 0.01
    """gptq: share of the mean diagonal that is added to the Hessian."""
    true_sequential: bool = True
    """gptq, rtn: a block's later matrices see what its earlier ones became."""
    num_samples: int = 128
    """Calibration samples."""
    sample_length: int = 512
    """Most tokens of one sample."""
    seed: int = 0
    """Which samples are drawn."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(
                f"method {self.method!r} is unknown; use {_listed(METHODS)}{did_you_mean(self.method, METHODS)}"
            )
        if self.layout is not None and self.layout not in LAYOUTS:
            raise InputError(
                f"format {self.layout!r} is unknown; use {_listed(LAYOUTS)}{did_you_mean(self.layout, LAYOUTS)}"
            )
        self._check_numbers()
        self._check_method()
        self._check_layout()

    @property
    def file_layout(self) -> str:
        """The layout that is written."""
        return self.layout or METHODS[self.method]

    @property
    def is_awq_file(self) -> bool:
        """Whether the files are in one of AWQ's layouts."""
        return self.file_layout.startswith("awq")

    @property
    def is_symmetric(self) -> bool:
        """Whether every zero is in the middle."""
        return self.method != "awq" if self.symmetric is None else self.symmetric

    @property
    def needs_calibration(self) -> bool:
        """Whether the method cannot do without calibration text."""
        return self.method != "rtn"

    def to_dict(self) -> dict[str, Any]:
        """Every choice, made explicit."""
        return asdict(self) | {"layout": self.file_layout, "symmetric": self.is_symmetric}

    def _check_numbers(self) -> None:
        if self.bits not in (4, 8):
            raise InputError(f"bits={self.bits} is not possible; use 4 or 8")
        if self.group_size != -1 and (self.group_size < 16 or self.group_size % 16):
            raise InputError(
                f"group_size={self.group_size} is not possible; use a multiple of 16 such as 128, or -1 for one group per row"
            )
        if not 0 < self.damp < 1:
            raise InputError(
                f"damp={self.damp:g} is not possible; use a number between 0 and 1, such as 0.01"
            )
        for name, value in (("samples", self.num_samples), ("length", self.sample_length)):
            if value < 1:
                raise InputError(f"{name}={value} is not possible; use a whole number from 1 up")

    def _check_method(self) -> None:
        only_gptq = {
            "desc_act": self.desc_act,
            "static_groups": self.static_groups,
            "damp": self.damp != 0.01,
        }
        for name, is_given in only_gptq.items():
            if is_given and self.method != "gptq":
                raise InputError(f"{name} is a setting of gptq, not of {self.method}; leave it out")
        if self.method == "awq" and not self.true_sequential:
            raise InputError("true_sequential is a setting of gptq and rtn, not of awq; leave it out")
        if self.method == "awq" and self.symmetric:
            raise InputError("awq chooses a zero for every group; leave symmetric out, or use gptq")

    def _check_layout(self) -> None:
        if not self.is_awq_file:
            return
        if self.bits != 4:
            raise InputError(
                f"the {self.file_layout} format holds 4 bits, not {self.bits}; use --bits 4, or --format gptq"
            )
        if self.group_size == -1:
            raise InputError(
                f"the {self.file_layout} format needs a group size, not -1; use 128 or --format gptq"
            )
        if self.desc_act and not self.static_groups:
            raise InputError(
                f"the {self.file_layout} format cannot hold groups in order of activations; add --static-groups, "
                "leave --desc-act out, or use --format gptq"
            )
        if self.file_layout == "awq-gemv" and self.group_size not in GEMV_GROUPS:
            raise InputError(
                f"the awq-gemv format cannot hold group_size={self.group_size}; use {_listed(map(str, GEMV_GROUPS))}"
            )


def _listed(names: Any) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"
