"""Catalogues, which identify the track of a recording: builds them, searches them, tunes their index."""
