"""Statistics over cases of which only groups are independent: intervals, paired comparisons, ranks with ties."""

from sembench.statistics.intervals import Agreement, Interval, limits_of_agreement, mean_interval, standard_error
from sembench.statistics.jackknife import jackknife_interval

__all__ = ["Agreement", "Interval", "jackknife_interval", "limits_of_agreement", "mean_interval", "standard_error"]
