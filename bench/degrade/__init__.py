"""Degradation: noise, rooms, and the query sets made with them."""
