"""Pictures of the playground for the documents, taken from a running server in Chromium.

    trimode serve --port 8123 &
    python benchmarks/server/screenshots.py --url http://127.0.0.1:8123 --output docs/pictures

Needs playwright and chromium (`make browser` installs them).
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

PROMPT = "Write three short sentences about the sea."


def ask(page: Page, text: str, button: str = "#send") -> None:
    page.fill("#prompt", text)
    page.click(button)


def finished(page: Page) -> None:
    page.wait_for_selector("#send:not([hidden])", timeout=180_000)
    page.wait_for_timeout(600)


def opened(browser: Browser, url: str, **context: Any) -> Page:
    page = browser.new_context(**context).new_page()
    page.goto(url)
    page.wait_for_selector("#model:not(:empty)")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    wide = {"width": 1100, "height": 700}

    def save(page: Page, name: str) -> None:
        path = arguments.output / f"{name}.png"
        page.screenshot(path=path)
        Image.open(path).quantize(128).save(path, optimize=True)  # a third of the size

    with sync_playwright() as driver:
        path = shutil.which("chromium")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = opened(browser, arguments.url, viewport=wide)
        page.locator("[value=diffusion] + span").click()
        ask(page, PROMPT)
        finished(page)
        page.locator("summary").click()
        page.wait_for_selector(".pass")
        middle = page.locator(".pass").count() // 2
        page.locator(".pass").nth(middle).click()
        page.wait_for_timeout(700)
        save(page, "playground")

        night = opened(browser, arguments.url, viewport=wide, color_scheme="dark")
        night.locator("[value=linear] + span").click()
        ask(night, "Count from 1 to 40.")
        finished(night)
        night.locator("summary").click()
        night.wait_for_selector(".pass")
        save(night, "dark")

        dark = opened(browser, arguments.url, viewport=wide, color_scheme="dark")
        dark.fill("#max-tokens", "64")
        ask(dark, "Name five animals that live in the desert.", "#race")
        finished(dark)
        dark.locator(".race").evaluate("node => node.scrollIntoView()")
        save(dark, "race")

        phone = opened(browser, arguments.url, viewport={"width": 380, "height": 700})
        phone.click("#settings-toggle")
        phone.locator("[value=linear] + span").click()
        phone.click("#settings-toggle")
        ask(phone, PROMPT)
        finished(phone)
        save(phone, "phone")
        browser.close()


if __name__ == "__main__":
    main()
