"""Catalogues: which track is this? Build one, ask it, tune its index."""
