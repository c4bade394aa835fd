"""What rows and their records claim, checked one by one: proven, failed, or not proven and why."""

import hashlib
import json
import random
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from sembench.cases import PHANTOM, STAND_IN, CasePlan, CaseSpec, flat_fields, plan_cases
from sembench.errors import InputError, SembenchError, UnavailableError
from sembench.execution.plan import Row, row_id, trained_on
from sembench.execution.provenance import environment, environment_digest
from sembench.execution.recorded import RecordedRun
from sembench.execution.records import Record, key
from sembench.leaderboard import recompute
from sembench.leaderboard.bundle import artefact, expected_artefact
from sembench.leaderboard.eligibility import find_state, refusals, row_refusals, variant_of
from sembench.leaderboard.ranking import protocol_of
from sembench.micrograph import read_grid_png
from sembench.protocol import Protocol, load
from sembench.registry import PROTOCOLS, RESTORERS, MethodTarget, find_method, needs_of, plugin, plugins

Outcome = Literal["proven", "failed", "not proven"]
SHOWN = 5
"""Failures of one check that are told one by one."""

GRAY_TOLERANCE = 0.05
"""Root mean square difference in gray levels that an image restored again in another environment may have."""

Listener = Callable[[str, int, int], None]
"""Is told what is being done, how many things of it are done (none where it begins), and of how many."""

T = TypeVar("T")

STATUSES = ("ok", "failed", "left_out")


@dataclass(frozen=True)
class Finding:
    """How one check of one subject (a run, a bundle, a table) came out, and what it rests on or what is wrong."""

    subject: str
    check: str
    outcome: Outcome
    told: str


@dataclass(frozen=True)
class Depth:
    """How much is made again: cases scored anew, cases restored anew (each for every row), drawn by a seed.

    images: further folders in which restored images may lie, each laid out as a run. listener: is told how far it is.
    """

    sample: int = 3
    restore: int = 1
    seed: int = 0
    images: tuple[Path, ...] = ()
    listener: Listener | None = field(default=None, repr=False, compare=False)

    def counted(self, what: str, things: Iterable[T], total: int) -> Iterator[T]:
        """The things one by one, the listener being told of each."""
        if self.listener and total:
            self.listener(what, 0, total)
        for done, thing in enumerate(things, 1):
            yield thing
            if self.listener:
                self.listener(what, done, total)


Told = tuple[Outcome, str]
Check = Callable[["Claim"], list[Told]]


@dataclass(frozen=True, eq=False)
class Claim:
    """Rows with their records, what they claim to be, and where their restored images and fitted states may lie.

    published: whether they are to be fit for a leaderboard; flat: whether its records are of flat fields.
    """

    run: RecordedRun
    depth: Depth
    folders: tuple[Path, ...]
    published: bool = False
    flat: bool = False

    @cached_property
    def protocol(self) -> Protocol:
        """The protocol as it is told."""
        return protocol_of(self.run)

    @cached_property
    def cases(self) -> CasePlan:
        """The cases as the protocol makes them here; UnavailableError or InputError where it cannot."""
        data = str(self.run.description["data"])
        simulated = data in (PHANTOM, STAND_IN)
        plan = plan_cases(self.protocol, PHANTOM if simulated else data, require_real=not simulated)
        return replace(plan, specs=flat_fields(plan.specs)) if self.flat else plan

    @property
    def described(self) -> dict[str, dict[str, Any]]:
        """Row id -> what run.json says of it."""
        return {str(told["row"]): told for told in self.run.description["rows"]}

    @property
    def solved(self) -> list[Record]:
        """The records that have a restored image."""
        return [record for record in self.run.records if record["status"] == "ok"]

    def stored(self, record: Record) -> Path | None:
        """Where the restored image of a record lies here."""
        path = artefact(record)[0]
        found = (folder / path for folder in self.folders if path in expected_artefact(record["row"], record["case"]))
        return next((file for file in found if file.is_file()), None)

    def drawn(self, count: int, purpose: str) -> list[str]:
        """So many cases that some row solved, at random."""
        solved = sorted({record["case"] for record in self.solved})
        return sorted(random.Random(f"{self.depth.seed} {purpose}").sample(solved, min(count, len(solved))))


