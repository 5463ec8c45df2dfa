"""What HAProxy, nginx and smg do to requests, as examples/balancers sets them up; `make balancers`.

docs/scale.md has the table of what is seen here.
"""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import httpx
import openai
import pytest

from tests.balancers.fleet import KEY, Fleet, body_of, installed
from tests.ray.cluster import free_ports
from tests.server.asking import until

pytestmark = [pytest.mark.balancers, pytest.mark.real]

MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="module", params=["haproxy", "nginx", "smg"])
def fleet(request, real_cache, tmp_path_factory):
    if not installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    found = Fleet(request.param, folder, real_cache, free_ports(4))
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture
def client(fleet):
    return openai.OpenAI(base_url=f"{fleet.url}/v1", api_key=KEY, max_retries=0)


def ask(client, content="Name three colours.", session=None, model=MODEL, **fields):
    headers = {} if session is None else {"x-session-id": session}
    return client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],
        extra_headers=headers,
        **fields,
    )


def long_stream(client, index, tokens=600):
    """The text of a stream that would go on for so many tokens, and how it ended."""
    text, reason = "", None
    try:
        for event in ask(
            client, f"{index} is a number. Tell me a story.", stream=True, max_tokens=tokens,
            extra_body={"ignore_eos": True},
        ):  # fmt: skip
            for choice in event.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
    except openai.APIError as error:
        return text, f"error: {error}"
    except httpx.HTTPError:
        return text, "cut"
    return text, reason


def on_both(fleet, client, pool):
    """Streams, four or as many more as it takes until both servers have one."""
    streams = []
    while len(streams) < 4 or min(fleet.running()) < 1:
        streams.append(pool.submit(long_stream, client, len(streams)))
        until(lambda: sum(fleet.running()) == len(streams))
    return streams


def test_our_fields_pass_and_come_back(client):
    asked = {"mode": "linear", "block_length": 4}
    answer = ask(client, max_tokens=8, seed=3, extra_body={"decoding": asked})
    metrics = answer.model_extra["metrics"]
    assert metrics["decoding"]["mode"] == "linear"
    assert metrics["decoding"]["mode_reason"] == "request"
    assert metrics["speculative_decoding"]["num_drafts"] > 0


def test_the_mode_as_a_suffix_of_the_model(fleet, client):
    if fleet.name == "smg":  # it lists the first name of /v1/models only
        assert [card.id for card in client.models.list()] == [MODEL]
        with pytest.raises(openai.NotFoundError, match="No worker available for model"):
            ask(client, model=f"{MODEL}:linear")
        return
    assert f"{MODEL}:linear" in [card.id for card in client.models.list()]
    answer = ask(client, model=f"{MODEL}:linear", max_tokens=4)
    assert answer.model_extra["metrics"]["decoding"]["mode"] == "linear"


def test_errors_are_those_of_the_server(fleet):
    headers = {"Authorization": f"Bearer {KEY}"}
    ours = f"http://127.0.0.1:{fleet.ports[1]}"
    for extra in ({"decoding": {"mode": "fast"}}, {"temperature": 9}, {"max_tokens": "many"}):
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], **extra}
        direct, passed = (
            httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers)
            for url in (ours, fleet.url)
        )
        assert direct.status_code == passed.status_code == 400
        own = fleet.name == "smg" and "decoding" not in extra  # it has checks of its own
        assert (body_of(direct) == body_of(passed)) == (not own)
        assert body_of(passed)["error"]["message"]


def test_drafts_come_one_by_one(client):
    body = {"decoding": {"mode": "diffusion", "show_drafts": True}, "ignore_eos": True}
    times, frames = [], []
    for event in ask(client, stream=True, max_tokens=200, extra_body=body):
        times.append(time.monotonic())
        frames += [event.model_extra["trimode"]] if "trimode" in event.model_extra else []
    assert {frame["type"] for frame in frames} == {"draft", "commit"}
    assert times[-1] - times[0] > 0.5
    gaps = [b - a for a, b in pairwise(times)]
    assert max(gaps) < (times[-1] - times[0]) / 3


