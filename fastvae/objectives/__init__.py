"""Training objectives: functions of a model's pass, each in its file, and their table."""

from __future__ import annotations

from collections.abc import Callable

from fastvae.models import Inputs, Model, Pass
from fastvae.objectives.elbo import elbo
from fastvae.objectives.iwae import iwae
from fastvae.objectives.mmd import mmd
from fastvae.objectives.tc import tc
from fastvae.objectives.terms import Settings, Terms

__all__ = ["OBJECTIVES", "Settings", "Terms"]

OBJECTIVES: dict[str, Callable[[Model, Pass, Inputs, Settings], Terms]] = {
    "elbo": elbo,
    "iwae": iwae,
    "mmd": mmd,
    "tc": tc,
}