def check_claim(claim: Claim, subject: str) -> list[Finding]:
    """Every check of a run or of the bundles of one table."""
    findings = []
    for name, check in CHECKS.items():
        try:
            told = check(claim)
        except SembenchError as error:
            told = [("failed", str(error))]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            told = [("failed", f"what is told is not of the form that it must be ({type(error).__name__}: {reason})")]
        findings += [Finding(subject, name, outcome, text) for outcome, text in _shortened(told)]
    return findings


def _shortened(told: Sequence[Told]) -> list[Told]:
    """The first few failures one by one, then how many more there are; the same reason once, with its number."""
    failures = [text for outcome, text in told if outcome == "failed"]
    short: list[Told] = [("failed", text) for text in failures[:SHOWN]]
    if len(failures) > SHOWN:
        short.append(("failed", f"and {len(failures) - SHOWN} more"))
    return [*short, *dict.fromkeys(one for one in told if one[0] != "failed")]


def _few(names: Sequence[str]) -> str:
    """The first few names, then how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _rows(number: int) -> str:
    return f"{number} row" if number == 1 else f"{number} rows"


def check_protocol(claim: Claim) -> list[Told]:
    """The protocol told is of the digest told, and is the one that is installed and released under its name."""
    told, protocol = claim.run.description["protocol_digest"], claim.protocol
    label = f"{protocol.name} v{protocol.version}"
    if protocol.digest != told:
        return [("failed", f"the protocol told has digest {protocol.digest[:8]}, the run says {str(told)[:8]}")]
    if protocol.name not in plugins(PROTOCOLS):
        return [("not proven", f"protocol {label} is not installed here")]
    target = plugin(PROTOCOLS, protocol.name).load()
    installed = load(protocol.name)
    if installed.version != protocol.version:
        return [("not proven", f"protocol {label}: version {installed.version} is installed here")]
    if installed.digest != told:
        return [("failed", f"protocol {label} has digest {installed.digest[:8]} here, the run is of {told[:8]}")]
    locked = _locked(Path(target).with_name("lock.toml"), f"{protocol.name}-v{protocol.version}")
    if locked not in (None, told):
        return [("failed", f"protocol {label} was released with digest {str(locked)[:8]}, not {told[:8]}")]
    return [("proven", f"{label}, digest {told[:8]}, as {'released' if locked else 'installed'}")]


def _locked(path: Path, name: str) -> str | None:
    """The released digest of a protocol, None where there is no lock beside it or it is not in there."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))["protocols"].get(name)
    except (OSError, ValueError, KeyError):
        return None
    return None if found is None else str(found)


def check_data(claim: Claim) -> list[Told]:
    """The images are those that the protocol takes, and every row was given each of their cases."""
    try:
        plan = claim.cases
    except UnavailableError as error:
        return [("not proven", f"the images are not at hand: {error}")]
    except InputError as error:
        return [("not proven", f"the cases cannot be made here: {error}")]
    told = str(claim.run.description["data_digest"])
    if plan.digest != told:
        return [("failed", f"the images of {plan.data} have digest {plan.digest[:8]}, the run is of {told[:8]}")]
    groups = {spec.case_id: spec.group for spec in plan.specs}
    wrong = sorted({r["case"] for r in claim.run.records if groups.get(r["case"]) != r["group"]})
    if wrong:
        return [("failed", f"case {wrong[0]} is none of the protocol's, or of another group")]
    counts = Counter(record["row"] for record in claim.run.records)
    short = {row.row_id: counts[row.row_id] for row in claim.run.rows if counts[row.row_id] < len(groups)}
    if short:
        few = _few([f"{name} {count}" for name, count in short.items()])
        outcome: Outcome = "failed" if claim.published else "not proven"
        return [(outcome, f"digest {told[:8]}, but not every row has all {len(groups)} cases: {few}")]
    return [("proven", f"{plan.data}, digest {told[:8]}, all {len(groups)} cases for every row")]


