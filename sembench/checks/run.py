"""Running checks: one after the other, here or in a process apart, for a restorer or all that a package brings."""

import importlib.metadata
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sembench.checks.conformance import CHECKS
from sembench.checks.other_plugins import OTHER_CHECKS
from sembench.checks.outcome import CheckFailed, CheckResult, CheckSkipped, Outcome
from sembench.checks.process import ProcessApart, ProcessLost
from sembench.checks.subject import LIMIT_S, subject
from sembench.errors import InputError, SembenchError
from sembench.registry import METRICS, PROTOCOLS, RESTORERS, find_method, plugins, suggestion

if TYPE_CHECKING:
    import pytest

GROUPS = (RESTORERS, METRICS, PROTOCOLS)
"""Groups of entry points that have checks."""

Listener = Callable[["Check", CheckResult | None], None]
"""Told of each check before it runs (None) and of its result."""


@dataclass(frozen=True)
class Check:
    """One check of one plugin, not run yet; target: a name, FILE.py:Class, or (a restorer's) class."""

    group: str
    target: Any
    name: str
    settings: Mapping[str, Any]
    fit: bool = False
    expected: str | None = None

    @property
    def subject(self) -> str:
        """The plugin's name, for people."""
        return self.target if isinstance(self.target, str) else getattr(self.target, "__name__", str(self.target))

    def run(self) -> CheckResult:
        """Run it in this process: whatever the plugin raises is a failed check, but what kills this process is not."""
        started = time.perf_counter()
        outcome, message = self._outcome()
        return self._judged(outcome, message, time.perf_counter() - started)

    def _outcome(self) -> tuple[Outcome, str]:
        try:
            if self.group == RESTORERS:
                CHECKS[self.name](subject(self.target, self.settings, self.fit))
            else:
                OTHER_CHECKS[self.group][self.name](self.target)
        except CheckSkipped as reason:
            return "skipped", _one_line(reason)
        except CheckFailed as error:
            return "failed", _one_line(error)
        except SembenchError as error:
            return "failed", f"it refused: {_one_line(error)}"
        except (Exception, SystemExit) as error:
            return "failed", f"it raised {type(error).__name__}: {_one_line(error)}; mend it"
        return "passed", ""

    def run_apart(self, process: ProcessApart, limit_s: float) -> CheckResult:
        """Run it in a process apart: a crash, an exit or a time-out of the plugin is a failed check."""
        started = time.perf_counter()
        words = {"group": self.group, "target": self.target, "name": self.name, "settings": dict(self.settings)}
        try:
            outcome, message = process.call("sembench.checks.run:_answer", {**words, "fit": self.fit}, limit_s)
        except ProcessLost as error:
            outcome, message = "failed", f"{error}; a method must return or raise"
        return self._judged(outcome, message, time.perf_counter() - started)

    def _judged(self, outcome: Outcome, message: str, seconds: float) -> CheckResult:
        if self.expected is not None and outcome == "failed":
            outcome, message = "expected", f"{self.expected} ({message})"
        elif self.expected is not None and outcome == "passed":
            outcome = "failed"
            message = f"was expected to fail ({self.expected}) and passes: take it out of expected_failures"
        return CheckResult(self.name, outcome, message, seconds, self.subject)


def _answer(**words: Any) -> tuple[Outcome, str]:
    return Check(**words)._outcome()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]


def _restorer_checks(
    target: Any, settings: Mapping[str, Any] | None, expected: Mapping[str, str], only: Sequence[str], fit: bool
) -> list[Check]:
    return [Check(RESTORERS, target, name, settings or {}, fit, expected.get(name)) for name in _chosen(CHECKS, only)]


