"""/v1/models, and models that are not served."""

import openai
import pytest

from tests.server.asking import MODES, ask, get


def test_models_are_listed_once_for_each_mode(client):
    names = ["tiny", *(f"tiny:{mode}" for mode in MODES)]
    assert sorted(card.id for card in client.models.list()) == sorted(names)
    assert client.models.retrieve("tiny:linear").id == "tiny:linear"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_models_show_what_is_served_and_its_context(client):
    """Under the names that clients of vLLM, LM Studio and llama.cpp read."""
    for card in client.models.list():
        assert card.object == "model"
        more = card.model_extra
        names = ("max_model_len", "context_length", "max_context_length", "context_window")
        assert [more[name] for name in names] == [1024] * 4
        assert more["meta"]["n_ctx_train"] == 1024
        assert client.models.retrieve(card.id) == card


def test_a_name_from_the_list_chooses_the_mode(client):
    for card in client.models.list():
        answer = ask(client, model=card.id, max_tokens=2)
        mode = card.id.partition(":")[2]
        assert answer.model == card.id
        assert answer.model_extra["metrics"]["decoding"]["mode"] == (mode or "ar")


@pytest.mark.parametrize("name", ["", "default", "tiny:latest"])
def test_clients_that_do_not_know_the_name_get_the_model(client, name):
    assert ask(client, model=name, max_tokens=2).choices
    assert ask(client, model=f"{name.removesuffix(':latest')}:linear", max_tokens=2).choices


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-4")
    assert caught.value.code == "model_not_found"


def test_base_urls_without_v1_work(url):
    assert get(f"{url}/models") == get(f"{url}/v1/models")
    bare = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    assert ask(bare, max_tokens=2).choices
    assert bare.completions.create(model="tiny", prompt="a", max_tokens=2).choices
