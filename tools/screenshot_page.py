"""Take the pictures of the server's page in docs/images: at the widths of a phone, a tablet and a desk.

    python -m spirit_jax.serve --checkpoint runs/tiny/checkpoints/500 &
    python tools/screenshot_page.py http://127.0.0.1:8000

Needs the extra browser and Debian's chromium.
"""

import pathlib
import shutil
import sys

from playwright.sync_api import sync_playwright

IMAGES = pathlib.Path(__file__).parents[1] / "docs" / "images"
WIDTHS = {"phone": (390, 844), "tablet": (820, 1100), "desk": (1280, 900)}
TURNS = {
    "Speech": "The conductor stopped the steam engine near the tunnel, and then",
    "Text": "The young chef",
}
"""What the answer is, and the text that it continues, of each turn."""
ANSWERED = """number => document.querySelectorAll('.turn.model').length === number
    && document.querySelector('#stop').hidden && document.querySelector('#status').textContent.includes('tokens in')"""
"""Whether the page has this many answers and waits for the next turn."""


def main(url: str) -> None:
    """Ask for speech and then for text at each width, and keep a picture of the answers."""
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height) in WIDTHS.items():
            scheme = "dark" if name == "tablet" else "light"
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.set_default_timeout(300_000)
            page.goto(url)
            page.wait_for_function("!document.querySelector('#model').textContent.includes('…')")
            page.locator("#options summary").click()
            page.locator("#vary").uncheck()
            page.locator("#seed").fill("8")
            page.locator("#length").fill("120")
            page.locator("#options summary").click()
            for number, (kind, text) in enumerate(TURNS.items(), 1):
                page.locator(".choices label", has_text=kind).click()
                page.locator("#text").fill(text)
                page.locator("#send").click()
                page.wait_for_function(ANSWERED, arg=number)
            path = IMAGES / f"serve_{name}.png"
            page.screenshot(path=path)
            print(f"{path}: {width} x {height}")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
