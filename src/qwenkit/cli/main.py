"""Entry point: the typer application, and turning errors into one sentence on stderr and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qwenkit._version import __version__
from qwenkit.cli.bench import app as bench
from qwenkit.cli.chat import chat
from qwenkit.cli.dequantize import dequantize
from qwenkit.cli.doctor import doctor
from qwenkit.cli.finetune import finetune
from qwenkit.cli.generate import generate
from qwenkit.cli.inspect_model import inspect_model
from qwenkit.cli.interrupts import end_on_sigterm
from qwenkit.cli.merge import merge
from qwenkit.cli.perplexity import perplexity
from qwenkit.cli.pull import pull
from qwenkit.cli.quantize import quantize
from qwenkit.cli.serve import serve
from qwenkit.cli.tokens import detokenize, tokenize
from qwenkit.cli.web import web
from qwenkit.core.environment import wants_traceback
from qwenkit.core.errors import QwenkitError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def _fail(sentence: str, code: int = EXIT_ERROR) -> int:
    if wants_traceback() and sys.exc_info()[0] is not None:
        traceback.print_exc()
    print(f"qwenkit: {sentence}", file=sys.stderr)
    return code


def _describe_os_error(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def _describe_usage_error(error: Any) -> str:
    """Joins what is wrong and where help is into one line."""
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "qwenkit"
    stop = "" if message.endswith((".", "?", "!")) else "."
    return f"{message}{stop} See '{path} --help'."


class _Group(TyperGroup):
    """Reports every error a user can cause as one sentence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Further out, typer would exit with 1.
            raise typer.Exit(EXIT_BROKEN_PIPE) from None

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except typer.Abort:
            code = EXIT_INTERRUPTED
        except QwenkitError as error:
            code = _fail(str(error))
        except OSError as error:
            code = _fail(_describe_os_error(error))
        except Exception as error:
            if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
                raise
            code = EXIT_ERROR if _is_help(error) else _fail(_describe_usage_error(error), error.exit_code)
        sys.exit(code if isinstance(code, int) else 0)


def _is_help(error: Any) -> bool:
    """True for a command without arguments that wants some: its message is the help page."""
    if type(error).__name__ != "NoArgsIsHelpError":
        return False
    error.show()
    return True


app = typer.Typer(
    name="qwenkit",
    cls=_Group,
    help="Run, chat with and look into Qwen and Llama language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        print(f"qwenkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command("chat")(chat)
app.command("generate")(generate)
app.command("tokenize")(tokenize)
app.command("detokenize")(detokenize)
app.command("perplexity")(perplexity)
app.command("serve")(serve)
app.command("web")(web)
app.command("finetune")(finetune)
app.command("quantize")(quantize)
app.command("dequantize")(dequantize)
app.command("merge")(merge)
app.command("pull")(pull)
app.command("inspect")(inspect_model)
app.command("doctor")(doctor)
app.add_typer(bench, name="bench")


def _prepare_streams() -> None:
    """Output that the locale cannot encode becomes '?' instead of an error; closed streams lead nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        reconfigure = getattr(getattr(sys, name), "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _flush(code: int | str | None) -> int | str | None:
    """Writes out what is buffered; the exit code, which is another one when that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python flushes again at exit; point the descriptor elsewhere so that it stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            return code or _fail(_describe_os_error(error))
        return EXIT_BROKEN_PIPE
    return code


def run() -> None:
    """Runs the command line of this process and exits."""
    end_on_sigterm()
    _prepare_streams()
    code: int | str | None = 0
    try:
        app()
    except SystemExit as stop:
        code = stop.code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    sys.exit(_flush(code))