def check_eligibility(claim: Claim) -> list[Told]:
    """Nothing that a leaderboard refuses; a run that stays where it is may be of any kind."""
    if not claim.published:
        return []
    problems = [*refusals(claim.run, claim.protocol), *row_refusals(claim.run).values()]
    return [("failed", problem) for problem in problems] or [("proven", "real images, whole runs, budgets in steps")]


def check_identity(claim: Claim) -> list[Told]:
    """Each row's id follows from the method, settings, weights and fit that it tells; so does the installed one's."""
    told: list[Told] = []
    followed = same = 0
    for row in claim.run.rows:
        described = claim.described[row.row_id]
        if described.get("version") is None:
            told.append(("not proven", "the run does not tell what row ids follow from: it was made by an old version"))
            continue
        fit = (described.get("fit") or {}).get("identity")
        made = row_id(
            row.name,
            described["version"],
            row.settings,
            described.get("source_sha256"),
            described.get("weights_sha256") or "",
            fit,
        )
        if made != row.row_id:
            told.append(("failed", f"{row.row_id}: restorer, settings and fit that are told give {made}"))
            continue
        if fit is not None and fit.get("name") != row.name:
            told.append(("failed", f"{row.row_id}: its fit is one of {fit.get('name')}"))
            continue
        followed += 1
        method = _installed(row, described)
        if isinstance(method, str):
            told.append(("not proven", method))
        elif method.cls.kind != row.kind:
            told.append(("failed", f"{row.row_id}: {row.name} is a {method.cls.kind} here, the row says {row.kind}"))
        elif problem := _misdeclared(row, method, fit, claim):
            told.append(("failed", f"{row.row_id}: {problem}"))
        else:
            same += 1
    if followed:
        summary = f"{followed} of {len(claim.run.rows)} row ids follow from what is told, {same} from what is installed"
        told.append(("proven", summary))
    return told


def _misdeclared(row: Row, method: MethodTarget, fit: Mapping[str, Any] | None, claim: Claim) -> str:
    """In what a row's variant and declared training are not those of the installed method; empty where they are.

    Runs of an old version do not tell them, and need not before they are published.
    """
    if "variant" not in claim.described[row.row_id] and not claim.published:
        return ""
    declared = trained_on(method, method.cls.Settings(**row.settings))
    if row.trained_on != declared:
        return f"tells that it was trained on {row.trained_on}, {row.name} declares {declared}"
    own = variant_of(method, row.settings, fit, claim.protocol)
    return "" if row.variant == own else f"tells that it is the variant {row.variant}, its settings and fit make {own}"


def _installed(row: Row, described: Mapping[str, Any]) -> MethodTarget | str:
    """The installed method that a row is of, or why there is none."""
    if described.get("source_sha256"):
        return f"restorer {row.name} is a file (FILE.py:Class) that is not at hand"
    if row.name not in plugins(RESTORERS):
        return f"restorer {row.name} is not installed here"
    try:
        method = find_method(row.name)
    except InputError as error:
        return f"restorer {row.name} is not at hand: {error}"
    if method.cls.version != described.get("version"):
        return f"restorer {row.name} is of version {method.cls.version} here, the row of {described.get('version')}"
    try:
        settings = method.cls.Settings(**row.settings)
        if settings.model_dump(mode="json") != row.settings:
            return f"restorer {row.name} has other settings here"
        weights = method.cls.weights_digest(settings) if method.cls.kind == "restorer" else ""
    except (SembenchError, ValueError, TypeError) as error:
        return f"restorer {row.name} does not take the row's settings here: {' '.join(str(error).split())[:200]}"
    if weights != (described.get("weights_sha256") or ""):
        return f"restorer {row.name} has other weights here"
    return method


