"""The page in a real browser, against a real server with a tiny model. Run by `make browser`."""

import json
import shutil

import pytest

from tests.server.conftest import serving
from trimode.config import GenerationOptions
from trimode.testing import tiny_model

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
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
    context = browser.new_context(viewport={"width": 1100, "height": 720})
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


def shown(page, selector=".text"):
    return page.locator(selector).last.evaluate("node => node.textContent")


def test_an_answer_is_the_servers_and_nothing_stays_open(page):
    ask(page)
    assert shown(page) == expected(page)
    assert page.locator(".text .token").count() == 0
    assert "linear" in shown(page, ".figures")
    assert "TPF" in shown(page, ".figures")


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
    page.locator(".text .token").first.click()
    assert "position" in shown(page, ".history")


def test_an_error_is_shown_in_the_servers_words(page):
    page.fill("#max-tokens", "0")
    ask(page)
    assert "max_tokens" in page.locator("#error").inner_text()
    page.fill("#max-tokens", "24")
    ask(page)
    assert not page.locator("#error").is_visible()


def test_escape_stops(page):
    page.fill("#max-tokens", "400")
    page.fill("#prompt", "hi")
    page.keyboard.press("Enter")
    page.wait_for_selector(".text:not(:empty)")
    page.keyboard.press("Escape")
    finished(page)
    assert len(shown(page)) < 4000


def test_a_trace_is_opened_from_a_file(page, tmp_path):
    chunks = [
        {
            "choices": [{"index": 0, "delta": {}, "finish_reason": None}],
            "trimode": {
                "type": "draft",
                "start": 3,
                "nfe": 1,
                "mode": "linear",
                "tokens": [["The", 1.0, "kept"], [" sea", 0.4, "new"]],
            },
        },
        {
            "choices": [{"index": 0, "delta": {"content": "The sky"}, "finish_reason": "stop"}],
            "trimode": {"type": "commit", "start": 3, "length": 2, "drafted": 1, "accepted": 0},
        },
    ]
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(map(json.dumps, chunks)))
    page.set_input_files("#trace-file", path)
    assert shown(page) == "The sky"
    page.locator(".pass").first.click()
    assert shown(page) == "The sea"
    path.write_text("{")
    page.set_input_files("#trace-file", path)
    page.wait_for_selector("#error:not([hidden])")
    assert "line 1" in page.locator("#error").inner_text()


def test_it_fits_a_phone(page):
    page.set_viewport_size({"width": 360, "height": 640})
    ask(page, "a rather long question " * 12)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert not page.locator("#settings").is_visible()
    page.click("#settings-toggle")
    assert page.locator("#settings").is_visible()


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
    ask(page)
    assert page.evaluate("window.seen") == 0
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
