"""The page in Chromium, through playwright. CHROMIUM names a Chromium that is not /usr/bin/chromium."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from demo.words import Say

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
WAIT = 60_000  # ms


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser."""
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


def expect(locator: Any) -> Any:
    """Return playwright's assertions on a locator, which wait until they hold."""
    from playwright.sync_api import expect  # pyright: ignore[reportMissingImports]

    expect.set_options(timeout=WAIT)
    return expect(locator)


class Visitor:
    """A user with a window of their own.

    Attributes:
        page: playwright's page.
        say: the texts of the page in its language.
        errors: errors in the console.
        elsewhere: requests to other machines.
    """

    def __init__(self, browser: Any, url: str, language: str = "en", size: str = "desktop"):
        width, height = SIZES[size]
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page, self.say = self.context.new_page(), Say(language)
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.page.set_default_timeout(WAIT)
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self.seen)
        self.url = url if language == "en" else f"{url}ar"
        self.page.goto(self.url)
        self.page.wait_for_selector(".draw-words textarea")

    def seen(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1", "data:", "blob:")):
            self.elsewhere.append(request.url)

    def find(self, selector: str) -> Any:
        return self.page.locator(selector)

    def send(self, box: str, words: str | None = None) -> None:
        """Fill a text field and press its button."""
        if words is not None:
            self.find(f"{box} textarea").fill(words)
        self.find(f"{box} button").click()

    def take_example(self, number: int = 0) -> None:
        self.find(".example-images img").nth(number).click()

    def leave(self) -> None:
        """Close the window. Fails if there were errors or requests to other machines."""
        self.context.close()
        assert not self.elsewhere, "requests to another machine"
        assert not self.errors
