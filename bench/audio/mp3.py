"""The frames of an MP3 file (layer III), found without decoding: how long it is, whatever its header says.

Source: ISO 11172-3 and 13818-3; the Xing and LAME headers as mpg123 reads them; ID3v2.4.
"""

from __future__ import annotations

import mmap
import struct
from functools import lru_cache
from typing import NamedTuple

BITRATES = {  # kbit/s by index, of MPEG 1 and of MPEG 2 and 2.5
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
RATES_HZ = (44_100, 48_000, 32_000, 0)
MPEG1 = 3
HALVINGS = {MPEG1: 0, 2: 1, 0: 2}  # of the rate, by the version of MPEG
LAME_BYTES = 36


class Frame(NamedTuple):
    """A frame. Frames of the same `kind` (version, rate, mono or not) can follow each other in a stream."""

    num_bytes: int
    num_samples: int
    rate_hz: int
    side_bytes: int
    kind: int


@lru_cache(maxsize=4096)
def parse_frame(head: bytes) -> Frame | None:
    """Return the frame that four bytes begin, None if they begin none."""
    bits = int.from_bytes(head, "big")
    version, layer = bits >> 19 & 3, bits >> 17 & 3
    if len(head) < 4 or bits >> 21 != 0x7FF or version == 1 or layer != 1:
        return None
    mono = bits >> 6 & 3 == 3
    rate_hz = RATES_HZ[bits >> 10 & 3] >> HALVINGS[version]
    kbits = BITRATES[version == MPEG1][bits >> 12 & 15]
    if not rate_hz or not kbits:
        return None
    num_samples = 1152 if version == MPEG1 else 576
    num_bytes = num_samples // 8 * kbits * 1000 // rate_hz + (bits >> 9 & 1)
    side_bytes = (17 if mono else 32) if version == MPEG1 else (9 if mono else 17)
    return Frame(num_bytes, num_samples, rate_hz, side_bytes, bits & 0xFFFE_0C00 | mono)


class Run:
    """Frames of one kind, and what the Xing header before them says."""

    def __init__(self, frame: Frame, head: bytes) -> None:
        self.frame = frame
        self.head = head
        self.num_frames = 0
        self.ranges: list[tuple[int, int]] = []  # of the file
        self.claimed_frames: int | None = None
        self.lame = b""

    def add(self, start: int, stop: int) -> None:
        """Add a frame at a range of the file."""
        self.num_frames += 1
        if self.ranges and self.ranges[-1][1] == start:
            start = self.ranges.pop()[0]
        self.ranges.append((start, stop))

    def seconds(self, num_frames: int) -> float:
        """Return how long so many frames last, less what the LAME header says was added to the sound."""
        delay_and_padding = int.from_bytes(self.lame[21:24], "big")
        added = (delay_and_padding >> 12) + (delay_and_padding & 0xFFF)
        return max(0, num_frames * self.frame.num_samples - added) / self.frame.rate_hz

    def header_frame(self) -> bytes:
        """Return a frame with a Xing header that tells the number of frames: decoders stop at what it says."""
        # No CRC, no padding, and 64 kbit/s, so that there is room for the header; nobody plays this frame.
        bits = int.from_bytes(self.head, "big") & 0xFFFF_0DFF | 0x1_0000
        bits |= BITRATES[bits >> 19 & 3 == MPEG1].index(64) << 12
        head = bits.to_bytes(4, "big")
        frame = parse_frame(head)
        assert frame is not None
        lame = self.lame[:22] + bytes([self.lame[22] & 0xF0, 0]) + self.lame[24:] if self.lame else b""
        xing = b"Xing" + struct.pack(">II", 1, self.num_frames) + lame
        return (head + bytes(frame.side_bytes) + xing).ljust(frame.num_bytes, b"\0")


def find_runs(data: mmap.mmap, start: int) -> list[Run]:
    """Return the runs of frames from `start` on, without Xing headers, tags, rubbish and a cut-off last frame."""
    runs: list[Run] = []
    at, expected = start, -1  # where a frame of the last run would be
    while at + 4 <= len(data):
        frame = parse_frame(data[at : at + 4])
        continues = frame is not None and at == expected and frame.kind == runs[-1].frame.kind
        if frame is None or not (continues or _is_followed(data, at, frame)):
            at = _next_candidate(data, at)
            continue
        if not runs or runs[-1].frame.kind != frame.kind:
            runs.append(Run(frame, data[at : at + 4]))
        expected = at + frame.num_bytes
        if not _read_xing(data[at:expected], frame, runs[-1]) and expected <= len(data):
            runs[-1].add(at, expected)
        at = expected
    return [run for run in runs if run.num_frames]


def skip_id3(data: mmap.mmap, at: int) -> int:
    """Return the position behind an ID3v2 tag, `at` if there is none."""
    head = data[at : at + 10]
    if head[:3] != b"ID3" or len(head) < 10:
        return at
    footer = 10 * bool(head[5] & 0x10)
    return at + 10 + footer + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])


def _is_followed(data: mmap.mmap, at: int, frame: Frame) -> bool:
    """Return whether another such frame follows: any four bytes may look like the beginning of one."""
    after = parse_frame(data[at + frame.num_bytes : at + frame.num_bytes + 4])
    return after is not None and after.kind == frame.kind


def _next_candidate(data: mmap.mmap, at: int) -> int:
    """Return the position behind a tag, or that of the next byte which may begin a frame or a tag."""
    behind_tag = skip_id3(data, at)
    if behind_tag > at:
        return behind_tag
    sync = data.find(b"\xff", at + 1)
    stop = sync if sync >= 0 else len(data)
    tag = data.find(b"ID3", at + 1, stop)
    return tag if tag >= 0 else stop


def _read_xing(content: bytes, frame: Frame, run: Run) -> bool:
    """Return whether a frame is a Xing (or VBRI) header and no sound; the run takes what that of its start says."""
    at = 4 + frame.side_bytes
    if content[at : at + 4] not in (b"Xing", b"Info"):
        return content[36:40] == b"VBRI"
    flags = int.from_bytes(content[at + 4 : at + 8], "big")
    lame_at = at + 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
    if not run.num_frames:
        run.claimed_frames = int.from_bytes(content[at + 8 : at + 12], "big") if flags & 1 else None
        run.lame = content[lame_at : lame_at + LAME_BYTES]
        run.lame = run.lame if len(run.lame) == LAME_BYTES and run.lame[0] else b""
    return True
