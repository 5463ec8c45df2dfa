"""The page in a real browser, against a real server with a tiny model. Run by `make browser`."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.cli.conftest import TRIMODE, write_printable_checkpoint
from tests.reference.pictures import picture
from tests.server.conftest import serving
from trimode.config import GenerationOptions
from trimode.engine import Engine
from trimode.testing import CHAT_TEMPLATE, saying_model, tiny_model, tiny_vision_model

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NODE_MODULES = Path(os.environ.get("TRIMODE_NODE_MODULES", "/nowhere"))
AXE = next(NODE_MODULES.glob("axe-core/axe.min.js"), None)
THINKING = CHAT_TEMPLATE + "{# </think> #}"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: make browser"),
]


@pytest.fixture(scope="module")
def url():
    defaults = GenerationOptions(mode="linear", temperature=0, max_tokens=24)
    with serving(tiny_model(), defaults=defaults) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, url):
    context = browser.new_context(
        viewport={"width": 1100, "height": 720},
        permissions=["clipboard-read", "clipboard-write"],
    )
    context.set_default_timeout(60_000)
    opened = context.new_page()
    complaints = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(url)
    opened.wait_for_selector("#model:not(:empty)")
    opened.fill("#max-tokens", "24")
    yield opened
    context.close()
    assert [text for text in complaints if "status of 400" not in text] == []


@pytest.fixture
def slowly(monkeypatch):
    """Passes that take as long as a real model's."""
    step = Engine.step

    def late(self):
        time.sleep(0.02)
        return step(self)

    monkeypatch.setattr(Engine, "step", late)


def finished(page):
    page.wait_for_selector("#send:not([hidden])", timeout=60_000)
    # The page paints in an animation frame; on a busy machine that may be late.
    page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


def ask(page, text="hi"):
    page.fill("#prompt", text)
    page.keyboard.press("Enter")
    finished(page)


def expected(page, text="hi", mode="ar"):
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "seed": 0,
        "max_tokens": 24,
        "decoding": {"mode": mode},
    }
    answer = page.request.post("/v1/chat/completions".join((page.url.rstrip("/"), "")), data=body)
    return answer.json()["choices"][0]["message"]["content"]


def choose(page, mode):
    page.locator(f"[name=mode][value={mode}]").check(force=True)  # the radio is under its label


def sent_by(page, act):
    """The body of the request that an action sends."""
    with page.expect_request("**/chat/completions") as request:
        act()
    return request.value.post_data_json


def shown(page, selector=".text"):
    return page.locator(selector).last.evaluate("node => node.textContent")


def test_an_answer_is_the_servers_and_nothing_stays_open(page):
    ask(page)
    assert shown(page) == expected(page)
    assert page.locator(".text .token").count() == 0
    assert "linear" in shown(page, ".figures")


