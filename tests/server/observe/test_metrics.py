"""Prometheus: names, labels, and figures that agree with the answers."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.asking import LONG, client_of, get, in_mode, until
from tests.server.conftest import serving

COUNTERS = {
    "trimode_auto_passes": {"plan"},
    "trimode_forward_passes": {"mode", "kind"},
    "trimode_generation_tokens": {"mode"},
    "trimode_mode_switches": {"from", "to"},
    "trimode_prefix_cache_hits": set(),
    "trimode_prefix_cache_queries": set(),
    "trimode_prompt_tokens": set(),
    "trimode_requests": {"mode", "finish_reason"},
    "trimode_spec_decode_accepted_tokens": {"mode"},
    "trimode_spec_decode_accepted_tokens_per_pos": {"position"},
    "trimode_spec_decode_draft_tokens": {"mode"},
    "trimode_spec_decode_drafts": {"mode"},
}
GAUGES = {
    "trimode_build_info": {"version", "model", "dtype", "device"},
    "trimode_kv_cache_usage_ratio": set(),
    "trimode_requests_running": set(),
    "trimode_requests_waiting": set(),
}
HISTOGRAMS = {
    "trimode_e2e_request_latency_seconds",
    "trimode_request_generation_tokens",
    "trimode_request_prompt_tokens",
    "trimode_request_queue_time_seconds",
    "trimode_request_tokens_per_forward",
    "trimode_time_per_output_token_seconds",
    "trimode_time_to_first_draft_seconds",
    "trimode_time_to_first_token_seconds",
}


def scrape(url):
    return {f.name: f for f in text_string_to_metric_families(get(f"{url}/metrics"))}


def total(families, name, **labels):
    return sum(
        sample.value
        for sample in families[name].samples
        if not sample.name.endswith("_created") and labels.items() <= sample.labels.items()
    )


def count(families, name):
    return next(s.value for s in families[name].samples if s.name == f"{name}_count")


@pytest.fixture(scope="module")
def asked(model):
    """A server that has answered in every mode, and the answers."""
    with serving(model) as (url, _):
        client = client_of(url)
        found = {}
        for mode in ("ar", "linear", "quadratic", "diffusion", "auto"):
            body = {"ignore_eos": True, **in_mode(mode)}
            found[mode] = client.completions.create(
                model="tiny", prompt="abcdefgh" * 4, max_tokens=16, temperature=0, extra_body=body
            )
        body["decoding"] = {"mode": "diffusion", "show_drafts": True}
        stream = client.completions.create(
            model="tiny", prompt="x", max_tokens=4, extra_body=body, stream=True
        )
        next(iter(stream))
        list(stream)
        yield url, found


def test_names_and_labels_are_the_documented_ones(asked):
    families = scrape(asked[0])
    kinds = {
        "counter": COUNTERS,
        "gauge": GAUGES,
        "histogram": {name: {"le"} for name in HISTOGRAMS},
    }
    for kind, expected in kinds.items():
        names = {name for name, family in families.items() if family.type == kind}
        assert {n for n in names if not n.endswith("_created")} == set(expected)
        for name, labels in expected.items():
            for sample in families[name].samples:
                assert set(sample.labels) - {"le"} == {"model_name"} | (labels - {"le"})
                assert sample.labels["model_name"] == "tiny"


def test_figures_are_those_of_the_answers(asked):
    url, answers = asked
    families = scrape(url)
    for mode, answer in answers.items():
        if mode == "diffusion":
            continue  # asked twice
        decoding = answer.model_extra["metrics"]["decoding"]
        assert total(families, "trimode_generation_tokens", mode=mode) == 16
        assert total(families, "trimode_forward_passes", mode=mode) == decoding["nfe"]
        assert total(families, "trimode_requests", mode=mode, finish_reason="length") == 1
    for mode in ("linear", "quadratic"):
        speculation = answers[mode].model_extra["metrics"]["speculative_decoding"]
        drafted = total(families, "trimode_spec_decode_draft_tokens", mode=mode)
        accepted = total(families, "trimode_spec_decode_accepted_tokens", mode=mode)
        assert drafted == speculation["num_draft_tokens"] >= accepted
    plans = answers["auto"].model_extra["metrics"]["decoding"]["plans"]
    assert total(families, "trimode_auto_passes") == sum(plans.values())
    kinds = {s.labels["kind"] for s in families["trimode_forward_passes"].samples}
    assert {"prefill", "decode", "denoise", "draft", "verify"} <= kinds
    per_position = total(families, "trimode_spec_decode_accepted_tokens_per_pos")
    assert per_position == total(families, "trimode_spec_decode_accepted_tokens")


def test_times_are_observed_once_a_request(asked):
    families = scrape(asked[0])
    for name in HISTOGRAMS:
        assert count(families, name) == (1 if "draft" in name else 6)
    assert total(families, "trimode_prefix_cache_queries") == 5 * 32 + 1
    assert total(families, "trimode_prefix_cache_hits") > 0


def test_the_queue_is_a_gauge(model):
    with serving(model, max_sequences=1, defaults=LONG) as (url, _):
        client = client_of(url)
        streams = [
            client.completions.create(model="tiny", prompt="a", stream=True) for _ in range(3)
        ]
        families = scrape(url)
        assert total(families, "trimode_requests_running") == 1
        assert total(families, "trimode_requests_waiting") == 2
        assert total(families, "trimode_kv_cache_usage_ratio") > 0
        for stream in streams:
            stream.close()
        until(lambda: total(scrape(url), "trimode_requests", finish_reason="abort") == 3)
        families = scrape(url)
        assert total(families, "trimode_requests_waiting") == 0
        assert count(families, "trimode_e2e_request_latency_seconds") == 0
