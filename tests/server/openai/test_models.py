"""/v1/models, and models that are not served."""

import openai
import pytest

from tests.server.asking import (
    ask,
)


def test_models_are_listed(client):
    assert [card.id for card in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny:linear").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_models_show_what_is_served_and_its_context(client):
    """`/v1/models`."""
    (card,) = client.models.list()
    assert set(card.to_dict()) >= {"id", "object", "created", "owned_by"}
    assert (card.id, card.object) == ("tiny", "model")
    assert card.model_extra["max_model_len"] == 1024
    assert client.models.retrieve("tiny") == card


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-4")
    assert caught.value.code == "model_not_found"
