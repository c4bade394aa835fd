"""Real pairs: an input and its slower, sharper reference, registered once a case, whoever restores it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sembench import fast_scan, micrograph, phantom
from sembench.alignment import AlignmentRefused, align
from sembench.cases.case import Case, CaseLeftOut, CasePlan, CaseSpec, ordered
from sembench.cases.folder import check_sizes, data_name, file_sha256, named_images
from sembench.datasets import cache
from sembench.datasets.manifest import Dataset, ManifestRow
from sembench.errors import InputError
from sembench.protocol import Protocol, digest_of
from sembench.restorer import Image

INPUT, REFERENCE = "input", "reference"
STAND_IN = "phantom_pairs"
"""Name of the simulated pairs as a data set: never published as real ones."""
STAND_IN_PAIRS = 8
FEWEST_GROUPS = 3
"""Sites that a set has at least where anything is to be said beyond its own cases."""


@dataclass(frozen=True)
class Tile:
    """One file of an image, and where its upper left corner lies in the whole (px)."""

    path: str
    crop: tuple[int, int, int, int] | None
    row: int = 0
    column: int = 0


@dataclass(frozen=True)
class PairSpec(CaseSpec):
    """An input and its reference, each of one file or several tiles; margin: px at each border that are not scored.

    demonstration: where registration is not to be trusted the case is not left out but goes without its reference.
    """

    inputs: tuple[Tile, ...]
    references: tuple[Tile, ...]
    margin: int
    pixel_size_nm: float | None = None
    crop_bottom: str = "0"
    demonstration: bool = False

    def make(self, protocol: Protocol) -> Case:
        degraded, stored = _stitch(self.inputs, self.crop_bottom)
        reference, _ = _stitch(self.references, self.crop_bottom)
        if degraded.shape != reference.shape:
            raise InputError(
                f"pair {self.case_id}: input of {degraded.shape[0]} x {degraded.shape[1]} px, reference of "
                f"{reference.shape[0]} x {reference.shape[1]} px: give images of one size"
            )
        size = stored or (None if self.pixel_size_nm is None else (self.pixel_size_nm, self.pixel_size_nm))
        try:
            alignment = align(degraded, reference, model=protocol.alignment.model)
            if not alignment.trusted:
                raise AlignmentRefused(alignment.reason)
        except AlignmentRefused as refusal:
            if not self.demonstration:
                raise CaseLeftOut(f"pair {self.case_id}: {refusal}") from refusal
            told = {"trusted": False, "warnings": [f"{refusal}; it goes without its reference"]}
            plain = micrograph.to_grid(degraded)
            return Case(self.case_id, self.group, None, plain, None, size, alignment=told, margin=self.margin)
        rows, columns = alignment.overlap if alignment.margin > self.margin else (slice(None), slice(None))
        warped = np.clip(alignment.warp(reference), 0, 255)
        return Case(
            self.case_id,
            self.group,
            np.ascontiguousarray(micrograph.to_grid(warped[rows, columns])),
            np.ascontiguousarray(micrograph.to_grid(degraded[rows, columns])),
            None,
            size,
            alignment=alignment.as_record(),
            margin=self.margin,
        )


@dataclass(frozen=True)
class UnpairedSpec(CaseSpec):
    """A user's image without a reference: only metrics that need none apply."""

    path: str
    crop_bottom: str

    def make(self, protocol: Protocol) -> Case:
        image = micrograph.read(Path(self.path), crop_bottom=self.crop_bottom)
        return Case(self.case_id, self.group, None, micrograph.to_grid(image.pixels), None, image.pixel_size_nm)


