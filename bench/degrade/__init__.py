"""Degradation of audio by noise and rooms, and the query sets made with it."""
