"""Scoring: what counts as found, with what certainty, and the rows that say so."""
