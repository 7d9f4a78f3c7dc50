"""Effects: one home for each side effect. Nothing here decides anything."""
