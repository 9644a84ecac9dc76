"""Data: ``Source`` (bytes by index), ``Plan`` (order as a pure function), ``Loader`` (batches)."""
