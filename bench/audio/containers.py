"""What an audio file really holds: joined files, headers that say too little, ends that were cut off.

Decoders believe the header: a count of frames that is stale or missing, a size that a recorder without power never
wrote, the end of the first of several streams. `inspect` looks at the structure alone and decodes nothing; it returns
what to decode, as ranges of the file behind a repaired header. Formats: MP3, Ogg, FLAC, WAV, RF64, W64, AIFF, CAF, AU.

Source: RFC 3533 (Ogg), RFC 9639 (FLAC), EBU Tech 3306 (RF64), Apple's Core Audio Format.
"""

from __future__ import annotations

import io
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.audio.mp3 import find_runs, parse_frame, skip_id3

TOLERANCE_S = 0.1  # headers that are off by less are ordinary: decoders estimate, encoders pad
LARGEST = 0xFFFF_0000  # of the sizes of 32 bits
STREAMING = (0x7FFF_0000, 0x8000_0000, 0xFFFF_0000)  # sizes between the first two, or above the last, mean unknown
OGG_HEADER, FIRST_PAGE, LAST_PAGE = 27, 2, 4
W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
FLAC_STREAM = b"fLaC\0\0\0\x22"
FLAC_SIZES = (0, 192, 576, 1152, 2304, 4608, 0, 0, *(256 << n for n in range(8)))  # samples, by a frame's size code
BLOCK = 1 << 20  # bytes looked at once
FLAC_TAIL = 1 << 20  # more than a frame has


@dataclass(frozen=True)
class Stream:
    """One stream: bytes that replace its header, and the ranges (start, stop) of the file behind them."""

    head: bytes
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Contents:
    """What there is to decode."""

    streams: tuple[Stream, ...] = ()
    """One after another; none if the file can be decoded as it is."""

    note: str = ""
    """What is wrong with the file, as the rest of a sentence about it; empty if nothing is."""


