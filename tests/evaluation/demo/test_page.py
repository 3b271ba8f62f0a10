"""The page in a real browser: draws, shows states, and asks nothing of other machines."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlparse

import pytest

from models.snapshot import Snapshot
from tests.evaluation.demo.test_model import snapshot
from tests.paths import ROOT

PYTHON = ROOT / ".venv" / "demo" / "bin" / "python"
"""Of an environment that has gradio, which needs an older Pillow than other tests do."""
pytestmark = pytest.mark.skipif(
    not any(PYTHON.parent.parent.glob("ready-*")),
    reason="gradio is not installed (test.sh does it)",
)


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> list[Snapshot]:
    root = tmp_path_factory.mktemp("snapshots")
    edm = snapshot(root, "tiny_edm", "unet.resolution=4", "unet.attn_resolutions=[]")
    return [edm, snapshot(root, "tiny_relay"), snapshot(root, "tiny_wavediff")]


@pytest.fixture(scope="module")
def url(relay: list[Snapshot]) -> Iterator[str]:
    """Serve the relay, and WaveDiff beside it, by the command; return the page's address."""
    edm, second, wavediff = (str(stage.path) for stage in relay)
    command = [str(PYTHON), "-m", "relaywave", "demo", edm, second, "--beside", wavediff]
    with subprocess.Popen([*command, "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as process:  # fmt: skip
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if found := re.match(r"(http://127\.0\.0\.1:\d+/) until Ctrl-C", line):
                yield found[1]
                break
        process.terminate()
        assert lines[-1].startswith("http://127.0.0.1:"), "".join(lines)


def wait(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def count_pictures(chromium: Any, gallery: str) -> int:
    script = "return document.querySelectorAll(`#${arguments[0]} img`).length"
    return int(chromium.execute_script(script, gallery))


def requested(chromium: Any) -> set[str]:
    """Return the hosts that the browser has asked."""
    messages = [
        json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")
    ]
    sent = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
    addresses = [urlparse(message["params"]["request"]["url"]) for message in sent]
    return {a.hostname or "" for a in addresses if a.scheme in ("http", "https", "ws", "wss")}


@pytest.mark.slow
def test_the_page_draws_both_models_and_stays_on_this_machine(chromium: Any, url: str) -> None:
    for log in ("browser", "performance"):
        chromium.get_log(log)
    chromium.get(url)
    button = wait(lambda: chromium.find_elements("css selector", "#draw"))[0]
    chromium.find_element("css selector", "#states input").click()
    button.click()
    wait(lambda: count_pictures(chromium, "samples-0") >= 8)
    wait(lambda: count_pictures(chromium, "samples-1") >= 8)
    wait(lambda: count_pictures(chromium, "between-0") and count_pictures(chromium, "between-1"))
    text = chromium.find_element("css selector", "body").text
    assert "seed 7, class 3" in text, "the relay has classes"
    assert re.search(r"8 images in [\d.]+ s; evaluations of the network for each: 4px: ", text)
    assert "wavediff: 4" in text
    assert requested(chromium) <= {"127.0.0.1"}
    errors = [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors


@pytest.mark.slow
def test_settings_that_the_sampler_rejects_are_said(chromium: Any, url: str) -> None:
    chromium.get(url)
    wait(lambda: chromium.find_elements("css selector", "#draw"))
    script = """
        const input = document.querySelector(`[id="sampling.steps-1-0"] input[type=number]`);
        input.value = 1;
        for (const name of ["input", "change", "blur"])
            input.dispatchEvent(new Event(name, {bubbles: true}));
    """
    chromium.execute_script(script)
    chromium.find_element("css selector", "#draw").click()
    wait(lambda: "leave no level" in chromium.find_element("css selector", "body").text)


def test_a_port_that_is_taken_is_named(url: str, relay: list[Snapshot]) -> None:
    port = urlparse(url).port
    command = [str(PYTHON), "-m", "relaywave", "demo", str(relay[2].path), "--port", str(port)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"--port={port}: " in done.stderr
    assert done.stderr.count("\n") == 1
