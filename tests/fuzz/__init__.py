"""Fuzz targets: each `fuzz_*.py` holds one function that asserts its promise for any bytes."""