@pytest.mark.parametrize("mode", ["ar", "linear", "quadratic", "diffusion", "auto"])
def test_figures_live_and_one_row_a_pass(page, slowly, mode):
    choose(page, mode)
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => {
          if (!document.getElementById('stop').hidden)
            window.seen.push(document.querySelector('.figures').textContent);
        }).observe(document.getElementById('chat'), { childList: true, subtree: true }); }"""
    )
    page.fill("#max-tokens", "80")
    ask(page)
    seen = page.evaluate("window.seen")
    live = [text for text in seen if "TPF –" not in text and "tok/s –" not in text]
    assert live
    if mode in ("linear", "quadratic"):
        assert any("acceptance –" not in text for text in live)
    figures = dict(part.split(" ", 1) for part in page.locator(".figures > span").all_inner_texts())
    assert figures["mode"] == mode
    assert float(figures["TPF"]) == pytest.approx(
        int(figures["tokens"]) / int(figures["NFE"]), abs=0.006
    )
    page.locator("summary").click()
    page.wait_for_selector(".pass")
    assert page.locator(".pass").count() == int(figures["NFE"])
    numbers = page.locator(".pass > :first-child").all_inner_texts()
    assert numbers == [str(i + 1) for i in range(int(figures["NFE"]))]


def test_a_timeline_that_is_open_grows(page, slowly):
    page.fill("#max-tokens", "100")
    page.fill("#prompt", "hi")
    page.keyboard.press("Enter")
    page.wait_for_selector(".text .piece:not(:empty)")
    page.locator("summary").click()
    page.wait_for_selector(".pass")
    early = page.locator(".pass").count()
    finished(page)
    assert early < page.locator(".pass").count()
    assert shown(page, ".player output") == "{0} / {0}".format(page.locator(".pass").count())


def test_a_conversation_goes_on_and_can_be_cleared(page):
    ask(page)
    ask(page, "more")
    assert page.locator(".answer").count() == 2
    page.click("#clear")
    assert page.locator(".answer").count() == 0


def test_the_race_marks_what_is_identical(page):
    page.fill("#prompt", "hi")
    page.click("#race")
    finished(page)
    texts = {
        lane.get_attribute("data-mode"): lane.locator(".text").evaluate("node => node.textContent")
        for lane in page.locator(".lane").all()
    }
    assert set(texts) == {"ar", "linear", "quadratic", "diffusion", "auto"}
    for mode in ("linear", "quadratic", "auto"):
        assert texts[mode] == texts["ar"]
        assert "identical" in page.locator(f".lane[data-mode={mode}] .badge").inner_text()
    badge = page.locator(".lane[data-mode=diffusion] .badge").inner_text()
    assert ("identical" in badge) == (texts["diffusion"] == texts["ar"])


def test_any_moment_can_be_shown_again(page):
    ask(page)
    whole = shown(page)
    page.locator("summary").click()
    page.wait_for_selector(".pass")
    passes = page.locator(".pass").count()
    assert passes > 2
    page.locator(".player input").focus()
    for _ in range(passes):
        page.keyboard.press("ArrowLeft")
    assert shown(page, ".player output") == f"0 / {passes}"
    assert shown(page) == ""
    for _ in range(passes - 1):
        page.keyboard.press("ArrowRight")
    assert page.locator(".pass[aria-current=true]").count() == 1
    page.keyboard.press("End")
    assert shown(page) == whole


def test_a_token_tells_its_history(page):
    ask(page)
    page.locator("summary").click()
    page.locator(".pass", has_text="draft").first.click()
    page.locator(".text .token[data-position]").first.click()
    assert "position" in shown(page, ".history")


def test_an_error_is_shown_in_the_servers_words(page):
    page.fill("#max-tokens", "0")
    ask(page)
    assert "max_tokens" in page.locator("#error").inner_text()
    page.fill("#max-tokens", "24")
    ask(page)
    assert not page.locator("#error").is_visible()


def test_what_is_stopped_is_over(page, slowly):
    page.fill("#max-tokens", "400")
    page.fill("#prompt", "hi")
    page.keyboard.press("Enter")
    page.wait_for_selector(".text .piece:not(:empty)")
    page.keyboard.press("Escape")
    finished(page)
    assert 0 < len(shown(page)) < 400
    assert page.locator(".text .token").count() == 0
    page.fill("#max-tokens", "4")
    body = sent_by(page, lambda: ask(page, "more"))
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]


def test_a_cleared_conversation_is_forgotten_while_it_runs(page, slowly):
    page.fill("#max-tokens", "400")
    page.fill("#prompt", "hi")
    page.keyboard.press("Enter")
    page.wait_for_selector(".text .piece:not(:empty)")
    page.click("#clear")
    finished(page)
    page.fill("#max-tokens", "4")
    body = sent_by(page, lambda: ask(page, "anew"))
    assert body["messages"] == [{"role": "user", "content": "anew"}]


def frame(text="", finish=None, **fields):
    delta = {"content": text} if text else {}
    chunk = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return {**chunk, **({"trimode": fields} if fields else {})}


TRACE = [
    frame(type="draft", start=3, nfe=1, mode="linear",
          tokens=[["The", 0.9, "new"], [" sea", 0.2, "new"], [" is", 0.1, "revised"]]),
    frame("The sky", type="commit", start=3, length=2, nfe=2, texts=["The", " sky"], drafted=3,
          accepted=1, cycle=1),
    frame(type="draft", start=5, nfe=3, mode="linear", tokens=[["", 0.0, "mask"]]),
    frame(".", "stop", type="commit", start=5, length=1, nfe=4),
]  # fmt: skip


def opened(page, path, chunks=None):
    if chunks:
        path.write_text("\n".join(map(json.dumps, chunks)))
    page.set_input_files("#trace-file", path)
    page.wait_for_selector(".pass")
    finished(page)


def test_a_trace_is_opened_from_a_file(page, tmp_path):
    path = tmp_path / "run.jsonl"
    opened(page, path, TRACE)
    assert shown(page) == "The sky."
    page.locator(".pass").first.click()
    assert shown(page) == "The sea is"
    path.write_text("{")
    page.set_input_files("#trace-file", path)
    page.wait_for_selector("#error:not([hidden])")
    assert "line 1" in page.locator("#error").inner_text()
    path.write_text(json.dumps(frame()))
    page.set_input_files("#trace-file", path)
    page.locator("#error", has_text="no answer").wait_for()


@pytest.mark.parametrize("mode", ["linear", "diffusion"])
def test_a_trace_of_the_command_line_is_opened(page, tmp_path, mode):
    model = write_printable_checkpoint(tmp_path / "model")
    path = tmp_path / "run.jsonl"
    options = ["--mode", mode, "--max-tokens", "12", "--trace", path]
    subprocess.run([TRIMODE, "generate", "hi", "--model", model, *options], check=True)
    chunks = [json.loads(line) for line in path.read_text().splitlines()]
    opened(page, path)
    texts = [c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]]
    assert shown(page) == "".join(texts)
    assert page.locator(".pass").count() == chunks[-1]["metrics"]["decoding"]["nfe"]
    assert f"mode {mode}" in shown(page, ".figures")


def test_no_mark_is_colour_alone(page, tmp_path):
    opened(page, tmp_path / "run.jsonl", TRACE)

    def style(selector, name, pseudo=None):
        script = "(node, [name, pseudo]) => getComputedStyle(node, pseudo)[name]"
        return page.locator(f".text {selector}").first.evaluate(script, [name, pseudo])

    page.locator(".pass").nth(0).click()
    sizes = [
        page.locator(".text .token").nth(i).evaluate("n => getComputedStyle(n).backgroundSize")
        for i in range(3)
    ]
    assert len(set(sizes)) == 3, "the bar under a token is as long as its confidence"
    assert "wavy" in style(".revised", "textDecoration")
    page.locator(".pass").nth(1).click()
    assert page.locator(".text .accepted").all_inner_texts() == ["The"]
    assert "✓" in style(".accepted", "content", "::after")
    assert page.locator(".text .rejected").all_text_contents() == [" sea", " is"]
    assert "line-through" in style(".rejected", "textDecoration")
    page.locator(".pass").nth(2).click()
    assert page.locator(".text .mask").all_inner_texts() == ["·"]
    assert style(".mask", "borderBottomStyle") == "dotted"


def test_tokens_tell_their_history_by_keyboard(page, tmp_path):
    opened(page, tmp_path / "run.jsonl", TRACE)
    page.locator(".player input").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.locator(".text .token[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    told = shown(page, ".history")
    assert told == "position 4: pass 1: new “ sea” 0.20 → pass 2: committed “ sky”"


def test_it_fits_a_phone(page):
    page.set_viewport_size({"width": 360, "height": 640})
    ask(page, "a rather long question " * 12)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert not page.locator("#settings").is_visible()
    page.click("#settings-toggle")
    assert page.locator("#settings").is_visible()
    assert page.locator("#open-trace").is_visible()


@pytest.mark.parametrize("width", [320, 390])
def test_fingers_find_the_buttons_and_names_are_whole(page, width):
    page.set_viewport_size({"width": width, "height": 700})
    page.wait_for_timeout(100)
    boxes = [node.bounding_box() for node in page.locator("button:visible:not(.help)").all()]
    assert min(box["height"] for box in boxes) >= 44
    rows = Counter(
        node.bounding_box()["y"] for node in page.locator(".buttons button:visible").all()
    )
    assert set(rows.values()) == {3}, "no button is alone on a line"
    cut = "node => node.scrollWidth > node.clientWidth || node.scrollHeight > node.clientHeight + 1"
    for node in page.locator("#model, .buttons button:visible").all():
        assert not node.evaluate(cut), node.inner_text()
    assert page.locator("#model").inner_text().startswith("tiny · ")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_reduced_motion_shows_commits_only(browser, url):
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#model:not(:empty)")
    page.evaluate(
        """() => { window.seen = 0; new MutationObserver(() => {
          window.seen += document.querySelectorAll('.text .token').length;
        }).observe(document.getElementById('chat'), { childList: true, subtree: true }); }"""
    )
    page.fill("#max-tokens", "24")
    ask(page)
    page.locator("summary").click()
    page.click(".player button")
    page.locator(".player button:text('Play')").wait_for()
    assert page.evaluate("window.seen") == 0
    page.locator(".pass", has_text="draft").first.click()
    assert page.evaluate("window.seen") > 0, "whoever chooses a pass sees it"
    context.close()


def test_settings_travel_in_the_address(page, url):
    page.goto(f"{url}/?mode=quadratic&block=5&prompt=hello&maxTokens=7")
    page.wait_for_selector("#model:not(:empty)")
    page.wait_for_timeout(100)
    assert page.locator("[name=mode]:checked").get_attribute("value") == "quadratic"
    assert page.input_value("#prompt") == "hello"
    assert page.input_value("#max-tokens") == "7"
    assert page.input_value("#block") == "5"


def test_everything_can_be_reached_by_keyboard_and_is_named(page):
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, select')]
          .filter((node) => node.offsetParent !== null)
          .filter((node) => !(node.textContent || node.ariaLabel || node.labels?.length))
          .map((node) => node.outerHTML)"""
    )
    assert nameless == []
    page.locator("[name=mode]:checked").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("[name=mode]:checked").get_attribute("value") != "linear"


