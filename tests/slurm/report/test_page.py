"""The page in a real browser: it is quiet, asks for nothing, and its controls work."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slurm.report.collect import collect
from slurm.report.page import write_report
from slurm.report.serve import start_server
from tests.slurm.report.conftest import HOSTILE
from tests.tiny import BATCH

PATIENCE = 120.0
"""Seconds that a browser may take on a busy machine."""


def wait(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def show(chromium: Any, page: Path, scheme: str = "light", width: int = 1280) -> Any:
    """Open a report anew and wait until its charts are drawn."""
    for log in ("browser", "performance"):
        chromium.get_log(log)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    chromium.get((page / "index.html").as_uri())
    wait(lambda: chromium.execute_script("return document.body.dataset.ready"))
    return chromium


def requested(chromium: Any) -> list[str]:
    messages = [
        json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")
    ]
    sent = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [message["params"]["request"]["url"] for message in sent]


@pytest.fixture
def shown(chromium: Any, page: Path) -> Any:
    return show(chromium, page)


def run(shown: Any, script: str, *arguments: Any) -> Any:
    return shown.execute_script(script, *arguments)


def set_value(shown: Any, element: str, value: Any, event: str) -> None:
    run(
        shown,
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        " e.dispatchEvent(new Event(arguments[2], {bubbles: true}))",
        element, value, event,
    )  # fmt: skip


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_it_opens_from_a_file_and_asks_for_nothing(
    chromium: Any, page: Path, scheme: str, width: int
) -> None:
    shown = show(chromium, page, scheme, width)
    assert shown.get_log("browser") == [], "no errors or warnings on the console"
    asked = [url for url in requested(shown) if not url.startswith(("data:", "blob:"))]
    assert asked
    assert all(url.startswith(page.as_uri()) for url in asked)
    charts = run(shown, "return document.querySelectorAll('.chart .main-svg').length")
    count = run(shown, "return document.querySelectorAll('.chart').length")
    assert charts >= count > 15
    assert run(shown, "return document.documentElement.scrollWidth") <= width, "nothing sticks out"


def test_the_policy_of_the_page_forbids_requests_and_other_scripts(shown: Any) -> None:
    found = run(
        shown,
        "const s = document.createElement('script'); s.textContent = 'window.injected = 1';"
        "document.body.append(s);"
        "return fetch('https://example.org/').then(() => 'sent', () => window.injected || 'no')",
    )
    assert found == "no"


def test_names_from_files_stay_text(shown: Any) -> None:
    assert run(shown, "return document.title").endswith("relaywave report")
    name = HOSTILE.replace("/", "\N{DIVISION SLASH}")
    assert name in run(shown, "return document.getElementById('glance').textContent")
    legends = run(
        shown, "return [...document.querySelectorAll('.legendtext')].map(e => e.textContent)"
    )
    assert "</script><b>" in legends, "the term of the loss, whose name is a tag"
    assert run(shown, "return document.querySelectorAll('.chart script, main script').length") == 0


def visible_lines(shown: Any, key: str) -> list[str]:
    return run(
        shown,
        "return document.getElementById(arguments[0]).data.filter(t => t.visible).map(t => t.name)",
        f"chart-{key}",
    )


def test_runs_can_be_hidden_by_keyboard(shown: Any) -> None:
    from selenium.webdriver.common.by import By

    assert "tiny_edm" in visible_lines(shown, "denoiser_loss")
    boxes = shown.find_elements(By.NAME, "run")
    names = [box.find_element(By.XPATH, "..").text for box in boxes]
    number = names.index("tiny_edm")
    boxes[number].send_keys(" ")
    wait(lambda: "tiny_edm" not in visible_lines(shown, "denoiser_loss"))
    hidden = run(
        shown,
        f"return [...document.querySelectorAll('[data-run=\"{number}\"]')].every(e => e.hidden)",
    )
    assert hidden
    boxes[number].send_keys(" ")
    wait(lambda: "tiny_edm" in visible_lines(shown, "denoiser_loss"))


def test_the_slider_goes_through_training(shown: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    sources = (
        "return [...document.querySelectorAll('[data-grids] img')].map(e => e.src + ' ' + e.alt)"
    )
    last = run(shown, sources)
    assert len(last) == 2
    assert all(f"{6 * BATCH:012}.png 4 samples of tiny_" in text for text in last)
    slider = shown.find_element(By.ID, "place")
    slider.send_keys(Keys.HOME)
    assert all("000000000000.png" in text and "untrained" in text for text in run(shown, sources))
    assert run(shown, "return document.getElementById('place-shown').textContent") == "0 images"
    slider.send_keys(Keys.ARROW_RIGHT)
    assert all(f"{2 * BATCH:012}.png" in text for text in run(shown, sources))
    images = "return [...document.querySelectorAll('[data-grids] img')]"
    wait(lambda: run(shown, f"{images}.every(e => e.naturalWidth)"))


def test_one_seed_is_shown_over_training_for_all_runs(shown: Any) -> None:
    first = "return [...document.querySelectorAll('.tile')].map(e => e.style.backgroundPosition)"
    assert len(run(shown, first)) == 5 + 4, "at each snapshot of two runs"
    assert {*run(shown, first)} == {"0% 0%"}
    set_value(shown, "seed", 3, "input")
    assert {*run(shown, first)} == {"100% 100%"}
    labels = "return [...document.querySelectorAll('.tile')].map(e => e.ariaLabel)"
    assert "Place 3, tiny_edm, 48 images seen" in run(shown, labels)


def test_curves_can_be_seen_over_steps_and_hours_and_on_a_log_scale(shown: Any) -> None:
    state = (
        "const c = document.getElementById('chart-denoiser_loss');"
        "return [c.data[0].x, c.layout.xaxis.title.text, c.layout.yaxis.type]"
    )
    images, _, _ = run(shown, state)
    set_value(shown, "clock", "steps", "change")
    steps, _, _ = wait(lambda: (s := run(shown, state))[1] == "steps" and s)
    assert [image / BATCH for image in images] == steps
    set_value(shown, "clock", "hours", "change")
    hours, _, _ = wait(lambda: (s := run(shown, state))[1].startswith("hours") and s)
    assert hours == sorted(hours)
    assert 0 < hours[-1] < 1
    run(shown, "document.getElementById('log').click()")
    wait(lambda: run(shown, state)[2] == "log")


def test_settings_can_be_searched(shown: Any) -> None:
    rows = (
        "return [...document.querySelectorAll('#settings-table tbody tr')].filter(r => !r.hidden)"
        ".map(r => r.cells[0].textContent)"
    )
    everything = run(shown, rows)
    set_value(shown, "find-setting", "optim.", "input")
    some = run(shown, rows)
    assert 0 < len(some) < len(everything)
    assert all("optim." in name for name in some)


def test_a_page_that_is_served_follows_the_run_and_keeps_what_was_chosen(
    chromium: Any, trained: Path, tmp_path: Path
) -> None:
    write_report(collect([trained]), [trained], tmp_path / "out", follow=0.2)
    server = start_server(tmp_path / "out", 0)
    try:
        chromium.get(f"http://127.0.0.1:{server.server_port}/")
        wait(lambda: run(chromium, "return document.body.dataset.ready"))
        run(chromium, "document.querySelector('input[name=run]').click()")
        set_value(chromium, "clock", "steps", "change")
        made = run(chromium, "return JSON.parse(document.getElementById('page-data').text).made")
        write_report(collect([trained]), [trained], tmp_path / "out", follow=0.2)
        newer = f"return JSON.parse(document.getElementById('page-data').text).made > {made}"
        ready = f"{newer} && document.body.dataset.ready"
        wait(lambda: run(chromium, ready))
        assert run(chromium, "return document.getElementById('clock').value") == "steps"
        assert not run(chromium, "return document.querySelector('input[name=run]').checked")
    finally:
        chromium.get("about:blank")
        server.shutdown()
        server.server_close()


ACCESSIBLE = """
const problems = [], all = (s) => [...document.querySelectorAll(s)];
const say = (e, why) => problems.push(why + ': ' + e.outerHTML.slice(0, 120));
for (const e of all('img')) if (!e.alt) say(e, 'no alt');
for (const e of all('[role=img], [role=region]')) if (!e.ariaLabel) say(e, 'no label');
for (const e of all('input, select')) if (!e.labels.length) say(e, 'no label');
for (const e of all('a, summary')) if (!(e.textContent.trim() || e.ariaLabel)) say(e, 'no text');
for (const e of all('th')) if (!e.scope) say(e, 'no scope');
for (const e of all('[aria-labelledby]'))
  if (!document.getElementById(e.getAttribute('aria-labelledby'))) say(e, 'no heading');
