"""The core: pure values and functions.

No clock, no environment, no file, no process, no database: what the core needs
to know comes in as an argument, and what should happen goes out as data.
"""
