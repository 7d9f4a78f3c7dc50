"""The pages in a real Chromium: without script, on a phone, by keyboard, full of hostile text."""

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from conftest import NO_CHROMIUM
from served import GONE, WAYS, Shelf, attempt, serving
from staging_fsm.core.snapshot import dump_snapshot
from staging_fsm.core.spec import State
from staging_fsm.faces.web import create_app

HOSTILE: Final = "<script>document.title='owned'</script>"
BREAKING: Final = "\"><img src=x onerror=document.title='owned'>"
OUTPUT: Final = "</samp></pre></details><script>document.title='owned'</script>{{ 7 * 7 }}"
#: One state that runs, one that waits and one that is terminal: each draws its page otherwise.
DRAWN: Final = (State.RUNNING, State.DEFERRED, State.FAILED_CLOSED)
PHONE: Final = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return the system's Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip(NO_CHROMIUM)
    # Chromium refuses to put root into its sandbox; what it shows here is our own.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@attrs.define
class Desk:
    """A server over jobs, and the paths of its pages."""

    shelf: Shelf
    address: str
    paths: list[str]
    jobs: dict[State, int]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Return a server over one job in each state, some of them with hostile names and output."""
    shelf, now = Shelf.at(tmp_path_factory.mktemp("desk")), datetime.now(UTC)
    jobs = {state: shelf.put(attempt(state, now=now)) for state in WAYS}
    running = attrs.evolve(attempt(State.RUNNING, now=now), attempt_id="hostile")
    moves = tuple(attrs.evolve(move, reason=HOSTILE) for move in running.history)
    shelf.log(running, OUTPUT)
    hostile = shelf.put(attrs.evolve(running, history=moves), work_item=HOSTILE, repo=BREAKING)
    shelf.put(attempt(State.RUNNING, worker=GONE, now=now))
    shelf.put("17")
    paths = ["/", "/repositories/shop", f"/attempts/{hostile}", "/attempts/0"]
    paths += [f"/attempts/{jobs[state]}" for state in DRAWN]
    with serving(create_app(shelf.source())) as port:
        yield Desk(shelf, f"http://127.0.0.1:{port}", paths, jobs)
    shelf.store.engine.dispose()


@pytest.fixture
def seen() -> list[str]:
    """Return where everything is kept that a browser complains of."""
    return []


def open_page(browser: Browser, seen: list[str], **settings: Any) -> Page:
    """Return a page that keeps what the browser complains of in `seen`."""

    def complain(message: ConsoleMessage) -> None:
        # That a job does not exist is what one of the paths is for.
        if message.type in ("error", "warning") and "404" not in message.text:
            seen.append(message.text)

    page = browser.new_context(**settings).new_page()
    page.on("console", complain)
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("dialog", lambda dialog: seen.append(dialog.message))
    return page


def test_hostile_text_is_text(browser: Browser, desk: Desk, seen: list[str]) -> None:
    """What a row or a suite says is shown as it is written, and runs, loads and breaks nothing."""
    page = open_page(browser, seen)
    for path in desk.paths:
        page.goto(desk.address + path)

        assert page.evaluate("document.querySelectorAll('script, img, iframe').length") == 1
        assert "owned" not in page.title().replace(HOSTILE, "")
    page.goto(desk.address)
    page.get_by_role("link", name=HOSTILE).last.click()

    assert page.get_by_role("heading", level=1).inner_text() == HOSTILE
    assert page.locator("pre").inner_text() == OUTPUT
    page.get_by_role("link", name=BREAKING).click()
    assert page.get_by_role("heading", level=1).inner_text() == BREAKING
    assert seen == []
    page.context.close()


def test_page_says_all_without_script(browser: Browser, desk: Desk, seen: list[str]) -> None:
    """With JavaScript off every page stands complete, and says that it is reloaded by hand."""
    without = open_page(browser, seen, java_script_enabled=False)
    with_script = open_page(browser, seen)
    for path in desk.paths:
        texts = []
        for page in (without, with_script):
            page.goto(desk.address + path)
            texts.append(page.locator("h1, h2, h3, th, dt").all_inner_texts())

        assert texts[0] == texts[1]
        assert "Reload to update." in without.locator("header").inner_text()
        assert not without.get_by_role("button").is_visible()
    assert seen == []
    without.context.close()
    with_script.context.close()


def test_pages_fit_a_phone(browser: Browser, desk: Desk, seen: list[str]) -> None:
    """At the width of a phone no page is wider than its screen."""
    page = open_page(browser, seen, viewport=PHONE)
    for path in desk.paths:
        page.goto(desk.address + path)

        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"], path
    page.context.close()


#: The contrast of every text with what lies behind it (WCAG 2.2, 1.4.3), as far as it is too low.
LOW_CONTRAST: Final = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((part) => part / 255);
  };
  const light = ([r, g, b]) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [x, y, z] = [r, g, b].map(linear);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0.99) return colour;
    }
    return rgba("white");
  };
  const low = [];
  for (const element of document.querySelectorAll("body *:not(svg *, script)")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${element.outerHTML.slice(0, 80)}`);
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser: Browser, desk: Desk, seen: list[str], scheme: str) -> None:
    """In the light and in the dark every text has a contrast of at least 4.5 to 1."""
    page = open_page(browser, seen, color_scheme=scheme)
    for path in desk.paths:
        page.goto(desk.address + path)

        assert page.evaluate(LOW_CONTRAST) == []
    page.context.close()


#: What a screen reader would miss, a sentence each.
UNREADABLE: Final = """() => {
  const all = (what) => [...document.querySelectorAll(what)];
  const named = (element) => element.getAttribute("aria-label")
    || all(`#${CSS.escape(element.getAttribute("aria-labelledby") || "none")}`).length;
  const found = [];
  for (const what of ["header", "nav", "main", "h1"])
    if (all(what).length !== 1) found.push(`${all(what).length} of ${what}`);
  let level = 0;
  for (const heading of all("h1, h2, h3")) {
    const now = Number(heading.tagName[1]);
    if (now > level + 1) found.push(`${heading.tagName} after H${level}: ${heading.innerText}`);
    level = now;
  }
  for (const part of all("nav, section, article, progress, [role=group]"))
    if (!named(part)) found.push(`no name: ${part.outerHTML.slice(0, 80)}`);
  const landmarks = all("section, nav").map((part) => part.getAttribute("aria-labelledby")
    || part.getAttribute("aria-label"));
  for (const name of landmarks)
    if (landmarks.indexOf(name) !== landmarks.lastIndexOf(name)) found.push(`twice: ${name}`);
  for (const picture of all("svg"))
    if (!named(picture) && !picture.querySelector("title"))
      found.push(`no words for: ${picture.outerHTML.slice(0, 80)}`);
  for (const cell of all("th")) if (!cell.scope) found.push(`no scope: ${cell.innerText}`);
  for (const part of all(".scroll, pre"))
    if (part.scrollWidth > part.clientWidth && part.tabIndex !== 0)
      found.push(`not to be scrolled by keyboard: ${part.outerHTML.slice(0, 80)}`);
  const ids = all("[id]").map((part) => part.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push(`twice: ${id}`);
  for (const link of all("a")) if (!link.innerText.trim()) found.push(`empty: ${link.outerHTML}`);
  if (!document.documentElement.lang) found.push("no language");
  return found;
}"""


def test_pages_are_read_aloud(browser: Browser, desk: Desk, seen: list[str]) -> None:
    """Each page has its landmarks, headings in order, and a name for whatever needs one."""
    page = open_page(browser, seen, viewport=PHONE)
    for path in desk.paths:
        page.goto(desk.address + path)

        assert page.evaluate(UNREADABLE) == []
    page.context.close()


def test_keyboard_reaches_the_content_first(browser: Browser, desk: Desk, seen: list[str]) -> None:
    """The first key of Tab leads to the skip link, which shows itself and leads to the content."""
    page = open_page(browser, seen)
    page.goto(desk.address)
    hidden = page.locator(".skip").bounding_box()
    page.keyboard.press("Tab")
    shown = page.locator(".skip").bounding_box()
    page.keyboard.press("Enter")

    assert hidden is not None
    assert shown is not None
    assert hidden["y"] < 0 <= shown["y"]
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.locator("nav [aria-current=page]").inner_text() == "Queue"
    page.context.close()


@pytest.mark.parametrize("state", DRAWN)
def test_diagram_shows_the_way_of_the_attempt(
    browser: Browser, desk: Desk, seen: list[str], state: State
) -> None:
    """One attempt stands on the table's diagram, its way lit and the state it is in marked."""
    page = open_page(browser, seen)
    page.goto(f"{desk.address}/attempts/{desk.jobs[state]}")
    lit = page.locator("svg .edge.lit .mark").all_text_contents()

    assert page.locator("svg .state.current text").first.text_content() == state
    assert sorted(lit) == sorted(f"#{n}" for n in range(1, len(WAYS[state]) + 1))
    assert page.locator(".timeline [aria-current] strong").inner_text() == state
    assert page.locator(".verdict .badge").inner_text().endswith(state)
    assert seen == []
    page.context.close()


def test_page_updates_itself(browser: Browser, tmp_path: Path, seen: list[str]) -> None:
    """A move is seen without a reload; focus and what is open stay; and it can be paused."""
    shelf = Shelf.at(tmp_path)
    running = attempt(State.EXHAUSTED, now=datetime.now(UTC))
    shelf.log(running, "some output\n")
    job = shelf.put(running)
    with serving(create_app(shelf.source())) as port:
        page = open_page(browser, seen)
        page.goto(f"http://127.0.0.1:{port}/attempts/{job}")
        page.evaluate("window.unreloaded = true")
        page.locator("summary").first.click()
        page.locator("summary").first.focus()
        # A listener that is not connected yet hears of no move. Looked for by a selector: the
        # page's own policy forbids a text to be run again and again until it is true.
        page.locator("body[data-listening='yes']").wait_for(state="attached")
        ended = attempt(State.FAILED_CLOSED, now=datetime.now(UTC))
        shelf.set(job, dump_snapshot(ended), "done")
        page.locator(".verdict .badge", has_text="FAILED_CLOSED").wait_for()

        assert page.evaluate("window.unreloaded")
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
        assert page.locator("details").first.get_attribute("open") is None
        assert "FAILED_CLOSED" in page.get_by_role("status").inner_text()
        live = page.get_by_role("button", name="Live")
        live.click()
        assert live.get_attribute("aria-pressed") == "false"
        assert "Paused." in page.locator("header").inner_text()
        page.context.close()
    shelf.store.engine.dispose()
    assert seen == []
