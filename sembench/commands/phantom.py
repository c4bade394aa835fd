"""`sembench phantom`: draw a scene and its truth."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Kind = Literal["lines", "contacts", "particles", "grains", "fibres"]

_ROUGH = ("pitch", "duty", "sigma", "xi", "hurst", "rim")
_OPTIONS_OF_KIND = {
    "lines": (*_ROUGH, "tilt"),
    "contacts": _ROUGH,
    "particles": ("pitch", "duty"),
    "grains": ("pitch",),
    "fibres": ("pitch", "duty"),
}


def phantom(
    kind: Annotated[Kind, typer.Argument(help="What to draw.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Image to write: .tif (float32), .png or .npy.")],
    truth: Annotated[Path | None, typer.Option(help="JSON file to write the true geometry to.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random stream.")] = 0,
    image_id: Annotated[str, typer.Option(help="Name of the scene: another name, another draw.")] = "P001",
    width: Annotated[int, typer.Option(help="Width in px.")] = 512,
    height: Annotated[int, typer.Option(help="Height in px.")] = 512,
    pitch: Annotated[
        float | None,
        typer.Option(
            help="Period of lines or contacts; diameter of particles, grains or fibres (px). Default 32, fibres 16."
        ),
    ] = None,
    duty: Annotated[
        float | None,
        typer.Option(help="Line width or contact diameter over pitch; part covered by particles or fibres."),
    ] = None,
    sigma: Annotated[float | None, typer.Option(help="Edge roughness, rms (px), of lines or contacts.")] = None,
    xi: Annotated[float | None, typer.Option(help="Correlation length of the roughness (px).")] = None,
    hurst: Annotated[float | None, typer.Option(help="Roughness exponent.")] = None,
    edge_sigma: Annotated[float, typer.Option(help="Gaussian blur of the edges (px).")] = 1.0,
    tilt: Annotated[float | None, typer.Option(help="Tilt of lines (degrees).")] = None,
    low: Annotated[float, typer.Option(help="Gray level of the dark side.")] = 60.0,
    high: Annotated[float, typer.Option(help="Gray level of the bright side.")] = 180.0,
    contrast_to_noise: Annotated[
        float | None, typer.Option(help="Add white normal noise of (high - low) over this; none where left out.")
    ] = None,
    rim: Annotated[
        float | None, typer.Option(help="Height of a bright rim over high - low, of lines, contacts.")
    ] = None,
    pixel_size: Annotated[float | None, typer.Option("--pixel-size", help="Pixel size (nm), written along.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers of the truth as JSON.")] = False,
) -> None:
    """Draw a scene with known geometry; the same seed and image id give the same scene."""
    import json

    import numpy as np

    from sembench import phantom as scenes
    from sembench.errors import InputError, WriteError
    from sembench.micrograph import write
    from sembench.optics import generator

    given: dict[str, Any] = {
        "pitch": pitch, "duty": duty, "sigma": sigma, "xi": xi, "hurst": hurst, "tilt": tilt, "rim": rim,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    surplus = [name for name in given if name not in _OPTIONS_OF_KIND[kind]]
    if surplus:
        raise InputError(f"--{surplus[0]} has no meaning for {kind}: leave it out")
    if contrast_to_noise is not None and contrast_to_noise <= 0:
        raise InputError(f"--contrast-to-noise is {contrast_to_noise:g}: give a number above 0")
    common = {"height": height, "width": width, "edge_sigma": edge_sigma, "low": low, "high": high}
    scene = getattr(scenes, kind)(generator(seed, image_id, "scene"), **common, **_arguments(kind, given))
    if pixel_size is not None:
        scene = scenes.with_pixel_size(scene, pixel_size)
    image = scene.image
    if contrast_to_noise is not None:
        noise = generator(seed, image_id, "noise").normal(0, (high - low) / contrast_to_noise, image.shape)
        image = np.clip(image + noise, 0, 255).astype(np.float32)
    facts = {**scene.truth, "seed": seed, "image_id": image_id, "contrast_to_noise": contrast_to_noise}
    write(output, image, None if pixel_size is None else (pixel_size, pixel_size))
    if truth is not None:
        try:
            truth.parent.mkdir(parents=True, exist_ok=True)
            truth.write_text(json.dumps(facts, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise WriteError(f"cannot write {truth}: {error.strerror}: choose another place") from error
    _show({name: value for name, value in facts.items() if not isinstance(value, list | dict)}, as_json)


def _arguments(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """The generator's own arguments from the options, with the defaults of each kind."""
    pitch = given.get("pitch", 16.0 if kind == "fibres" else 32.0)
    if kind == "lines":
        chosen = {"duty": 0.5, "sigma": 1.0, "xi": 15.0, "hurst": 0.6, "tilt": 0.0, "rim": 0.0, **given, "pitch": pitch}
        return {"tilt_deg" if name == "tilt" else name: value for name, value in chosen.items()}
    if kind == "contacts":
        chosen = {"sigma": 0.4, "xi": 8.0, "hurst": 0.6, "rim": 0.0, **given, "pitch": pitch}
        diameter = pitch * chosen.pop("duty", 0.55)
        return {**chosen, "diameter": diameter}
    if kind == "grains":
        return {"diameter": pitch, "groove": 0.3}
    if kind == "particles":
        return {"diameter": pitch, "covered": given.get("duty", 0.3)}
    return {"diameter": pitch, "covered": given.get("duty", 0.5)}


def _show(numbers: dict[str, Any], as_json: bool) -> None:
    """Print the numbers as JSON or as a table."""
    import json

    from rich.console import Console
    from rich.table import Table

    if as_json:
        typer.echo(json.dumps(numbers, indent=2))
        return
    table = Table("quantity", "value")
    for name, value in numbers.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)