def test_the_page_is_small_quick_and_from_here_alone(browser, url):
    context = browser.new_context()
    page = context.new_page()
    network = context.new_cdp_session(page)
    network.send("Network.enable")
    sizes, addresses, paints = [], [], []
    network.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(url, wait_until="networkidle")
    assert 10_000 < sum(sizes) < 200_000
    assert all(address.startswith(f"{url}/") for address in addresses)
    for _ in range(3):  # the machine may be busy with something else
        page.reload(wait_until="networkidle")
        paints.append(
            page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        )
    assert min(paints) < 1000
    context.close()


def test_nothing_jumps(page, slowly):
    """Loading moves nothing; while an answer comes, what is below it only ever goes down."""
    shifts = """() => new Promise((done) => new PerformanceObserver((list) => done(
      list.getEntries().map((entry) => entry.sources.map((source) => source.node?.id ?? '')))
    ).observe({ type: 'layout-shift', buffered: true }) || setTimeout(done, 300, []))"""
    assert page.evaluate(shifts) == []
    page.evaluate(
        """() => { window.places = []; const sample = () => {
          const of = (selector) => document.querySelector(selector)?.offsetTop;
          window.places.push([of('.text'), of('details'), of('#composer'), of('#race')]);
          requestAnimationFrame(sample); }; sample(); }"""
    )
    for mode in ("diffusion", "quadratic", "auto"):
        page.click("#clear")
        page.evaluate("window.places.length = 0")
        choose(page, mode)
        page.fill("#max-tokens", "60")
        ask(page)
        places = [place for place in page.evaluate("window.places") if place[0]]
        texts, details, composers, buttons = zip(*places, strict=True)
        assert len(set(texts)) == len(set(composers)) == len(set(buttons)) == 1
        assert list(details) == sorted(details)


