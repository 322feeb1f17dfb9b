"""Encoders: each module is one plug-in, with its presets in the TOML file beside it."""
