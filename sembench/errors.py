"""Errors that a user sees: one line (what, which file, what to do) and an exit code each."""


class SembenchError(Exception):
    """Any error whose message is meant for the user, as it stands."""

    exit_code = 1


class CheckError(SembenchError):
    """A check found something wrong."""

    exit_code = 1


class InputError(SembenchError):
    """The command line, or a file or array that it names, is wrong."""

    exit_code = 2


class CasesFailed(SembenchError):
    """Some cases failed; the rest is there."""

    exit_code = 3


class UnavailableError(SembenchError):
    """Data, weights or an extra cannot be had."""

    exit_code = 4


class WriteError(SembenchError):
    """Something could not be written."""

    exit_code = 5