def test_the_threshold_is_sent_where_it_counts(page):
    choose(page, "ar")
    assert page.locator("#threshold").is_disabled()
    choose(page, "diffusion")
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#block").focus()
    page.keyboard.press("Home")
    body = sent_by(page, lambda: ask(page))
    assert body["decoding"] == {
        "mode": "diffusion", "block_length": 1, "show_drafts": True, "threshold": 0.95
    }  # fmt: skip
    page.locator("#threshold").focus()
    page.keyboard.press("Home")
    assert shown(page, "#threshold-value") == "0"
    body = sent_by(page, lambda: ask(page))
    assert body["decoding"]["threshold"] == 0


def test_defaults_are_shown_and_left_to_the_server(page):
    props = page.request.get(f"{page.url}props").json()
    for mode, facts in props["modes"].items():
        choose(page, mode)
        for control, option in (("threshold", "threshold"), ("block", "block_length")):
            told = shown(page, f"#{control}-value")
            if option in facts["reads"]:
                assert told == f"{facts['defaults'][option] or 0:g} (default)"
            else:
                assert told == "not used"
        body = sent_by(page, lambda: ask(page))
        assert body["decoding"] == {"mode": mode, "show_drafts": True}
    choose(page, "diffusion")
    page.locator("#threshold").focus()
    page.keyboard.press("Home")
    page.click("#defaults")
    assert page.locator("[name=mode]:checked").get_attribute("value") == props["default_mode"]
    choose(page, "diffusion")
    assert shown(page, "#threshold-value") == "0.9 (default)"


