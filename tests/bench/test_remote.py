"""Servers that behave, and servers that do not."""

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trimode.bench.remote import MOST_FAILURES, Asked, RemoteTarget
from trimode.bench.settings import AS_IT_IS, Setting
from trimode.config import GenerationOptions
from trimode.errors import InputError


class Handler(BaseHTTPRequestHandler):
    """A server of OpenAI's protocol whose behaviour is a function of the request's number."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.reply(200, {"data": [{"id": "other", "owned_by": "somebody"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append((self.path, body))
        self.server.behave(self, number)

    def reply(self, status, value, **headers):
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def stream(self, *texts, usage=None, then=None):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for text in texts:
            self.event({"choices": [{"delta": {"content": text}}]})
        if then is not None:
            self.event(then)
            self.close_connection = True
            return
        self.event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        if usage is not None:
            self.event({"choices": [], "usage": {"completion_tokens": usage, "prompt_tokens": 3}})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def event(self, value):
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()


@pytest.fixture
def server():
    """Start one that behaves as told."""
    running = []

    def start(behave):
        found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        found.behave, found.asked, found.lock = behave, [], threading.Lock()
        threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
        running.append(found)
        found.url = f"http://127.0.0.1:{found.server_port}/v1"
        return found

    yield start
    for one in running:
        one.shutdown()
        one.server_close()


def target(url, count=4, **more):
    options = GenerationOptions(max_tokens=9)
    return RemoteTarget(url, {i: Asked(f"p{i}", False, options) for i in range(count)}, **more)


def setting(url, load=1):
    return Setting(url, AS_IT_IS, load)


def test_times_of_chunks_and_counts_are_recorded(server):
    found = server(lambda handler, _: handler.stream("a", "b", "c", usage=7))
    (answer,) = target(found.url).measure(setting(found.url), [2], 0)
    assert (answer.text, answer.tokens, answer.counted, answer.error) == ("abc", 7, "exactly", None)
    assert (answer.finish_reason, answer.prompt_tokens, len(answer.chunks)) == ("stop", 3, 3)
    times = [seconds for seconds, _ in answer.chunks]
    assert times == sorted(times)
    assert 0 < times[0] <= times[-1] <= answer.finished - answer.sent
    path, body = found.asked[0]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "p2"}]
    assert (body["max_tokens"], body["temperature"], body["model"]) == (9, 0.0, "other")
    assert "decoding" not in body


def test_tokens_that_are_not_counted_are_counted_by_chunks(server):
    found = server(lambda handler, _: handler.stream("a", "b"))
    (answer,) = target(found.url).measure(setting(found.url), [0], 0)
    assert (answer.tokens, answer.counted) == (2, "by chunks")


def broken(handler, number):
    match number:
        case 0:
            handler.reply(429, {"error": {"message": "too many"}}, Retry_After="7")
        case 1:
            handler.stream(usage=0)
        case 2:
            handler.stream("half", then={"error": {"message": "out of memory"}})
        case 3:
            handler.reply(500, {"error": "internal"})
        case 4:
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
        case 5:
            handler.stream("x", then=[])  # no object: skipped
        case _:
            handler.stream("fine", usage=2)


@pytest.mark.parametrize("load", [1, 3])
def test_what_goes_wrong_is_said_per_request_and_the_rest_goes_on(server, load):
    found = server(broken)
    answers = target(found.url, 12, timeout=5).measure(setting(found.url, load), list(range(12)), 0)
    assert [answer.prompt for answer in answers] == list(range(12))
    errors = [answer.error for answer in answers if answer.error is not None]
    for words in ("429 (retry after 7): ", "too many", "empty answer", "out of memory", "500"):
        assert any(words in error for error in errors), errors
    assert sum(answer.error is None for answer in answers) >= 6
    assert all(answer.error is None for answer in answers if answer.text == "fine")


def test_silence_is_a_timeout(server):
    found = server(lambda *_: threading.Event().wait(1.5))
    (answer,) = target(found.url, timeout=0.2).measure(setting(found.url), [0], 0)
    assert answer.error.startswith("timeout")


def test_a_server_that_dies_is_given_up_after_some_failures(server):
    found = server(lambda handler, _: handler.stream("a", usage=1))
    ours = target(found.url, 20)
    assert ours.measure(setting(found.url), [0], 0)[0].error is None
    found.shutdown()
    found.server_close()
    answers = ours.measure(setting(found.url), list(range(1, 20)), 0)
    assert all(answer.error for answer in answers)
    assert answers[0].error.startswith("no connection")
    assert sum("not asked" in answer.error for answer in answers) == 19 - MOST_FAILURES
    assert ours.gone.startswith("no connection")


def test_a_constant_number_of_requests_is_in_flight(server):
    gate, most, live = threading.Lock(), [0], [0]

    def behave(handler, number):
        with gate:
            live[0] += 1
            most[0] = max(most[0], live[0])
        threading.Event().wait(0.02 * (1 + number % 3))
        with gate:
            live[0] -= 1
        handler.stream("a", usage=1)

    found = server(behave)
    answers = target(found.url, 8).measure(setting(found.url, 4), list(range(8)), 0)
    assert most[0] == 4
    assert len(found.asked) >= 8
    end = max(answer.finished for answer in answers)
    assert sum(answer.share for answer in answers) <= end + 1e-6


@pytest.mark.parametrize("load", [1, 2])
def test_a_server_that_is_much_too_slow_is_given_up(server, load):
    stopped = threading.Event()

    def behave(handler, _):
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        with contextlib.suppress(OSError):  # it went away
            while not stopped.wait(0.01):
                handler.event({"choices": [{"delta": {"content": "a"}}]})

    found = server(behave)
    ours = target(found.url)
    assert ours.measure(setting(found.url, load), [0, 1, 2, 3], 0, longest=0.2) is None
    assert len(found.asked) == load  # the others were never asked
    assert ours.gone is None
    stopped.set()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "nonsense", "http://"])
def test_a_server_that_is_not_there_is_said_at_once(url):
    with pytest.raises(InputError, match=r"url: .* does not answer"):
        target(url)


def test_something_that_is_no_such_server_is_said(server):
    found = server(lambda *_: None)
    found.RequestHandlerClass = type("Bad", (Handler,), {"do_GET": lambda h: h.reply(404, {})})
    with pytest.raises(InputError, match="/models answers 404"):
        target(found.url)
    found.RequestHandlerClass = type("Odd", (Handler,), {"do_GET": lambda h: h.reply(200, [])})
    with pytest.raises(InputError, match="lists no model"):
        target(found.url)
