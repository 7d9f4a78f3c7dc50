"""Ends at once, and leaves a grandchild in another session that holds its output."""

import os

from lifeline import LINE, announce, stay

if os.fork() == 0:
    os.setsid()
    announce()
    stay()
os.close(LINE)
