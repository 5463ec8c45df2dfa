"""Spans, as a collector gets them: one a request, its parent, its figures, and no text."""

import contextlib
import http.server
import json
import socket
import subprocess
import sys
import threading
import time

import openai
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.server.asking import LONG, client_of, hang_up, until
from tests.server.conftest import serving
from trimode.cli.serve import serve
from trimode.errors import InputError
from trimode.server import ServerSettings
from trimode.server.observe.telemetry import check_endpoint

SECRET = "the name of the horse"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(http.server.ThreadingHTTPServer):
    """Keeps what it is sent, and where it was sent to."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Receiver)
        self.paths, self.bodies = [], []

    def requests(self):
        return [ExportTraceServiceRequest.FromString(sent) for sent in self.bodies]

    def resources(self):
        return [attributes(one.resource) for r in self.requests() for one in r.resource_spans]

    def spans(self):
        of_all = (one for r in self.requests() for one in r.resource_spans)
        return [span for one in of_all for scope in one.scope_spans for span in scope.spans]


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.paths.append(self.path)
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def attributes(owner):
    def plain(value):
        kind = value.WhichOneof("value")
        found = getattr(value, kind)
        return [plain(one) for one in found.values] if kind == "array_value" else found

    return {one.key: plain(one.value) for one in owner.attributes}


@pytest.fixture
def collector():
    with Collector() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@contextlib.contextmanager
def traced(model, collector, **settings):
    """A server whose spans are with the collector once it has stopped."""
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    with serving(model, otlp_traces_endpoint=endpoint, **settings) as (url, service):
        yield url, service


@pytest.mark.parametrize("stream", [False, True])
def test_a_span_has_the_figures_of_its_answer_and_no_text(model, collector, stream):
    messages = [{"role": "user", "content": SECRET}]
    asked = {"model": "tiny:linear", "messages": messages, "max_tokens": 6, "temperature": 0.5}
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    before = time.time_ns()
    with traced(model, collector) as (url, _):
        client = client_of(url, default_headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        answer = client.chat.completions.create(
            **asked, **more, top_p=0.75, stop=["no such text"], extra_body={"ignore_eos": True}
        )
        last = list(answer)[-1] if stream else answer
    (span,) = collector.spans()
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert (span.name, span.kind) == ("chat tiny:linear", Span.SPAN_KIND_SERVER)
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert before <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns()
    found = attributes(span)
    queue = found.pop("trimode.queue_time_seconds")
    first = found.pop("trimode.time_to_first_token_seconds")
    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert 0 <= queue <= first <= seconds
    decoding = last.model_extra["metrics"]["decoding"]
    assert round(found.pop("trimode.tokens_per_forward"), 4) == decoding["tokens_per_forward"]
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "trimode",
        "gen_ai.request.model": "tiny:linear",
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.75,
        "gen_ai.response.model": "tiny",
        "gen_ai.response.id": last.id,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": last.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": 6,
        "trimode.mode": "linear",
        "trimode.nfe": decoding["nfe"],
    }
    (sent,) = collector.bodies
    assert SECRET.encode() not in sent
    assert b"no such text" not in sent
    assert collector.paths == ["/v1/traces"]
    (resource,) = collector.resources()
    assert resource["service.name"] == "trimode"


def test_several_choices_are_one_span(model, collector):
    with traced(model, collector) as (url, _):
        asked = {"model": "tiny", "prompt": ["a", "bc"], "max_tokens": 8, "temperature": 0}
        more = {"extra_body": {"ignore_eos": True}}
        create = client_of(url).completions.create
        first, second = (choice.text for choice in create(**asked, **more).choices)
        stop = next(c for c in second if c not in first)  # the second choice ends before the first
        answer = create(**asked, **more, stop=stop)
    _, span = collector.spans()
    found = attributes(span)
    assert found["gen_ai.operation.name"] == "text_completion"
    assert found["gen_ai.response.finish_reasons"] == ["length", "stop"]
    assert found["gen_ai.request.choice.count"] == 2
    assert found["gen_ai.usage.input_tokens"] == answer.usage.prompt_tokens == 3
    assert found["gen_ai.usage.output_tokens"] == answer.usage.completion_tokens
    assert not span.parent_span_id


def test_a_response_has_its_own_id(model, collector):
    with traced(model, collector) as (url, _):
        answer = client_of(url).responses.create(model="tiny", input=SECRET, max_output_tokens=16)
    (span,) = collector.spans()
    found = attributes(span)
    assert (found["gen_ai.operation.name"], found["gen_ai.response.id"]) == ("chat", answer.id)


def test_a_parent_that_is_not_sampled_has_no_child(model, collector):
    with traced(model, collector) as (url, _):
        client = client_of(url, default_headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        client.completions.create(model="tiny", prompt="a", max_tokens=2)
    assert collector.spans() == []


def assert_failed(span, reason):
    assert span.status.code == Status.STATUS_CODE_ERROR
    found = attributes(span)
    assert (found["error.type"], found["gen_ai.response.finish_reasons"]) == (reason, [reason])


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_span(model, collector, stream):
    with traced(model, collector, defaults=LONG) as (url, service):
        hang_up(url, service, stream=stream)
        until(lambda: not service.worker.busy)
    (span,) = collector.spans()
    assert_failed(span, "abort")


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_out_of_time_ends_its_span(model, collector, stream):
    with (
        traced(model, collector, request_timeout=0.05, defaults=LONG) as (url, _),
        pytest.raises(openai.APIError, match="not finished within"),
    ):
        list(client_of(url).completions.create(model="tiny", prompt="a", stream=stream))
    (span,) = collector.spans()
    assert_failed(span, "abort")


def test_a_failed_pass_and_a_server_that_stops_end_their_spans(model, collector, monkeypatch):
    def broken(*_):
        raise RuntimeError(SECRET)

    with traced(model, collector, defaults=LONG) as (url, _):
        with monkeypatch.context() as patch:
            patch.setattr("trimode.engine.engine.run", broken)
            with pytest.raises(openai.InternalServerError):
                client_of(url).completions.create(model="tiny", prompt="a")
        stream = client_of(url).completions.create(model="tiny", prompt="a", stream=True)
        next(iter(stream))
    failed, cut_off = collector.spans()
    assert_failed(failed, "error")
    assert_failed(cut_off, "error")
    stream.close()
    assert SECRET.encode() not in b"".join(collector.bodies)


def test_a_collector_that_is_down_holds_nobody_up(model, monkeypatch):
    monkeypatch.setattr("trimode.server.observe.telemetry._FLUSH_SECONDS", 0.1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1")  # then its thread gives up
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else will
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}/v1/traces"
        with serving(model, otlp_traces_endpoint=endpoint) as (url, _):
            create = client_of(url).completions.create
            assert create(model="tiny", prompt="a", max_tokens=2).choices


@pytest.mark.parametrize("endpoint", ["", "localhost:4318", "ftp://x", "http://", "http://x:y"])
def test_a_bad_address_is_refused_before_the_model_loads(endpoint):
    with pytest.raises(InputError, match="must be a URL") as caught:
        serve("no/such/model", otlp_traces_endpoint=endpoint)
    assert caught.value.field == "otlp_traces_endpoint"


def test_without_the_extra_the_option_says_what_to_install(monkeypatch):
    name = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, name, None)
    for attempt in (check_endpoint, lambda url: ServerSettings(name="x", otlp_traces_endpoint=url)):
        with pytest.raises(InputError) as caught:
            attempt("http://localhost:4318")
        assert caught.value.field == "otlp_traces_endpoint"
        assert caught.value.allowed == "pip install 'trimode[telemetry]'"


def test_a_server_without_the_option_loads_nothing_of_it():
    code = """
import json, sys
from trimode.server import ServerSettings, open_service
from trimode.testing import tiny_model
open_service(ServerSettings(name="tiny"), tiny_model, measure=None)
print(json.dumps([m for m in sys.modules if m.startswith("opentelemetry.")]))
"""
    command = [sys.executable, "-c", code]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    parts = {name.split(".")[1] for name in found}  # FastAPI loads the API
    assert not parts & {"sdk", "exporter", "proto"}