def _stitch(tiles: Sequence[Tile], crop_bottom: str) -> tuple[Image, tuple[float, float] | None]:
    """The whole image of its tiles, and the pixel size that the first of them brings."""
    read = [
        micrograph.read(Path(tile.path), crop=tile.crop)
        if tile.crop is not None
        else micrograph.read(Path(tile.path), crop_bottom=crop_bottom)
        for tile in tiles
    ]
    if len(tiles) == 1:
        return read[0].pixels, read[0].pixel_size_nm
    height = max(tile.row + part.pixels.shape[0] for tile, part in zip(tiles, read, strict=True))
    width = max(tile.column + part.pixels.shape[1] for tile, part in zip(tiles, read, strict=True))
    whole = np.full((height, width), np.nan, np.float32)
    for tile, part in zip(tiles, read, strict=True):
        rows, columns = part.pixels.shape
        whole[tile.row : tile.row + rows, tile.column : tile.column + columns] = part.pixels
    if np.isnan(whole).any():
        raise InputError(f"{tiles[0].path}: the tiles of its pair leave {int(np.isnan(whole).sum())} px uncovered")
    return whole, read[0].pixel_size_nm


@dataclass(frozen=True)
class ListedPair:
    """A pair of a data set as its manifest has it, its files not yet located."""

    dataset: Dataset
    rows: tuple[ManifestRow, ...]

    @property
    def name(self) -> str:
        """The pair's name, which is its case id."""
        return self.rows[0].pair

    @property
    def group(self) -> str:
        """Its kind and site."""
        return self.rows[0].group

    def located(self, margin: int) -> PairSpec:
        """What it takes to make the case; margin: px at each border that are not scored.

        Raises UnavailableError where a file cannot be had.
        """

        def tiles(role: str) -> tuple[Tile, ...]:
            rows = [row for row in self.rows if row.role == role]
            return tuple(Tile(str(cache.locate(self.dataset, r)), r.crop_px, *_place(r.tile)) for r in rows)

        return PairSpec(self.name, self.group, tiles(INPUT), tiles(REFERENCE), margin, self.rows[0].pixel_size_nm)


def listed_pairs(dataset: Dataset, split: str) -> list[ListedPair]:
    """The pairs of a split: the first of each kind in the manifest's order, then the second of each, and so on.

    So a limit cuts all kinds alike. Raises InputError for a split without pairs, and for a pair that lacks a side.
    """
    by_pair: dict[str, list[ManifestRow]] = {}
    for row in dataset.rows:
        if row.split == split and row.pair:
            by_pair.setdefault(row.pair, []).append(row)
    if not by_pair:
        raise InputError(f"data set {dataset.name!r} has no pairs of split {split!r}")
    kinds: dict[str, list[ListedPair]] = {}
    for name, rows in by_pair.items():
        if {row.role for row in rows} != {INPUT, REFERENCE}:
            raise InputError(f"data set {dataset.name!r}: pair {name!r} needs both an input and a reference")
        pair = ListedPair(dataset, tuple(rows))
        kinds.setdefault(pair.group.partition("|")[0], []).append(pair)
    return [pair for turn in itertools.zip_longest(*kinds.values()) for pair in turn if pair is not None]


def plan_pairs(protocol: Protocol, dataset: Dataset, limit: int | None) -> CasePlan:
    """The pairs of a set's evaluation split."""
    listed = listed_pairs(dataset, protocol.data.evaluation)
    margin = (protocol.alignment.margins or {}).get(dataset.name, protocol.margin)
    rows = [row for row in dataset.rows if row.split == protocol.data.evaluation and row.pair]
    digest = digest_of([margin, [[row.pair, row.role, row.tile, row.sha256, row.crop_px, row.group] for row in rows]])
    chosen = ordered(protocol, [CaseSpec(pair.name, pair.group) for pair in listed], limit)
    by_name = {pair.name: pair for pair in listed}
    groups = {pair.group for pair in listed}
    specs = tuple(by_name[spec.case_id].located(margin) for spec in chosen)
    if len(groups) >= FEWEST_GROUPS:
        return CasePlan(dataset.name, digest, specs)
    few = f"{dataset.name}: {len(listed)} pairs, {len(groups)} site(s): a demonstration, too few for intervals or ranks"
    return CasePlan(dataset.name, digest, tuple(replace(spec, demonstration=True) for spec in specs), (few,))


def _place(tile: str) -> tuple[int, int]:
    row, _, column = tile.partition(",")
    return (int(row), int(column)) if tile else (0, 0)


