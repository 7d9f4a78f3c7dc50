"""The frozen host contract: stages, gate, status words and job schema.

Written before any staging runner existed and pinned by checksum in
`tests/test_contract.py`. Nothing in this folder may know of the runner.
"""
