"""Signals its supervisor: `parricide.py SIGNAL once|again|leave`, then stays or leaves."""

import os
import signal
import sys

from lifeline import announce, stay

NUMBER, TIMES = int(sys.argv[1]), sys.argv[2]
signal.signal(signal.SIGTERM, signal.SIG_IGN)
announce()
os.kill(os.getppid(), NUMBER)
while TIMES == "again":
    os.kill(os.getppid(), NUMBER)
if TIMES != "leave":
    stay()
