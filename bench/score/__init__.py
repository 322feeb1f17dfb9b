"""Scoring search results: hits, metrics with confidence intervals, and the published result rows."""
