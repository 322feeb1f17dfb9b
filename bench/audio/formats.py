"""Which files are audio, by their suffix: what the decoder reads, and what has to be converted first."""

from __future__ import annotations

import os

SUFFIXES = (
    ".flac", ".mp3", ".ogg", ".wav",
    ".aif", ".aifc", ".aiff", ".au", ".caf", ".oga", ".opus", ".rf64", ".snd", ".w64", ".wave",
)  # fmt: skip
FOREIGN = (
    ".3gp", ".aac", ".ac3", ".adts", ".alac", ".amr", ".ape", ".asf", ".avi", ".dff", ".dsf", ".dts", ".eac3", ".flv",
    ".m2ts", ".m4a", ".m4b", ".m4p", ".m4r", ".m4v", ".mka", ".mkv", ".mov", ".mp2", ".mp4", ".mpc", ".mpeg", ".mpg",
    ".oma", ".ra", ".rm", ".spx", ".tak", ".tta", ".vob", ".weba", ".webm", ".wma", ".wmv", ".wv",
)  # fmt: skip


UNREADABLE_FORMAT = "a format that cannot be read"


def unreadable_format(name: str) -> str:
    """Return why a file of another format cannot be read, and what to do; empty if its suffix is not of one."""
    stem, suffix = os.path.splitext(os.path.basename(name))
    if suffix.lower() not in FOREIGN:
        return ""
    return f"{UNREADABLE_FORMAT} ({suffix.lower()}); convert it: ffmpeg -i {stem}{suffix} {stem}.flac"