def plan_pair_folder(protocol: Protocol, folder: Path, limit: int | None, crop_bottom: str) -> CasePlan:
    """A user's own pairs in `input` and `reference`, or images without references, each its own group.

    Paired by name where all names match, else by sorted order. Raises InputError: one folder missing or empty, unequal
    counts (with what has no partner), sizes that differ within a pair.
    """
    inputs, references = folder / INPUT, folder / REFERENCE
    data = data_name(folder, STAND_IN)
    if not inputs.is_dir() and not references.is_dir():
        return _unpaired(protocol, folder, data, limit, crop_bottom)
    specs, files, how = folder_pairs(folder, protocol.margin, crop_bottom)
    digest = digest_of([protocol.margin, crop_bottom, files])
    notice = f"{folder}: {len(specs)} pairs {how}, each its own group"
    return CasePlan(data, digest, ordered(protocol, specs, limit), (notice,))


def folder_pairs(folder: Path, margin: int, crop_bottom: str) -> tuple[list[PairSpec], list[list[str]], str]:
    """The pairs of a folder, the SHA-256 of the two files of each, and how they were found; refusals as above."""
    inputs, references = folder / INPUT, folder / REFERENCE
    for side in (inputs, references):
        if not side.is_dir():
            raise InputError(f"{side}: no such folder: pairs lie in {INPUT}/ and {REFERENCE}/ under equal names")
    first, second = (named_images(side) for side in (inputs, references))
    by_name = set(first) == set(second)
    if not by_name and len(first) != len(second):
        alone = sorted(set(first) ^ set(second))
        raise InputError(
            f"{folder}: {len(first)} images in {INPUT}/ and {len(second)} in {REFERENCE}/; without a partner of the "
            f"same name: {', '.join(alone[:8])}{' ...' if len(alone) > 8 else ''}"
        )
    partners = sorted(first) if by_name else list(first)
    pairs = list(zip(partners, (second[name] for name in (partners if by_name else second)), strict=True))
    check_sizes((first[name], other) for name, other in pairs)
    specs = [
        PairSpec(name, name, (Tile(str(first[name].resolve()), None),), (Tile(str(other.resolve()), None),),
                 margin, crop_bottom=crop_bottom)
        for name, other in pairs
    ]  # fmt: skip
    files = [[file_sha256(first[name]), file_sha256(other)] for name, other in pairs]
    return specs, files, "by name" if by_name else "by sorted order, as their names differ"


def _unpaired(protocol: Protocol, folder: Path, data: str, limit: int | None, crop_bottom: str) -> CasePlan:
    files = named_images(folder)
    check_sizes((file,) for file in files.values())
    specs = [UnpairedSpec(name, name, str(file.resolve()), crop_bottom) for name, file in files.items()]
    digest = digest_of([crop_bottom, [[name, file_sha256(file)] for name, file in files.items()]])
    notice = (
        f"{folder}: {len(files)} images and no references (pairs lie in {INPUT}/ and {REFERENCE}/): "
        "only metrics that need none apply"
    )
    return CasePlan(data, digest, ordered(protocol, specs, limit), (notice,))


@dataclass(frozen=True)
class StandInSpec(CaseSpec):
    """A simulated pair: a scene and its fast scan, by physics that is not the forward model's."""

    margin: int

    def make(self, protocol: Protocol) -> Case:
        made = fast_scan.simulated_pair(protocol.seed, self.case_id)
        return Case(self.case_id, self.group, made.reference, made.degraded, None, margin=self.margin)


def plan_stand_in(protocol: Protocol, limit: int | None) -> CasePlan:
    """Simulated pairs in place of real ones, registered by construction."""
    names = [f"{kind}{i:02d}" for i in range(1, STAND_IN_PAIRS + 1) for kind in ("dwell", "line")]
    specs = [StandInSpec(name, f"{name[:-2]}|{name}", protocol.margin) for name in names]
    digest = digest_of([STAND_IN, phantom.VERSION, fast_scan.VERSION, protocol.seed, protocol.margin, STAND_IN_PAIRS])
    return CasePlan(STAND_IN, digest, ordered(protocol, specs, limit))
