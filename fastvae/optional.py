"""Optional dependencies: imported where they are needed, with an error that says what to do."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from fastvae.errors import UserError

APEX_INSTALL = (
    "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation "
    "git+https://github.com/NVIDIA/apex"
)


def require(module: str, *, extra: str, purpose: str, alternative: str = "") -> ModuleType:
    """Import ``module`` or raise a UserError naming the extra that installs it.

    Args:
        module: import name, e.g. ``"ffcv"``.
        extra: the extra of fastvae that brings it, e.g. ``"ffcv"``.
        purpose: what it is needed for, e.g. ``"reading .beton files"``.
        alternative: what works without it, e.g. ``"data.source=mapped"``.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise UserError(
                f"{module}, needed for {purpose}, is installed but lacks {error.name}: "
                f"pip install --force-reinstall 'fastvae[{extra}]'"
            ) from None
        hint = f"; or use {alternative}" if alternative else ""
        raise UserError(
            f"{module} is needed for {purpose} and is not installed: "
            f"pip install 'fastvae[{extra}]'{hint}"
        ) from None


def require_apex(name: str) -> type:
    """Return NVIDIA apex's optimizer class ``name`` ("FusedAdam" or "FusedLAMB").

    PyPI's project called ``apex`` is a toolkit for the Pyramid web framework. It is recognised by
    what it lacks: ``apex.optimizers`` and the compiled extension ``amp_C``.
    """
    fix = f"install NVIDIA's (needs a CUDA build of torch and nvcc): {APEX_INSTALL}"
    spec = importlib.util.find_spec("apex")
    if spec is None:
        raise UserError(f"NVIDIA apex is not installed, so {name} is not available; {fix}")
    # Looked up on disk: find_spec("apex.optimizers") would run the impostor's code, which fails on
    # packages of its own that are missing.
    places = [Path(place) / "optimizers" for place in spec.submodule_search_locations or []]
    if not any(place.is_dir() for place in places):
        raise UserError(
            "the installed 'apex' is PyPI's Pyramid web toolkit, another project with the same "
            f"name, not NVIDIA apex: pip uninstall apex, then {fix}"
        )
    if importlib.util.find_spec("amp_C") is None:
        raise UserError(f"NVIDIA apex is installed without its CUDA extensions (amp_C); {fix}")
    try:
        optimizers = importlib.import_module("apex.optimizers")
        importlib.import_module("amp_C")
    except ImportError as error:  # built against another torch or CUDA
        raise UserError(
            f"NVIDIA apex is installed but cannot be imported ({error}); {fix}"
        ) from None
    if not hasattr(optimizers, name):
        raise UserError(f"the installed NVIDIA apex has no {name}; {fix}")
    return getattr(optimizers, name)
