"""Keeps user names and passwords out of messages, logs and files."""

from __future__ import annotations

import base64
import os
import re
from urllib.parse import unquote

URIS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "BENCH_STORAGE")  # environment variables that may hold passwords
PASSWORDS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")
SHORTEST_PASSWORD = 4  # a shorter one is part of ordinary words
HIDDEN = "***"
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")
_IN_URL = re.compile(r"(?<=://)[^\s/@'\"<>]+@")
_IN_QUERY = re.compile(r"([?&](?:user|username|password|passwd|sslpassword|token|access_token)=)[^&\s'\"]*", re.I)
_IN_WORDS = re.compile(r"(\b(?:user|username|role) )([\"'])[^\"']*\2(@'[^']*')?", re.I)  # of PostgreSQL and MySQL


def without_password(url: str) -> str:
    """Return the URL without its user name and password, so that it may be shown and written."""
    login = _login(url)
    return _IN_QUERY.sub(rf"\1{HIDDEN}", url.replace(f"{login}@", "", 1) if login else url)


def redact(text: str, *urls: str | None) -> str:
    """Return the text without user names and passwords: those of any URL, of `urls` and of the environment."""
    known = [url for url in (*urls, *map(os.environ.get, URIS)) if url and _login(url)]
    passwords = [_login(url).partition(":")[2] for url in known] + [os.environ.get(name, "") for name in PASSWORDS]
    # A server that refuses a request may answer with the request's header of basic authentication.
    passwords += [base64.b64encode(unquote(_login(url)).encode()).decode() for url in known]
    for password in {form for each in passwords for form in (each, unquote(each))}:
        if len(password) >= SHORTEST_PASSWORD:
            text = text.replace(password, HIDDEN)
    for url in known:
        host = re.split(r"[:/?#]", without_password(url).partition("://")[2], maxsplit=1)[0]
        # Also a part of a password with an unescaped @, which a library took for the name of the host.
        text = re.sub(rf"[^\s'\"/]*@(?={re.escape(host)})", "", text.replace(f"{_login(url)}@", ""))
    return _IN_WORDS.sub(rf"\1{HIDDEN}", _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_URL.sub("", text)))


def _login(url: str) -> str:
    """Return the `user:password` of a URL, empty if it has none; an unescaped slash in a password is understood."""
    rest = url.partition("://")[2]
    netloc = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in netloc:
        return netloc.rpartition("@")[0]
    return rest.rpartition("@")[0] if netloc and "@" in rest and not _HOST.fullmatch(netloc) else ""
