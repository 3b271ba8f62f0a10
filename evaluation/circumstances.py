"""What a result's values depend on besides trained weights: facts by name.

Compared with the facts under which a value was published they say in what a result deviates from
it; compared with those of other results, whether they were measured alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from evaluation.samples.postprocess import RETOUCHES, PostProcess
from models.config_io import ConfigError, from_json, to_json
from models.families import AnyObjective
from models.rdm.config import EdmConfig, RelayConfig
from models.rdm.edm_sampler import EdmSampling
from models.rdm.process import RelayProcess
from models.rdm.relay_sampler import RelaySampling
from models.wavediff.config import WaveDiffConfig
from models.wavediff.data_space import PixelSpace

Facts = dict[str, Any]
"""Short values (numbers, texts, truth values) by what they are of, e.g. `eta` or `codec`."""

Operations = tuple[tuple[str, float], ...]
"""Names of enhancements and their factors, in order."""
PUBLISHED_WEIGHTS = "the published ones"
MEASURED = {
    "seeds", "labels", "classes", "quantisation", "retouch", "codec", "device", "resolution",
    "images of the reference", "features of the reference", "codec of the reference",
    "hflip of the reference",
}  # fmt: skip
"""Facts that a result may fail to record; what else a drawn sample lacks, its model is without."""
UNRECORDED = {
    "images of the reference":
        "images of the reference (its file does not record how many images it was made of)",
}  # fmt: skip
"""What is said of facts that are not recorded, where their name alone does not tell."""
IMAGE_KINDS = {"images", "packed", "sample batch"}
"""Kinds of sets of which we computed the statistics; files of other tools do not record all."""
ROUNDING = {"sampler_dtype"}
"""Settings that change a sample by 1e-7 per step: no circumstances (docs/reference/rdm.md#14)."""


def circumstances(result: Mapping[str, Any]) -> Facts:
    """Return the facts of a result; those that it does not record are left out."""
    return sampler_facts_of(result) | measurement(result)


def measurement(result: Mapping[str, Any]) -> Facts:
    """Return the facts of how a result was measured: all but the model and its sampler.

    Results that agree in them can be compared.
    """
    images = result["samples"] or result["images"]
    facts: Facts = {"number of images": result["images"]["num_images"]}
    if "resolution" in result:
        facts["resolution"] = result["resolution"]
    if images.get("models"):
        facts |= _drawing(images, result)
        drawn = sampler_facts_of(result)
        facts |= {name: drawn[name] for name in drawn if name.endswith("precision")}
    else:
        facts |= _codec(images)
    return facts | _detector(result) | _reference(result["reference"])


def sampler_facts_of(result: Mapping[str, Any]) -> Facts:
    """Return the facts of the samplers of all stages; {} for images that were not drawn here."""
    return model_facts(*_objectives(result["samples"] or result["images"]))


def _objectives(images: Mapping[str, Any]) -> list[AnyObjective]:
    """Return the settings of the models that drew images; [] for others, or of another version."""
    models = images.get("models", [])
    try:
        return [from_json(AnyObjective, model["objective"], "objective") for model in models]
    except ConfigError:
        return []


def model_facts(*objectives: AnyObjective) -> Facts:
    """Return the facts of a model, or a relay's stages in order, that sampling depends on."""
    facts: Facts = {}
    for number, objective in enumerate(objectives, start=1):
        stage = f"stage {number} " if number < len(objectives) else ""
        facts |= {stage + name: value for name, value in _stage_facts(objective).items()}
    return facts


def _stage_facts(objective: AnyObjective) -> Facts:
    if isinstance(objective, WaveDiffConfig):
        return wavediff_facts(objective) | {"precision": objective.generator.compute_dtype}
    if not isinstance(objective, EdmConfig | RelayConfig):
        return _plugin_facts(objective)
    relay = objective.process if isinstance(objective, RelayConfig) else None
    return sampling_facts(objective.sampling, relay) | {"precision": objective.unet.compute_dtype}


def _plugin_facts(objective: AnyObjective) -> Facts:
    """Return the facts of an objective that a plugin has added: all settings of its sampler."""
    settings = to_json(getattr(objective, "sampling", None))
    facts: Facts = {"sampler": type(objective).__name__}
    return facts | {name: value for name, value in (settings or {}).items() if name != "type"}


def wavediff_facts(config: WaveDiffConfig) -> Facts:
    """Return the facts of WaveDiff or DDGAN that published values are given for."""
    if isinstance(config.space, PixelSpace):
        return {"sampler": "DDGAN", "steps": config.diffusion.steps}
    return {
        "sampler": "WaveDiff",
        "steps": config.diffusion.steps,
        "frequency_blocks": config.generator.frequency_blocks,
        "frequency_bottleneck": config.generator.frequency_bottleneck,
        "frequency_pyramid": config.generator.frequency_pyramid,
        "reconstruction_weight": config.reconstruction_weight,
    }


def sampling_facts(
    sampling: EdmSampling | RelaySampling, process: RelayProcess | None = None
) -> Facts:
    """Return the facts of a sampler of RDM.

    Args:
        sampling: Its settings.
        process: That the network was trained with, which a relay's null settings stand for.
    """
    facts: Facts = {"sampler": "EDM" if isinstance(sampling, EdmSampling) else "relay"}
    for field in dataclasses.fields(sampling):
        if field.name not in {"churn", "guidance", "enhance", *ROUNDING}:
            facts[field.name] = getattr(sampling, field.name)
    for name in ("prob_length", "block_noise_alpha"):
        if process is not None and facts.get(name) is None:
            facts[name] = getattr(process, name)
    facts["guidance"] = max(sampling.guidance.scale, 1.0)
    if sampling.guidance.scale > 1:
        facts |= _parts("guidance", sampling.guidance, {"scale"})
    facts["churn"] = sampling.churn.amount
    if sampling.churn.amount:
        facts |= _parts("churn", sampling.churn, {"amount"})
    return facts


def _parts(name: str, settings: Any, without: set[str]) -> Facts:
    values = dataclasses.asdict(settings).items()
    return {f"{name}.{key}": value for key, value in values if key not in without}


def post_facts(post: PostProcess, enhance: Operations = ()) -> Facts:
    """Return the facts of post-processing.

    Args:
        post: The post-processing.
        enhance: By which the sampler itself enhances; the same as a retouch is one.
    """
    operations = (*enhance, *RETOUCHES[post.retouch])
    named = {steps: name for name, steps in RETOUCHES.items()}
    described = ", ".join(f"{name} {factor:g}" for name, factor in operations)
    retouch = named.get(operations, described)
    return {"quantisation": post.quantisation, "retouch": retouch, "codec": post.codec}


def _drawing(images: Mapping[str, Any], result: Mapping[str, Any]) -> Facts:
    """Return how samples were drawn of a model."""
    facts: Facts = {name: images[name] for name in ("seeds", "device") if name in images}
    if repeats := result.get("repeats"):
        facts["seeds"] = ", ".join(repeat["seeds"] for repeat in repeats)
    enhance: Operations = ()
    for objective in _objectives(images)[-1:]:
        facts["classes"] = len(images.get("classes", range(objective.label_dim)))
        if objective.label_dim and "labels" in images:
            facts["labels"] = images["labels"]
        if isinstance(objective, EdmConfig | RelayConfig):
            enhance = objective.sampling.enhance
    if "post" in images:
        facts |= post_facts(PostProcess(**images["post"]), enhance)
    tf32 = result.get("tf32")
    if isinstance(tf32, dict) and facts.get("device") == "cuda":
        facts["TF32"] = any(value is True for value in tf32.values())
    return facts


def _codec(images: Mapping[str, Any]) -> Facts:
    """Return the format of files, one name for all its extensions."""
    codecs = {"jpeg" if c in {"jpg", "jpe"} else c for c in images.get("codecs", ())}
    return {"codec": ", ".join(sorted(codecs))} if codecs else {}


def _detector(result: Mapping[str, Any]) -> Facts:
    detector = result["detector"]
    digest = str(detector.get("weights_sha256", ""))[:12]
    is_published = detector.get("weights") == "published"
    facts = {
        "detector": detector["name"],
        "preprocessing": detector["pipeline"],
        "weights of the detector": PUBLISHED_WEIGHTS if is_published else f"unknown ({digest})",
    }
    device = result.get("made_of", {}).get("device of the detector")
    return facts | ({"device of the detector": device} if device else {})


def _reference(reference: Mapping[str, Any]) -> Facts:
    images = reference.get("images") or {}
    is_ours = images.get("kind") in IMAGE_KINDS
    facts: Facts = {"reference": str(reference["digest"])[:12]}
    known = {
        "images of the reference": reference["n"] or None,  # 0 in files of older versions
        "features of the reference": reference.get("features") or None,
        "codec of the reference": _codec(images).get("codec"),
        "hflip of the reference": reference.get("flipped", False) if is_ours else None,
    }
    return facts | {name: value for name, value in known.items() if value is not None}


def differences(ours: Facts, theirs: Facts) -> list[str]:
    """Say in one text each which of their facts differ in ours, and which ours lack."""
    lines = [
        f"{name} is {_shown(ours[name])}, not {_shown(value)}"
        for name, value in theirs.items()
        if name in ours and ours[name] != value
    ]
    lacking = [name for name in theirs if name not in ours]
    of_sampler = [name for name in lacking if "sampler" in ours and name not in MEASURED]
    unknown = [name for name in lacking if name not in of_sampler]
    if of_sampler:
        lines.append(f"the model has no {', '.join(of_sampler)}")
    named = ", ".join(UNRECORDED.get(name, name) for name in unknown)
    return lines + ([f"not recorded, so not checked: {named}"] if unknown else [])


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
