"""Statistics over cases of which only groups are independent: intervals, paired comparisons, ranks with ties."""

from sembench.statistics.intervals import Agreement, Interval, limits_of_agreement, mean_interval, standard_error

__all__ = ["Agreement", "Interval", "limits_of_agreement", "mean_interval", "standard_error"]
