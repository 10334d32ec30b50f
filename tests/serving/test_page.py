"""The page in a real browser: Debian's Chromium, driven by Playwright. Skipped where either is missing."""

import re
import shutil
from collections.abc import Iterator

import numpy as np
import pytest

from spirit_jax.audio import save_audio
from tests.support.servers import Server

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")

# Counts the samples that reach the audio graph.
COUNT_PLAYED = """
window.playedSamples = 0;
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (...all) {
  window.playedSamples += this.buffer.length;
  return start.apply(this, all);
};
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator:
    """Chromium with a microphone that hears a tone."""
    spoken = tmp_path_factory.mktemp("microphone") / "tone.wav"
    save_audio(spoken, (0.3 * np.sin(np.arange(160_000) / 16)).astype(np.float32))
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-audio-capture={spoken}",
                "--autoplay-policy=no-user-gesture-required",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server: Server) -> Iterator:
    """The page, which must log no error."""
    context = browser.new_context(permissions=["microphone"])
    page = context.new_page()
    problems: list[str] = []
    refused = "Failed to load resource: the server responded with a status of 400"  # Chromium's word for any refusal
    page.on(
        "console",
        lambda message: (
            problems.append(message.text) if message.type == "error" and refused not in message.text else None
        ),
    )
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.add_init_script(COUNT_PLAYED)
    page.set_default_timeout(30_000)
    page.goto(server.url)
    page.get_by_text("small, base").wait_for()
    yield page
    context.close()
    assert not problems
    server.wait_until_idle()


def done(page) -> str:
    """Wait until the answer is complete, and return the status line."""
    page.wait_for_selector("#send:not([hidden])", state="visible")
    return page.inner_text("#status")


def options(page, output: str, **values: int | float) -> None:
    """Choose what the answer holds, and open the options and set some."""
    page.locator(f"input[name=output][value={output}]").check(force=True)
    if values and not page.locator("#options").evaluate("node => node.open"):
        page.click("#options summary")
    for name, value in values.items():
        page.locator(f"#{name}").fill(str(value))


def test_typed_text_is_continued_in_speech_that_plays(page):
    options(page, "speech", length=60, seed=1)
    page.locator("#vary").uncheck()
    page.fill("#text", "hello")
    page.keyboard.press("Enter")
    assert "tokens in" in done(page)
    assert "sound after" in page.inner_text("#status")
    speech = page.locator(".turn.model .speech")
    assert speech.count() == 1
    assert page.evaluate("playedSamples") > 10_000
    speech.locator("summary").click()
    assert re.fullmatch(r"(\[Hu\d+\])+", speech.locator("code").inner_text())
    drawn = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(x => x)"
    assert speech.locator("canvas.wave").evaluate(drawn)
    assert speech.locator("canvas.units").evaluate(drawn)
    # Any part can be played: by a click, and by the keyboard.
    before = page.evaluate("playedSamples")
    speech.locator(".track").click(position={"x": 40, "y": 10})
    assert page.evaluate("playedSamples") > before
    page.keyboard.press("End")
    page.keyboard.press("Escape")
    speech.get_by_role("button", name="Play", exact=True).wait_for()


def test_a_recording_is_continued_in_text_edited_and_kept_over_a_reload(page):
    options(page, "text", length=12)
    page.click("#record")
    page.wait_for_timeout(700)
    page.click("#record")
    page.wait_for_selector("#parts li")
    page.click("#send")
    assert "done" in done(page) or "length" in page.inner_text("#status")
    assert page.locator(".turn.you .speech code").evaluate("node => node.textContent").startswith("[Hu")
    page.get_by_role("button", name="Edit, turn 2").click()
    page.get_by_label("Text of this turn").fill("edited answer")
    page.get_by_role("button", name="Save, turn 2").click()
    page.reload()
    page.get_by_text("small, base").wait_for()
    assert page.locator(".turn.model p").inner_text() == "edited answer"
    page.get_by_role("button", name="Continue from here, turn 2").click()
    done(page)
    assert page.locator(".turn").count() == 3


def test_an_answer_can_be_stopped(page, server):
    """The request is cancelled in the engine too."""
    cancelled = server.service.metrics.requests
    before = cancelled._values.get(("cancelled",), 0)
    options(page, "speech", length=120)
    page.evaluate("fetch('/health')")
    page.fill("#text", "hello")
    page.click("#send")
    page.keyboard.press("Escape")
    done(page)
    server.wait_until_idle()
    assert page.inner_text("#status") == "stopped" or "tokens" in page.inner_text("#status")
    if page.inner_text("#status") == "stopped":
        assert cancelled._values.get(("cancelled",), 0) == before + 1


def test_errors_of_the_server_are_shown(page):
    options(page, "text", length=128)
    page.fill("#text", "a " * 600)
    page.click("#send")
    done(page)
    assert "does not fit" in page.inner_text("#status") or "context" in page.inner_text("#status")


def test_the_api_page_lists_the_paths(page, server):
    page.goto(server.url + "/api")
    page.get_by_role("heading", name="POST /v1/generate").wait_for()
    assert page.locator("table").count() > 3


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_fault(page, theme):
    """Before anything is said, and with an answer in text and speech and the options open."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=theme)

    def serious() -> list[str]:
        found = axe.run(page).response["violations"]
        return [f"{fault['id']}: {fault['nodes'][0]['html']}" for fault in found if fault["impact"] != "minor"]

    assert not serious()
    options(page, "any", length=40, temperature=1.0, seed=3)
    page.fill("#text", "hello")
    page.click("#send")
    done(page)
    assert not serious()