def inspect(path: Path, header_s: float) -> Contents:
    """Return what a file holds, of which its decoder would read `header_s` seconds. Raises: OSError."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _inspect(data, header_s)
        except (IndexError, struct.error):
            return Contents()  # a header that ends early: the decoder says so


def _inspect(data: mmap.mmap, header_s: float) -> Contents:
    start = skip_id3(data, 0)
    magic = data[start : start + 4]
    joined = _inspect_joined(data, start)
    if joined.streams:
        return joined
    if magic in (b"RIFF", b"RF64", b"BW64"):
        return _inspect_wav(data, start)
    if magic == b"OggS":
        return _inspect_ogg(data)
    if magic == b"fLaC":
        return _inspect_flac(data, start)
    if magic == b"riff":
        return _inspect_w64(data, header_s)
    if magic == b".snd":
        return _inspect_au(data, header_s)
    if magic == b"caff":
        return _inspect_chunked(data, 8, ">Q", b"data", header_s)
    if magic == b"FORM":
        return _inspect_chunked(data, 12, ">I", b"SSND", header_s)
    return _inspect_mp3(data, start, header_s) if start or parse_frame(magic) else Contents()


class StreamFile(io.RawIOBase):
    """A stream as a file to read; closing it closes the file below."""

    def __init__(self, path: Path, stream: Stream) -> None:
        self._file = path.open("rb")
        self._head = io.BytesIO(stream.head)
        self._parts: list[tuple[io.BufferedIOBase, int, int]] = [(self._head, 0, len(stream.head))]
        self._parts += [(self._file, start, stop - start) for start, stop in stream.ranges]
        self._size = sum(size for _file, _start, size in self._parts)
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, and return it."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: object) -> int:
        """Fill a buffer as far as the stream goes, and return the number of bytes."""
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        filled, first = 0, 0
        for file, start, size in self._parts:
            inside = self._at - first
            if 0 <= inside < size and filled < len(target):
                file.seek(start + inside)
                block = file.read(min(size - inside, len(target) - filled))
                target[filled : filled + len(block)] = block
                filled += len(block)
                self._at += len(block)
            first += size
        return filled

    def close(self) -> None:
        """Close the file below."""
        self._file.close()
        super().close()


def _longer(header_s: float, found_s: float | None) -> str:
    found = "" if found_s is None else f", where there are {found_s:.1f} s"
    return f"is longer than its header says ({header_s:.1f} s{found}); all of it was read"


def _cut_off(header_s: float, found_s: float) -> str:
    return f"is cut off: of {header_s:.1f} s the last {header_s - found_s:.1f} s are missing; restore it to have them"


def _inspect_mp3(data: mmap.mmap, start: int, header_s: float) -> Contents:
    runs = find_runs(data, start)
    found_s = sum(run.seconds(run.num_frames) for run in runs)
    claimed_s = runs[0].seconds(runs[0].claimed_frames or 0) if runs else 0.0
    if runs and runs[0].claimed_frames:
        header_s = min(header_s, claimed_s)  # of very few frames the decoder makes a length of its own
    streams = tuple(Stream(run.header_frame(), tuple(run.ranges)) for run in runs)
    if found_s > header_s + TOLERANCE_S:
        return Contents(streams, _longer(header_s, found_s))
    if any(len(stream.ranges) > 1 for stream in streams):  # decoders stop there, or search on for a while
        return Contents(streams, "has bytes that are no audio between its frames; all of its audio was read")
    return Contents(note=_cut_off(claimed_s, found_s) if claimed_s > found_s + TOLERANCE_S else "")


# Ogg and FLAC: several streams in one file


def _inspect_ogg(data: mmap.mmap) -> Contents:
    starts: list[int] = []
    flags, is_whole = 0, True
    for at, stop, next_flags in _ogg_pages(data):
        if next_flags & FIRST_PAGE and not (starts and flags & FIRST_PAGE):  # several first pages: one stream in parts
            starts.append(at)
        flags, is_whole = next_flags, stop <= len(data)
    complete = is_whole and flags & LAST_PAGE
    return _chain(data, starts, "" if complete else "has no last page: it was cut off, and an unknown rest is missing")


def _ogg_pages(data: mmap.mmap) -> Iterator[tuple[int, int, int]]:
    """Yield start, stop and flags of each page."""
    at = data.find(b"OggS")
    while at >= 0 and at + OGG_HEADER <= len(data):
        sizes = data[at + OGG_HEADER : at + OGG_HEADER + data[at + OGG_HEADER - 1]]
        stop = at + OGG_HEADER + len(sizes) + sum(sizes)
        yield at, stop, data[at + 5]
        at = data.find(b"OggS", stop)


def _inspect_flac(data: mmap.mmap, start: int) -> Contents:
    starts, at = [], start
    while at >= 0:
        starts.append(at)
        at = data.find(FLAC_STREAM, at + 1)
    if len(starts) > 1:
        return _chain(data, starts, "")
    rate_and_total = int.from_bytes(data[start + 18 : start + 26], "big")
    rate_hz, claimed = rate_and_total >> 44, rate_and_total & 0xF_FFFF_FFFF
    found = _last_flac_sample(data, start)
    if not rate_hz or found <= claimed + TOLERANCE_S * rate_hz:
        return Contents()
    head = data[start : start + 18] + (rate_and_total - claimed + found).to_bytes(8, "big")
    return Contents((Stream(head, ((start + 26, len(data)),)),), _longer(claimed / rate_hz, found / rate_hz))


def _last_flac_sample(data: mmap.mmap, start: int) -> int:
    """Return the number of samples up to the end of the last frame; 0 if blocks vary in size, or none is found."""
    block_size = int.from_bytes(data[start + 8 : start + 10], "big")
    first = _first_flac_frame(data, start)
    at = len(data)
    while (at := data.rfind(b"\xff\xf8", max(first, len(data) - FLAC_TAIL), at)) >= 0:
        head = data[at : at + 16]
        same_format = len(head) == 16 and (head[2] & 15, head[3] & 15) == (data[first + 2] & 15, data[first + 3] & 15)
        found = _parse_flac_frame(head) if same_format else None
        if found is not None:
            return found[0] * block_size + found[1]
    return 0


def _first_flac_frame(data: mmap.mmap, start: int) -> int:
    """Return the position behind the metadata."""
    at, is_last = start + 4, False
    while not is_last and at + 4 <= len(data):
        is_last = bool(data[at] & 0x80)
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    return min(at, len(data) - 4)


def _parse_flac_frame(head: bytes) -> tuple[int, int] | None:
    """Return a frame's number and its size in samples, None if its checksum is wrong."""
    number_bytes = max(1, 8 - (~head[4] & 0xFF).bit_length())  # the number is written as a character in UTF-8 is
    size_bytes = {6: 1, 7: 2}.get(head[2] >> 4, 0)
    rate_bytes = {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    size_at = 4 + number_bytes
    crc_at = size_at + size_bytes + rate_bytes
    if number_bytes > 6 or crc_at >= len(head) or _crc8(head[:crc_at]) != head[crc_at]:
        return None
    number = head[4] if number_bytes == 1 else head[4] & (0x7F >> number_bytes)
    for byte in head[5:size_at]:
        number = number << 6 | byte & 0x3F
    if size_bytes:
        return number, int.from_bytes(head[size_at : size_at + size_bytes], "big") + 1
    return number, FLAC_SIZES[head[2] >> 4]


def _crc8(content: bytes) -> int:
    crc = 0
    for byte in content:
        crc ^= byte
        for _bit in range(8):
            crc = (crc << 1 ^ 0x107) if crc & 0x80 else crc << 1
    return crc


def _inspect_joined(data: mmap.mmap, start: int) -> Contents:
    """Return the contents of several files written one after another, of a format whose header tells where it ends."""
    starts, stop = [start], _end_of_file(data, start)
    while starts[-1] < stop < len(data) and data[stop : stop + 4] == data[start : start + 4]:
        starts.append(stop)
        stop = _end_of_file(data, stop)
    rest, size = len(data) - starts[-1], stop - starts[-1]
    is_cut = size > rest + 8 and not _means_unknown(size - 8)  # sizes are rounded up
    note = (
        f"is cut off: of the last stream {1 - rest / size:.0%} are missing; restore it to have them" if is_cut else ""
    )
    return _chain(data, starts, note)


def _end_of_file(data: mmap.mmap, start: int) -> int:
    """Return where a file that begins at `start` ends, as its header says; 0 if it does not say."""
    magic, head = data[start : start + 4], data[start : start + 32]
    if magic == b"RIFF" or magic == b"FORM":
        size = int.from_bytes(head[4:8], "little" if magic == b"RIFF" else "big")
        return start + 8 + size + size % 2 if size else 0
    if magic in (b"RF64", b"BW64"):
        return start + 8 + int.from_bytes(head[20:28], "little")
    if magic == b"riff":
        return start + -(-int.from_bytes(head[16:24], "little") // 8) * 8
    if magic == b".snd" and head[8:12] != b"\xff\xff\xff\xff":
        return start + int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big")
    if magic == b"caff":
        return next((at - 12 for name, at, _size in _chunks(data, start + 8, ">Q") if name == b"caff"), 0)
    return 0


def _chain(data: mmap.mmap, starts: list[int], note: str) -> Contents:
    if len(starts) < 2:
        return Contents(note=note)
    streams = [Stream(b"", (each,)) for each in zip(starts, [*starts[1:], len(data)], strict=True)]
    joined = f"holds {len(starts)} streams one after another; all of them were read"
    return Contents(tuple(streams), "; it ".join(filter(None, (joined, note))))


# WAV and RF64, AIFF, CAF, AU: a size before the samples


def _inspect_wav(data: mmap.mmap, start: int) -> Contents:
    found = _find_chunks(data, start + 12, "<I", b"data")
    if not {b"fmt ", b"data"} <= set(found):
        return Contents()
    (fmt_at, fmt_size), (at, size) = found[b"fmt "], found[b"data"]
    if b"ds64" in found and size == 0xFFFF_FFFF:
        size = int.from_bytes(data[found[b"ds64"][0] + 8 : found[b"ds64"][0] + 16], "little")
    bytes_per_s = int.from_bytes(data[fmt_at + 8 : fmt_at + 12], "little")
    rest = len(data) - at
    is_foreign = data[start : start + 4] == b"BW64"  # RF64 by another name, which the decoder does not know
    if not bytes_per_s or (size and not is_foreign and _is_right(data, at, size, "<I", bytes_per_s)):
        return Contents()
    is_unknown = _means_unknown(size) or bool(size >> 62)
    if size > rest and rest < LARGEST and not size >> 62 and not is_foreign:  # the decoder reads to the end of the file
        return Contents(note="" if is_unknown else _cut_off(size / bytes_per_s, rest / bytes_per_s))
    if not size and (rest == 0 or _is_right(data, at, size, "<I", bytes_per_s)):
        return Contents()
    note = "" if size and is_unknown else _longer(size / bytes_per_s, rest / bytes_per_s)
    if is_foreign and _is_right(data, at, size, "<I", bytes_per_s):
        note, rest = "", min(size, rest)
    elif is_foreign and size > rest:
        note = "" if is_unknown else _cut_off(size / bytes_per_s, rest / bytes_per_s)
    fmt = b"fmt " + struct.pack("<I", fmt_size) + data[fmt_at : fmt_at + fmt_size + fmt_size % 2]
    if rest < LARGEST:  # some encodings are decoded from RIFF alone
        head = b"RIFF" + struct.pack("<I", rest + len(fmt) + 12) + b"WAVE" + fmt + b"data" + struct.pack("<I", rest)
    else:
        ds64 = b"ds64" + struct.pack("<IQQQI", 28, rest + len(fmt) + 48, rest, 0, 0)
        head = b"RF64\xff\xff\xff\xffWAVE" + ds64 + fmt + b"data\xff\xff\xff\xff"
    return Contents((Stream(head, ((at, at + rest),)),), note)


def _inspect_chunked(data: mmap.mmap, first: int, order: str, name: bytes, header_s: float) -> Contents:
    """Return the contents of an AIFF or CAF file, whose samples are in the chunk of this name."""
    found = _find_chunks(data, first, order, name)
    at, size = found.get(name, (0, 0))
    rest = len(data) - at
    if not found.get(name) or rest <= 0 or _is_right(data, at, size, order, min(size, rest) / max(header_s, 1)):
        return Contents()
    if not size and header_s:
        return Contents()  # the decoder mends this itself
    width = struct.calcsize(order)
    head = data[: at - width] + struct.pack(order, rest)
    stream = Stream(head, ((at, len(data)),))
    if size <= rest:
        return Contents((stream,), _longer(header_s, None))
    if _means_unknown(size) or size >> 63:
        return Contents((stream,))
    return Contents((stream,), f"is cut off: the last {1 - rest / size:.0%} are missing; restore it to have them")


def _inspect_w64(data: mmap.mmap, header_s: float) -> Contents:
    at = data.find(W64_DATA)
    size = int.from_bytes(data[at + 16 : at + 24], "little") - 24
    rest = len(data) - at - 24
    if at < 0 or rest <= 0 or size >> 62:
        return Contents()
    if size > rest + TOLERANCE_S * rest / max(header_s, 1):
        return Contents(note=_cut_off(header_s * size / rest, header_s))
    behind = at + 24 + -(-size // 8) * 8
    ends_there = rest - size <= TOLERANCE_S * rest / max(header_s, 1) or _is_padding(data, behind)
    if ends_there or data[behind + 4 : behind + 16] == W64_DATA[4:]:  # the name of another chunk
        return Contents()
    # The decoder reads to the end of the file itself.
    return Contents(note=_longer(header_s * size / rest, header_s))


def _inspect_au(data: mmap.mmap, header_s: float) -> Contents:
    at, size = struct.unpack(">II", data[4:12])
    rest = len(data) - at
    if size == rest or size == 0xFFFF_FFFF or rest <= 0:
        return Contents()
    head = data[:8] + b"\xff\xff\xff\xff" + data[12:at]
    if size > rest:
        return Contents(note=_cut_off(header_s * size / rest, header_s))
    return Contents((Stream(head, ((at, len(data)),)),), _longer(header_s, None))


def _means_unknown(size: int) -> bool:
    return STREAMING[0] <= size <= STREAMING[1] or STREAMING[2] <= size <= 0xFFFF_FFFF


def _chunks(data: mmap.mmap, at: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, position of the content, and size of each chunk."""
    width = struct.calcsize(order)
    while at + 4 + width <= len(data):
        (size,) = struct.unpack(order, data[at + 4 : at + 4 + width])
        yield data[at : at + 4], at + 4 + width, size
        at += 4 + width + size + (size % 2 if width == 4 else 0)


def _find_chunks(data: mmap.mmap, at: int, order: str, last: bytes) -> dict[bytes, tuple[int, int]]:
    """Return position and size of each chunk up to that of the name `last`."""
    found = {}
    for name, content_at, size in _chunks(data, at, order):
        found[name] = (content_at, size)
        if name == last:
            break
    return found


def _is_right(data: mmap.mmap, at: int, size: int, order: str, bytes_per_s: float) -> bool:
    """Return whether samples of this size end where the file does, or where padding or other chunks begin."""
    rest = len(data) - at - size
    if size and abs(rest) <= TOLERANCE_S * bytes_per_s:
        return True
    if rest <= 0:
        return rest == 0
    behind = at + size + (size % 2 if order != ">Q" else 0)
    return _is_padding(data, behind) or _ends_in_chunks(data, behind, order)


def _is_padding(data: mmap.mmap, at: int) -> bool:
    """Return whether all bytes from `at` on are zero."""
    return not any(data[start : start + BLOCK].strip(b"\0") for start in range(at, len(data), BLOCK))


def _ends_in_chunks(data: mmap.mmap, at: int, order: str) -> bool:
    """Return whether chunks with proper names follow each other from `at` to the end of the file."""
    stop = -1
    for name, content_at, size in _chunks(data, at, order):
        if not all(32 <= byte < 127 for byte in name):
            return False
        stop = content_at + size
    return 0 <= stop <= len(data) + 1
