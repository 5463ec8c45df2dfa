"""The limit on the size of bodies."""

import http.client
from urllib.parse import urlsplit

import openai
import pytest

from tests.server.asking import (
    client_of,
)
from tests.server.conftest import serving


def test_a_body_above_the_limit_is_refused(model):
    with serving(model, max_body_bytes=1000) as (url, _):
        client = client_of(url)
        with pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(model="tiny", prompt="a" * 2000)
        assert caught.value.status_code == 413
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        parts = iter([b"a" * 600] * 4)  # chunked: no length in its header
        connection.request("POST", "/v1/completions", parts, encode_chunked=True)
        assert connection.getresponse().status == 413
