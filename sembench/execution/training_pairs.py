"""Real pairs that a fit may go on with, registered as cases are, the reference brought to the input's gray levels."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sembench import fast_scan, phantom
from sembench.cases import PHANTOM, STAND_IN, CaseLeftOut, CaseSpec
from sembench.cases.pairs import StandInSpec, folder_pairs, listed_pairs
from sembench.datasets import splits
from sembench.errors import InputError
from sembench.metrics.fidelity import match
from sembench.metrics.table import UndefinedError
from sembench.protocol import Protocol, digest_of
from sembench.registry import DATASETS, plugin
from sembench.restorer import Image, PairSet

VERSION = 1
"""Raised by hand whenever the same files give other training pairs."""

SIMULATED = {"train": 8, "validation": 2}
"""Number of simulated pairs where there are no real ones."""

SpecsByRole = Mapping[str, Iterable[CaseSpec]]


@dataclass(frozen=True)
class TrainingPairs:
    """Real pairs to learn from: known by their digest, read and registered only when a fit needs them.

    data: the name of the set; digest: SHA-256 over the files and how they are registered; number: training pairs.
    """

    data: str
    digest: str
    number: int
    _protocol: Protocol
    _specs: Callable[[], SpecsByRole]

    def training_set(self, degradation: str) -> PairSet:
        """The pairs, read and registered now; UnavailableError where a file cannot be had, InputError for a bad pair.

        The reference is resampled on the raw input, both are cut to where they overlap, and the reference is given one
        gain and one offset (least squares, both smoothed by a Gaussian of sigma 3 px) that bring it nearest to the
        input: so a method learns nothing of how the two scans' contrasts happen to differ.
        """
        made = {role: [self._made(spec) for spec in specs] for role, specs in self._specs().items()}
        (images, inputs), (validation, validation_inputs) = (
            tuple(zip(*made[role], strict=True)) for role in ("train", "validation")
        )
        return PairSet(images, validation, degradation, inputs=inputs, validation_inputs=validation_inputs)

    def _made(self, spec: CaseSpec) -> tuple[Image, Image]:
        """Reference and input."""
        try:
            case = spec.make(self._protocol)
            if case.reference is None:
                raise InputError(f"pair {spec.case_id} has no reference: leave it out")
            found = match(case.degraded, case.reference)
        except (CaseLeftOut, UndefinedError) as reason:
            raise InputError(f"{reason}; nothing can be learnt from pair {spec.case_id}: leave it out") from reason
        matched = np.clip(found.gain * case.reference + found.offset, 0, 255).astype(np.float32)
        return matched, case.degraded


def training_pairs(protocol: Protocol, data: str, number: int) -> TrainingPairs:
    """The first `number` training pairs and all validation pairs, for cases that come from `data`.

    Cases of the phantom are learnt from simulated pairs, all others from the protocol's own set. Pairs are counted as
    cases are: one of each kind in turn, so that two pairs are one of either. Raises InputError for a number too large.
    """
    if data in (PHANTOM, STAND_IN):
        return _simulated(protocol, number)
    dataset = plugin(DATASETS, protocol.data.set).load()()
    roles = {"train": protocol.data.train, "validation": protocol.data.validation}
    listed = {role: listed_pairs(dataset, split) for role, split in roles.items()}
    evaluation = [row for row in dataset.rows if row.split == protocol.data.evaluation]
    splits.check_disjoint(
        {
            **{role: [row for pair in pairs for row in pair.rows] for role, pairs in listed.items()},
            "evaluation": evaluation,
        }
    )
    _check_number(dataset.name, number, len(listed["train"]))
    chosen = listed | {"train": listed["train"][:number]}
    files = {role: [[[r.role, r.tile, r.sha256, r.crop_px] for r in p.rows] for p in chosen[role]] for role in roles}
    return TrainingPairs(
        dataset.name,
        digest_of([VERSION, dataset.name, protocol.alignment.model, files]),
        number,
        protocol,
        lambda: {role: [pair.located(margin=0) for pair in pairs] for role, pairs in chosen.items()},
    )


def training_pair_folder(protocol: Protocol, folder: Path, number: int | None, crop_bottom: str) -> TrainingPairs:
    """A user's own pairs in `input` and `reference`: every fifth pair, or the last of fewer, is for validation.

    number: of training pairs, None for all. Raises InputError for fewer than two pairs and for pairs that do not fit.
    """
    specs, files, _ = folder_pairs(folder, 0, crop_bottom)
    if len(specs) < 2:
        raise InputError(f"{folder}: {len(specs)} pair: give 2 at least, one to learn from and one to validate by")
    held_out = list(range(4, len(specs), 5)) or [len(specs) - 1]
    learnt = [i for i in range(len(specs)) if i not in held_out]
    number = len(learnt) if number is None else number
    _check_number(str(folder), number, len(learnt))
    chosen = {"train": learnt[:number], "validation": held_out}
    told = {role: [files[i] for i in indices] for role, indices in chosen.items()}
    return TrainingPairs(
        folder.resolve().name,
        digest_of([VERSION, crop_bottom, protocol.alignment.model, told]),
        number,
        protocol,
        lambda: {role: [specs[i] for i in indices] for role, indices in chosen.items()},
    )


def _simulated(protocol: Protocol, number: int) -> TrainingPairs:
    _check_number(STAND_IN, number, SIMULATED["train"])
    counts = SIMULATED | {"train": number}
    specs = {
        role: [StandInSpec(f"{role}{i:02d}", f"{role}|{i:02d}", 0) for i in range(1, count + 1)]
        for role, count in counts.items()
    }
    digest = digest_of([VERSION, STAND_IN, phantom.VERSION, fast_scan.VERSION, protocol.seed, counts])
    return TrainingPairs(STAND_IN, digest, number, protocol, lambda: specs)


def _check_number(where: str, number: int, most: int) -> None:
    if not 1 <= number <= most:
        raise InputError(f"--pairs {number}: {where} has {most} training pairs: give 1 to {most}, or 0 for none")
