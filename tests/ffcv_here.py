"""Tests that need FFCV: skipped where it is not installed, unless it has to be there."""

from __future__ import annotations

import importlib.util
import os

import pytest

REQUIRED = "FASTVAE_REQUIRE_FFCV"


def require_ffcv() -> None:
    """Skip what calls this (a module, a fixture or a test) where FFCV is not installed; fail
    instead where the environment says FASTVAE_REQUIRE_FFCV=1. Nothing is imported."""
    if importlib.util.find_spec("ffcv") is not None:
        return
    if os.environ.get(REQUIRED, "") not in ("", "0"):
        pytest.fail(f"ffcv is not installed, and {REQUIRED} is set", pytrace=False)
    pytest.skip("needs ffcv, which .ci/run builds (README: FFCV says how)", allow_module_level=True)
