"""Published values: the row that fits, each deviation from its circumstances, what compares."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from evaluation import __main__ as cli
from evaluation.circumstances import PUBLISHED_WEIGHTS, circumstances
from evaluation.detectors.inception import FidInception
from evaluation.image_sets.seeds import format_seeds
from evaluation.metrics.registry import MetricRequest
from evaluation.protocols import PROTOCOLS, Protocol, find_protocol, record_protocol
from evaluation.results.plots import published_values
from evaluation.results.result_file import read_result
from evaluation.results.table import comparability, format_table
from models.config_io import to_json
from models.families import AnyObjective
from models.rdm import presets as rdm
from models.rdm.config import EdmConfig, RelayConfig
from models.rdm.edm_sampler import EdmSampling
from models.rdm.unet import UNetConfig
from models.snapshot import write_snapshot
from models.wavediff import presets as wavediff


def relay(protocol: str, **sampling: Any) -> list[AnyObjective]:
    """Return the two stages of RDM's published model of a protocol."""
    is_imagenet = protocol == "rdm_imagenet256"
    small = UNetConfig(
        resolution=64, model_channels=8, channel_mult=(1,), num_blocks=1,
        label_dim=1000 if is_imagenet else 0,
    )  # fmt: skip
    if is_imagenet:
        small = dataclasses.replace(small, compute_dtype="float16")
    large = dataclasses.replace(small, resolution=256)
    second = rdm.IMAGENET_RELAY_GUIDED if is_imagenet else rdm.CELEBAHQ_RELAY
    return [
        EdmConfig(unet=small, sampling=rdm.IMAGENET_EDM if is_imagenet else rdm.CELEBAHQ_EDM),
        RelayConfig(
            unet=large,
            process=rdm.IMAGENET_PROCESS if is_imagenet else rdm.CELEBAHQ_PROCESS,
            sampling=dataclasses.replace(second, **sampling),
        ),
    ]


def result_of(protocol: Protocol, objectives: list[AnyObjective]) -> dict[str, Any]:
    """Return a result that was made as a protocol says, on these models."""
    reference = protocol.reference_facts
    return {
        "title": "run",
        "resolution": getattr(objectives[-1], "resolution", 256),
        "images": {
            "num_images": protocol.num_samples,
            "digest": "d",
            "seeds": format_seeds(protocol.seeds()),
            "labels": "balanced",
            "device": "cuda",
            "post": dataclasses.asdict(protocol.post),
            "models": [{"images_seen": 1, "objective": to_json(o)} for o in objectives],
        },
        "samples": None,
        "tf32": {"convolutions": False},
        "detector": {
            "name": protocol.detector,
            "pipeline": protocol.preprocessing,
            "weights_sha256": "0" * 64,
            "weights": "published",
        },
        "reference": {
            "digest": "r",
            "n": reference.get("images of the reference", 30_000),
            "features": protocol.num_features,
            "images": {
                "kind": "images", "codecs": [reference.get("codec of the reference", "png")],
            },
            "flipped": reference.get("hflip of the reference", False),
        },
        "protocol": None,
        "metrics": {},
        "nfe": 1,
        "seconds": {"sampling": None, "features": 0.0},
    }  # fmt: skip


def record(protocol: str, result: dict[str, Any], *metrics: str) -> dict[str, Any]:
    wanted = metrics or find_protocol(protocol).metrics
    requests = [MetricRequest(*text.split(":")) for text in wanted]
    return record_protocol(find_protocol(protocol), result, requests)


OURS = {
    "rdm_imagenet256": lambda: relay("rdm_imagenet256"),
    "rdm_celebahq256": lambda: relay("rdm_celebahq256"),
    **{f"wavediff_{name}": lambda name=name: [wavediff.PRESETS[f"wavediff_{name}"]()]
       for name in ("cifar10", "stl10", "celebahq256", "celebahq512", "celebahq1024")},
    "wavediff_lsun_church": lambda: [wavediff.wavediff_lsun_church256()],
}  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_what_is_made_as_published_deviates_in_nothing(name: str) -> None:
    protocol = find_protocol(name)
    made = record(name, result_of(protocol, OURS[name]()))
    assert made["deviations"] == []
    assert made["published"] == protocol.published[0].values
    assert made["pipeline"] == protocol.preprocessing  # the key that result files have


