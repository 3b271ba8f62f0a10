"""The page of `relaywave demo`: controls, samples and states of one model or of two."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from evaluation.demo.model import BY_SEED, DemoModel, Drawing
from models.command_line import say

HOST, PORT = "127.0.0.1", 7860
LEAST_EDGE = 128
"""Smaller images are enlarged by a whole factor, so that people see their pixels."""
MOST_IMAGES = 32
LARGEST_SEED = 2**32 - 1
BY_SEED_NAME = "by seed"
FONTS = ["system-ui", "sans-serif"]
"""Fonts of the machine: the page asks nothing of others."""


def serve(models: Sequence[DemoModel], host: str, port: int) -> None:
    """Serve the page until Ctrl-C.

    Args:
        models: One model, or two to compare.
        host: Address to listen on; 127.0.0.1 is for this machine alone.
        port: The port; 0 takes a free one.

    Raises:
        ValueError: The address or port cannot be listened on.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import gradio

    page = build_page(models)
    theme = gradio.themes.Default(font=FONTS, font_mono=["monospace"])
    try:
        _, url, _ = page.launch(
            server_name=host, server_port=port or _free_port(host), share=False, quiet=True,
            prevent_thread_lock=True, show_error=True, ssr_mode=False, footer_links=[],
            run_history=False, enable_monitoring=False, theme=theme,
        )  # fmt: skip
    except (OSError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"--host={host} --port={port}: {reason}; choose another port, or 0 for a free one"
        ) from None
    if host != HOST:
        say(f"whoever reaches {host} can draw samples; the default is {HOST}", "warning")
    print(f"{url} until Ctrl-C", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)


def build_page(models: Sequence[DemoModel]) -> Any:
    """Return the page as gradio's Blocks."""
    import gradio

    with gradio.Blocks(title="relaywave demo", analytics_enabled=False) as page:
        with gradio.Row():
            seed = gradio.Number(0, label="first seed", precision=0, minimum=0,
                                 maximum=LARGEST_SEED, elem_id="seed")  # fmt: skip
            count = gradio.Slider(1, MOST_IMAGES, 8, step=1, label="images", elem_id="count")
            states = gradio.Checkbox(False, label="states between", elem_id="states")
            button = gradio.Button("Draw", variant="primary", elem_id="draw")
        with gradio.Row():
            for number, model in enumerate(models):
                with gradio.Column():
                    _add_model(model, number, [seed, count, states], button)
    return page


def _add_model(model: DemoModel, number: int, shared: list[Any], button: Any) -> None:
    """Add a model's own controls and pictures, and have the button draw them."""
    import gradio

    gradio.Markdown(f"### {model.title}")
    names = [(BY_SEED_NAME, BY_SEED), *((name, label) for label, name in model.classes.items())]
    label = gradio.Dropdown(names, value=BY_SEED, label="class", visible=bool(model.classes),
                            elem_id=f"class-{number}")  # fmt: skip
    sliders = [
        gradio.Slider(control.least, control.most, control.value, step=control.step,
                      label=control.label, elem_id=f"{control.key}-{control.stage}-{number}")
        for control in model.controls
    ]  # fmt: skip
    samples = gradio.Gallery(label="samples", columns=4, format="png", object_fit="contain",
                             height=None, elem_id=f"samples-{number}")  # fmt: skip
    between = gradio.Gallery(label="states of the first image: given, and predicted", columns=6,
                             format="png", object_fit="contain", height=None, visible=False,
                             elem_id=f"between-{number}")  # fmt: skip
    said = gradio.Markdown(elem_id=f"said-{number}")

    def draw(seed: float, count: float, states: bool, label: int, *values: float) -> Any:
        try:
            if seed is None or not 0 <= seed <= LARGEST_SEED:
                raise ValueError(f"the first seed must be a whole number from 0 to {LARGEST_SEED}")
            seeds = [int(seed) + n for n in range(int(count))]
            drawing = model.draw(seeds, label, values, states=states)
        except (ValueError, TypeError, RuntimeError) as error:
            raise gradio.Error(str(error).partition("\n")[0]) from None
        captions = _captions(seeds, drawing, model)
        pictures = list(zip(map(picture, drawing.images), captions, strict=True))
        steps = [(picture(state), name) for state, name in drawing.states]
        return pictures, gradio.Gallery(steps, visible=bool(steps)), describe(drawing)

    button.click(draw, [*shared, label, *sliders], [samples, between, said],
                 concurrency_limit=1, concurrency_id="device")  # fmt: skip


def picture(image: Tensor) -> Image.Image:
    """Return uint8 [3, H, W] as a picture, small ones enlarged."""
    found = Image.fromarray(image.permute(1, 2, 0).numpy())
    factor = -(-LEAST_EDGE // found.width)
    return found.resize((found.width * factor, found.height * factor), Image.Resampling.NEAREST)


def describe(drawing: Drawing) -> str:
    """Return what a drawing has cost, as a line."""
    stages = ", ".join(f"{stage}: {count}" for stage, count in drawing.nfe.items())
    count = len(drawing.images)
    return (
        f"{count} image{'s' if count > 1 else ''} in {drawing.seconds:.1f} s; evaluations of the"
        f" network for each: {stages}"
    )


def _captions(seeds: Sequence[int], drawing: Drawing, model: DemoModel) -> list[str]:
    if drawing.labels is None:
        return [f"seed {seed}" for seed in seeds]
    names = [model.classes[label] for label in drawing.labels]
    return [f"seed {seed}, {name}" for seed, name in zip(seeds, names, strict=True)]


def _free_port(host: str) -> int:
    import socket

    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
