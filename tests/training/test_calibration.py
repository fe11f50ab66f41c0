import numpy as np
import pytest

from dfkd.training.calibration import calibration_error


def test_calibration_error_by_hand():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    # bins (14/15, 1]: |0.95 - 0.75| * 4/6, (8/15, 9/15]: |0.55 - 0.5| * 2/6
    assert calibration_error(confidence, right) == pytest.approx(0.2 * 4 / 6 + 0.05 * 2 / 6)
    assert calibration_error(np.ones(3), np.ones(3, bool)) == 0


def test_calibration_error_of_a_calibrated_model_is_small(rng):
    confidence = rng.random(20_000)
    assert calibration_error(confidence, rng.random(20_000) < confidence) < 0.02
    assert calibration_error(confidence, np.zeros(20_000, bool)) == pytest.approx(confidence.mean())
