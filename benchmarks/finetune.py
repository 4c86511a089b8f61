"""A step of `qwenkit finetune` against PEFT and the Trainer of transformers, on the same weights, data and settings.

    python benchmarks/finetune.py MODEL [--methods lora full] [--lengths 256 512 1024 2048] [--accumulate 8] [--json]
    python benchmarks/finetune.py MODEL --packed PACKED   with qlora, on a 4- or 8-bit folder of the same weights

MODEL is a folder of a model that transformers itself has (Llama); with --other FOLDER a second one is measured beside it
(the same weights for another class). Every figure is from a process of its own, which trains a few steps of --accumulate
passes over one row; the sides take turns, and medians of all steps but each process's first are printed. Memory is the
most that was allocated on a GPU, else the most that the process held while training. The table is that of the Qwen
release: method by length.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import itertools
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METHODS = ("lora", "qlora", "full")
RELEASE = {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05}
"""LoRA settings of the Qwen release; its learning rates and beta are those of our options."""


def row(length: int, labelled: float, vocab: int) -> dict[str, Any]:
    """A repeatable sample whose last part carries loss, as the reply of a conversation does."""
    import torch

    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(1000, vocab, (length,), generator=generator)
    labels = ids.clone()
    labels[: length - max(1, round(length * labelled))] = -100
    return {"input_ids": ids, "labels": labels}


class Rows:
    """The same sample over and over: every step does the same work."""

    def __init__(self, count: int, sample: dict[str, Any]) -> None:
        self._count, self._sample = count, sample

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self._sample)


def ours(args: argparse.Namespace, folder: Path) -> Any:
    """The Trainer of `qwenkit finetune`."""
    import torch

    from qwenkit.train.base import compute_dtype, load_network, open_base
    from qwenkit.train.collate import PaddedCollator
    from qwenkit.train.options import FinetuneOptions
    from qwenkit.train.progress import Meter
    from qwenkit.train.trainer import Trainer, training_arguments

    options = FinetuneOptions(
        model=args.model,
        data=("-",),
        out=str(folder),
        method=args.method,
        dtype=args.dtype,
        max_steps=args.steps,
        batch_size=1,
        accumulate=args.accumulate,
        checkpointing=not args.keep_activations,
        train_tables="none" if args.method != "full" else "auto",
    )
    dtype = compute_dtype(options)
    base = open_base(options)
    network = load_network(base, options, dtype)
    sample = row(args.length, args.labelled, base.config.vocab_size)
    sample["position_ids"] = torch.arange(args.length)
    return Trainer(
        meter=Meter(None, None, lambda: False),
        model=network,
        args=training_arguments(options, folder, dtype),
        train_dataset=Rows(args.steps * args.accumulate, sample),
        data_collator=PaddedCollator(0),
    )


def theirs(args: argparse.Namespace, folder: Path) -> Any:
    """PEFT and transformers as their guides put them together, with the settings of ours."""
    import torch
    import transformers

    if "qwen" in json.loads((Path(args.model) / "config.json").read_text("utf-8"))["model_type"].lower():
        import qwenkit.hf  # noqa: F401  (so that --other may be of the first generation)
    transformers.utils.logging.set_verbosity_error()
    on_gpu = torch.cuda.is_available()
    dtype = getattr(torch, args.dtype)
    kept = torch.float32 if args.method == "full" else dtype
    quantised: dict[str, Any] = {}
    if args.method == "qlora":
        quantised["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=kept, attn_implementation="sdpa", **quantised
    )
    model.config.use_cache = False
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)  # every run has one in memory
    if args.method != "full":
        model = _adapted(model, args.method == "qlora")
    settings = {
        "output_dir": str(folder),
        "max_steps": args.steps,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": args.accumulate,
        "gradient_checkpointing": not args.keep_activations,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "learning_rate": 1e-5 if args.method == "full" else 3e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.01,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "seed": 42,
    }
    vocab = model.get_input_embeddings().weight.shape[0]
    sample = row(args.length, args.labelled, vocab)
    sample["attention_mask"] = torch.ones_like(sample["input_ids"])
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**settings),
        train_dataset=Rows(args.steps * args.accumulate, sample),
        data_collator=transformers.default_data_collator,
        processing_class=tokenizer,
    )


def _adapted(model: Any, packed: bool) -> Any:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if packed:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    linears = {
        name.split(".")[-1]
        for name, module in model.named_modules()
        if hasattr(module, "in_features") and "head" not in name
    }
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=sorted(linears), bias="none", **RELEASE)
    model.enable_input_require_grads()
    return get_peft_model(model, config)


def work(args: argparse.Namespace) -> None:
    """One process: prints seconds of each step and the peak of memory as JSON."""
    import torch
    import transformers

    if args.threads:
        torch.set_num_threads(args.threads)
    ends = [0.0]
    clock = time.process_time if args.cpu_time else time.perf_counter

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            synchronise()
            if len(ends) == 1:
                ends[0] = clock()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronise()
            ends.append(clock())

    def synchronise() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    with tempfile.TemporaryDirectory() as folder:
        trainer = (ours if args.side == "qwenkit" else theirs)(args, Path(folder))
        trainer.add_callback(Clock())
        gc.collect()
        forget_peak()
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    seconds = [end - start for start, end in itertools.pairwise(ends)]
    print(json.dumps({"seconds": seconds[1:] or seconds, "bytes": peak(), "losses": losses}))


def forget_peak() -> None:
    """So that reading the weights does not count, where the system can be told so."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Most bytes held since: of a GPU's memory, else of this process's own."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if Path("/proc/self/status").exists():
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def sides(args: argparse.Namespace, method: str) -> Iterator[tuple[str, str, str]]:
    """What is compared: a name, the code and the folder."""
    model = args.packed if method == "qlora" else args.model
    yield "qwenkit", "qwenkit", model
    if method != "qlora" or importlib.util.find_spec("bitsandbytes"):
        yield "transformers", "transformers", args.model
    if method == "qlora":
        yield "qwenkit, lora", "qwenkit", args.model
    if args.other and method != "qlora":
        yield "qwenkit, other", "qwenkit", args.other