def test_a_client_that_leaves_frees_its_slot(fleet, client):
    stream = ask(client, stream=True, max_tokens=4000, extra_body={"ignore_eos": True})
    next(iter(stream))
    assert sum(fleet.running()) == 1
    stream.close()
    until(lambda: sum(fleet.running()) == 0, 3)
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=1), max_tokens=4000, extra_body={"ignore_eos": True})
    until(lambda: sum(fleet.running()) == 0, 3)


def test_keys_are_checked(fleet, client):
    for key in (None, "wrong"):
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        answer = httpx.post(
            f"{fleet.url}/v1/chat/completions", headers=headers,
            json={"model": MODEL, "messages": [{"role": "user", "content": "x"}]},
        )  # fmt: skip
        assert answer.status_code == 401
    assert ask(client, max_tokens=2).choices


def test_operators_paths(fleet):
    headers = {"Authorization": f"Bearer {KEY}"}
    found = {
        path: httpx.get(f"{fleet.url}{path}", headers=headers).status_code
        for path in ("/", "/props", "/metrics", "/admin/mode", "/tokenizer_info", "/health")
    }
    if fleet.name == "smg":
        assert found.pop("/health") == 200
        assert set(found.values()) == {404}
    else:
        assert set(found.values()) == {200}


def test_a_full_server_says_so(fleet, client):
    def status(_):
        try:
            ask(client, session="full", max_tokens=30, n=10)
        except openai.APIStatusError as error:
            return error.status_code, error.code
        return None

    with ThreadPoolExecutor(20) as pool:  # 200 answers; both together take 160
        found = list(pool.map(status, range(20)))
    refused = [one for one in found if one is not None]
    assert refused
    assert set(refused) == {(429, "queue_full")}


def test_what_begins_alike_finds_its_prefix(fleet, client):
    before = [fleet.metric(i, "trimode_requests_total") for i in range(2)]
    cached = []
    for session in range(8):
        text = f"Session {session} is about {'abcdefgh'[session] * 9}. " + "The sea is deep. " * 20
        for turn in range(3):
            answer = ask(client, f"{text} Turn {turn}.", session=f"s{session}", max_tokens=2)
            cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    later = sorted(cached[1::3] + cached[2::3])
    assert later[0] > 80, cached
    after = [fleet.metric(i, "trimode_requests_total") for i in range(2)]
    assert min(b - a for a, b in zip(before, after, strict=True)) > 0


def test_a_server_that_stops_loses_nothing(fleet, client):
    with ThreadPoolExecutor(16) as pool:
        streams = on_both(fleet, client, pool)
        fleet.servers[0].send_signal(signal.SIGTERM)
        failed, end = [], time.monotonic() + 6
        while time.monotonic() < end:
            try:
                ask(client, f"{time.monotonic()}?", max_tokens=2)
            except openai.APIError as error:
                failed.append(error)
            time.sleep(0.05)
        ends = [stream.result() for stream in streams]
    fleet.restart(0)
    assert [reason for _, reason in ends] == ["length"] * len(streams)
    assert not failed


def test_a_server_that_dies_cuts_its_streams_and_the_others_go_on(fleet, client):
    with ThreadPoolExecutor(16) as pool:
        streams = on_both(fleet, client, pool)
        lost = int(fleet.running()[0])
        fleet.servers[0].kill()
        failed = []
        for i in range(30):
            try:
                ask(client, f"{i}?", max_tokens=2)
            except openai.APIError as error:
                failed.append(error)
        ends = [stream.result() for stream in streams]
    fleet.restart(0)
    reasons = [reason for _, reason in ends]
    assert reasons.count("length") == len(streams) - lost, reasons
    assert None not in reasons  # never a quiet end
    assert len(failed) <= 1  # one that was on its way