const ids = all('[id]').map((e) => e.id).filter((id) => id);
const repeated = ids.filter((id, n) => ids.indexOf(id) !== n && !id.startsWith('clip') );
if (repeated.length) problems.push('repeated ids: ' + repeated);
for (const mark of ['main', 'header', 'nav[aria-label]', 'footer', 'h1', 'html[lang]', 'title'])
  if (all(mark).length !== 1) problems.push('not one ' + mark);
for (const e of all('nav a')) if (!document.querySelector(e.hash)) say(e, 'leads nowhere');
let before = 1;
for (const e of all('h1, h2, h3')) {
  const level = Number(e.tagName[1]);
  if (level > before + 1) say(e, 'a level is skipped');
  before = level;
}
const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const colour = rgb(getComputedStyle(e).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const contrast = (a, b) => {
  const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05);
};
for (const e of all('body *')) {
  const hasText = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!hasText || !e.checkVisibility()) continue;
  const svg = e.namespaceURI.endsWith('svg');
  const colour = rgb(svg ? getComputedStyle(e).fill : getComputedStyle(e).color);
  if (contrast(colour, behind(e)) < 4.5) say(e, 'contrast ' + contrast(colour, behind(e)));
}
for (const e of all('.chart')) for (const t of e.data) {
  const c = (t.line || t.marker).color, hex = [1, 3, 5].map((n) => parseInt(c.slice(n, n + 2), 16));
  if (contrast(hex, behind(e)) < 3) problems.push('line ' + c);
}
return problems;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(chromium: Any, page: Path, scheme: str) -> None:
    assert run(show(chromium, page, scheme), ACCESSIBLE) == []


