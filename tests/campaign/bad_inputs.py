"""Inputs that nobody should give, by kind: files, settings, names, TOML files and addresses of servers.

Each contains a token, by which a message that names it is recognised.
"""

from __future__ import annotations

import os
import random
import socket
import string
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000


@dataclass(frozen=True)
class Input:
    """One bad input: a command line, and what its message has to contain."""

    kind: str
    arguments: tuple[str | Path, ...]

    token: str = ""
    """Part of the input that an error names, empty if there is nothing to name."""

    variables: dict[str, str] = field(default_factory=dict)


def wav(data: bytes, *, rate: int = RATE_HZ, channels: int = 1, bits: int = 16, code: int = 1, size: int = -1) -> bytes:
    """Return a WAV file with any header."""
    block = max(0, channels * bits // 8)
    about = struct.pack("<HHIIHH", code, channels, rate, min(rate * block, 2**32 - 1), block % 2**16, bits)
    size = len(data) if size < 0 else size
    riff = b"WAVEfmt " + struct.pack("<I", len(about)) + about + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", min(len(riff), 2**32 - 1)) + riff


def sound(num_samples: int = 2 * RATE_HZ) -> bytes:
    """Return 16-bit samples of noise."""
    return np.random.default_rng(0).integers(-9_000, 9_000, num_samples, dtype=np.int16).tobytes()


def encoded(folder: Path, suffix: str) -> bytes:
    """Return a file of noise in a format."""
    path = folder / f"whole.{suffix}"
    if not path.exists():
        soundfile.write(path, np.frombuffer(sound(), np.int16), RATE_HZ)
    return path.read_bytes()


def bad_contents(folder: Path, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield (suffix, content) of files that are not what they seem."""
    yield from (("wav", b""), ("mp3", b""), ("flac", b"fLaC"), ("ogg", b"OggS"), ("wav", b"RIFF"))
    for suffix in ("wav", "mp3", "flac", "ogg"):
        whole = encoded(folder, suffix)
        yield suffix, draw.randbytes(draw.randrange(1, 5_000))
        for _ in range(3):
            yield suffix, whole[: draw.randrange(len(whole))]
        damaged = bytearray(whole)
        for _ in range(20):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        yield suffix, bytes(damaged)
        yield draw.choice(["aiff", "opus", "caf", "rf64", "w64", "au"]), whole
    yield from (("wav", b"plain text\n" * 50), ("mp3", b"\xff\xfb" * 4_000), ("m4a", b"\0\0\0\x20ftypM4A " + bytes(99)))
    for changed in ({"rate": 0}, {"rate": 1}, {"rate": 2**32 - 1}, {"channels": 0}, {"channels": 65_535}, {"bits": 0}):
        yield "wav", wav(sound(), **changed)  # type: ignore[arg-type]
    yield from (
        ("wav", wav(sound(), bits=7)),
        ("wav", wav(sound(), code=0x4321)),
        ("wav", wav(sound(), size=2**32 - 1)),
    )
    yield from (("wav", wav(b"")), ("wav", wav(sound(1))), ("wav", wav(bytes(60_000))))
    for value in (np.nan, np.inf, -np.inf, 1e30, 1e-40):
        samples = np.full(2 * RATE_HZ, value, np.float32)
        samples[::7] = 0.1
        yield "wav", wav(samples.tobytes(), bits=32, code=3)


def bad_places(folder: Path, token: str) -> Iterator[Path]:
    """Yield paths at which there is no ordinary file."""
    names = ("folder", "fifo", "socket", "broken", "circle", "zero", "closed", "absent")
    path = {name: folder / f"{token}-{name}.wav" for name in names}
    path["folder"].mkdir()
    os.mkfifo(path["fifo"])
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(folder, os.O_RDONLY)  # the path of a socket may have 107 characters only
        server.bind(f"/proc/self/fd/{here}/{path['socket'].name}")
        os.close(here)
    path["broken"].symlink_to("nowhere")
    path["circle"].symlink_to(path["circle"])
    path["zero"].symlink_to("/dev/zero")
    path["closed"].write_bytes(wav(sound()))
    path["closed"].chmod(0)
    yield from path.values()


def odd_names(token: str) -> list[str]:
    """Return names of files that a file system allows."""
    long = token + "y" * (250 - len(token))
    odd = ("\n", "\t", "\x1b[31m", "😀", "e\u0301", "\udcff\udc80", "%s{0}", "[1]*?", "'\"`", " ", "\\", "#&;$(x)")
    return [f"{token}{each}" for each in odd] + [f"-{token}", f"--{token}", long]


def file_inputs(folder: Path, catalogue: Path, draw: random.Random) -> Iterator[Input]:
    """Yield files as recordings to identify, to align, and as music."""
    good = folder / "good.wav"
    good.write_bytes(wav(sound()))
    paths = []
    for number, (suffix, content) in enumerate(bad_contents(folder, draw)):
        paths.append(folder / f"zq{number}.{suffix}")
        paths[-1].write_bytes(content)
    paths += bad_places(folder, "zqplace")
    for name in odd_names("zqname"):
        paths.append(folder / f"{name}.wav")
        paths[-1].write_bytes(wav(sound()))
    for path in paths:
        commands: tuple[tuple[str | Path, ...], ...] = (
            ("identify", path, "--catalogue", catalogue),
            ("align", *draw.sample([path, good], 2), "--store", folder / "empty"),
        )
        yield Input("file", draw.choice(commands), path.name[:4])
    yield Input("file", ("data", "verify", "--dataset", "folder", "--data-root", folder, "--store", folder / "empty"))


def odd_texts() -> list[str]:
    """Return texts that are no name of anything; each begins with the token zq, or is a special value."""
    odd = [f"zq{each}" for each in ("", "\n", "😀", "\udcff", "%s{0}", "/../..", "x" * 5_000, ":", "@", ".py", "[1]")]
    return [*odd, "", " ", "/", "-1", "nan", "None", ".", "/dev/null", "*"]


def name_inputs(store: Path, catalogue: Path, folder: Path, draw: random.Random, number: int) -> Iterator[Input]:
    """Yield names of encoders, presets, runs and so on that do not exist."""
    run = ("run", "--store", folder / "store", "--checkpoint", folder / "zq-absent.safetensors")
    asks: tuple[tuple[str | Path, ...], ...] = (
        (*run, "--model"),
        (*run, "--model", "now-playing", "--preset"),
        (*run, "--model", "now-playing", "--dataset"),
        (*run, "--model", "now-playing", "--task"),
        (*run, "--model", "now-playing", "--config"),
        (*run, "--model", "now-playing", "--data-root", folder, "--dataset"),
        ("run", "--model", "now-playing", "--store", folder / "store", "--checkpoint"),
        ("list",),
        ("results", "--store", store),
        ("results", "--store", store, "--format"),
        ("results", "--store", store, "--sequence"),
        ("compare", "--store", store),
        ("reproduce", "--store", folder / "empty"),
        ("report", "--out", folder / "report.html", "--store", store),
        ("catalogue", "build", folder / "new", "--store", store, "--run"),
        ("catalogue", "build", folder / "new", "--store", store, "--index"),
        ("catalogue", "build", folder / "new", "--store", store, "--dataset"),
        ("catalogue", "info"),
        ("catalogue", "info", catalogue, "--model"),
        ("catalogue", "query", catalogue),
        ("catalogue", "tune", catalogue, "--index"),
        ("identify", folder / "good.wav", "--catalogue"),
        ("align", folder / "good.wav", folder / "good.wav", "--aligner"),
        ("sweep", "--store", folder / "store", "--model"),
        ("sweep", "--store", folder / "store", "--model", "now-playing", "--space"),
        ("sweep", "--store", folder / "store", "--model", "now-playing", "--objective"),
        ("sweep", "--store", folder / "store", "--model", "now-playing", "--pruner"),
        ("sweep", "show", "--store", store),
        ("sweep", "promote", "--store", store),
        ("data", "verify", "--store", folder / "empty", "--dataset"),
        ("data", "verify", "--store", folder / "empty", "--dataset", "folder", "--data-root"),
        ("speed", "embed", "--store", folder / "empty", "--model"),
    )
    for ask in draw.choices(asks, k=number):
        text = draw.choice(odd_texts())
        has_names = ask[0] != "reproduce" and (ask[0] != "sweep" or ask[-1] != store)  # there is no run, or no sweep
        yield Input("name", (*ask, text), "zq" if has_names and text.startswith("zq") else "")


def setting_inputs(names: list[str], folder: Path, draw: random.Random, number: int) -> Iterator[Input]:
    """Yield values that a setting cannot have; the checkpoint that does not exist ends the run if one can."""
    values = (
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "1e400",
        "-1e-300",
        "1" + "0" * 40,
        "many",
        '""',
        "[]",
        "{}",
        "true",
        "[[]]",
    )
    more = (
        "",
        "=",
        "[1,",
        "1979-05-27",
        '{"a"=1}',
        "'😀'",
        "[nan, nan]",
        "[2, 1]",
        '["zq"]',
        "\udcff",
        "0x",
        "'a\\nb'",
    )
    run = ("run", "--model", "now-playing", "--preset", "tiny", "--dataset", "synth", "--store", folder / "store")
    for _ in range(number):
        name = draw.choice([*names, *names, "zq.unknown", f"{draw.choice(names)}x", "train", "."])
        setting = f"{name}={draw.choice([*values, *more])}"
        yield Input("setting", (*run, "--checkpoint", folder / "zq-absent.safetensors", "--set", setting), "")


def toml_inputs(folder: Path, draw: random.Random) -> Iterator[Input]:
    """Yield files of settings and of search spaces."""
    texts = [
        b"",
        b"\xff\xfe\0",
        b"\xef\xbb\xbf[train]\nlr = 1",
        b"[train",
        b"a = 1\na = 2",
        b"train = 3",
        b"[[train]]\nlr=1",
    ]
    texts += [b"[train]\nlr = 1979-05-27", b"[train]\nlr = nan", b"[zq]\na = 1", b"[train.lr]\nx = 1", b"[" * 5_000]
    texts += [b"[train]\nsteps = 1" + b"0" * 5_000, b"x = " + b"[" * 2_000 + b"]" * 2_000, draw.randbytes(500)]
    spaces = [b'preset = "zq"', b"preset = 1", b"[space]", b"space = 1", b"budget = []", b'[space]\n"train.lr" = 1']
    spaces += [
        b'[space]\n"train.lr" = ' + value
        for value in (
            *(b"{}", b"{ low = 1 }", b"{ low = 2, high = 1 }", b"{ low = nan, high = 1.0 }", b"{ choices = [] }"),
            *(
                b"{ low = 0.0, high = 1.0, log = true }",
                b'{ choices = ["zq"] }',
                b"{ low = 1, high = inf }",
                b"{ zq = 1 }",
            ),
        )
    ]
    spaces += [b'[space]\n"zq.x" = { low = 1, high = 2 }', b'[space]\n"eval.hop_ms" = { low = 1, high = 2 }']
    run = ("run", "--model", "now-playing", "--preset", "tiny", "--dataset", "synth", "--store", folder / "store")
    sweep = ("sweep", "--model", "now-playing", "--dataset", "synth", "--trials", "0", "--store", folder / "store")
    for number, text in enumerate([*texts, *spaces]):
        path = folder / f"zq{number}.toml"
        path.write_bytes(text)
        if number < len(texts):
            yield Input("TOML", (*run, "--checkpoint", folder / "zq-absent.safetensors", "--config", path))
        yield Input("TOML", (*sweep, "--preset", "tiny", "--space", path), "")
    for place in bad_places(folder, "zqtoml"):
        yield Input("TOML", (*run, "--checkpoint", folder / "zq-absent.safetensors", "--config", place), "zq")


def server_inputs(store: Callable[[], Path], folder: Path, addresses: dict[str, str]) -> Iterator[Input]:
    """Yield addresses of tracking servers and databases; `addresses` has some of servers that misbehave."""
    login = "ann:s3cret@"
    uris = [
        "nonsense",
        "http://",
        f"http://{login}127.0.0.1:1",
        "http://[::1",
        "ftp://zq",
        "sqlite://",
        "sqlite:///",
        ":",
    ]
    uris += [
        "sqlite:////zq/absent/x.db",
        f"sqlite:///{folder}",
        f"sqlite:///{folder}/good.wav",
        "file:///proc/zq",
        "http://zq",
    ]
    uris += [f"postgresql://{login}127.0.0.1:1/zq", f"postgresql+psycopg://{login}127.0.0.1:1/zq", "nodriver+zq://x/y"]
    uris += [
        "mysql://zq/zq",
        "http://zq😀",
        f"http://127.0.0.1:99999/{'z' * 3_000}",
        "databricks-zq://x",
        *addresses.values(),
    ]
    run = ("--model", "now-playing", "--preset", "tiny", "--dataset", "synth", "--store", folder / "store")
    for uri in uris:
        yield Input("server", ("sync", "--store", store()), "", {"MLFLOW_TRACKING_URI": uri})
        yield Input("server", ("sweep", *run, "--trials", "1", "--set", "device='cuda:99'", "--storage", uri), "")


def random_arguments(draw: random.Random, number: int) -> Iterator[Input]:
    """Yield command lines of random characters."""
    words = (
        "run",
        "sweep",
        "align",
        "identify",
        "data",
        "catalogue",
        "--set",
        "--store",
        "-m",
        "--format",
        "--",
        "-x",
        "",
    )
    for _ in range(number):
        text = "".join(draw.choices(string.printable, k=draw.randrange(8)))
        yield Input("arguments", tuple(draw.choices([*words, text], k=draw.randrange(1, 6))))
