"""The supervisor: a process of its own, whose life `main.py` tells, and what it is made of.

`python -I -S` runs it with nothing but the standard library to be found. So these modules
import nothing else, nothing that is slow to import, and one another by relative names: the
worker reads what they wrote with the very same code, as a part of `staging_fsm`.
"""
