"""What the chat session says, in English and Chinese. Both languages are one dataclass, so neither can lack a text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from qwenkit.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Every text of the session; braces are filled with str.format."""

    loading: str
    hint: str
    context: str
    you: str
    assistant: str
    system: str
    stopped: str
    cut: str
    stats: str
    bye: str
    commands: str
    keys: str
    unknown_command: str
    send_literally: str
    no_argument: str
    history_empty: str
    history_cleared: str
    seed_is: str
    seed_none: str
    seed_set: str
    seed_usage: str
    conf_default: str
    conf_set: str
    conf_usage: str
    conf_unknown: str
    conf_value: str
    conf_reset: str
    system_none: str
    system_set: str
    undone: str
    nothing_to_undo: str
    tokens: str
    tokens_unknown: str
    file_usage: str
    saved: str
    exists: str
    loaded: str
    help: Mapping[str, str]


EN = Texts(
    loading="Loading {model} …",
    hint="type /help for help",
    context="context {n}",
    you="You",
    assistant="Assistant",
    system="System",
    stopped="[stopped]",
    cut="[cut: the token limit was reached]",
    stats="{prompt} prompt tokens, {generated} generated, {rate:.1f} tokens/s, first after {first:.2f} s",
    bye="Bye.",
    commands="Commands (':' works as well as '/'):",
    keys=(
        'Alt-Enter starts a new line; so does Enter after """ until the closing """.\n'
        "Ctrl-C stops a reply, clears the line, or leaves when the line is empty."
    ),
    unknown_command="There is no command /{name}",
    send_literally="To send it as a message, write // or put a space before it.",
    no_argument="/{name} takes nothing after it, got {argument!r}.",
    history_empty="The history is empty.",
    history_cleared="History cleared.",
    seed_is="Seed: {seed}",
    seed_none="No seed is set; every reply is random.",
    seed_set="Seed set to {seed}.",
    seed_usage="seed {argument!r} is not possible; use a whole number from 0 up, or 'none'.",
    conf_default="as the model asks",
    conf_set="Set {changes}.",
    conf_usage="{item!r} is not key=value; an example: /conf temperature=0.7 top_p=0.9",
    conf_unknown="There is no setting {name!r}{near}; /conf shows all.",
    conf_value="{name}={value!r} is not possible; use {kind} or 'none'.",
    conf_reset="Settings are as at the start again.",
    system_none="No system text is set; the chat template decides.",
    system_set="System text set.",
    undone="Removed: {text}",
    nothing_to_undo="There is nothing to undo.",
    tokens="{used} of {limit} tokens are in use.",
    tokens_unknown="How many tokens are in use is not known here; the server has the tokenizer.",
    file_usage="Name a file: /{name} FILE",
    saved="Saved {count} messages to {path}.",
    exists="{path} exists; /save! {path} overwrites it.",
    loaded="Loaded {count} messages from {path}.",
    help={
        "help": "show this help",
        "exit": "leave",
        "clear": "clear the screen",
        "clear-his": "forget the conversation",
        "history": "show the conversation",
        "seed": "show or set the random seed",
        "conf": "show or change sampling settings",
        "reset-conf": "settings as at the start",
        "system": "show or set the system text",
        "undo": "remove the last exchange",
        "regen": "answer the last message anew",
        "save": "save the conversation; save! overwrites",
        "load": "load a saved conversation",
        "tokens": "show how full the context is",
    },
)

ZH = Texts(
    loading="正在加载 {model} …",
    hint="输入 /help 查看帮助",
    context="上下文 {n}",
    you="用户",
    assistant="助手",
    system="系统",
    stopped="[已停止]",
    cut="[已截断：达到 token 上限]",
    stats="提示 {prompt} tokens，生成 {generated} tokens，{rate:.1f} tokens/秒，首个 token {first:.2f} 秒",
    bye="再见。",
    commands="命令（':' 与 '/' 均可）：",
    keys=(
        'Alt-Enter 换行；以 """ 开头时可多行输入，直到再次输入 """。\n'
        "Ctrl-C：停止回复；清空当前输入；输入为空时退出。"
    ),
    unknown_command="没有命令 /{name}",
    send_literally="若要作为消息发送，请以 // 开头，或在前面加一个空格。",
    no_argument="/{name} 后面不接任何内容，收到 {argument!r}。",
    history_empty="对话历史为空。",
    history_cleared="对话历史已清除。",
    seed_is="随机种子：{seed}",
    seed_none="未设置随机种子，每次回复都是随机的。",
    seed_set="随机种子已设为 {seed}。",
    seed_usage="随机种子 {argument!r} 无效；请使用不小于 0 的整数，或 'none'。",
    conf_default="模型默认",
    conf_set="已设置 {changes}。",
    conf_usage="{item!r} 不是 key=value 形式；例如：/conf temperature=0.7 top_p=0.9",
    conf_unknown="没有设置项 {name!r}{near}；/conf 显示全部。",
    conf_value="{name}={value!r} 无效；请使用 {kind}，或 'none'。",
    conf_reset="生成配置已重置。",
    system_none="未设置系统提示，由对话模板决定。",
    system_set="系统提示已设置。",
    undone="已移除：{text}",
    nothing_to_undo="没有可撤销的内容。",
    tokens="已用 {used} / {limit} tokens。",
    tokens_unknown="此处无法得知已用 token 数：分词器在服务器端。",
    file_usage="请给出文件名：/{name} FILE",
    saved="已将 {count} 条消息保存到 {path}。",
    exists="{path} 已存在；使用 /save! {path} 覆盖。",
    loaded="已从 {path} 载入 {count} 条消息。",
    help={
        "help": "显示帮助信息",
        "exit": "退出",
        "clear": "清屏",
        "clear-his": "清除对话历史",
        "history": "显示对话历史",
        "seed": "显示或设置随机种子",
        "conf": "显示或修改生成配置",
        "reset-conf": "重置生成配置",
        "system": "显示或设置系统提示",
        "undo": "撤销上一轮对话",
        "regen": "重新生成上一条回复",
        "save": "保存对话；save! 可覆盖",
        "load": "载入已保存的对话",
        "tokens": "显示上下文占用",
    },
)

_LANGUAGES = {"en": EN, "zh": ZH}


def choose(language: str, environ: Mapping[str, str] | None = None) -> Texts:
    """Texts in ``language``: zh, en, or auto, which looks at LC_ALL, LC_MESSAGES and LANG in this order.

    Raises:
        InputError: another language.
    """
    if language in _LANGUAGES:
        return _LANGUAGES[language]
    if language != "auto":
        raise InputError(f"language {language!r} is unknown; use zh, en or auto")
    env = os.environ if environ is None else environ
    locale = next((env[key] for key in ("LC_ALL", "LC_MESSAGES", "LANG") if env.get(key)), "")
    return ZH if locale.lower().startswith("zh") else EN
