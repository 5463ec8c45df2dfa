"""Pictures from other hosts: listed hosts only, public addresses only, also after redirects."""

import asyncio
import http.server
import ipaddress
import threading

import pytest

from trimode.errors import InputError
from trimode.server import fetch
from trimode.server.settings import ServerSettings
from trimode.vision import ImageLimits

LIMITS = ImageLimits(bytes=1000)
LOOPBACK = ipaddress.ip_address("127.0.0.1")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0",
        "100.64.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
        "::1", "::", "fc00::1", "fe80::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "2002:7f00:1::", "2002:a00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_of_the_open_internet_are_not_public(address):
    assert not fetch.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "64:ff9b::808:808"]
)
def test_other_addresses_are_public(address):
    assert fetch.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", ["", "http://a.org", "a.org/x", "a.*.org", "user@a", "*."])
def test_a_host_that_is_none_is_refused_at_the_start(host):
    with pytest.raises(InputError, match="allow_image_hosts"):
        ServerSettings(allow_image_hosts=(host,))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        kind, _, rest = self.path[1:].partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
            return
        self.send_response(404 if kind == "missing" else 200)
        self.end_headers()
        self.wfile.write(b"x" * int(rest or 10))

    def log_message(self, *_):
        pass


@pytest.fixture
def web(monkeypatch):
    """A host `pictures.example` on loopback, which counts as public; other addresses do not."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setitem(fetch._PORTS, "http", server.server_port)
    public = fetch.is_public
    monkeypatch.setattr(fetch, "is_public", lambda a: a == LOOPBACK or public(a))
    names = {"pictures.example": ["127.0.0.1"], "inside.pictures.example": ["10.0.0.7"],
             "both.pictures.example": ["127.0.0.1", "10.0.0.7"]}  # fmt: skip

    async def resolved(host):
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            return [ipaddress.ip_address(a) for a in names.get(host, [])]

    monkeypatch.setattr(fetch, "resolved", resolved)
    yield server
    server.shutdown()
    server.server_close()


def get(url, hosts=("pictures.example", "*.pictures.example", "169.254.169.254")):
    return asyncio.run(fetch.fetch_picture(url, hosts, LIMITS, name="url"))


def test_a_listed_public_host_is_asked_by_its_name(web):
    assert get("http://pictures.example/a/20") == b"x" * 20
    assert get("HTTP://Pictures.Example/a/20") == b"x" * 20
    assert web.asked[0] == ("/a/20", "pictures.example")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://other.example/a", "the host other.example; allowed: pictures.example"),
        ("http://evilpictures.example/a", "the host evilpictures.example; allowed"),
        ("http://127.0.0.1/a", "the host 127.0.0.1; allowed"),
        ("http://inside.pictures.example/a", "whose addresses are all public"),
        ("http://both.pictures.example/a", "whose addresses are all public"),
        ("http://169.254.169.254/latest", "whose addresses are all public"),
        ("http://unknown.pictures.example/a", "whose addresses are all public"),
        ("http://user@pictures.example/a", "a user or a port"),
        ("http://pictures.example:22/a", "a user or a port"),
        ("ftp://pictures.example/a", "must be a data:, http: or https: URL"),
        ("file:///etc/passwd", "must be a data:, http: or https: URL"),
        ("http:///a", "must be a data:, http: or https: URL"),
        ("http://pictures.example:x/a", "must be a URL"),
        ("http://pictures.example/missing", "status 404"),
        ("http://pictures.example/a/1001", "more; at most"),
        ("http://pictures.example/to/http://inside.pictures.example/", "are all public"),
        ("http://pictures.example/to/http://169.254.169.254/latest", "are all public"),
        ("http://pictures.example/to/http://localhost/", "the host localhost; allowed"),
        ("http://pictures.example/to/file:///etc/passwd", "must be a data:, http: or https: URL"),
        ("http://pictures.example/to/to/to/to/a", "redirected again and again"),
    ],
)
def test_all_else_is_refused(url, words, web):
    if url.endswith("to/to/to/a"):
        url = "http://pictures.example" + "/to" * 4 + "/a"
    with pytest.raises(InputError, match=f"url: .*{words}"):
        get(url)
    assert all(host == "pictures.example" for _, host in web.asked)


def test_a_redirect_within_the_list_is_followed(web):
    assert get("http://pictures.example/to/http://pictures.example/a/7") == b"x" * 7


def test_every_host_means_every_public_one(web):
    assert get("http://pictures.example/a/5", hosts=("*",)) == b"x" * 5
    with pytest.raises(InputError, match="are all public"):
        get("http://10.0.0.1/", hosts=("*",))


def test_without_a_list_the_error_names_the_option(web):
    with pytest.raises(InputError, match="none: send a data: URL, or start with --allow-image-hos"):
        get("http://pictures.example/a", hosts=())
    assert web.asked == []


def test_real_names_of_loopback_resolve_to_what_is_refused():
    """With the system's own resolver, in the spellings that libraries accept."""
    for host in ("localhost", "127.1", "2130706433", "0x7f000001", "[::1]", "0"):
        with pytest.raises(InputError, match="url:"):
            get(f"http://{host}/", hosts=("*",))


def test_a_host_that_does_not_answer_is_named_by_kind_only(web):
    web.shutdown()
    web.server_close()
    with pytest.raises(InputError, match=r"url: not fetched \(ConnectError\)"):
        get("http://pictures.example/a")