def test_modes_are_those_of_the_server_and_explain_themselves(page):
    modes = page.request.get(f"{page.url}props").json()["modes"]
    assert page.locator("[name=mode]").evaluate_all("all => all.map((n) => n.value)") == [*modes]
    for mode, facts in modes.items():
        choose(page, mode)
        assert facts["summary"] in shown(page, "#mode-note")
        label = page.locator(f"label:has([value={mode}])")
        assert facts["summary"] in label.get_attribute("title")


def test_a_mode_that_the_model_cannot_run_cannot_be_chosen(browser):
    defaults = GenerationOptions(max_tokens=8)
    with serving(tiny_model(mask_token_id=None), defaults=defaults) as (url, _):
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#model:not(:empty)")
        usable = page.locator("[name=mode]:enabled").evaluate_all("all => all.map((n) => n.value)")
        assert usable == ["ar", "auto"]
        assert "mask token" in page.locator("label:has([value=linear])").get_attribute("title")
        page.fill("#max-tokens", "8")
        page.fill("#prompt", "hi")
        page.click("#race")
        finished(page)
        lanes = page.locator(".lane").evaluate_all("all => all.map((n) => n.dataset.mode)")
        assert lanes == ["ar", "auto"]
        page.close()


TERMS = ["mode", "threshold", "block length", "TPF", "NFE", "acceptance"]


@pytest.mark.parametrize("width", [1280, 320])
def test_terms_are_explained_on_hover_by_keyboard_and_by_a_tap(page, width):
    page.set_viewport_size({"width": width, "height": 700})
    if width < 700:
        page.click("#settings-toggle")
    for term in TERMS:
        button = page.locator(f"#settings [data-term='{term}']")
        meaning = button.get_attribute("title")
        assert len(meaning) > 20
        button.focus()
        page.keyboard.press("Enter")
        assert page.locator("#term:popover-open").inner_text() == meaning
        box = page.locator("#term").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        page.keyboard.press("Escape")
        assert not page.locator("#term").is_visible()
    if width < 700:
        page.click("#settings-toggle")
    ask(page)
    figure = page.locator(".figures [data-term=acceptance]")
    figure.click()
    assert page.locator("#term").inner_text() == figure.get_attribute("title")


