"""A program that reads one image file and writes another, as a restorer."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field

from sembench.errors import InputError
from sembench.micrograph import read, write
from sembench.restorer import Image, Need, Restorer, check_image


class CommandLine(Restorer):
    """A program called as PROGRAM INPUT.tif OUTPUT.tif, without a shell."""

    class Settings(Restorer.Settings):
        program: str = Field("denoise", max_length=1000, description="path or name of the program")
        seconds: float = Field(120, gt=0, le=3600, description="time limit of one image")

    @classmethod
    def needs(cls, settings: Any) -> list[Need]:
        if shutil.which(settings.program):
            return []
        return [Need("a program", f"{settings.program} cannot be run", "give --set program=PATH")]

    def restore(self, image: Image, /) -> Image:
        check_image(image)
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "input.tif"), Path(folder, "output.tif")
            write(source, image)
            words = [self.settings.program, str(source), str(target)]
            done = subprocess.run(words, capture_output=True, text=True, timeout=self.settings.seconds, check=False)
            if done.returncode or not target.is_file():
                raise InputError(f"{self.settings.program} ended with code {done.returncode}: {done.stderr[-200:]!r}")
            return read(target).pixels
