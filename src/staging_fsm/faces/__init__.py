"""Faces: what people and programs see. Nothing below imports from here."""
