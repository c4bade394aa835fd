"""The plugin keeps the contract of a restorer, and its metric does what it says."""

import numpy as np
import pytest
from sembench_sharpen.metric import GRADIENT_ERROR

from sembench.checks import check_restorer, parametrize_with_checks
from sembench.metrics.table import MetricCase, Scored, value_of


@parametrize_with_checks(["sharpen", ("sharpen", {"amount": 0.0})])
def test_contract(check):
    check()


def test_settings_are_refused_by_name():
    with pytest.raises(Exception, match="did you mean 'amount'"):
        check_restorer("sharpen", {"amont": 1})


def test_the_gradient_of_a_ramp():
    """A flat image against a ramp of 2 gray levels a column: the error is 2 along x and 0 along y."""
    ramp = np.tile(2 * np.arange(40, dtype=np.float32), (40, 1))
    scored = Scored(np.full_like(ramp, 40), MetricCase(ramp, ramp))
    assert value_of(GRADIENT_ERROR, scored) == pytest.approx(np.sqrt((2**2 + 0**2) / 2))