@pytest.mark.parametrize(
    ("sampling", "labels", "fid"),
    [
        ({}, "random", 1.99),
        ({"guidance": rdm.Guidance()}, "random", 5.27),
        ({"guidance": rdm.Guidance(), "eta": 0.0}, "random", 5.65),
        ({"guidance": rdm.Guidance(), "eta": 0.3}, "random", 5.91),
    ],
)
def test_of_several_published_rows_the_one_that_fits_is_shown(
    sampling: dict[str, Any], labels: str, fid: float
) -> None:
    protocol = find_protocol("rdm_imagenet256")
    result = result_of(protocol, relay(protocol.name, **sampling))
    result["images"]["labels"] = labels
    made = record(protocol.name, result)
    assert (made["published"]["fid.distance"], made["deviations"]) == (fid, [])


def test_baselines_and_ablations_have_rows_of_their_own() -> None:
    protocol = find_protocol("wavediff_celebahq256")
    config = wavediff.wavediff_celebahq256()
    plain = dataclasses.replace(config.generator, frequency_bottleneck=False)
    rows = {
        7.64: wavediff.ddgan_celebahq256(),
        6.18: dataclasses.replace(config, generator=plain),
        6.55: dataclasses.replace(config, reconstruction_weight=0.0),
    }
    for fid, model in rows.items():
        made = record(protocol.name, result_of(protocol, [model]))
        assert (made["published"]["fid.distance"], made["deviations"]) == (fid, [])


def test_the_nearest_row_is_shown_with_its_deviations() -> None:
    protocol = find_protocol("rdm_imagenet256")
    unguided = relay(protocol.name, guidance=rdm.Guidance(), eta=0.22)
    made = record(protocol.name, result_of(protocol, unguided))
    assert made["published"]["fid.distance"] == 5.27
    assert made["deviations"] == ["labels is balanced, not random", "eta is 0.22, not 0.2"]
    far = relay(protocol.name, guidance=rdm.Guidance(), eta=0.9)
    made = record(protocol.name, result_of(protocol, far))
    assert made["published"] == {"fid.distance": 5.91}  # the row of eta 0.3


