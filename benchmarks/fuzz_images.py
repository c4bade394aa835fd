"""Coverage-guided fuzzing of image reading and of the metadata in images and sidecars, by atheris.

Every content is read, or refused by an InputError of one line; anything else ends the search and leaves the content in
crash-*. Such a content becomes a test of tests/test_micrograph.py.

    pip install atheris                                          # wheels for Linux and macOS; not a dependency
    python benchmarks/fuzz_images.py -max_total_time=300         # options of libFuzzer
"""

import io
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sembench", "tifffile"]):
    from sembench import micrograph
    from sembench.errors import InputError

import numpy as np
import tifffile
from PIL import Image

SIDECAR = b"\x00SIDECAR\x00"
"""What parts an image from the text of a sidecar."""
TEXTS = (
    b"[SemImageFile]\r\nPixelSize=2.5\r\nMagnification=50000\r\n",
    b"$CM_MAG 5000\r\n$$SM_MICRON_BAR 120\r\n$$SM_MICRON_MARKER 10um\r\n",
    b"[MAIN]\r\nPixelSizeX=1e-09\r\nPixelSizeY=1e-09\r\n",
)


def seeds() -> list[bytes]:
    """Small images of every kind, with and without a pixel size."""
    image = np.random.default_rng(1).integers(0, 255, (40, 36), np.uint8)
    contents = []
    for kind in ("PNG", "BMP", "JPEG"):
        for picture in (image, np.stack([image] * 3, -1)):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, kind)
            contents.append(file.getvalue())
    for values in (image, image.astype(np.uint16) * 256, image.astype(np.float32)):
        file = io.BytesIO()
        np.save(file, values, allow_pickle=False)
        contents.append(file.getvalue())
        for options in (
            {},
            {"imagej": True, "resolution": (1000.0, 1000.0), "metadata": {"unit": "nm"}},
            {"resolution": (10000, 10000), "resolutionunit": "CENTIMETER"},
            {"description": "PixelSize=2.5", "compression": "zlib"},
        ):
            file = io.BytesIO()
            tifffile.imwrite(file, values, **options)
            contents.append(file.getvalue())
    return [*contents, *(contents[0] + SIDECAR + text for text in TEXTS)]


def read(content: bytes) -> None:
    """One content: an image and perhaps a sidecar's text."""
    image, _, text = content.partition(SIDECAR)
    sidecars = {".txt": text, ".hdr": text} if text else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = micrograph.read_bytes(image, "fuzzed", sidecars=sidecars)
        except InputError as error:
            if "\n" in str(error):
                raise AssertionError(f"more than one line: {error!r}") from error
            return
    if made.pixels.ndim != 2 or made.pixels.dtype != np.float32 or not np.isfinite(made.pixels).all():
        raise AssertionError(f"read as {made.pixels.dtype} {made.pixels.shape}")
    if made.pixel_size_nm is not None and not all(0 < side < np.inf for side in made.pixel_size_nm):
        raise AssertionError(f"pixel size {made.pixel_size_nm}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds()):
            Path(folder, str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, folder, "-max_len=20000", "-rss_limit_mb=4096"], read)
        atheris.Fuzz()
