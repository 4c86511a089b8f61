"""``qwenkit dequantize``: a quantised model back to plain weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from qwenkit.cli import loading
from qwenkit.cli.inspect_model import size
from qwenkit.cli.options import JsonFlag


def dequantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Short name, folder, .gguf file or hub id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must be new or empty.")],
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="DTYPE", help="float16, bfloat16, or float32 (exact).")
    ] = "float16",
    as_json: JsonFlag = False,
) -> None:
    """Write a quantised model (GPTQ, AWQ or GGUF) as a folder of plain weights."""
    loading.fetch(model)
    with loading.spinner(f"reading {model}") as on_progress:
        from qwenkit.quantize.dequantize import dequantize_model

        nbytes = dequantize_model(model, out, dtype=dtype, on_progress=on_progress)
    if as_json:
        print(json.dumps({"folder": str(out.absolute()), "dtype": dtype, "bytes": nbytes}))
        return
    print(f"{out}: {dtype}, {size(nbytes)}")
