"""Prints far more than anybody wants: `spew.py BYTES`, in blocks without a line's end.

Announces itself before and after, and waits each time to be released.
"""

import os
import sys

from lifeline import announce, await_release

BLOCK = b"x" * (1024 * 1024)
announce()
await_release()
os.write(1, b"HEAD")
left = int(sys.argv[1])
while left > 0:
    left -= os.write(1, BLOCK[:left])
os.write(1, b"TAIL")
announce()
await_release()
