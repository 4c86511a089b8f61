"""``qwenkit chat``: a conversation at the terminal, or one question and its answer in a pipe."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenkit.cli import loading, pipes
from qwenkit.cli.options import (
    JsonFlag,
    ModelOptions,
    SamplingOptions,
    ServerOptions,
    SpeculativeOptions,
    StatsFlag,
    spread,
)
from qwenkit.cli.texts import EN, choose
from qwenkit.core.errors import InputError

if TYPE_CHECKING:
    from qwenkit.cli.texts import Texts
    from qwenkit.llm import LLM, Chat

_EXIT_INTERRUPTED = 130


@spread
def chat(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="Answer this and exit; piped text is added below it."),
    ] = None,
    *,
    context: typer.Context,
    model: ModelOptions,
    speculation: SpeculativeOptions,
    server: ServerOptions,
    sampling: SamplingOptions,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System text.")] = None,
    no_think: Annotated[
        bool, typer.Option("--no-think", help="Ask a Qwen3 model to answer without thinking.")
    ] = False,
    lang: Annotated[
        str, typer.Option("--lang", metavar="zh|en|auto", help="Language of the session.")
    ] = "auto",
    stats: StatsFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Chat with a model. Without PROMPT and pipe, opens a conversation.

    [bold]qwenkit chat "why is the sky blue?"[/] answers once;
    [bold]cat file | qwenkit chat "summarise"[/] adds the file to the question;
    [bold]qwenkit chat --server http://localhost:8000[/] talks to a model that runs elsewhere;
    [bold]qwenkit chat -m dashscope:qwen-plus[/] to one of DashScope, with the key in DASHSCOPE_API_KEY.
    """
    texts = choose(lang)
    params = sampling.to_params()
    question = _question(prompt)
    if question is None and as_json:
        raise InputError("--json needs a PROMPT or piped text; a conversation cannot be printed as JSON")
    llm = _open(context, model, speculation, server, texts)
    try:
        from qwenkit.llm import Chat

        options: dict[str, Any] = {"enable_thinking": False} if no_think else {}
        conversation = Chat(
            llm, system=None if system is None else pipes.clean_argument(system), params=params, **options
        )
        if question is None:
            _converse(llm, conversation, texts, has_stats=stats)
        elif as_json:
            _answer_json(conversation, question, has_stats=stats)
        else:
            _answer(conversation, question, has_stats=stats)
    finally:
        llm.close()


def _open(
    context: typer.Context,
    model: ModelOptions,
    speculation: SpeculativeOptions,
    server: ServerOptions,
    texts: Texts,
) -> LLM:
    if server.server is None:
        if loading.is_elsewhere(model.model):
            return loading.open_elsewhere(model, speculation, api_key=server.api_key)
        if server.api_key is not None:
            raise InputError("--api-key is for a server; give --server URL with it")
        return loading.open_llm(model, speculation=speculation, texts=texts)
    source = context.get_parameter_source("model")
    is_model_named = source is not None and source.name == "COMMANDLINE"
    return loading.open_remote(server, model, speculation=speculation, is_model_named=is_model_named)


def _question(prompt: str | None) -> str | None:
    """The one message to answer, or None for a conversation."""
    is_interactive = pipes.is_terminal(sys.stdin)
    if prompt is None and is_interactive and pipes.is_terminal(sys.stdout):
        return None
    question = pipes.join_prompt(pipes.clean_argument(prompt or ""), pipes.read_stdin())
    if not question:
        raise InputError(
            "there is nothing to answer: PROMPT and stdin are empty; give a PROMPT, pipe text in, "
            "or run it at a terminal for a conversation"
        )
    return question


def _converse(llm: LLM, conversation: Chat, texts: Texts, *, has_stats: bool) -> None:
    from rich.console import Console

    from qwenkit.cli.commands import Commands
    from qwenkit.cli.line_input import LineInput, open_history
    from qwenkit.cli.session import Session
    from qwenkit.cli.terminal import Screen
    from qwenkit.core.environment import data_dir

    info = llm.info
    screen = Screen(Console(highlight=False))
    facts = [str(info.model), *([] if info.dtype == "remote" else [info.dtype]), info.device]
    facts += [str(info.details[name]) for name in ("quantisation", "kernels") if info.details.get(name)]
    if info.context_length:  # not every server says
        facts.append(texts.context.format(n=info.context_length))
    screen.note(" · ".join([*facts, texts.hint]))
    commands = Commands(conversation, info.defaults, texts, info.context_length)
    reader = LineInput(texts, open_history(data_dir()))
    Session(conversation, commands, reader, screen, texts, has_stats=has_stats).run()


def _answer(conversation: Chat, question: str, *, has_stats: bool) -> None:
    """Streams one reply to stdout; numbers go to stderr."""
    from qwenkit.cli.meter import Meter
    from qwenkit.cli.session import stream_reply

    meter = Meter()
    view: Any = pipes.PlainView(sys.stdout)
    if pipes.is_terminal(sys.stdout):
        from rich.console import Console

        from qwenkit.cli.terminal import reply_view

        view = reply_view(Console(highlight=False))
    was_stopped = stream_reply(conversation.stream(question), view, meter)
    if has_stats:
        print(meter.line(EN.stats), file=sys.stderr)
    if was_stopped:
        raise typer.Exit(_EXIT_INTERRUPTED)


def _answer_json(conversation: Chat, question: str, *, has_stats: bool) -> None:
    from qwenkit.cli.meter import Meter
    from qwenkit.core.types import collect

    meter = Meter()
    deltas = []
    for delta in conversation.stream(question):
        meter.see(delta)
        deltas.append(delta)
    completion = collect(deltas)
    usage = {
        "prompt_tokens": completion.usage.prompt_tokens,
        "completion_tokens": completion.usage.completion_tokens,
    }
    answer = {"text": completion.text, "finish_reason": completion.finish_reason, "usage": usage}
    if has_stats:
        answer["stats"] = meter.to_dict()
    print(json.dumps(answer, ensure_ascii=False))