CHANGES: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "seeds": (("images", "seeds"), "0-49999", "seeds is 0-49999, not 10000-59999"),
    "number": (("images", "num_images"), 5000, "number of images is 5000, not 50000"),
    "codec": (("images", "post", "codec"), "jpeg", "codec is jpeg, not png"),
    "retouch": (("images", "post", "retouch"), "none", "retouch is none, not rdm_imagenet"),
    "quantisation": (("images", "post", "quantisation"), "adm", "quantisation is adm, not edm"),
    "classes": (("images", "classes"), [0, 1], "classes is 2, not 1000"),
    "device": (("images", "device"), "cpu", "device is cpu, not cuda"),
    "resolution": (("resolution",), 128, "resolution is 128, not 256"),
    "preprocessing": (("detector", "pipeline"), "clean", "preprocessing is clean, not tf1"),
    "weights": (
        ("detector", "weights"), "unknown",
        f"weights of the detector is unknown (000000000000), not {PUBLISHED_WEIGHTS}",
    ),
    "reference": (("reference", "n"), 50_000, "images of the reference is 50000, not 1281167"),
    "features": (("reference", "features"), 500, "features of the reference is 500, not 10000"),
    "flipped": (("reference", "flipped"), True, "hflip of the reference is True, not False"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_every_circumstance_that_differs_is_a_deviation(change: str) -> None:
    protocol = find_protocol("rdm_imagenet256")
    result = result_of(protocol, relay(protocol.name))
    path, value, said = CHANGES[change]
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert record(protocol.name, result)["deviations"] == [said]


SAMPLING: list[tuple[int, str, Any, str]] = [
    (1, "steps", 300, "steps is 300, not 200"),
    (1, "eta", 0.1, "eta is 0.1, not 0.2"),
    (1, "block_noise_alpha", 0.1, "block_noise_alpha is 0.1, not 0.15"),
    (1, "guidance", rdm.Guidance(scale=3), "guidance is 3, not 3.5"),
    (1, "guidance", rdm.Guidance(scale=3.5, sigma_min=1), "guidance.sigma_min is 1, not 0"),
    (1, "second_order", False, "second_order is False, not True"),
    (0, "steps", 100, "stage 1 steps is 100, not 256"),
    (0, "churn", rdm.Churn(), "stage 1 churn is 0, not 40"),
    (0, "sde_scale", 0.1, "stage 1 sde_scale is 0.1, not 0"),
]


@pytest.mark.parametrize(("stage", "name", "value", "said"), SAMPLING)
def test_every_setting_of_a_sampler_is_a_circumstance(
    stage: int, name: str, value: Any, said: str
) -> None:
    protocol = find_protocol("rdm_imagenet256")
    stages = relay(protocol.name)
    changed = dataclasses.replace(stages[stage].sampling, **{name: value})  # type: ignore[union-attr]
    stages[stage] = dataclasses.replace(stages[stage], sampling=changed)  # type: ignore[call-arg]
    assert said in record(protocol.name, result_of(protocol, stages))["deviations"]


def test_precision_and_another_detector_and_missing_metrics_are_deviations() -> None:
    protocol = find_protocol("rdm_celebahq256")
    stages = relay(protocol.name)
    unet = dataclasses.replace(stages[1].unet, compute_dtype="bfloat16")  # type: ignore[union-attr]
    stages[1] = dataclasses.replace(stages[1], unet=unet)  # type: ignore[call-arg]
    result = result_of(protocol, stages)
    assert record(protocol.name, result, "fd:pool")["deviations"] == [
        "precision is bfloat16, not float32",
        "metrics left out: pr:pool",
    ]
    result["detector"] |= {"name": "dinov2", "pipeline": "edm2_dino", "weights": "not published"}
    said = record(protocol.name, result, "fd:cls")["deviations"]
    assert "detector is dinov2, not inception" in said
    assert "metrics left out: fd:pool, pr:pool" in said


def test_enhancement_by_the_sampler_is_the_same_as_the_retouch() -> None:
    protocol = find_protocol("rdm_imagenet256")
    result = result_of(protocol, relay(protocol.name, enhance=(("brightness", 1.06),)))
    result["images"]["post"]["retouch"] = "none"
    assert record(protocol.name, result)["deviations"] == []
    result["images"]["post"]["retouch"] = "rdm_imagenet"
    (said,) = record(protocol.name, result)["deviations"]
    assert said == "retouch is brightness 1.06, brightness 1.06, not rdm_imagenet"


def test_what_was_not_recorded_is_named() -> None:
    protocol = find_protocol("wavediff_cifar10")
    result = result_of(protocol, [wavediff.wavediff_cifar10()])
    result["images"] = {"num_images": 50_000, "digest": "d", "codecs": ["jpg"]}
    result["reference"] = {"digest": "r", "n": None, "images": {"kind": "npy"}}
    (said,) = record(protocol.name, result)["deviations"]
    assert said.startswith("not recorded, so not checked: seeds, classes, quantisation, retouch")
    assert said.endswith("reconstruction_weight, precision, device")
    assert "images of the reference" in said
    assert "codec of the reference" in said


def test_stages_that_a_model_lacks_are_named() -> None:
    protocol = find_protocol("rdm_celebahq256")
    alone = result_of(protocol, relay(protocol.name)[:1])
    *_, said = record(protocol.name, alone)["deviations"]
    assert said.startswith("the model has no stage 1 sampler, stage 1 steps")
    assert "eta" in said


def test_clean_variants_say_in_what_they_depart_from_the_paper() -> None:
    protocol = find_protocol("wavediff_cifar10_clean")
    result = result_of(protocol, [wavediff.wavediff_cifar10()])
    said = record(protocol.name, result)["deviations"]
    assert {"codec is png, not jpeg", "preprocessing is tf1, not pytorch_fid"} <= {*said}


def test_every_row_names_its_source_and_fits_its_own_circumstances() -> None:
    for protocol in PROTOCOLS.values():
        for row in protocol.published:
            assert "arXiv" in row.source
            assert row.facts["device"] == "cuda"
    values = [r.values["fid.distance"] for r in find_protocol("rdm_celebahq256").published]
    assert values == [3.15, 4.11, 3.74, 3.43, 3.23, 3.52]


def test_plots_over_eta_have_the_published_values_at_their_eta() -> None:
    protocol = find_protocol("rdm_imagenet256")
    results = []
    for eta in (0.0, 0.3):
        made = result_of(protocol, relay(protocol.name, guidance=rdm.Guidance(), eta=eta))
        results.append(made | {"protocol": record(protocol.name, made)})
    points = published_values(results, ("fid", "distance"), "eta")
    assert [(point.x, point.value) for point in points] == [(0.0, 5.65), (0.3, 5.91)]
    assert [p.x for p in published_values(results, ("fid", "distance"), "NFE")] == [None, None]


def like(**changes: Any) -> dict[str, Any]:
    protocol = find_protocol("rdm_imagenet256")
    result = copy.deepcopy(result_of(protocol, relay(protocol.name)))
    for path, value in changes.items():
        first, _, second = path.partition("__")
        if second:
            result[first][second] = value
        else:
            result[first] = value
    return result


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images__post": {"codec": "jpeg"}}, "codec (png, jpeg)"),
        ({"images__device": "cpu"}, "device (cuda, cpu)"),
        ({"images__labels": "random"}, "labels (balanced, random)"),
        ({"images__num_images": 10}, "number of images (50000, 10)"),
        ({"resolution": 64}, "resolution (256, 64)"),
        ({"tf32": {"convolutions": True}}, "TF32 (False, True)"),
        ({"detector__pipeline": "clean"}, "preprocessing (tf1, clean)"),
        ({"detector__weights": "unknown"}, "weights of the detector"),
        ({"reference__digest": "other"}, "reference (r, other)"),
        ({"reference__features": 7}, "features of the reference (10000, 7)"),
    ],
)
def test_results_are_comparable_if_measured_alike(changes: dict[str, Any], reason: str) -> None:
    text = comparability([like(), like(**changes)])
    assert text.startswith("NOT comparable with each other: these results differ in ")
    assert reason in text


