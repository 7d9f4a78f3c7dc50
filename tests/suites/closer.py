"""Closes its output, runs on until it is released, and ends with code 3."""

import os

from lifeline import announce, await_release

os.write(1, b"the last words\n")
os.close(1)
os.close(2)
announce()
await_release()
os._exit(3)