def check_records(claim: Claim) -> list[Told]:
    """Every record is of a row, has a known status, finite scores and the place where its image must lie."""
    rows = {row.row_id: row for row in claim.run.rows}
    told: list[Told] = []
    keys = Counter(key(record) for record in claim.run.records)
    for record in claim.run.records:
        row, what = rows[record["row"]], f"{record['row']} on {record['case']}"
        values = record.get("metrics", {}).values()
        if record.get("restorer") != row.name or record.get("kind") != row.kind:
            told.append(("failed", f"{what}: says {record.get('restorer')}, its row {row.name}"))
        elif record["status"] not in STATUSES or keys[key(record)] > 1:
            told.append(("failed", f"{what}: status {record['status']!r}, {keys[key(record)]} times"))
        elif any(not _is_number(value) for value in values if value is not None):
            told.append(("failed", f"{what}: a score is no finite number"))
        elif record["status"] == "ok" and artefact(record)[0] not in expected_artefact(record["row"], record["case"]):
            told.append(("failed", f"{what}: its restored image is said to lie in {artefact(record)[0]!r}"))
    counts = Counter(record["status"] for record in claim.run.records)
    return told or [("proven", ", ".join(f"{counts[status]} {status.replace('_', ' ')}" for status in counts))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def check_environment(claim: Claim) -> list[Told]:
    """Each environment is of the digest told; whether this one is the same decides how exactly numbers must agree."""
    told_environments = claim.run.description.get("environments", {})
    wrong = [name for name, told in told_environments.items() if environment_digest(told) != name]
    if wrong:
        return [("failed", f"the environment told as {name} has another digest") for name in wrong]
    used = Counter(str(record.get("environment", "")) for record in claim.run.records)
    here = environment_digest(environment())
    told: list[Told] = []
    if used[here]:
        told.append(("proven", f"{used[here]} records were made in an environment equal to this one ({here})"))
    for name in sorted(used.keys() - {here}):
        if name in told_environments:
            text = f"{used[name]} records were made in another one, {name}: {_unlike(told_environments[name])}"
        else:
            text = f"{used[name]} records do not tell their environment"
        told.append(("not proven", f"{text}: their numbers are compared within tolerances"))
    return told


def _unlike(other: Mapping[str, Any]) -> str:
    """In what an environment differs from this one."""
    here = environment()
    flat = [{**told, **told.get("libraries", {})} for told in (other, here)]
    names = sorted((flat[0].keys() | flat[1].keys()) - {"libraries", "platform"})
    return ", ".join(f"{n} {flat[0].get(n)} (here {flat[1].get(n)})" for n in names if flat[0].get(n) != flat[1].get(n))


def check_images(claim: Claim) -> list[Told]:
    """Every restored image at hand has the SHA-256 of its record."""
    told: list[Told] = []
    found = 0
    for record in claim.depth.counted("images", claim.solved, len(claim.solved)):
        path = claim.stored(record)
        if path is None:
            continue
        found += 1
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if sha256 != artefact(record)[1]:
            told.append(("failed", f"{path}: SHA-256 is {sha256[:8]}, the record says {artefact(record)[1][:8]}"))
    if found and not told:
        told.append(("proven", f"{found} of {len(claim.solved)} restored images have their SHA-256"))
    if found < len(claim.solved):
        told.append(("not proven", f"{len(claim.solved) - found} of {len(claim.solved)} images not at hand"))
    return told


def check_states(claim: Claim) -> list[Told]:
    """The fitted state of each row that learned is at hand, and was fitted as is told."""
    told: list[Told] = []
    described, alone = 0, 0
    for row in claim.run.rows:
        fit = claim.described[row.row_id].get("fit")
        if not fit:
            continue
        used = {record.get("state_sha256") for record in claim.run.records if record["row"] == row.row_id}
        if used - {None, fit.get("state_sha256")}:
            told.append(("failed", f"{row.row_id}: its records are of another state than the row"))
            continue
        path = find_state(row.name, fit.get("state_sha256"), claim.folders)
        if path is None:
            told.append(("not proven", f"the state of {row.name} is not at hand: {fit.get('state_from') or 'fit it'}"))
            continue
        identity = _fit_told(path)
        if identity is None:
            alone += 1
        elif identity == fit["identity"]:
            described += 1
        else:
            told.append(("failed", f"{row.row_id}: {path} was fitted otherwise than the row tells"))
    if described:
        told.append(("proven", f"{described} fitted states at hand, fitted as is told"))
    if alone:
        told.append(("proven", f"{alone} fitted states at hand; how they were fitted is told by their rows alone"))
    return told


def _fit_told(state: Path) -> Any:
    for description in (state.with_suffix(".json"), state.with_name("fit.json")):
        try:
            return json.loads(description.read_text(encoding="utf-8"))["identity"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def check_scores(claim: Claim) -> list[Told]:
    """The scores of some cases, drawn at random, come out again from the stored images."""
    specs = _specs(claim)
    if isinstance(specs, str):
        return [("not proven", specs)]
    drawn = claim.drawn(claim.depth.sample, "score")
    records = [r for r in claim.solved if r["case"] in drawn and r["case"] in specs and claim.stored(r)]
    records.sort(key=lambda record: record["case"])
    if not records:
        return [("not proven", "no stored image at hand" if drawn else "no case was drawn")]
    tasks = [recompute.Scoring(specs[r["case"]], claim.stored(r) or Path(), artefact(r)[1]) for r in records]
    job = recompute.prepare_job(claim.protocol, Path())
    found = claim.depth.counted("scores again", recompute.score_again(job, tasks), len(tasks))
    return _compared(claim, records, list(found), recompute.by_metric, "scored")


def check_restoration(claim: Claim) -> list[Told]:
    """Some cases, drawn at random, come out again from the restorer itself."""
    specs = _specs(claim)
    if isinstance(specs, str):
        return [("not proven", specs)]
    drawn = claim.drawn(claim.depth.restore, "restore")
    if not drawn:
        return [("not proven", "no case was to be restored again")]
    rows, states, told = _ready(claim)
    if claim.flat and told:
        told = [("not proven", f"{_rows(len(claim.run.rows) - len(rows))} cannot be restored again, see restoration")]
    records = [r for r in claim.solved if r["case"] in drawn and r["case"] in specs and r["row"] in rows]
    records.sort(key=lambda record: record["case"])
    if not records:
        return told or [("not proven", "no case that was solved was drawn")]
    with tempfile.TemporaryDirectory() as folder:
        job = recompute.prepare_job(claim.protocol, Path(folder), states)
        tasks = [(rows[r["row"]], specs[r["case"]]) for r in records]
        found = list(claim.depth.counted("restoring again", recompute.restore_again(job, tasks), len(tasks)))
        told += _compared(claim, records, found, recompute.after_restoring, "restored")
        told += _other_pixels(claim, records, found, Path(folder))
    return told


def check_flat_fields(claim: Claim) -> list[Told]:
    """What is told of flat fields, checked as the cases are; a row without any is not proven to draw nothing."""
    if claim.protocol.scope == "set":
        return []
    told: list[Told] = []
    rows = {row.row_id for row in claim.run.rows} - {record["row"] for record in claim.run.flat}
    if rows:
        told.append(("not proven", f"no flat field was shown to {_few(sorted(rows))}"))
    if not claim.run.flat:
        return told
    part = replace(claim, run=replace(claim.run, records=claim.run.flat), flat=True)
    specs = _specs(part)
    if isinstance(specs, str):
        return [*check_records(part), *check_images(part), ("not proven", specs)]
    groups = {name: spec.group for name, spec in specs.items()}
    odd = sorted({record["case"] for record in part.run.records if groups.get(record["case"]) != record["group"]})
    if odd:
        return [("failed", f"{odd[0]} is no flat field of the protocol's, or of another group")]
    checks = [check_records, check_images]
    checks += [check_scores] if claim.depth.sample else []
    checks += [check_restoration] if claim.depth.restore else []
    return told + [one for check in checks for one in check(part)]


def _specs(claim: Claim) -> dict[str, CaseSpec] | str:
    """The cases by id, or why they cannot be made here."""
    try:
        plan = claim.cases
    except SembenchError as error:
        return f"the images are not at hand: {error}"
    if plan.digest != claim.run.description["data_digest"]:
        return "the images at hand are others"
    return {spec.case_id: spec for spec in plan.specs}


def _ready(claim: Claim) -> tuple[dict[str, Row], dict[str, tuple[Path, str]], list[Told]]:
    """The rows that can be restored here, their states, and why others cannot."""
    rows: dict[str, Row] = {}
    states: dict[str, tuple[Path, str]] = {}
    told: list[Told] = []
    unlike: list[str] = []
    for row in claim.run.rows:
        method = _installed(row, claim.described[row.row_id])
        if isinstance(method, str):
            unlike.append(row.name)
        elif problem := _unready(claim, row, method, states):
            told.append(("not proven", problem))
        else:
            rows[row.row_id] = replace(row, target=row.name)
    if unlike:
        told.append(("not proven", f"{_rows(len(unlike))} cannot be restored again, see identity: {_few(unlike)}"))
    return rows, states, told


def _unready(claim: Claim, row: Row, method: MethodTarget, states: dict[str, tuple[Path, str]]) -> str | None:
    """Why an installed restorer cannot restore a row here; its state, if it has one, is added to the states."""
    needs = needs_of(method, method.cls.Settings(**row.settings))
    if needs:
        return f"restorer {row.name} is unavailable here: {needs[0]}"
    fit = claim.described[row.row_id].get("fit")
    if fit:
        path = find_state(row.name, fit.get("state_sha256"), claim.folders)
        if path is None:
            return f"the state of {row.name} is not at hand"
        states[row.row_id] = (path.resolve(), str(fit["state_sha256"]))
    elif claim.protocol.scope == "case" and row.kind == "restorer" and method.cls.learns():
        return f"{row.name} learns, and the row tells no fit"
    return None


def _compared(
    claim: Claim,
    records: Sequence[Record],
    found: Sequence[Record],
    tolerance: Callable[[str, float], float],
    done: str,
) -> list[Told]:
    """How records and what was made again agree: exactly where the environment is equal, else within the tolerance."""
    here = environment_digest(environment())
    told: list[Told] = []
    exact = 0
    for record, again in zip(records, found, strict=True):
        equal = record.get("environment") == here and record.get("device", "cpu") == "cpu"
        exact += equal
        wrong = recompute.disagreement(record, again, recompute.exactly if equal else tolerance)
        if wrong:
            told.append(("failed", f"{record['row']} on {record['case']}, {done} again: {wrong}"))
    if told:
        return told
    cases = len({record["case"] for record in records})
    rows = len({record["row"] for record in records})
    agree = f"{exact} exactly, {len(records) - exact} within tolerances"
    return [("proven", f"{len(records)} of {len(claim.solved)} {done} again ({cases} cases, {rows} rows): {agree}")]


def _other_pixels(claim: Claim, records: Sequence[Record], found: Sequence[Record], folder: Path) -> list[Told]:
    """Images restored again that are not the stored ones: to the byte where the environment is equal, else nearly."""
    here = environment_digest(environment())
    told: list[Told] = []
    for record, again in zip(records, found, strict=True):
        path, stored = artefact(again)[0], claim.stored(record)
        if again["status"] != "ok" or artefact(again) == artefact(record):
            continue
        what = f"{record['row']} on {record['case']}, restored again"
        if record.get("environment") == here and record.get("device", "cpu") == "cpu":
            told.append(("failed", f"{what}: other pixels than those of the recorded SHA-256"))
        elif stored is not None and path.endswith(".png"):
            apart = read_grid_png(stored) - read_grid_png(folder / path)
            distance = float(np.sqrt(np.mean(np.square(apart, dtype=np.float64))))
            if distance > GRAY_TOLERANCE:
                told.append(("failed", f"{what}: {distance:.3f} gray levels (RMS) from the stored image"))
    return told


CHECKS: dict[str, Check] = {
    "protocol": check_protocol,
    "data": check_data,
    "eligibility": check_eligibility,
    "identity": check_identity,
    "records": check_records,
    "environment": check_environment,
    "images": check_images,
    "states": check_states,
    "scores": check_scores,
    "restoration": check_restoration,
    "flat fields": check_flat_fields,
}
