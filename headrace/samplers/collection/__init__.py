"""Environments of one slice and the loop over them; no torch here."""
