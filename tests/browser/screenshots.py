"""Make the screenshots for docs/page.md: `make screenshots`.

    PYTHONPATH=tests/helpers python -m tests.browser.screenshots docs

They show the page with the embedded model: four images of a prompt, an edit of the first, and two questions about it.
The seed is fixed, so that they change only with the page or the model.
"""

import sys
from pathlib import Path

from chromium import Visitor, chromium, expect
from cm3 import CM3
from demo.app import serve
from demo.page import build

PROMPT, INSTRUCTION = "a yellow taxi", "make the background blue"
QUESTIONS = ("What is this?", "What colour is it?")


def make_screenshots(url: str, out: Path) -> None:
    """Use the page in Chromium, and write page-draw.png, page-edit.png and page-ask.png to a folder."""
    with chromium() as browser:
        visitor = Visitor(browser, url)

        def screenshot(name: str) -> None:
            visitor.page.mouse.move(0, 0)
            visitor.page.evaluate("window.scrollTo(0, 0)")
            visitor.page.screenshot(path=out / f"page-{name}.png", animations="disabled")

        visitor.page.get_by_label(visitor.say("dice")).first.uncheck()
        visitor.send(".draw-words", PROMPT)
        expect(visitor.find(".drawings img")).to_have_count(4)
        screenshot("draw")

        visitor.find(".drawings img").first.click()
        visitor.find(".use-edit").click()
        visitor.send(".edit-words", INSTRUCTION)
        done = visitor.say("done", seconds=0, seed=0).split("0")[0].strip()
        expect(visitor.find(".status:visible").first).to_contain_text(done)
        screenshot("edit")

        visitor.find(".use-ask").click()
        for turn, question in enumerate(QUESTIONS, 1):
            visitor.send(".ask-words", question)
            expect(visitor.find(".chat .bot")).to_have_count(turn)
        screenshot("ask")
        visitor.leave()


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    page = build(CM3.from_pretrained("emoji"))
    _, url, _ = serve(page, prevent_thread_lock=True, quiet=True)
    try:
        make_screenshots(url, out)
    finally:
        page.close()


if __name__ == "__main__":
    main()
