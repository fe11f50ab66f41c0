"""Hypothesis: the same examples at every run, few enough for `make test`; DFKD_HYPOTHESIS=more tries many new ones."""

import os

from hypothesis import HealthCheck, settings

quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
shared = {"deadline": None, "database": None, "suppress_health_check": quiet}
settings.register_profile("few", max_examples=40, derandomize=True, **shared)
settings.register_profile("more", max_examples=1000, **shared)
settings.load_profile(os.environ.get("DFKD_HYPOTHESIS", "few"))
