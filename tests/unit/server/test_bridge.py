"""From the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
import threading
from itertools import pairwise
from typing import Any

from qwenkit.core.types import Delta, Usage
from qwenkit.server.bridge import Bridge, Channel


def test_all_that_a_step_makes_wakes_the_loop_once() -> None:
    async def run() -> tuple[int, list[list[Any]]]:
        loop = asyncio.get_running_loop()
        wakes = 0
        call = loop.call_soon_threadsafe

        def counted(*args: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return call(*args)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        bridge, channels = Bridge(loop), [Channel(loop) for _ in range(64)]
        sinks = [bridge.sink(channel, n) for n, channel in enumerate(channels)]
        for sink in sinks:  # the loop cannot run meanwhile, as while an engine's step holds the interpreter
            sink(Delta(index=0, text="a"))
            sink(Delta(index=0, text="b"))
        taken = [await channel.take() for channel in channels]
        return wakes, taken

    wakes, taken = asyncio.run(run())
    assert wakes == 1
    assert [[(n, d.text) for n, d, _ in items] for items in taken] == [
        [(n, "a"), (n, "b")] for n in range(64)
    ]


def test_nothing_is_lost_between_threads() -> None:
    async def run() -> list[int]:
        loop = asyncio.get_running_loop()
        bridge, channel = Bridge(loop), Channel(loop)
        sink = bridge.sink(channel, 0)
        threads = [
            threading.Thread(
                target=lambda k=k: [sink(Delta(index=0, token_ids=(k * 1000 + i,))) for i in range(1000)]
            )
            for k in range(4)
        ]
        for thread in threads:
            thread.start()
        got: list[int] = []
        while len(got) < 4000:
            got += [i for _, d, _ in await asyncio.wait_for(channel.take(), 10) for i in d.token_ids]
        return got

    got = asyncio.run(run())
    assert sorted(got) == list(range(4000))
    for k in range(4):
        mine = [i for i in got if i // 1000 == k]
        assert mine == sorted(mine)


def test_a_closed_loop_is_no_error_for_the_engine() -> None:
    loop = asyncio.new_event_loop()
    sink = Bridge(loop).sink(Channel(loop), 0)
    loop.close()
    sink(Delta(index=0, text="nobody listens"))


def test_a_stream_has_its_pace_and_its_end_comes_at_once() -> None:
    async def run() -> tuple[list[str], list[float]]:
        loop = asyncio.get_running_loop()
        channel = Channel(loop)
        usage = Usage(prompt_tokens=1, completion_tokens=1)
        texts, times = [], [loop.time()]

        async def take() -> None:
            texts.append("".join(d.text for _, d, _ in await asyncio.wait_for(channel.take(), 10)))
            times.append(loop.time())

        def put(text: str, **more: Any) -> None:
            channel.push((0, Delta(index=0, text=text, **more), 0.0))

        put("a")
        await take()
        put("b")
        loop.call_later(0.005, put, "c")
        await take()
        put("d")
        loop.call_later(0.002, lambda: put("e", finish_reason="stop", usage=usage))
        await take()
        return texts, [late - early for early, late in pairwise(times)]

    texts, gaps = asyncio.run(run())
    assert texts == ["a", "bc", "de"]
    assert gaps[0] < 0.02
    assert gaps[1] >= 0.02
    assert gaps[2] < 0.02


def test_an_error_comes_at_once() -> None:
    async def run() -> list[Any]:
        channel = Channel(asyncio.get_running_loop())
        channel.push((0, Delta(index=0, text="a"), 0.0))
        await channel.take()
        channel.push((0, Delta(index=0, text="b"), 0.0))
        channel.push((0, ValueError("no"), 0.0))
        return await asyncio.wait_for(channel.take(), 0.015)

    _, (_, error, _) = asyncio.run(run())
    assert isinstance(error, ValueError)