def test_samples_are_offered_until_something_is_asked(page):
    samples = page.locator("[data-prompt]")
    assert samples.count() >= 3
    assert "shine" in samples.first.inner_text()
    samples.first.click()
    assert page.input_value("#prompt") == samples.first.get_attribute("data-prompt")
    page.keyboard.press("Enter")
    finished(page)
    assert samples.count() == 0
    page.click("#clear")
    assert samples.count() >= 3


def test_a_race_says_that_the_conversation_comes_before_it(page):
    page.fill("#prompt", "hi")
    page.click("#race")
    finished(page)
    assert shown(page, ".race h2") == "Race"
    ask(page)
    page.fill("#prompt", "more")
    body = sent_by(page, lambda: page.click("#race"))
    finished(page)
    assert len(body["messages"]) == 3
    assert "after the conversation above" in shown(page, ".race h2")


def test_in_a_race_a_mode_that_refuses_does_not_stop_the_others(page):
    page.evaluate("document.getElementById('block').max = 200")
    page.locator("#block").evaluate(
        "node => { node.value = 200; node.dispatchEvent(new Event('input', { bubbles: true })); }"
    )
    page.fill("#max-tokens", "6")
    page.fill("#prompt", "hi")
    page.click("#race")
    finished(page)
    badge = page.locator(".lane[data-mode=quadratic] .badge").inner_text()
    assert "block_length" in badge
    assert "identical" in page.locator(".lane[data-mode=auto] .badge").inner_text()


@pytest.mark.parametrize("button", ["#send", "#race"])
def test_a_refused_message_is_not_lost(page, button):
    page.fill("#max-tokens", "0")
    page.fill("#prompt", "a long message")
    page.click(button)
    finished(page)
    assert page.input_value("#prompt") == "a long message"
    assert page.locator(".answer").count() == 0
    assert page.locator("#hello").is_visible()


def test_a_server_with_a_key_on_a_phone(browser):
    defaults = GenerationOptions(mode="linear", max_tokens=8)
    with serving(tiny_model(), defaults=defaults, api_keys=("sesame",)) as (url, _):
        context = browser.new_context(viewport={"width": 390, "height": 640})
        page = context.new_page()
        page.goto(url)
        page.locator("#error", has_text="needs an API key").wait_for()
        page.fill("#prompt", "hi")
        page.click("#send")
        finished(page)
        assert page.input_value("#prompt") == "hi"
        assert page.locator(".answer").count() == 0
        box = page.locator("#key").bounding_box()
        assert box["y"] > 0
        assert box["y"] + box["height"] < 640
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.locator("#error", has_text="does not accept").wait_for()
        page.fill("#key", "sesame")
        page.click("#key-form button")
        page.wait_for_selector("#model:not(:empty)")
        assert not page.locator("#key-form").is_visible()
        assert page.input_value("#prompt") == "hi"
        page.click("#send")
        finished(page)
        assert page.locator(".answer").count() == 1
        assert not page.locator("#error").is_visible()
        context.close()


def test_the_model_is_named_once_without_a_mode(page):
    assert shown(page, "header").count("tiny") == 1
    assert "tiny:" not in shown(page, "body")


def test_thoughts_are_shown_apart_from_the_answer(browser):
    model = saying_model("<think>2 and 2</think>It is 4.", template=THINKING)
    with serving(model, defaults=GenerationOptions(mode="ar", max_tokens=200)) as (url, _):
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#model:not(:empty)")
        ask(page)
        assert "2 and 2" in page.locator(".thought").inner_text()
        assert shown(page) == "It is 4."
        body = sent_by(page, lambda: ask(page, "more"))
        assert body["messages"][1] == {"role": "assistant", "content": "It is 4."}
        page.close()