def test_everything_is_reached_by_the_tab_key(shown: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(300):
        shown.switch_to.active_element.send_keys(Keys.TAB)
        place = "const e = document.activeElement; return e.id || e.name || e.hash || e.className"
        reached.append(run(shown, place))
        if "find-setting" in reached:
            break
    assert reached[0] == "#main", "first the link that skips the controls"
    assert {"run", "clock", "log", "#loss", "place", "seed", "find-setting"} <= {*reached}


def test_dark_charts_become_light_for_printing(chromium: Any, page: Path) -> None:
    shown = show(chromium, page, "dark")
    colour = "return document.getElementById('chart-denoiser_loss').data[0].line.color"
    dark = run(shown, colour)
    run(shown, "dispatchEvent(new Event('beforeprint'))")
    light = wait(lambda: (c := run(shown, colour)) != dark and c)
    run(shown, "dispatchEvent(new Event('afterprint'))")
    assert wait(lambda: run(shown, colour) == dark)
    assert light.startswith("#")


def test_links_lead_to_the_json_behind_each_picture(shown: Any, page: Path) -> None:
    links = run(shown, "return [...document.querySelectorAll('a.json')].map(e => e.href)")
    keys = run(shown, "return [...document.querySelectorAll('.chart')].map(e => e.id.slice(6))")
    for href in links:
        json.loads(Path(href.removeprefix("file://")).read_text())
    assert {f"{page.as_uri()}/assets/data/{key}.json" for key in keys} <= set(links)
