"""The sixteen checks of a restorer's contract; each branches on what a method declares, never on its name or class."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sembench.checks.outcome import CheckFailed, CheckSkipped
from sembench.checks.subject import Subject, global_seeds, global_streams, same, scene, standard
from sembench.errors import InputError
from sembench.registry import resolve_settings, suggestion
from sembench.restorer import Image, Need

SHAPES = ((32, 32), (33, 47), (513, 700))
"""Sizes (px) that every method must take."""

FLAT_LEVELS = (0.0, 77.0, 255.0)
FLAT_TOLERANCE = 0.1
"""Gray levels by which a flat image may move."""

BATCH_TOLERANCE = 1 / 128
"""Gray levels by which an image restored in a batch may differ: two steps of the grid on which results are stored."""

KEPT_TOLERANCE = 1.0
"""Gray levels by which the instance that was fitted may differ from one given its state in half precision."""

GPU_TOLERANCE = 0.5
"""Gray levels by which a GPU may differ from the CPU."""

LONGEST_SUMMARY = 160

CHECKS: dict[str, Callable[[Subject], None]] = {}
"""Every check by name, in order."""


def check(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
    """Enter a function into CHECKS by its name; its docstring's first line says what the check asks for."""
    CHECKS[function.__name__] = function
    return function


@check
def described(subject: Subject) -> None:
    """A summary line, a licence, bounds and a description of every setting, expected failures with reasons."""
    cls = subject.cls
    if not cls.summary():
        raise CheckFailed(f"{cls.__name__} has no docstring: say in its first line what the method does")
    if len(cls.summary()) > LONGEST_SUMMARY:
        raise CheckFailed(
            f"the docstring's first line has {len(cls.summary())} characters: end it by {LONGEST_SUMMARY}"
        )
    if not isinstance(cls.licence, str) or not cls.licence.strip():
        raise CheckFailed("licence is empty: name the licence under which the method may be used")
    for name, reason in cls.expected_failures.items():
        if name not in CHECKS:
            raise CheckFailed(f"expected_failures names no check {name!r}: {suggestion(name, CHECKS)}")
        if not isinstance(reason, str) or not reason.strip():
            raise CheckFailed(f"expected_failures[{name!r}] has no reason: say why the check fails")
    schema = cls.Settings.model_json_schema()
    for name, field in schema.get("properties", {}).items():
        if not field.get("description", "").strip():
            raise CheckFailed(f"setting {name!r} has no description: give Field(..., description=...) with its unit")
        missing = _unbounded(field, schema.get("$defs", {}))
        if missing:
            raise CheckFailed(f"setting {name!r} {missing}")