def test_calls_of_a_trace_are_shown(page, tmp_path):
    def call(**function):
        delta = {"tool_calls": [{"index": 0, "function": function}]}
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}

    chunks = [frame("Sure."), call(name="weather", arguments=""), call(arguments='{"city": "Rom"}')]
    opened(page, tmp_path / "run.jsonl", [*chunks, frame(finish="tool_calls")])
    assert shown(page) == "Sure."
    assert shown(page, ".calls") == '→ weather {"city": "Rom"}'


@pytest.mark.skipif(AXE is None, reason="needs axe-core: make browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_axe_finds_nothing(page, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 700})
    page.reload()
    page.wait_for_selector("#model:not(:empty)")
    page.evaluate("document.getElementById('max-tokens').value = 12")  # out of sight on a phone

    def violations():
        page.wait_for_timeout(700)  # what is new fades in
        page.evaluate(AXE.read_text())
        found = page.evaluate("axe.run()")["violations"]
        return [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found]

    assert violations() == []
    if width < 700:
        page.click("#settings-toggle")
        assert violations() == []
        page.click("#settings-toggle")
    ask(page)
    page.locator("summary").click()
    page.wait_for_selector(".pass")
    page.locator(".pass").nth(1).click()
    assert violations() == []
    page.fill("#prompt", "hi")
    page.click("#race")
    finished(page)
    assert violations() == []


def test_no_figure_of_a_race_is_cut(page):
    page.fill("#prompt", "hi")
    page.click("#race")
    finished(page)
    page.locator(".lane[data-mode=auto] .figures").evaluate(
        "node => { node.lastChild.lastChild.textContent = 'linear 29, quadratic 12, lookup 3'; }"
    )
    cut = page.locator(".lane .figures span:visible").evaluate_all(
        "all => all.filter((n) => n.scrollWidth > n.clientWidth + 1).map((n) => n.textContent)"
    )
    assert cut == []


def test_both_themes(page):
    def background():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = background()
    page.click("#theme")
    dark = background()
    assert light != dark
    page.click("#theme")
    assert background() == light
    page.emulate_media(color_scheme="dark")
    page.reload()
    assert background() == dark


def test_the_copied_commands_run(browser):
    defaults = GenerationOptions(mode="linear", temperature=0, max_tokens=24)
    with serving(tiny_model(), defaults=defaults, api_keys=("sesame",)) as (url, _):
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#error:not([hidden])")
        page.fill("#key", "sesame")
        page.keyboard.press("Tab")
        page.wait_for_selector("#model:not(:empty)")
        assert not page.locator("#error").is_visible()
        page.fill("#max-tokens", "24")
        ask(page, 'it\'s "hi"')
        answer = shown(page)
        page.click("#clear")
        page.fill("#prompt", 'it\'s "hi"')
        found = {}
        for name, command in (("curl", ["sh", "-c"]), ("python", [sys.executable, "-c"])):
            page.click(f"#copy-{name}")
            page.wait_for_selector(f"#copy-{name}:text('copied')")
            text = page.evaluate("navigator.clipboard.readText()")
            found[name] = subprocess.run(
                [*command, text],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "TRIMODE_API_KEY": "sesame"},
            ).stdout
        context.close()
    assert json.loads(found["curl"])["choices"][0]["message"]["content"] == answer
    assert found["python"] == f"{answer}\n"


# Pictures


@pytest.fixture(scope="module")
def seeing():
    """The address of a server whose model reads pictures."""
    defaults = GenerationOptions(mode="linear", temperature=0, max_tokens=24)
    with serving(tiny_vision_model(), defaults=defaults) as (address, _):
        yield address


@pytest.fixture
def gallery(page, seeing, tmp_path):
    """The page of that server, and two files."""
    page.goto(seeing)
    page.wait_for_selector("#pick:not([hidden])")
    page.fill("#max-tokens", "24")
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    for i, file in enumerate(files):
        picture(i, (48, 32)).save(file)
    return page, files