def test_seeds_and_samplers_may_differ_and_old_results_say_less() -> None:
    protocol = find_protocol("rdm_imagenet256")
    other = result_of(protocol, relay(protocol.name, eta=0.0))
    other["images"]["seeds"] = "0-49999"
    assert comparability([like(), other]).startswith("Comparable with each other (same")
    old = like()
    del old["resolution"], old["images"]["post"]
    text = comparability([like(), old])
    assert "as far as recorded (not by all: resolution, quantisation, retouch, codec)" in text


def snapshot(path: Path) -> Path:
    """Write an untrained EDM model of 8x8 images."""
    unet = UNetConfig(resolution=8, model_channels=8, channel_mult=(1,), num_blocks=1)
    objective = EdmConfig(unet=unet, sampling=EdmSampling(steps=2))
    torch.manual_seed(0)
    weights = objective.build().build_networks()["denoiser"].state_dict()
    write_snapshot(
        path, weights, objective=objective, network="denoiser", images_seen=0, ema="none",
        provenance={},
    )  # fmt: skip
    return path


def images(path: Path, count: int = 6) -> Path:
    path.mkdir()
    generator = np.random.default_rng(0)
    for i in range(count):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
    return path


def test_a_detector_beside_a_protocol_is_used_and_is_a_deviation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, reference = snapshot(tmp_path / "s"), images(tmp_path / "r")
    out = tmp_path / "o.json"
    command = [
        "run", str(model), "--reference", str(reference), "--out", str(out),
        "--protocol", "wavediff_cifar10", "--detector", "effnet_lite0", "--seeds", "0-5",
        "--metrics", "fd:block4",
    ]  # fmt: skip
    assert cli.main(command) == 0
    shown, result = capsys.readouterr().out, read_result(out)
    assert result["detector"]["name"] == "effnet_lite0"
    assert result["images"]["post"]["codec"] == "jpeg"  # the protocol's
    for said in (
        "detector is effnet_lite0, not inception",
        "preprocessing is half_pixel112, not pytorch_fid",
        "number of images is 6, not 50000",
        "steps is 2, not 4",
        "resolution is 8, not 32",
        "hflip of the reference is False, not True",
        "codec of the reference is png, not jpeg",
        "metrics left out: fd:pool",
    ):
        assert f"Deviation: {said}." in shown
    assert "Deviation: sampler is EDM, not " in shown
    assert circumstances(result)["device"] == "cpu"


def test_several_detectors_and_protocols_share_one_pass_over_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from evaluation.samples.generate import GeneratedImages

    model, reference = snapshot(tmp_path / "s"), images(tmp_path / "r")
    drawn: list[int] = []
    draw = GeneratedImages.draw

    def noted(self: GeneratedImages, indices: Any) -> Any:
        drawn.extend(indices)
        return draw(self, indices)

    monkeypatch.setattr(GeneratedImages, "draw", noted)
    command = [
        "run", str(model), "--reference", str(reference), "--out", str(tmp_path / "o.json"),
        "--protocol", "adm,edm", "--detector", "effnet_lite0", "--seeds", "0-5",
        "--metrics", "fd:block4", "--quantisation", "edm",
    ]  # fmt: skip
    assert cli.main(command) == 0
    assert sorted(drawn) == [*range(6)]
    assert "ranges of seeds" not in capsys.readouterr().out
    outs = [tmp_path / f"o-{name}-effnet_lite0.json" for name in ("adm", "edm")]
    assert [read_result(out)["protocol"]["name"] for out in outs] == ["adm", "edm"]


