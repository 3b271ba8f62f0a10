"""The evaluation goldens: every array of every file, by what its name says.

`pytest tests/evaluation/test_goldens.py --goldens DIR` runs any set of the same layout; an array
that no rule covers fails.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.detectors.inception import SPATIAL_CHANNELS
from evaluation.detectors.resize import PREPROCESSINGS
from evaluation.metrics.extrapolate import limit
from evaluation.metrics.frechet import frechet_distance, frechet_of_features
from evaluation.metrics.inception_score import (
    chunk_splits,
    contiguous_splits,
    split_scores,
)
from evaluation.metrics.kid_cmmd import cmmd, kid, kid_subsets
from evaluation.metrics.mind import mind
from evaluation.metrics.nearest_neighbours import centred_points, radii_squared
from evaluation.metrics.precision_recall import (
    adm_distance,
    half_precision_recall,
    manifold_scores,
    stylegan_distance,
)
from evaluation.metrics.statistics import Gaussian, gaussian_of
from evaluation.samples.postprocess import PostProcess, quantise_adm
from models.sampler import quantise
from tests.evaluation.golden_arrays import PUBLIC_SALT, Array, Goldens
from tests.evaluation.half_precision import adm_ranges

Check = Callable[..., None]
RULES: list[tuple[re.Pattern[str], re.Pattern[str], Check]] = []


def rule(file: str, array: str) -> Callable[[Check], Check]:
    """Register a check for all arrays whose names match; groups become keyword arguments."""

    def register(check: Check) -> Check:
        RULES.append((re.compile(file + r"\.npz"), re.compile(array), check))
        return check

    return register


@functools.cache
def open_goldens(directory: Path) -> Goldens:
    return Goldens(directory)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "array" in metafunc.fixturenames:
        goldens = open_goldens(metafunc.config.getoption("--goldens") / "evaluation")
        names = goldens.names()
        metafunc.parametrize(("file", "array"), names, ids=[f"{f}-{a}" for f, a in names])


def test_golden(request: pytest.FixtureRequest, file: str, array: str) -> None:
    goldens = open_goldens(request.config.getoption("--goldens") / "evaluation")
    for file_pattern, array_pattern, check in RULES:
        found = array_pattern.fullmatch(array)
        if file_pattern.fullmatch(file) and found:
            check(goldens, goldens.get(file, array), **found.groupdict())
            return
    pytest.fail(f"no rule covers array {array!r} of {file}")


def close(actual: object, expected: object, rtol: float, atol: float = 0.0) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=rtol, atol=atol)


def close_to_maximum(actual: Array, expected: Array, tolerance: float) -> None:
    error = np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"error {error:.3g} of the maximum"


# --- inputs ---------------------------------------------------------------------------------------


@rule("metrics_inputs", r"(ref|gen|pr_ref|pr_gen)(_\w+)?|logits")
def check_features(goldens: Goldens, given: Array) -> None:
    assert given.ndim == 2
    assert np.isfinite(given).all()


@rule("metrics_inputs", r"(?P<moment>mu|sigma)_(?P<name>\w+)")
def check_moments(goldens: Goldens, given: Array, moment: str, name: str) -> None:
    gaussian = gaussian_of(goldens.input(name))
    close_to_maximum(gaussian.mu if moment == "mu" else gaussian.sigma, given, 1e-13)


@rule("metrics_inputs", r"radii2_(?P<name>ref|gen)(_(?P<case>\w+?))?_k(?P<k>\d+)")
def check_radii(goldens: Goldens, given: Array, name: str, case: str | None, k: str) -> None:
    points = centred_points(*goldens.pair(case or "main"))[0 if name == "gen" else 1]
    close(radii_squared(points, int(k)), given, 1e-6)


@rule("metrics_inputs", r"fid2048_(?P<case>\w+)_(?P<what>n|noise|probe_ref|probe_gen|sums)")
def check_recipe(goldens: Goldens, given: Array, case: str, what: str) -> None:
    if what in {"n", "noise"}:
        assert (given >= 0).all()
        return
    gen, ref = goldens.recipe_pair(case)
    if what == "probe_ref":
        close(ref[:2, :8], given, 1e-6, 1e-7)
    elif what == "probe_gen":
        close(gen[-2:, -8:], given, 1e-6, 1e-7)
    else:
        x, y = ref.astype(np.float64), gen.astype(np.float64)
        close([x.sum(), y.sum(), (x * x).sum(), (y * y).sum()], given, 1e-9)


@rule("metrics_inputs", r"sfid_(?P<what>n|sums)")
def check_spatial_recipe(goldens: Goldens, given: Array, what: str) -> None:
    gen, ref = goldens.spatial_pair()
    if what == "n":
        assert (len(ref), len(gen)) == tuple(given[:2])
    else:
        close([ref.sum(dtype=np.float64), gen.sum(dtype=np.float64)], given, 1e-9)


@rule("metrics_inputs", r"fidinf_(?P<what>N|fids)")
def check_subsets(goldens: Goldens, given: Array, what: str) -> None:
    gen, ref = goldens.pair("main")
    sizes = goldens.input("fidinf_N")
    if what == "N":
        close(np.linspace(sizes[0], len(gen), len(sizes)).astype(np.int32), given, 0)
        return
    generator = np.random.RandomState(0)
    subsets = [gen[generator.permutation(len(gen))[:size]] for size in sizes]
    close([frechet_of_features(subset, ref) for subset in subsets], given, 1e-9)


# --- Fréchet distances ----------------------------------------------------------------------------


@rule("metrics_expected", r"fid_(?P<case>\w+?)_(?P<tool>exact|pytorch_fid|torch_fidelity)")
def check_frechet(goldens: Goldens, expected: Array, case: str, tool: str) -> None:
    gen, ref = goldens.pair(case)
    a, b = goldens.gaussians(case)
    floor = 1e-10 * (np.trace(a.sigma) + np.trace(b.sigma))
    if tool == "exact":
        rtol, atol = 1e-9, floor
    elif is_singular(a) or is_singular(b):
        rtol, atol = 1e-4, 5e-3  # the tool's square root is low on singular covariances
    else:
        rtol, atol = 1e-6, floor + (5e-6 if tool == "torch_fidelity" else 1e-9)
    close(frechet_distance(a, b), expected, rtol, atol)
    close(frechet_of_features(gen, ref), expected, rtol, atol)


def is_singular(gaussian: Gaussian) -> bool:
    """Whether square roots by `sqrtm`, as the tools take them, lose digits."""
    values = np.linalg.eigvalsh(gaussian.sigma)
    return bool(values[0] < 1e-9 * values[-1])


@rule("metrics_expected", r"fid_(?P<case>\w+?)_biased_cov")
def check_biased_frechet(goldens: Goldens, expected: Array, case: str) -> None:
    a, b = (gaussian.biased() for gaussian in goldens.gaussians(case))
    is_low = is_singular(a) or is_singular(b)
    rtol, atol = (1e-4, 5e-3) if is_low else (1e-6, 1e-9)
    close(frechet_distance(a, b), expected, rtol, atol)


@rule("metrics_expected", r"fid2048_(?P<case>\w+?)_(?P<tool>exact|pytorch_fid)")
def check_recipe_frechet(goldens: Goldens, expected: Array, case: str, tool: str) -> None:
    gen, ref = goldens.recipe_pair(case)
    is_rank_deficient = min(len(gen), len(ref)) <= gen.shape[1]
    if is_rank_deficient:
        value = frechet_of_features(gen, ref)
    else:
        value = frechet_distance(gaussian_of(gen), gaussian_of(ref))
    is_low = tool == "pytorch_fid" and is_rank_deficient
    close(value, expected, 1e-4 if is_low else 1e-6, 5e-3 if is_low else 0)


@rule("metrics_expected", r"sfid_(?P<order>chw_exact|hwc_exact|pytorch_fid|mixed_order_WRONG)")
def check_spatial_frechet(goldens: Goldens, expected: Array, order: str) -> None:
    gen, ref = goldens.spatial_pair()
    if order == "hwc_exact":
        gen = to_hwc(gen)
    if order in {"hwc_exact", "mixed_order_WRONG"}:
        ref = to_hwc(ref)
    is_low = order == "pytorch_fid"
    value = frechet_of_features(gen, ref)
    close(value, expected, 1e-4 if is_low else 1e-6, 5e-3 if is_low else 0)


def to_hwc(features: Array) -> Array:
    shape = (len(features), SPATIAL_CHANNELS, 17, 17)
    return features.reshape(shape).transpose(0, 2, 3, 1).reshape(len(features), -1)


@rule("metrics_expected", r"fidinf_(?P<what>intercept|slope)")
def check_extrapolation(goldens: Goldens, expected: Array, what: str) -> None:
    gen, _ = goldens.pair("main")
    sizes = goldens.input("fidinf_N")
    reference = goldens.gaussians("main")[1]
    line = limit(
        lambda subset: frechet_distance(gaussian_of(subset), reference),
        gen,
        start=int(sizes[0]),
        points=len(sizes),
    )
    close(line[0 if what == "intercept" else 1], expected, 1e-9)


# --- precision, recall, density, coverage ---------------------------------------------------------


@rule("metrics_expected", r"pr_(?P<case>\w+?)_k(?P<k>\d+)_rdm")
def check_precision_recall(goldens: Goldens, expected: Array, case: str, k: str) -> None:
    close(scores(goldens, case, int(k))[:2], expected, 1e-12)


@rule("metrics_expected", r"pr_(?P<case>\w+?)_k(?P<k>\d+)_torch_fidelity")
def check_float32_precision(goldens: Goldens, expected: Array, case: str, k: str) -> None:
    close_to_one_sample(goldens, case, scores(goldens, case, int(k))[:2], expected)


def close_to_one_sample(
    goldens: Goldens, case: str, values: tuple[float, ...], expected: Array
) -> None:
    """Tools that round distances may decide one point on a surface otherwise."""
    for value, target, features in zip(values, expected, goldens.pair(case), strict=True):
        close(value, target, 0, 1.01 / len(features))


@rule("metrics_expected", r"prdc_(?P<case>\w+?)_k(?P<k>\d+)(_exact)?")
def check_prdc(goldens: Goldens, expected: Array, case: str, k: str) -> None:
    close(scores(goldens, case, int(k)), expected, 1e-12)


@functools.cache
def scores(goldens: Goldens, case: str, k: int) -> tuple[float, ...]:
    return astuple(manifold_scores(*goldens.pair(case), k=k))


@rule("metrics_expected", r"pr_(?P<case>\w+?)_k(?P<k>\d+)_stylegan_emulated")
def check_stylegan_precision(goldens: Goldens, expected: Array, case: str, k: str) -> None:
    values = half_precision_recall(*goldens.pair(case), int(k), stylegan_distance)
    close_to_one_sample(goldens, case, values, expected)


@rule("metrics_expected_adm", r"pr_(?P<case>\w+?)_k(?P<k>\d+)_adm")
def check_adm_precision(goldens: Goldens, expected: Array, case: str, k: str) -> None:
    """Half-precision sums depend on the machine, so points at a surface may move.

    The public set, whose machine is known, is held to one sample and 5e-4 of all; another set to
    the points that its own features leave undecided.
    """
    gen, ref = goldens.pair(case)
    if goldens.recipe.salt != PUBLIC_SALT:
        for (least, most), target in zip(adm_ranges(gen, ref, int(k)), expected, strict=True):
            assert least - 1e-6 <= target <= most + 1e-6
        return
    values = half_precision_recall(gen, ref, int(k), adm_distance)
    for value, target, n in zip(values, expected, (len(gen), len(ref)), strict=True):
        close(value, target, 0, 1.01 / n + 5e-4)


@rule("metrics_expected_adm", r"adm_radii2_(?P<name>ref|gen)_k(?P<k>\d+)")
def check_adm_radii(goldens: Goldens, expected: Array, name: str, k: str) -> None:
    """Equal up to two float16 roundings of the squared norms."""
    points = centred_points(*goldens.pair("main"))[0 if name == "gen" else 1]
    norms = points.raw.double().square().sum(1).max()
    close(radii_squared(points, int(k)), expected, 0, 4 * 2**-11 * float(norms))


# --- Inception Score ------------------------------------------------------------------------------


@rule("metrics_expected", r"is_tf_splits(?P<count>\d+)(_shuffle(?P<mixed>\d)_seed(?P<seed>\d+))?")
def check_torch_fidelity_score(
    goldens: Goldens, expected: Array, count: str, mixed: str | None, seed: str | None
) -> None:
    logits = goldens.input("logits")
    if mixed == "1":
        logits = logits[np.random.RandomState(int(seed or 0)).permutation(len(logits))]
    values = split_scores(logits, contiguous_splits(len(logits), int(count)))
    close([values.mean(), values.std()], expected, 1e-9, 1e-12)


@rule("metrics_expected", r"is_stylegan_splits(?P<count>\d+)_f32probs")
def check_stylegan_score(goldens: Goldens, expected: Array, count: str) -> None:
    logits = goldens.input("logits")
    values = split_scores(logits, contiguous_splits(len(logits), int(count)))
    close([values.mean(), values.std()], expected, 1e-6, 1e-6)


@rule("metrics_expected(_adm)?", r"is_(?P<tool>rdm|adm)_split(?P<size>\d+)")
def check_chunked_score(goldens: Goldens, expected: Array, tool: str, size: str) -> None:
    logits = goldens.input("logits")
    values = split_scores(logits, chunk_splits(len(logits), int(size)))
    close(values.mean(), expected, 1e-9 if tool == "rdm" else 1e-6)


# --- kernel and sliced distances ------------------------------------------------------------------


@rule(
    "metrics_expected",
    r"kid_tf_gen_ref_subsets(?P<count>\d+)_size(?P<size>\d+)_seed(?P<seed>\d+)(?P<exact>_f64)?",
)
def check_kid(
    goldens: Goldens, expected: Array, count: str, size: str, seed: str, exact: str | None
) -> None:
    gen, ref = goldens.pair("main")
    values = kid_subsets(gen, ref, subsets=int(count), size=int(size), seed=int(seed))
    close([values.mean(), values.std()], expected, 1e-10 if exact else 1e-5, 0 if exact else 1e-6)


@rule(
    "metrics_expected", r"kid_stylegan_subsets(?P<count>\d+)_size(?P<size>\d+)_npseed(?P<seed>\d+)"
)
def check_stylegan_kid(goldens: Goldens, expected: Array, count: str, size: str, seed: str) -> None:
    gen, ref = goldens.pair("main")
    values = kid_subsets(
        gen, ref, subsets=int(count), size=int(size), seed=int(seed), cut_size=True
    )
    close(values.mean(), expected, 1e-5, 1e-7)


@rule("metrics_expected", r"kid_full_unbiased")
def check_full_kid(goldens: Goldens, expected: Array) -> None:
    close(kid(*goldens.pair("main")), expected, 1e-10)


@rule("metrics_expected", r"cmmd_unitnorm_(?P<case>[a-z]+)(?P<exact>_f64)?")
def check_cmmd(goldens: Goldens, expected: Array, case: str, exact: str | None) -> None:
    gen, ref = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in goldens.pair(case))
    close(cmmd(gen, ref), expected, 1e-9 if exact else 2e-4)


@rule("metrics_expected", r"mind_gen_ref_proj(?P<directions>\d+)_seed(?P<seed>\d+)")
def check_mind(goldens: Goldens, expected: Array, directions: str, seed: str) -> None:
    gen, ref = goldens.pair("main")
    close(mind(gen, ref, directions=int(directions), seed=int(seed)), expected, 1e-6)


# --- pixels ---------------------------------------------------------------------------------------

PIPELINE_OF = {
    # name in the goldens: (ours, absolute tolerance after normalisation)
    "pytorch_fid": ("pytorch_fid", 2e-6),
    "torch_fidelity": ("tf1", 1e-6),
    "clean_fid": ("clean", 2e-6),
    "nvidia_grid": ("nvidia_grid", 5e-5),
    "edm2_dino_torch": ("edm2_dino", 2e-6),
    "dgm_dino_pil": ("dgm_dino", 2e-6),
    "cmmd": ("cmmd", 2e-6),
}


@rule("(resize|network)", r"image\d+")
@rule("resize", r"enh\d+_in")
def check_image(goldens: Goldens, given: Array) -> None:
    assert given.dtype == np.uint8
    assert given.shape[2] == 3


@rule("resize", r"(?P<image>image\d+)_(?P<tool>\w+)_(?P<part>sub|edge|mean_std)")
def check_resize(goldens: Goldens, expected: Array, image: str, tool: str, part: str) -> None:
    name, tolerance = PIPELINE_OF[tool]
    out = resized(goldens, image, name)
    if part == "sub":
        close(out[:, ::13, ::13], expected, 0, tolerance)
    elif part == "edge":
        close(out[:, -3:, -9:], expected, 0, tolerance)
    else:
        exact = out.astype(np.float64)
        close([exact.mean((1, 2)), exact.std((1, 2))], expected, 0, tolerance)


@functools.lru_cache(maxsize=2)
def resized(goldens: Goldens, image: str, preprocessing: str) -> Array:
    return PREPROCESSINGS[preprocessing](goldens.image("resize.npz", image))[0].numpy()


@rule("resize", r"enh(?P<number>\d+)_(?P<retouch>rdm_\w+)")
def check_retouch(goldens: Goldens, expected: Array, number: str, retouch: str) -> None:
    image = goldens.image("resize.npz", f"enh{number}_in")
    post = PostProcess(retouch=retouch)  # type: ignore[arg-type]
    np.testing.assert_array_equal(post.apply(image)[0].permute(1, 2, 0).numpy(), expected)


@rule("quantise", r"(?P<tool>x|edm|save_image|adm)")
def check_quantise(goldens: Goldens, expected: Array, tool: str) -> None:
    ramp = torch.from_numpy(goldens.get("quantise.npz", "x"))
    if tool == "x":
        assert ramp.ndim == 1
        return
    out = quantise_adm(ramp) if tool == "adm" else quantise(ramp)
    np.testing.assert_array_equal(out.numpy(), expected)


# --- network --------------------------------------------------------------------------------------

TAP_OF = {"2048": "pool"}


@rule("network", r"state_sha256_hex")
def check_state(goldens: Goldens, expected: Array) -> None:
    digest = hashlib.sha256()
    for key, tensor in sorted(goldens.network().state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest() == expected.tobytes().decode()


@rule("network", r"probe/(?P<key>.+)")
def check_probe(goldens: Goldens, expected: Array, key: str) -> None:
    tensor = goldens.network().state_dict()[key]
    np.testing.assert_array_equal(tensor.flatten()[:8].numpy().astype(expected.dtype), expected)


@rule("network", r"torch_fidelity_f(32|64)_(?P<tap>\w+)")
def check_torch_fidelity_features(goldens: Goldens, expected: Array, tap: str) -> None:
    check_taps(goldens, expected, "tf1", tap)


@rule("network", r"pytorch_fid_f32_(?P<tap>\w+)")
def check_pytorch_fid_features(goldens: Goldens, expected: Array, tap: str) -> None:
    check_taps(goldens, expected, "pytorch_fid", tap)


@rule("network", r"clean_fid_f32_(?P<tap>\w+)")
def check_clean_features(goldens: Goldens, expected: Array, tap: str) -> None:
    check_taps(goldens, expected, "clean", tap)


@rule("network", r"nvidia_grid_f32_(?P<tap>\w+)")
def check_grid_features(goldens: Goldens, expected: Array, tap: str) -> None:
    check_taps(goldens, expected, "nvidia_grid", tap)


def check_taps(goldens: Goldens, expected: Array, preprocessing: str, tap: str) -> None:
    actual = np.concatenate(
        [features(goldens, i, preprocessing)[TAP_OF.get(tap, tap)] for i in range(len(expected))]
    )
    if tap == "spatial":
        actual = actual.reshape(-1, 17, 17, SPATIAL_CHANNELS).transpose(0, 3, 1, 2)
    close_to_maximum(actual, expected, 5e-6)


@functools.cache
def features(goldens: Goldens, image: int, preprocessing: str) -> dict[str, Array]:
    x = PREPROCESSINGS[preprocessing](goldens.image("network.npz", f"image{image}"))
    return {tap: values.numpy() for tap, values in goldens.network()(x).items()}


@rule("network", r"stage0_f64/(?P<unit>.+)")
def check_stage(goldens: Goldens, expected: Array, unit: str) -> None:
    close_to_maximum(stages(goldens)[unit], expected, 5e-6)


@functools.cache
def stages(goldens: Goldens) -> dict[str, Array]:
    x = PREPROCESSINGS["tf1"](goldens.image("network.npz", "image0"))
    return {name: out[0].mean((1, 2)).numpy() for name, out in goldens.network().stages(x)}
