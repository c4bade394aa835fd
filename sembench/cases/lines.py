"""The cases of the metrology protocol: phantom lines with truth, real lines at given contrasts."""

from dataclasses import astuple, dataclass
from pathlib import Path

from sembench import line_scenes, micrograph, phantom
from sembench.cases.case import Case, CasePlan, CaseSpec, ordered
from sembench.datasets import cache
from sembench.datasets.manifest import Dataset, load_line_images
from sembench.protocol import Protocol, digest_of

PHANTOM = "phantom"


@dataclass(frozen=True)
class LineSceneSpec(CaseSpec):
    """A phantom scene of rough lines with known truth."""

    def make(self, protocol: Protocol) -> Case:
        made = line_scenes.phantom_lines(protocol.seed, self.case_id)
        return Case(self.case_id, self.group, made.reference, made.degraded, made.degradation, None, made.truth)


@dataclass(frozen=True)
class RealLinesSpec(CaseSpec):
    """A real image of lines, degraded at a given contrast-to-noise ratio."""

    path: str
    crop: tuple[int, int, int, int]
    contrast: float
    space_level: float
    line_level: float
    pitch: float

    def make(self, protocol: Protocol) -> Case:
        image = micrograph.read(Path(self.path), crop=self.crop)
        made = line_scenes.real_lines(
            image.pixels, self.space_level, self.line_level, self.pitch, self.contrast, protocol.seed, self.case_id
        )
        return Case(self.case_id, self.group, made.reference, made.degraded, made.degradation, image.pixel_size_nm)


def plan_scenes(protocol: Protocol, limit: int | None) -> CasePlan:
    """The phantom scenes alone."""
    digest = digest_of([PHANTOM, phantom.VERSION, line_scenes.VERSION, protocol.seed, line_scenes.SCENES])
    return CasePlan(PHANTOM, digest, ordered(protocol, _line_scenes(), limit))


def _line_scenes() -> list[CaseSpec]:
    return [LineSceneSpec(name, name) for name in line_scenes.scene_ids()]


def plan_lines(protocol: Protocol, dataset: Dataset, limit: int | None) -> CasePlan:
    """Real images of lines, each at its contrasts, and the phantom scenes after the first of each."""
    rows = {row.file: row for row in dataset.rows}
    listed = load_line_images()
    digest = digest_of(
        [
            [phantom.VERSION, line_scenes.VERSION, protocol.seed, line_scenes.SCENES],
            [[*astuple(image), rows[image.file].sha256, rows[image.file].crop_px] for image in listed],
        ]
    )
    real = [
        RealLinesSpec(
            case_id=image.case_id,
            group=image.group,
            path=str(cache.locate(dataset, rows[image.file])),
            crop=rows[image.file].crop_px,
            contrast=image.contrast,
            space_level=image.space_level,
            line_level=image.line_level,
            pitch=image.pitch_px,
        )
        for image in listed
    ]
    return CasePlan(dataset.name, digest, ordered(protocol, [*real, *_line_scenes()], limit))
