"""The drive: events in, rows first, effects after. The only layer that decides when."""
