"""Two replicas of the real model behind Ray's HAProxy, from examples/ray/serve.yaml."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tests.ray.cluster import as_written, get, props
from tests.server.asking import until

pytestmark = pytest.mark.real

SESSION = "x-session-id"


@pytest.fixture(scope="module")
def fleet(cluster):
    """The example as it is written, running."""
    cluster.deploy(as_written(cluster))
    cluster.until_running(2)
    until(lambda: httpx.get(f"{cluster.url}/ready").status_code == 200)
    return cluster


@pytest.fixture
def whole(fleet):
    """The same, with two replicas whatever a test did before."""
    fleet.until_running(2)
    return fleet


@pytest.fixture
def client(fleet):
    return openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0)


def ask(client, content="Name three colours.", session=None, **fields):
    headers = {} if session is None else {SESSION: session}
    return client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": content}],
        extra_headers=headers,
        **fields,
    )


def test_both_replicas_give_the_same_text_and_fingerprint(whole, client):
    answers = [ask(client, seed=5, temperature=0.8, max_tokens=24) for _ in range(8)]
    assert len({answer.choices[0].message.content for answer in answers}) == 1
    assert len({answer.system_fingerprint for answer in answers}) == 1
    assert len(answers[0].choices[0].message.content) > 10

    def answered():  # by Ray's own metrics, which follow after some seconds
        return sorted(whole.counters("requests_total").values())

    until(lambda: len(answered()) == 2 and sum(answered()) >= 8, 60)
    assert answered()[0] > 0


def test_a_session_stays_with_its_replica(whole, client):
    cached = []
    for session in range(6):
        content = f"Session {session}. " + "The sea is deep and the sky is wide. " * 12
        for _turn in range(3):
            answer = ask(client, content, session=f"s{session}", max_tokens=2)
            cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert min(cached[1::3] + cached[2::3]) > 100, cached


def test_drafts_options_and_errors_pass(whole, client):
    body = {"decoding": {"mode": "diffusion", "block_length": 8, "show_drafts": True}}
    stream = ask(client, stream=True, max_tokens=16, extra_body=body)
    frames = [event.model_extra["trimode"] for event in stream if "trimode" in event.model_extra]
    assert {frame["type"] for frame in frames} == {"draft", "commit"}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, extra_body={"decoding": {"mode": "fast"}})
    assert caught.value.param == "decoding.mode"


def test_a_client_that_leaves_frees_its_slot(whole, client):
    def running():
        text = get(f"{whole.url}/metrics", **{SESSION: "leaves"})
        return float(next(
            line for line in text.splitlines() if line.startswith("trimode_requests_running{")
        ).rpartition(" ")[2])  # fmt: skip

    assert running() == 0
    stream = ask(client, session="leaves", stream=True, max_tokens=2000)
    next(iter(stream))
    assert running() == 1
    stream.close()
    until(lambda: running() == 0, 5)


def test_a_full_replica_says_so(whole, client):
    def refusal(_):
        try:
            ask(client, session="full", max_tokens=40, n=16)
        except openai.RateLimitError as error:
            return error.code, error.response.headers["retry-after"]
        return None

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(refusal, range(8)))
    assert found.count(None) == 5  # 16 are decoded and 64 wait
    assert found.count(("queue_full", "1")) == 3


def test_the_mode_of_the_fleet_changes_and_no_process_does(whole):
    before = whole.replicas()
    for mode in ("ar", "auto"):
        config = as_written(whole)
        config["applications"][0]["deployments"][0]["user_config"] = {"mode": mode}
        whole.deploy(config)
        until(lambda: {props(whole)["default_mode"] for _ in range(6)} == {mode}, 30)  # noqa: B023
    assert whole.replicas() == before


def streamed(client, index, tokens):
    """The text of a stream that would go on for so many tokens, and how it ended."""
    text, reason = "", None
    try:
        for event in ask(
            client, f"Tell me story {index}.", stream=True, max_tokens=tokens,
            extra_body={"ignore_eos": True},
        ):  # fmt: skip
            for choice in event.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
    except (openai.APIError, httpx.HTTPError):
        return text, "cut"
    return text, reason


def test_a_replica_that_is_killed_is_replaced_and_cuts_only_its_own(whole, client):
    before = whole.replicas()
    victim = min(before)
    with ThreadPoolExecutor(6) as pool:
        streams = [pool.submit(streamed, client, i, 600) for i in range(6)]
        time.sleep(1.5)
        os.kill(victim, signal.SIGKILL)
        new, resets = [], 0
        for i in range(10):
            try:
                new.append(ask(client, f"{i}?", max_tokens=2))
            except openai.APIError:
                resets += 1  # one that was on its way to the dead replica
        ends = [stream.result() for stream in streams]
    assert sorted(reason for _, reason in ends) == ["cut"] * 3 + ["length"] * 3
    assert all(text for text, _ in ends)
    assert resets <= 1
    assert all(answer.choices[0].finish_reason == "length" for answer in new)
    until(lambda: len(whole.replicas()) == 2, 60)
    whole.until_running(2)
    assert len(before & whole.replicas()) == 1


def test_a_replica_that_is_stopped_finishes_its_streams(whole, client):
    config = as_written(whole)
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(streamed, client, i, 1000) for i in range(4)]
        time.sleep(1)
        config["applications"][0]["deployments"][0]["num_replicas"] = 1
        whole.deploy(config)
        ends = [stream.result() for stream in streams]
    assert [reason for _, reason in ends] == ["length"] * 4
    whole.until_running(1)
    assert ask(client, max_tokens=2).choices
    whole.deploy(as_written(whole))
    whole.until_running(2)
