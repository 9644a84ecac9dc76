"""``python -m fastvae`` is the same as the console script ``fastvae``."""

from fastvae.cli import main

main()
