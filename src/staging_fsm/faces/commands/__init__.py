"""The commands, one module each, named like the command; `cli` loads only the one it runs."""