def _unbounded(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """What bounds a field of a JSON schema lacks; empty where it has them."""
    if "$ref" in field:
        return _unbounded(definitions[field["$ref"].rpartition("/")[2]], definitions)
    for key in ("anyOf", "allOf"):
        if key in field:
            return next((lack for part in field[key] if (lack := _unbounded(part, definitions))), "")
    kind = field.get("type")
    if "enum" in field or "const" in field or kind in ("boolean", "null"):
        return ""
    if kind in ("number", "integer"):
        low = "minimum" in field or "exclusiveMinimum" in field
        high = "maximum" in field or "exclusiveMaximum" in field
        return "" if low and high else f"has no {'upper' if low else 'lower'} bound: give Field(ge=..., le=...)"
    if kind == "string":
        bounded = {"maxLength", "pattern", "format"} & field.keys()
        return "" if bounded else "is any text: make it a Literal, or give max_length"
    if kind == "array":
        items = [field["items"]] if isinstance(field.get("items"), dict) else field.get("prefixItems", [])
        lack = "" if "maxItems" in field else "has any length: give max_length"
        return lack or next((lack for part in items if (lack := _unbounded(part, definitions))), "")
    if kind == "object" and "properties" in field:
        return next((lack for part in field["properties"].values() if (lack := _unbounded(part, definitions))), "")
    return "is of a kind without bounds: use numbers, Literals, booleans, or tuples of them"


@check
def import_light(subject: Subject) -> None:
    """Importing the method's module imports no torch and asks no network, so that listing methods is fast."""
    found = subject.imported
    if found["broken"] and found["missing"]:
        found = subject.apart("import_and_restore", hidden=[])
    if found["network"]:
        raise CheckFailed(
            f"its import asks the network for {found['network'][0]}: fetch in fit or restore, or name a Need"
        )
    if found["broken"]:
        raise CheckFailed(f"it cannot be imported in a fresh process: {found['broken']}")
    if found["torch"]:
        raise CheckFailed("its import imports torch, which takes seconds: import torch inside methods")


@check
def settings_roundtrip(subject: Subject) -> None:
    """Settings come back from JSON, cannot be changed, and refuse an unknown key with a suggestion."""
    settings, cls = subject.settings, subject.cls
    again = cls.Settings.model_validate_json(settings.model_dump_json())
    if again != settings:
        raise CheckFailed("settings differ after a round trip through JSON: use plain types, no computed defaults")
    if subject.new().settings != settings:
        raise CheckFailed("the instance has other settings than it was given: leave self.settings as __init__ set it")
    name = next(iter(cls.Settings.model_fields), "strength")
    unknown = f"{name}_x"
    try:
        resolve_settings(subject.method, {**settings.model_dump(), unknown: 1})
    except InputError:
        pass
    else:
        raise CheckFailed(
            f"an unknown setting {unknown!r} is taken: derive Settings from Restorer.Settings (extra='forbid')"
        )
    if name in cls.Settings.model_fields:
        copy = settings.model_copy()
        try:
            setattr(copy, name, getattr(copy, name))
        except ValueError:
            return
        raise CheckFailed("settings can be changed afterwards: derive Settings from Restorer.Settings (frozen=True)")


@check
def shape_dtype_finite(subject: Subject) -> None:
    """Small, odd and large images come back with their shape, as float32, finite, within 0..255."""
    instance = subject.ready()
    for height, width in SHAPES:
        size = f"{height} x {width} px"
        restored = subject.restore(instance, scene(height, width))
        if restored.shape != (height, width):
            raise CheckFailed(f"an image of {size} came back with shape {restored.shape}: return the input's shape")
        if restored.dtype != np.float32:
            raise CheckFailed(f"an image of {size} came back as {restored.dtype}: return restored.astype(np.float32)")
        broken = int(np.count_nonzero(~np.isfinite(restored)))
        if broken:
            raise CheckFailed(
                f"an image of {size} came back with {broken} values that are not finite: find where they arise"
            )
        low, high = float(restored.min()), float(restored.max())
        if low < -0.01 or high > 255.01:
            raise CheckFailed(f"an image of {size} came back with values {low:g}..{high:g}: clip to 0..255")


@check
def input_untouched(subject: Subject) -> None:
    """A read-only input works, and no input is written to."""
    instance = subject.ready()
    for read_only in (True, False):
        image = scene(64, 80)
        before = image.copy()
        image.setflags(write=not read_only)
        try:
            subject.restore(instance, image)
        except ValueError as error:
            if "read-only" in str(error):
                raise CheckFailed("it writes into its input, which is read-only: work on image.copy()") from error
            raise
        if not np.array_equal(image, before):
            raise CheckFailed("it changes its input: work on image.copy()")


@check
def keeps_intensity(subject: Subject) -> None:
    """A method that declares it gives a flat image back as it was."""
    if not getattr(subject.cls, "keeps_intensity", False):
        raise CheckSkipped("does not declare keeps_intensity")
    if subject.settings.model_dump().get("degradation", "none") != "none":
        raise CheckSkipped("its settings undo a degradation's gain and offset")
    instance = subject.ready()
    for level in FLAT_LEVELS:
        restored = subject.restore(instance, np.full((64, 80), level, np.float32))
        moved = float(np.abs(restored - level).max())
        if not moved <= FLAT_TOLERANCE:
            raise CheckFailed(
                f"a flat image of gray level {level:g} moves by {moved:.3g}: keep the mean and mind the borders, "
                "or do not declare keeps_intensity"
            )


@check
def rejects_bad_input(subject: Subject) -> None:
    """NaN, three dimensions and too small an image: an InputError of one line that says what came."""
    instance = subject.ready()
    holed = scene(64, 80)
    holed[3, 4] = np.nan
    bad = (
        ("an image with NaN", holed, r"(?i)nan|finite"),
        ("an array of shape (64, 80, 3)", np.stack([scene(64, 80)] * 3, axis=-1), r"(?i)\b3\b|3-?d|three"),
        ("an image of 16 x 24 px", scene(16, 24), r"\b16\b"),
    )
    mend = "call sembench.restorer.check_image(image) first"
    for what, image, told in bad:
        try:
            subject.restore(instance, image, reference=scene(*image.shape[:2]))
        except InputError as error:
            if "\n" in str(error) or not re.search(told, str(error)):
                raise CheckFailed(f"{what} is refused by {str(error)[:80]!r}, not what came: {mend}") from error
        except Exception as error:
            raise CheckFailed(f"{what} ends in {type(error).__name__}, not InputError: {mend}") from error
        else:
            raise CheckFailed(f"{what} is taken: {mend}")


@check
def seeded(subject: Subject) -> None:
    """One image gives the same bytes again, and the global random streams are left alone."""
    first, again = subject.twice
    if not same(first, again):
        raise CheckFailed(
            f"one image gives two results, {float(np.abs(first - again).max()):.3g} gray levels apart: "
            "draw from np.random.default_rng(self.settings.seed) made in restore"
        )
    instance = subject.ready()
    with global_seeds(7):
        before = global_streams()
        subject.restore_unseeded(instance, standard())
        after = global_streams()
    for name, one, other in zip(("random", "numpy.random", "torch"), before, after, strict=True):
        if one is not None and not _equal(one, other):
            raise CheckFailed(f"it draws from the global stream of {name}: make a generator of its own in restore")


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(np.array_equal(one, other))


@check
def order_free(subject: Subject) -> None:
    """An image alone, in a batch, and after others gives the same result."""
    images = [standard(), scene(48, 40, 2)]
    alone = [subject.require_repeatable(), subject.restore(subject.ready(), images[1].copy())]
    instance = subject.ready()
    for index in (1, 0, 1):
        if not same(subject.restore(instance, images[index].copy()), alone[index]):
            raise CheckFailed("an image restored after others comes out different: keep nothing on self in restore")
    if not hasattr(subject.cls, "restore_many"):
        return
    instance = subject.ready()
    with global_seeds(2604):
        batch = list(instance.restore_many([image.copy() for image in images]))
    if len(batch) != len(images):
        raise CheckFailed(f"restore_many gave {len(batch)} results for {len(images)} images: give one each, in order")
    for restored, wanted in zip(batch, alone, strict=True):
        if restored.shape != wanted.shape or not np.abs(restored - wanted).max() <= BATCH_TOLERANCE:
            raise CheckFailed("restore_many gives other results than restore: treat every image of a batch by itself")


@check
def reference_blind(subject: Subject) -> None:
    """The result does not move when the reference is another, although the case lies within reach."""
    if subject.cls.kind == "control":
        raise CheckSkipped("a control is told the reference")
    alone = subject.require_repeatable()
    other = np.clip(255 - 0.5 * scene(64, 80, 5), 0, 255)
    if not same(subject.restore(subject.ready(), standard(), reference=other), alone):
        raise CheckFailed("the result moves with the reference: use nothing but the image that restore is given")


@check
def not_fitted(subject: Subject) -> None:
    """A method that learns says how to fit or load it when it is asked to restore before."""
    if not subject.learns:
        raise CheckSkipped("does not learn")
    subject.require_available()
    mend = "raise InputError where self.state is None, naming `sembench adapt` or --state"
    try:
        subject.restore(subject.new(), scene(64, 80))
    except InputError as error:
        if not re.search(r"(?i)\bfit|\badapt|\bload|--state", str(error)):
            raise CheckFailed(f"not fitted, it says {str(error)[:80]!r}, not how to fit or load it: {mend}") from error
    except Exception as error:
        raise CheckFailed(f"not fitted, it ends in {type(error).__name__}: {mend}") from error
    else:
        raise CheckFailed(f"it restores although it was not fitted: {mend}")


@check
def fit_keeps_settings(subject: Subject) -> None:
    """A fit leaves the settings as they were, and a second fit starts afresh."""
    from sembench.execution.fits import serialise

    if not subject.learns:
        raise CheckSkipped("does not learn")
    fit = subject.fit
    if fit.instance.settings.model_dump(mode="json") != fit.before:
        raise CheckFailed("fit changes the settings: keep what it learns in self.state")
    subject.learn(fit.instance)
    if serialise(fit.instance.state, subject.method.name) == fit.content:
        return
    other = subject.new()
    subject.learn(other)
    if serialise(other.state, subject.method.name) != fit.content:
        raise CheckFailed("two fits of one seed differ: draw patches and first weights by training.seed alone")
    raise CheckFailed("a second fit of one instance goes on from the first: build the network anew in fit")


@check
def state_roundtrip(subject: Subject) -> None:
    """A stored state (safetensors, no pickle) gives the same bytes in a fresh process, and what the fit itself gave."""
    from sembench.execution.fits import load_state

    if not subject.learns:
        raise CheckSkipped("does not learn: it has no state")
    fit, image = subject.fit, standard()
    here = subject.require_repeatable()
    source, target = subject.folder / "image.npy", subject.folder / "restored.npy"
    np.save(source, image)
    subject.apart("restore", state=str(fit.file), image=str(source), restored=str(target))
    if not same(np.load(target, allow_pickle=False), here):
        raise CheckFailed(
            "a fresh process restores otherwise by the same state: use nothing but self.state and settings"
        )
    fit.instance.state = load_state(fit.file)
    apart = float(np.abs(subject.restore(fit.instance, image.copy()) - here).max())
    if not apart <= KEPT_TOLERANCE:
        raise CheckFailed(
            f"the instance that was fitted restores {apart:.3g} gray levels away from one given its state: "
            "put all that fit learns into self.state"
        )


@check
def needs_honest(subject: Subject) -> None:
    """What is missing is told by needs(), with reason and mend, and never by an ImportError half-way."""
    needs = subject.cls.needs(subject.settings)
    if not isinstance(needs, list) or not all(isinstance(need, Need) for need in needs):
        raise CheckFailed(f"needs() gives {needs!r}: give a list of sembench.restorer.Need")
    for need in needs:
        if not all(str(part).strip() for part in (need.what, need.reason, need.mend)):
            raise CheckFailed(f"a need says {str(need)!r}: fill in what, reason and mend")
    found = subject.imported
    if found["broken"] and not found["missing"]:
        raise CheckSkipped("it cannot be imported in a fresh process: mend what `import_light` tells first")
    if found["missing"] and not found["needs"]:
        raise CheckFailed(subject.lack())


@check
def tiling_seamless(subject: Subject) -> None:
    """Tiles that overlap as the method declares give the whole image within its stated tolerance."""
    if subject.cls.kind == "control":
        raise CheckSkipped("a control is never tiled")
    instance = subject.ready()
    overlap = instance.tile_overlap()
    if overlap is None:
        raise CheckSkipped("declares no tile_overlap: images are restored whole")
    core = max(64, overlap + 32)
    image = scene(96, 2 * core, 1)
    subject.require_repeatable()
    whole = subject.restore(instance, image.copy())
    left: Image = subject.restore(instance, image[:, : core + overlap].copy())[:, :core]
    right: Image = subject.restore(instance, image[:, core - overlap :].copy())[:, overlap:]
    apart = float(np.abs(np.hstack([left, right]) - whole).max())
    if not apart <= subject.cls.tile_tolerance:
        raise CheckFailed(
            f"tiles that overlap by {overlap} px differ from the whole by {apart:.3g} gray levels, stated are "
            f"{subject.cls.tile_tolerance:g}: widen tile_overlap or raise tile_tolerance; where a pixel depends on the "
            "whole image, as by an estimate of its noise, leave tile_overlap out (or return None): it is never cut then"
        )


@check
def cpu_gpu_agree(subject: Subject) -> None:
    """A GPU gives what the CPU gives, within half a gray level."""
    if subject.cls.kind == "control":
        raise CheckSkipped("a control computes on the CPU")
    if gpus() == 0:
        raise CheckSkipped("torch finds no GPU here")
    here = subject.require_repeatable()
    instance = subject.ready()
    instance.device = "cuda"
    apart = float(np.abs(subject.restore(instance, standard()) - here).max())
    if not apart <= GPU_TOLERANCE:
        raise CheckFailed(f"a GPU and the CPU are {apart:.3g} gray levels apart: compute in float32 on both")


def gpus() -> int:
    """GPUs that torch finds."""
    import torch

    return torch.cuda.device_count()