def run_once(
    args: argparse.Namespace, name: str, side: str, model: str, method: str, length: int
) -> dict[str, Any]:
    """What one process measured."""
    method = "lora" if name == "qwenkit, lora" else method
    given = ("--dtype", args.dtype, "--steps", args.steps, "--accumulate", args.accumulate)
    command = [
        sys.executable,
        __file__,
        model,
        "--side",
        side,
        "--method",
        method,
        "--length",
        length,
        *given,
    ]
    command += ["--labelled", args.labelled, *(["--keep-activations"] if args.keep_activations else [])]
    command += ["--cpu-time"] if args.cpu_time else []
    command += ["--threads", args.threads] if args.threads else []
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"seconds": [], "error": lines[-1] if lines else f"status {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each method, length and side."""
    rows = []
    for method in args.methods:
        for length in args.lengths:
            found: dict[str, list[dict[str, Any]]] = {}
            for _ in range(args.rounds):
                for name, side, model in sides(args, method):
                    found.setdefault(name, []).append(run_once(args, name, side, model, method, length))
            for name, runs in found.items():
                seconds = [each for run in runs for each in run["seconds"]]
                errors = [run["error"] for run in runs if "error" in run]
                line: dict[str, Any] = {"method": method, "length": length, "side": name}
                if errors or not seconds:
                    line["error"] = (errors or ["no step was measured"])[0]
                else:
                    line["s_per_iteration"] = statistics.median(seconds)
                    line["gib"] = statistics.median(run["bytes"] for run in runs) / 2**30
                    line["loss"] = runs[0]["losses"][-1]
                rows.append(line)
                print(json.dumps(line), file=sys.stderr, flush=True)
    return rows


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Memory and seconds by length, a line for each method and side."""
    lengths = list(dict.fromkeys(row["length"] for row in rows))
    cells = {(row["method"], row["side"], row["length"]): row for row in rows}
    lines = ["| method | | " + " | ".join(map(str, lengths)) + " |", "|---|---|" + "--:|" * len(lengths)]
    for method, side in dict.fromkeys((row["method"], row["side"]) for row in rows):
        shown = []
        for length in lengths:
            cell = cells[method, side, length]
            if "error" in cell:
                shown.append("failed")
            else:
                shown.append(f"{cell['gib']:.2f} GiB, {cell['s_per_iteration']:.2f} s/it")
        lines.append(f"| {method} | {side} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def about(args: argparse.Namespace) -> dict[str, Any]:
    """What it was measured on."""
    import peft
    import torch
    import transformers

    from qwenkit.kernels.cpu import cpu_model

    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else cpu_model(),
        "threads": args.threads or torch.get_num_threads(),
        "seconds": "of the processor" if args.cpu_time else "of the clock",
        "dtype": args.dtype,
        "accumulate": args.accumulate,
        "labelled": args.labelled,
        "checkpointing": not args.keep_activations,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of plain weights")
    parser.add_argument("--packed", help="folder of the same in 4 or 8 bits, for qlora")
    parser.add_argument("--other", help="folder of the same weights for another class, beside it")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["lora", "full"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[256, 512, 1024, 2048])
    parser.add_argument("--accumulate", type=int, default=8, help="rows of a step; the release has 8")
    parser.add_argument("--labelled", type=float, default=0.5, help="share of a row that carries loss")
    parser.add_argument("--keep-activations", action="store_true", help="no gradient checkpointing")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--steps", type=int, default=3, help="of a process; the first one is not counted")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor's seconds; with --threads 1 on a busy machine"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=("qwenkit", "transformers"), help=argparse.SUPPRESS)
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.side and "qlora" in args.methods and not args.packed:
        parser.error("method qlora needs --packed FOLDER")
    return args


def main() -> None:
    """Runs the comparison and prints it."""
    args = parsed()
    if args.side:
        work(args)
        return
    rows = measure(args)
    if args.json:
        print(json.dumps({"about": about(args), "rows": rows}))
        return
    print(", ".join(f"{key} {value}" for key, value in about(args).items()), "\n")
    print(as_markdown(rows))


if __name__ == "__main__":
    main()