def test_detectors_with_other_metrics_go_into_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "inception.safetensors"
    tensors = {k: v for k, v in FidInception().state_dict().items() if v.is_floating_point()}
    save_file(tensors, weights)
    source, out = images(tmp_path / "r"), tmp_path / "o.json"
    command = [
        "run", str(source), "--reference", str(source), "--out", str(out), "--metrics",
        "inception=fd:pool,kid:pool,effnet_lite0=fd:head", "--detector", "inception,effnet_lite0",
        "--weights", f"inception={weights}",
    ]  # fmt: skip
    assert cli.main(command) == 0
    statistics = tmp_path / "r.npz"
    assert cli.main(["reference", str(source), str(statistics)]) == 0
    apart = f"effnet_lite0={statistics},inception={source}"
    command[command.index("--reference") + 1] = apart
    capsys.readouterr()
    assert cli.main(command) == 0  # the same references: nothing is computed again
    shown = capsys.readouterr().out
    assert "NOT comparable with each other: these results differ in detector" in shown
    metrics = [
        read_result(tmp_path / f"o-{n}.json")["metrics"] for n in ("inception", "effnet_lite0")
    ]
    assert [len(each) for each in metrics] == [2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detector", "inception,effnet_lite0", "--weights", "w.pth"], "--weights is for one"),
        (
            ["--detector", "effnet_lite0", "--weights", "clip=w"],
            "clip=... is not one of --detector",
        ),
        (["--detector", "inceptoin"], "detector 'inceptoin' is not one of"),
        (["--detector", "inception,effnet_lite0", "--metrics", "fd:pool"], "--metrics is for one"),
        (["--protocol", "adm,fid"], "protocol 'fid' is not one of"),
        (
            ["--detector", "effnet_lite0,inception", "--reference", "effnet_lite0={r}"],
            "has none for inception; add inception=FILE",
        ),
        (["--detector", "clip", "--weights", "clip=a,clip=b"], "--weights names clip twice"),
        (["--detector", "clip", "--weights", "clip"], "clip cannot be read"),
    ],
)
def test_lists_that_do_not_fit_are_rejected(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = images(tmp_path / "r")
    command = ["run", str(reference), "--reference", str(reference), "--out", str(tmp_path / "o")]
    assert cli.main([*command, *(text.format(r=reference) for text in options)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_tables_come_as_csv_markdown_latex_and_html(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import csv

    protocol = find_protocol("rdm_imagenet256")
    result = result_of(protocol, relay(protocol.name, eta=0.3))
    result["title"] = "a_b | 50% & c"
    result["metrics"]["fid"] = {
        "values": {"distance": 2.123456}, "seconds": 0.0, "interval95": [2.0, 2.5],
    }  # fmt: skip
    result["protocol"] = record(protocol.name, result)
    (row,) = csv.DictReader(format_table([result], "csv").splitlines())
    assert (row["fid.distance"], row["fid low"], row["published fid.distance"]) == (
        "2.123456", "2.0", "1.87",
    )  # fmt: skip
    assert (row["deviations"], row["eta"], row["codec"]) == ("eta is 0.3, not 0.2", "0.3", "png")
    markdown = format_table([result], "markdown")
    assert r"| a\_b \| 50% & c |" in markdown
    assert "- Deviation: eta is 0.3, not 0.2." in markdown
    latex = format_table([result], "latex")
    assert r"a\_b | 50\% \& c & 1+1 & 50000" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
    html = format_table([result], "html")
    assert '<th scope="row">a_b | 50% &amp; c</th><td>1+1</td><td>50000</td>' in html
    assert "<li>Deviation: eta is 0.3, not 0.2.</li>" in html
    assert html.count("<table>") == html.count("</table>") == 2
    out = tmp_path / "result.json"
    source = images(tmp_path / "i")
    command = ["run", str(source), "--reference", str(source), "--out", str(out)]
    assert cli.main(command) == 0
    capsys.readouterr()
    for view in ("table", "compare"):
        assert cli.main([view, str(out), "--format", "csv"]) == 0
        (line,) = csv.DictReader(capsys.readouterr().out.splitlines())
        assert float(line["fd_effnet_lite0_block4.distance"]) < 1e-6
        values = json.loads(out.read_text())["metrics"]
        assert set(values) == {key.partition(".")[0] for key in line if key.startswith("fd_")}
