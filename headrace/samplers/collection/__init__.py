"""Environments of one slice and the loop that steps them; these modules do not load torch."""
