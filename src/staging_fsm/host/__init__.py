"""The reference orchestrator: the frozen contract and a small real host around it."""
