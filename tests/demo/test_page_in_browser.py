"""The whole way of a visitor in Chromium: the command `theworld demo nano`, its page light and dark, wide and narrow.

Screenshots are written into the folder that THEWORLD_SCREENSHOTS names; CI keeps them.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from tests import commands
from theworld.demo.scenes import scenes
from theworld.media.export import save_rollout

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LONGEST = 120_000  # ms until something is on the page, where every core is busy
# The command, and a file with every connection of its process to another machine, and every name that it looks up.
WATCHED = """
import sys
log = open(sys.argv.pop(1), "a", buffering=1)
def watch(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple) and not arguments[1][0].startswith("127."):
        print(event, arguments[1], file=log)
    if event == "socket.getaddrinfo" and str(arguments[0]) not in ("127.0.0.1", "localhost", "None"):
        print(event, arguments[:2], file=log)
sys.addaudithook(watch)
from theworld.cli import main
main()
"""

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium), so no page can be opened."
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    chosen = Path(os.environ.get("THEWORLD_SCREENSHOTS", tmp_path / "screenshots"))
    chosen.mkdir(parents=True, exist_ok=True)
    return chosen


@pytest.fixture
def connections(tmp_path: Path) -> Path:
    return tmp_path / "connections.txt"


@pytest.fixture
def url(tmp_path: Path, connections: Path) -> Iterator[str]:
    """The address of the page of nano, which ends well at SIGTERM."""
    said = tmp_path / "stderr.txt"
    options = ("--port", "0", "--futures", "2", "--dtype", "float32", "--device", "cpu")
    with said.open("wb") as stderr:
        command = commands.Command("-c", WATCHED, connections, "demo", "nano", *options, stderr=stderr.fileno())
    end = time.monotonic() + LONGEST / 1000
    while "answers at" not in said.read_text():
        assert command.running(), said.read_text()
        assert time.monotonic() < end, said.read_text()
        time.sleep(0.05)
    yield said.read_text().partition("answers at ")[2].split()[0]
    os.kill(command.pid, signal.SIGTERM)
    assert command.wait() == 0
    assert "Traceback" not in said.read_text(), said.read_text()


@pytest.fixture
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visitor:
    """A visitor with a browser window.

    Attributes:
        elsewhere: addresses of other hosts that the page asked for.
        complaints: errors of its scripts.
    """

    def __init__(self, browser: Browser, url: str, width: int, scheme: Any) -> None:
        size: Any = {"width": width, "height": 900}
        self.context: BrowserContext = browser.new_context(viewport=size, color_scheme=scheme)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(LONGEST)
        self.elsewhere: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.note(request.url, url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        self.page.goto(url)
        self.button("Ask").wait_for()

    def note(self, address: str, url: str) -> None:
        if not address.startswith((url, "data:", "blob:")):
            self.elsewhere.append(address)

    def button(self, name: str, exact: bool = True) -> Locator:
        return self.page.get_by_role("button", name=name, exact=exact)

    def choose(self, number: int) -> None:
        """An example, until the page shows it."""
        scene = scenes()[number]
        self.button(scene.name, exact=False).click()
        expect(self.page.get_by_label("Question", exact=True)).to_have_value(scene.questions[0].text, timeout=LONGEST)
        self.page.get_by_alt_text("What the model sees").wait_for()

    def ask(self) -> None:
        self.button("Ask").click()

    def answers(self) -> tuple[str, str]:
        """Both answers, after the clips are there."""
        self.page.locator("#results video").first.wait_for()
        without, imagined = self.page.locator("#without .tw-answer"), self.page.locator("#with .tw-answer")
        return without.inner_text(), imagined.inner_text()

    def press_until(self, name: str) -> None:
        """Presses the tabulator until the focus is on the button with this name."""
        for _ in range(60):
            self.page.keyboard.press("Tab")
            if name in str(self.page.evaluate("document.activeElement.textContent")):
                return
        raise AssertionError(f"The tabulator never reaches {name!r}.")

    def shoot(self, folder: Path, name: str) -> None:
        wide = self.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= self.page.viewport_size["width"], f"{name}: the page is {wide} pixels wide"  # type: ignore[index]
        self.page.screenshot(path=folder / f"{name}.png", full_page=True)

    def nameless(self) -> list[str]:
        """Controls, clips and images that a screen reader could only call by their kind; not Gradio's icons, in SVG."""
        tree = self.context.new_cdp_session(self.page).send("Accessibility.getFullAXTree")["nodes"]
        kinds = ("button", "textbox", "slider", "spinbutton", "radio", "checkbox", "link", "Video")
        images = self.page.locator("img:not([alt]), img[alt='']").all()
        return [str(image.get_attribute("src")) for image in images] + [
            str(node["role"]["value"])
            for node in tree
            if not node["ignored"]
            and node["role"]["value"] in kinds
            and not node.get("name", {}).get("value", "").strip()
        ]