def _known(name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        raise InputError(f"unknown check {name!r}: {suggestion(name, known)}")


def _chosen(known: Iterable[str], only: Sequence[str]) -> list[str]:
    return [name for name in known if not only or name in only]


def check_restorer(
    target: Any,
    settings: Mapping[str, Any] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    *,
    only: Sequence[str] = (),
    fit: bool = False,
) -> list[CheckResult]:
    """Check one restorer against the contract, in this process; one result a check, skipped ones included.

    target: an entry point's name, FILE.py:Class, or a class; expected_failures: {check: reason}, beside those that the
    restorer declares; only: names of checks (none: all); fit: fit a method that learns, for
    three steps; else it is checked by a state that ships with it, where one does.
    Raises InputError for an unknown target, setting or check.
    """
    for name in (*only, *(expected_failures or {})):
        _known(name, CHECKS)
    declared = subject(target, settings or {}, fit).cls.expected_failures
    expected = {**declared, **(expected_failures or {})}
    return [check.run() for check in _restorer_checks(target, settings, expected, only, fit)]


def checks_of(
    target: str,
    settings: Mapping[str, Any] | None = None,
    *,
    only: Sequence[str] = (),
    fit: bool = False,
    process: ProcessApart | None = None,
) -> list[Check]:
    """The checks of what a user names: a restorer, metric or protocol, FILE.py:Class, or all of a distribution's.

    A name that is a plugin's and a distribution's is the plugin's. process: where restorers are loaded (None: here).
    Raises InputError for an unknown name or check, and for settings that are refused or of more than one restorer.
    """
    for name in only:
        _known(name, [*CHECKS, *(check for checks in OTHER_CHECKS.values() for check in checks)])
    found = _named(target)
    restorers = [name for group, name in found if group == RESTORERS]
    if settings and len(restorers) != 1:
        raise InputError(f"--set is for one restorer and {target} brings {len(restorers)}: check one by its name")
    checks: list[Check] = []
    for group, name in found:
        if group == RESTORERS:
            told = _declared_apart(process, name, dict(settings or {}), fit)
            if "refused" in told and len(found) == 1:
                raise InputError(told["refused"])
            checks += _restorer_checks(name, settings, told.get("expected", {}), only, fit)
        else:
            checks += [Check(group, name, check, {}) for check in _chosen(OTHER_CHECKS[group], only)]
    if not checks:
        raise InputError(f"none of the checks {', '.join(only)} belongs to what {target} is: leave --only out")
    return checks


def _declared(target: str, settings: Mapping[str, Any], fit: bool) -> dict[str, Any]:
    """The failures that a restorer itself expects, or why it is refused."""
    try:
        return {"expected": dict(subject(target, settings, fit).cls.expected_failures)}
    except InputError as error:
        return {"refused": str(error)}


def _declared_apart(process: ProcessApart | None, target: str, settings: dict[str, Any], fit: bool) -> dict[str, Any]:
    """The same, in a process apart; nothing where loading the restorer ends that process: its checks will tell."""
    if process is None:
        return _declared(target, settings, fit)
    words = {"target": target, "settings": settings, "fit": fit}
    try:
        told: dict[str, Any] = process.call("sembench.checks.run:_declared", words, LIMIT_S)
    except ProcessLost:
        return {}
    return told


def _named(target: str) -> list[tuple[str, str]]:
    """(group, name) of each plugin that a target names."""
    if ".py" in target:
        return [(RESTORERS, target)]
    for group in GROUPS:
        if target in plugins(group):
            return [(group, target)]
    wanted = _normal(target)
    found = [
        (group, name)
        for group in GROUPS
        for name, claims in plugins(group).items()
        if any(_normal(claim.distribution) == wanted for claim in claims)
    ]
    if found:
        return found
    try:
        importlib.metadata.distribution(target)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        names = {name for group in GROUPS for name in plugins(group)}
        names |= {claim.distribution for group in GROUPS for claims in plugins(group).values() for claim in claims}
        near = suggestion(target, names)
        hint = near if near.startswith("did you mean") else "see `sembench list`"
        raise InputError(f"{target!r}: no plugin, FILE.py:Class or installed package: {hint}") from None
    raise InputError(
        f"package {target} brings no plugin: give it entry points in {', '.join(GROUPS)}, install it again"
    )


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def run_apart(
    checks: Iterable[Check],
    *,
    limit_s: float = LIMIT_S,
    listener: Listener | None = None,
    process: ProcessApart | None = None,
) -> list[CheckResult]:
    """Run checks in a process apart, each under a time limit; a new process is started where one was lost.

    process: one that is already there (None: one is started, and ended afterwards).
    """
    if process is None:
        with closing(ProcessApart(fresh=False)) as own:
            return run_apart(checks, limit_s=limit_s, listener=listener, process=own)
    results = []
    for check in checks:
        if listener:
            listener(check, None)
        results.append(check.run_apart(process, limit_s))
        if listener:
            listener(check, results[-1])
    return results


@dataclass(frozen=True)
class PytestCheck:
    """A check that speaks pytest: call it in a test."""

    check: Check

    def __call__(self) -> None:
        """Pass, or end the test as failed, skipped or expected to fail, with the check's message."""
        import pytest

        found = subject_expectations(self.check).run()
        if found.outcome == "failed":
            pytest.fail(f"{found.subject}: {found.name}: {found.message}", pytrace=False)
        if found.outcome == "skipped":
            pytest.skip(found.message)
        if found.outcome == "expected":
            pytest.xfail(found.message)


def subject_expectations(check: Check) -> Check:
    """The check with what its restorer itself expects to fail."""
    if check.expected is not None:
        return check
    declared = find_method(check.target).cls if isinstance(check.target, str) else check.target
    return replace(check, expected=getattr(declared, "expected_failures", {}).get(check.name))


def parametrize_with_checks(
    targets: Iterable[Any],
    *,
    expected_failures: Mapping[str, str] | None = None,
    fit: bool = False,
) -> "pytest.MarkDecorator":
    """A pytest decorator that calls a test with every check of every restorer: `def test_contract(check): check()`.

    targets: entry points' names, FILE.py:Class, classes, or (one of these, its settings); expected_failures, fit: as
    for check_restorer. Nothing is imported before the test runs. Raises InputError for an unknown check that is
    expected to fail.
    """
    import pytest

    for name in expected_failures or ():
        _known(name, CHECKS)
    parameters = []
    for given in targets:
        target, settings = given if isinstance(given, tuple) else (given, {})
        for name in CHECKS:
            check = Check(RESTORERS, target, name, settings, fit, (expected_failures or {}).get(name))
            parameters.append(pytest.param(PytestCheck(check), id=f"{check.subject}-{name}"))
    return pytest.mark.parametrize("check", parameters)
