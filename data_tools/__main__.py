"""``python -m fastvae.data_tools``: the same program as ``fastvae-data``."""

from __future__ import annotations

import sys

from fastvae.data_tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
