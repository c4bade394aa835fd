"""The refusal of a measurement: an image from which the asked numbers cannot be had, and why."""

from sembench.errors import SembenchError


class MeasurementRefused(SembenchError):
    """The image does not show what was to be measured; the message is the reason, in one line."""

    exit_code = 2
