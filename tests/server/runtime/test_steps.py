"""Steps on their way out of the engine's thread: held, joined, never lost."""

import asyncio
import concurrent.futures
import dataclasses

import pytest

from tests.server.stream_reader import CHAT, read
from trimode import generate
from trimode.config import GenerationOptions
from trimode.decoding import Committed, Drafted
from trimode.decoding.events import TokenLogprob
from trimode.engine import Engine, Update, encode_prompt
from trimode.server.runtime import (
    ActiveRequest,
    Channel,
    ClientGoneError,
    EngineWorker,
    Step,
    worker,
)
from trimode.server.runtime.steps import joined

OPTIONS = GenerationOptions(temperature=0, max_tokens=40, ignore_eos=True)
AT_ONCE = 12


def step(sequence, *tokens, text="", reason=None, nfe=1):
    scores = tuple(TokenLogprob(-float(token)) for token in tokens)
    update = Update(sequence, Committed(tokens=tokens, logprobs=scores), text)
    return Step(update, reason, nfe)


def request(model, *, stream=True, **options):
    async def make():
        sequence = Engine(model).add((1, 2), dataclasses.replace(OPTIONS, **options))
        return ActiveRequest(sequence, Channel(), 0.0, 0, lambda *_: None, stream)

    return asyncio.run(make())


def test_joined_steps_are_one_with_all_their_tokens(model):
    one = request(model)
    parts = [step(one.sequence, 4, text="a"), step(one.sequence, 5, 6, text=""),
             step(one.sequence, 7, text="bc", reason="stop", nfe=9)]  # fmt: skip
    found = joined(parts)
    assert found.update.event.tokens == (4, 5, 6, 7)
    assert [score.logprob for score in found.update.event.logprobs] == [-4.0, -5.0, -6.0, -7.0]
    assert (found.update.text, found.finish_reason, found.nfe) == ("abc", "stop", 9)
    assert joined(parts[:1]) is parts[0]


def test_the_first_text_goes_at_once_and_the_next_is_held(model):
    one = request(model)
    one.held.append(step(one.sequence, 4))
    assert one.due(tick=False)
    one.take()
    assert not one.due(tick=True), "nothing is held"
    one.held.append(step(one.sequence, 5))
    assert not one.due(tick=False)
    one.held.append(step(one.sequence, 6))
    assert one.due(tick=True)
    assert [s.update.event.tokens for s in one.take()] == [(5, 6)]
    assert not one.held


def test_drafts_are_not_held_and_an_answer_that_does_not_stream_is_to_its_end(model):
    shown = request(model, show_drafts=True, mode="linear")
    draft = Drafted(start=3, tokens=(9,), confidences=(0.5,), states=("new",))
    for _ in range(2):
        shown.held += [Step(Update(shown.sequence, draft), None, 1), step(shown.sequence, 9)]
        assert shown.due(tick=False)
        assert len(shown.take()) == 2
    whole = request(model, stream=False)
    whole.held.append(step(whole.sequence, 4))
    assert not whole.due(tick=True)


@pytest.mark.parametrize(
    ("streams", "others", "hold"), [(1, 0, 0), (1, 9, 0), (3, 0, 2 / 100), (64, 0, 0.15)]
)
def test_text_of_many_streams_goes_together_now_and_then(model, monkeypatch, streams, others, hold):
    now = [100.0]
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    one = EngineWorker(Engine(model), max_waiting=1)
    for stream in [True] * streams + [False] * others:
        found = request(model, stream=stream)
        one._requests[found.sequence] = found
    assert one._tick()
    now[0] += hold / 2
    assert one._tick() == (hold == 0)
    now[0] += hold / 2 + 1e-6
    assert one._tick()


def test_a_channel_ends_with_what_ended_the_answer(model):
    async def follow():
        channel, one = Channel(), request_in(model)
        channel.put(1, step(one, 4))
        assert channel.overtaken(1)
        assert not channel.overtaken(0)
        index, found = await channel.get()
        assert (index, found.update.event.tokens) == (1, (4,))
        assert not channel.overtaken(1)
        channel.put(0, ClientGoneError())
        with pytest.raises(ClientGoneError):
            await channel.get()

    asyncio.run(follow())


def test_a_channel_tells_of_silence_and_of_the_deadline(model):
    async def follow():
        channel, one = Channel(), request_in(model)
        with channel.watched(0.5, 0.1):
            for _ in range(4):
                await asyncio.sleep(0.05)
                channel.put(0, step(one, 4))
                assert await channel.get() is not None, "a step in time: no ping"
            assert await channel.get() is None
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(_last(channel), 5)
        await asyncio.sleep(0.2)
        channel.put(0, step(one, 5))
        assert await channel.get() is not None, "nothing more once it is not watched"

    asyncio.run(asyncio.wait_for(follow(), 5))


async def _last(channel):
    """Read pings until something else comes."""
    while await channel.get() is None:
        pass
    raise AssertionError("a step")


def test_a_reader_that_was_cancelled_loses_no_step(model):
    async def follow():
        channel, one = Channel(), request_in(model)
        reader = asyncio.create_task(channel.get())
        await asyncio.sleep(0)
        reader.cancel()
        channel.put(0, step(one, 4))
        await asyncio.gather(reader, return_exceptions=True)
        assert (await channel.get())[1].update.event.tokens == (4,)

    asyncio.run(asyncio.wait_for(follow(), 5))


def request_in(model):
    return Engine(model).add((1, 2), OPTIONS)


@pytest.mark.parametrize("mode", ["ar", "linear", "auto"])
def test_however_long_text_is_held_every_token_comes(model, url, mode, monkeypatch):
    """Held to the end here: the first text at once, then one chunk with all the rest."""
    monkeypatch.setattr(EngineWorker, "_tick", lambda _: False)
    texts = [f"{'ab' * i}a" for i in range(AT_ONCE)]
    body = {"model": "tiny", "temperature": 0, "max_tokens": 40, "logprobs": True,
            "ignore_eos": True, "decoding": {"mode": mode}}  # fmt: skip
    messages = [[{"role": "user", "content": text}] for text in texts]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda m: read(url, CHAT, {**body, "messages": m})[0], messages))
    for message, chunks in zip(messages, found, strict=True):
        choices = [chunk["choices"][0] for chunk in chunks]
        scored = [c["logprobs"]["content"] for c in choices if c["logprobs"]]
        assert len(scored) == 2
        assert sum(map(len, scored)) == 40
        prompt = encode_prompt(model, message)
        expected = generate(model, prompt, temperature=0, max_tokens=40, ignore_eos=True)
        assert "".join(c["delta"].get("content", "") for c in choices) == expected.text
