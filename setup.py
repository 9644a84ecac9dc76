"""Package list of fastvae; everything else is in pyproject.toml.

The list is explicit because ``fastvae/kernels`` and ``fastvae/data_tools`` are links to the
top-level folders: ``find_packages`` would follow them, and an sdist would lose the real folders.
tests/test_packaging.py compares the list with the folders.
"""

from setuptools import setup

setup(
    packages=[
        "fastvae",
        "fastvae.data",
        "fastvae.data.sources",
        "fastvae.data_tools",
        "fastvae.engine",
        "fastvae.kernels",
        "fastvae.models",
        "fastvae.objectives",
        "fastvae.ops",
        "fastvae.presets",
    ],
    package_dir={"fastvae.kernels": "kernels", "fastvae.data_tools": "data_tools"},
)
