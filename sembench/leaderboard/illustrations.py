"""Pictures beside published rows: a part of one case, as each row of a run folder restored it."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sembench.cases import PHANTOM, STAND_IN, Case, CaseLeftOut
from sembench.errors import InputError, UnavailableError
from sembench.execution.recorded import RecordedRun
from sembench.execution.records import Record
from sembench.leaderboard.bundle import artefact
from sembench.leaderboard.claims import Claim, Depth
from sembench.micrograph import read_grid_png
from sembench.pages import pixels
from sembench.report.pictures import View, difference, view_of
from sembench.restorer import Image

MOST_SIDE = 128
"""Px that the magnified part may have on a side."""
SHOWN_SIDE = 256
"""Px of a page that it is magnified to, at most."""
COLOURS = 33
"""Colours of a difference, one of them for none."""


@dataclass(frozen=True)
class Scene:
    """The case of a run that is shown: its input and reference, each the magnified part as an address that holds it.

    data: the data set, or the last part of a folder's name; simulated: whether the case is a scene of the phantom;
    part: which part, in words; side: its px; levels: the image whose gray range is shown in all; reach: gray levels
    at which a difference is shown in full colour; reference: empty where there is none; key: its id on a page.
    """

    data: str
    data_digest: str
    case: str
    simulated: bool
    part: str
    side: int
    levels: str
    reach: float
    input: str
    reference: str
    key: str = ""

    @property
    def shown_side(self) -> int:
        """Px of a page on which the part is shown: a whole number for each of its own."""
        return self.side * max(1, SHOWN_SIDE // self.side)


@dataclass(frozen=True)
class Illustration:
    """A row's restored image in a scene: the part, its difference from the reference, and the primary metric's value.

    difference: empty where there is no reference; value: None where the metric has none on the case.
    """

    scene: Scene
    part: str
    difference: str
    value: float | None


def illustrations(run: RecordedRun, wanted: Collection[str]) -> tuple[dict[str, Illustration], list[str]]:
    """Row id -> what is shown of it, for those wanted whose restored image of the run's first case lies in its folder.

    The second value tells, a line each, what was left out though it lies there. Raises InputError, one line, where
    the run is none that this version knows.
    """
    claim = Claim(run, Depth(), (run.folder,))
    if claim.protocol.scope == "set":
        return {}, [f"{run.folder}: its protocol scores sets of tiles, of which there is no restored image"]
    if not isinstance(run.description.get("data"), str):
        raise InputError(f"{run.folder}: its run.json does not tell of which data it is: give a run folder")
    solved = [record for record in claim.solved if record["row"] in wanted]
    if not solved:
        return {}, [f"{run.folder}: no row of the table has a restored image there"]
    try:
        case = _first_case(claim, {record["case"] for record in solved})
    except (InputError, UnavailableError, CaseLeftOut) as error:
        return {}, [f"{run.folder}: its cases cannot be made here ({error})"]
    if case is None:
        return {}, [f"{run.folder}: is of other images of {claim.cases.data} than are at hand here"]
    base = case.degraded if case.reference is None else case.reference
    view = view_of(base, MOST_SIDE)
    scene = _scene(claim, case, view)
    found, notices = {}, []
    for record in solved:
        path = claim.stored(record) if record["case"] == case.case_id else None
        if path is None:
            continue
        try:
            image = _restored(path, record, case)
        except InputError as error:
            notices.append(str(error))
            continue
        less = "" if case.reference is None else _difference(image, case.reference, view)
        value = record["metrics"].get(claim.protocol.metrics.primary)
        known = float(value) if isinstance(value, int | float) else None
        found[record["row"]] = Illustration(scene, view.gray_part(image, pixels.webp), less, known)
    if not found and not notices:
        notices.append(f"{run.folder}: holds no restored image of its first case {case.case_id}")
    return found, notices


def _first_case(claim: Claim, solved: Collection[str]) -> Case | None:
    """The first of the protocol's cases that was solved; None where the images here are not those of the run."""
    plan = claim.cases
    if plan.digest != claim.run.description["data_digest"]:
        return None
    spec = next((spec for spec in plan.specs if spec.case_id in solved), None)
    return None if spec is None else spec.make(claim.protocol)


def _scene(claim: Claim, case: Case, view: View) -> Scene:
    data = str(claim.run.description["data"])
    return Scene(
        Path(data).name,
        str(claim.run.description["data_digest"]),
        case.case_id,
        data in (PHANTOM, STAND_IN) or case.truth is not None,
        view.part,
        view.frame[2],
        "input" if case.reference is None else "reference",
        view.reach,
        view.gray_part(case.degraded, pixels.webp),
        "" if case.reference is None else view.gray_part(case.reference, pixels.webp),
    )


def _restored(path: Path, record: Record, case: Case) -> Image:
    """The stored image of a record; InputError, one line, where it is not what was recorded, or not of this case."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): it is not shown") from error
    found = hashlib.sha256(content).hexdigest()
    if found != artefact(record)[1]:
        raise InputError(f"{path}: was changed: its record does not give its SHA-256 {found[:8]}: it is not shown")
    if hashlib.sha256(case.degraded.tobytes()).hexdigest() != record.get("input_sha256"):
        raise InputError(f"{path}: was restored from another input than case {case.case_id} has here: it is not shown")
    image = read_grid_png(path)
    if image.shape != case.degraded.shape:
        raise InputError(f"{path}: has {image.shape} px, its case {case.degraded.shape}: it is not shown")
    return image


def _difference(image: Image, reference: Image, view: View) -> str:
    return view.difference_part(difference(image, reference), pixels.webp, COLOURS)
