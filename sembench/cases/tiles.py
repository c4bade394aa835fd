"""A set of clean tiles as one case: frozen tiles of a set's images, or simulated scenes cut up."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sembench import micrograph, phantom
from sembench.cases.case import CasePlan, CaseSpec, ordered
from sembench.cases.fields import PHANTOM_CASES, FieldSpec, plan_fields
from sembench.cases.lines import PHANTOM
from sembench.datasets.manifest import Dataset
from sembench.errors import InputError
from sembench.protocol import Protocol, digest_of
from sembench.restorer import Image

FEWEST = 50
"""Tiles that a set has at least: five a cluster."""

ACROSS = 2
"""Tiles along each side of a simulated scene."""


@dataclass(frozen=True)
class SceneTile(CaseSpec):
    """A square of a simulated scene; its group is the kind of scene."""

    scene: str
    x: int
    y: int
    side: int


Tile = FieldSpec | SceneTile


@dataclass(frozen=True)
class TileSetSpec(CaseSpec):
    """The tiles of a set, those of one image or scene next to each other."""

    tiles: tuple[Tile, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """The group of each tile."""
        return tuple(tile.group for tile in self.tiles)

    def images(self, protocol: Protocol) -> Iterator[tuple[str, Image]]:
        """Each tile's id and its pixels, float32 on the grid, in order; each image is read once."""
        for _, tiles in itertools.groupby(self.tiles, key=_source):
            whole = None
            for tile in tiles:
                if isinstance(tile, SceneTile):
                    if whole is None:
                        whole = phantom.corpus_scene(protocol.seed, tile.scene, ACROSS * tile.side).image
                    cut = whole[tile.y : tile.y + tile.side, tile.x : tile.x + tile.side]
                else:
                    if whole is None:
                        whole = micrograph.read(Path(tile.path), crop=tile.crop).pixels
                    cut = tile.cut(whole)
                yield tile.case_id, micrograph.to_grid(cut)

    def only(self, indices: list[int]) -> "TileSetSpec":
        """The same set reduced to the tiles of these indices, in the set's order."""
        return replace(self, tiles=tuple(self.tiles[i] for i in sorted(indices)))


def _source(tile: Tile) -> str:
    return tile.scene if isinstance(tile, SceneTile) else tile.path


def plan_tiles(protocol: Protocol, dataset: Dataset, limit: int | None) -> CasePlan:
    """The frozen tiles of a set."""
    _check_limit(protocol, limit)
    plan = plan_fields(protocol, dataset, limit)
    return replace(plan, specs=(_tile_set(dataset.name, tuple(s for s in plan.specs if isinstance(s, FieldSpec))),))


def plan_scene_tiles(protocol: Protocol, limit: int | None) -> CasePlan:
    """Simulated scenes cut into tiles."""
    _check_limit(protocol, limit)
    side = protocol.data.size
    kinds = phantom.CORPUS_KINDS
    tiles = [
        SceneTile(f"P{i:03d}-{row}-{column}", kinds[(i - 1) % len(kinds)], f"P{i:03d}", column * side, row * side, side)
        for i in range(1, PHANTOM_CASES + 1)
        for row, column in itertools.product(range(ACROSS), repeat=2)
    ]
    digest = digest_of([PHANTOM, phantom.VERSION, protocol.seed, side, PHANTOM_CASES, ACROSS])
    return CasePlan(PHANTOM, digest, (_tile_set(PHANTOM, ordered(protocol, tiles, limit)),))


def _tile_set(name: str, tiles: tuple[Tile, ...]) -> TileSetSpec:
    listed = tuple(sorted(tiles, key=lambda tile: tile.case_id))
    return TileSetSpec(f"tiles-{len(listed)}", name, listed)


def _check_limit(protocol: Protocol, limit: int | None) -> None:
    if limit is not None and limit < FEWEST:
        raise InputError(f"--limit {limit}: protocol {protocol.name!r} needs {FEWEST} tiles at least")