def test_what_visitors_do(url: str, browser: Browser, folder: Path, connections: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    wide = Visitor(browser, url, 1400, "light")
    wide.shoot(folder, "start-light-1400")
    an_example_by_keyboard(wide)
    seconds = time.monotonic() - started
    wide.shoot(folder, "answer-light-1400")
    another_question_with_other_futures(wide)
    narrow = Visitor(browser, url, 400, "dark")
    files_of_their_own(narrow, folder, tmp_path)
    two_at_once(wide, narrow)
    narrow.shoot(folder, "answer-dark-400")
    further = {
        (scheme, width): Visitor(browser, url, width, scheme) for scheme, width in (("dark", 1400), ("light", 400))
    }
    for (scheme, width), visitor in further.items():
        visitor.choose(0)
        visitor.shoot(folder, f"example-{scheme}-{width}")
        is_dark = visitor.page.evaluate("document.body.classList.contains('dark')")
        assert is_dark == (scheme == "dark")
    for visitor in (wide, narrow, *further.values()):
        assert visitor.elsewhere == []
        assert visitor.complaints == []
        assert visitor.nameless() == []
    assert connections.read_text() == ""
    print(f"The first answer of a visitor was there after {seconds:.1f} s.")


def an_example_by_keyboard(visitor: Visitor) -> None:
    page, scene = visitor.page, scenes()[0]
    visitor.press_until(scene.name)
    page.keyboard.press("Enter")
    page.get_by_alt_text("What the model sees").wait_for()
    expect(page.get_by_label("Question", exact=True)).to_have_value(scene.questions[0].text)
    visitor.press_until("Ask")
    page.keyboard.press("Enter")
    assert visitor.answers() == ("standing", "green")  # as the README says
    expect(page.get_by_role("status").first).to_contain_text("With imagining: green")
    rows = page.locator("#with .tw-bars tr")
    shares = [float(text.split()[0]) for text in rows.locator(".tw-number").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert rows.nth(shares.index(max(shares))).locator("th").inner_text() == "green"
    assert page.locator("#results video").count() == 2
    assert page.locator("#truth video").count() == 0, "the true future is behind a button"
    visitor.button("Show what really happens").click()
    page.locator("#truth video").wait_for()
    expect(page.locator("#truth .tw-true")).to_have_text(scene.questions[0].answer)
    clip = page.locator("#results video").first
    clip.scroll_into_view_if_needed()
    page.wait_for_function("clip => clip.currentTime > 0 && !clip.paused", arg=clip.element_handle())
    page.locator("#results").get_by_role("button", name="Pause").click()
    page.wait_for_function("clip => clip.paused", arg=clip.element_handle())


def another_question_with_other_futures(visitor: Visitor) -> None:
    page, second = visitor.page, scenes()[0].questions[1]
    page.get_by_role("radio", name=second.text).check()
    expect(page.get_by_label("Question", exact=True)).to_have_value(second.text)
    expect(page.locator("#truth video")).to_have_count(0)
    page.get_by_label("Possible answers").fill("")
    for name, key in (("World steps", "ArrowLeft"), ("Futures", "ArrowRight"), ("Seed", "ArrowRight")):
        page.get_by_role("slider", name=name).focus()
        page.keyboard.press(key)
    visitor.ask()
    expect(page.locator("#with h2")).to_have_text("With 3 imagined futures", timeout=LONGEST)
    expect(page.locator("#results video")).to_have_count(3, timeout=LONGEST)
    assert "3 world steps, 0.75 s ahead" in page.locator("#results").inner_text()
    assert "Future 1, seed 1" in page.locator("#results").inner_text()
    assert "of 3" in page.locator("#with .tw-bars").inner_text(), "without options, answers are counted"


def files_of_their_own(visitor: Visitor, folder: Path, tmp_path: Path) -> None:
    page = visitor.page
    visitor.ask()
    expect(page.locator("#results").get_by_role("alert")).to_contain_text("There is no question yet", timeout=LONGEST)
    visitor.shoot(folder, "error-dark-400")
    page.get_by_label("Question", exact=True).fill("What happens next?")
    image, clip, text = tmp_path / "mine.png", tmp_path / "clip.gif", tmp_path / "not-an-image.png"
    Image.new("RGB", (80, 60), "green").save(image)
    save_rollout(scenes()[0].frames, clip, 16)
    text.write_text("no image")
    box = page.locator("#file input[type=file]")
    box.set_input_files(text)
    expect(page.locator("#seen")).to_contain_text("is neither an image nor a video that can be read", timeout=LONGEST)
    for file, seen in ((image, "Image, 80 × 60 pixels"), (clip, "it sees the last of the 25 frames")):
        page.locator("#file").get_by_role("button", name="Clear").click()
        box.set_input_files(file)
        expect(page.locator("#seen")).to_contain_text(seen, timeout=LONGEST)
    assert not visitor.button("Show what really happens").is_visible()


def two_at_once(one: Visitor, other: Visitor) -> None:
    """Each gets the answers to its own question about its own image."""
    one.choose(0)
    other.choose(2)
    one.ask()
    other.ask()
    assert one.answers() == ("standing", "green")
    assert other.answers() == ("no", "yes")
    for visitor, number in ((one, 0), (other, 2)):
        words = visitor.page.locator("#with .tw-bars th").all_inner_texts()
        assert words == list(scenes()[number].questions[0].options)
