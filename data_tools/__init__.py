"""Batch preprocessing: download, parse, rasterize, pack and verify data sets."""