DROP = """([type, names]) => {
  const data = new DataTransfer();
  for (const [name, bytes] of names)
    data.items.add(new File([new Uint8Array(bytes)], name, { type: 'image/png' }));
  const init = { bubbles: true, cancelable: true };
  const event = type === 'paste'
    ? new ClipboardEvent('paste', { ...init, clipboardData: data })
    : new DragEvent(type, { ...init, dataTransfer: data });
  document.getElementById('prompt').dispatchEvent(event);
}"""


def hand_over(page, files, how):
    if how == "pick":
        page.set_input_files("#picture-file", files)
    else:
        page.evaluate(DROP, [how, [[file.name, list(file.read_bytes())] for file in files]])
    page.wait_for_selector("#pictures img")


@pytest.mark.parametrize("how", ["pick", "paste", "drop"])
def test_a_picture_goes_with_the_message_and_is_shown_with_it(gallery, how):
    page, files = gallery
    hand_over(page, files, how)
    assert page.locator("#pictures img").count() == 2
    page.locator("#pictures button").last.click()
    page.fill("#prompt", "What is it?")
    body = sent_by(page, lambda: page.keyboard.press("Enter"))
    finished(page)
    first, second = body["messages"][-1]["content"]
    assert first["image_url"]["url"].startswith("data:image/png;base64,")
    assert second == {"type": "text", "text": "What is it?"}
    shown_one = page.locator(".user img")
    assert (shown_one.count(), shown_one.get_attribute("alt")) == (1, "one.png")
    assert shown_one.evaluate("image => image.naturalWidth") == 48
    assert page.locator("#pictures").is_hidden()
    asked = {**body, "stream": False, "decoding": {"mode": "ar"}}
    asked.pop("stream_options")
    answer = page.request.post(f"{page.url.rstrip('/')}/v1/chat/completions", data=asked).json()
    assert shown(page) == answer["choices"][0]["message"]["content"]


def test_a_race_asks_every_mode_about_the_picture(gallery):
    page, files = gallery
    hand_over(page, files[:1], "pick")
    page.fill("#prompt", "What?")
    page.click("#race")
    finished(page)
    assert page.locator(".lane .badge.same").count() == 3
    assert page.locator(".user img").count() == 1


def test_a_picture_that_is_refused_comes_back_with_its_message(gallery, tmp_path):
    page, _ = gallery
    (tmp_path / "drawing.png").write_text("<svg/>")
    page.set_input_files("#picture-file", tmp_path / "drawing.png")
    page.wait_for_selector("#pictures img")
    ask(page, "What?")
    assert "an SVG drawing" in page.locator("#error").text_content()
    assert page.input_value("#prompt") == "What?"
    assert page.locator("#pictures img").count() == 1
    page.click("#clear")
    assert page.locator("#pictures").is_hidden()


def test_commands_read_the_picture_from_its_file(gallery, tmp_path):
    page, files = gallery
    hand_over(page, files[:1], "pick")
    page.fill("#prompt", 'What costs "$5"?')
    page.click("#copy-curl")
    page.wait_for_function("() => document.getElementById('copy-curl').textContent === 'copied'")
    command = page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    body = sent_by(page, lambda: page.press("#prompt", "Enter"))
    finished(page)
    assert answer["choices"][0]["message"]["content"] == shown(page)
    assert body["messages"][-1]["content"][1]["text"] == 'What costs "$5"?'


def test_a_text_model_offers_no_pictures(page, tmp_path):
    assert page.locator("#pick").is_hidden()
    picture(0).save(tmp_path / "a.png")
    page.evaluate(DROP, ["paste", [["a.png", list((tmp_path / "a.png").read_bytes())]]])
    page.wait_for_selector("#error:not([hidden])")
    assert "reads no pictures" in page.locator("#error").text_content()
