"""No user name and no password in what is shown or written."""

from __future__ import annotations

import pytest

from bench.logbook import redact, without_password


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://ann:s3cret%20pa%2Fss@host:5612/x", "http://host:5612/x"),
        ("http://ann:s3cret pa/ss@host:5612", "http://host:5612"),
        ("http://ann:p@ss@host", "http://host"),
        ("http://ann@host", "http://host"),
        ("postgresql+psycopg://[::1]:9/x?user=ann&password=s3cret", "postgresql+psycopg://[::1]:9/x?user=***&password=***"),
        ("--storage=postgresql://ann:s3cret@host/x", "--storage=postgresql://host/x"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////home/me@work/x.db", "sqlite:////home/me@work/x.db"),
        ("models:/now-playing@champion", "models:/now-playing@champion"),
        ("databricks", "databricks"),
    ],
)  # fmt: skip
def test_url_is_shown_without_user_and_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    "text",
    [
        "413 Client Error for url: http://ann:s3cret%20pa%2Fss@127.0.0.1:5612/api?x=1",
        "no answer of http://ann:s3cret pa/ss@127.0.0.1:5612/api",
        "the password s3cret pa/ss is wrong",
        'password authentication failed for user "ann"',
        "Access denied for user 'ann'@'localhost' (using password: YES)",
        "refused: Basic YW5uOnMzY3JldCBwYS9zcw== is no header of ours",
        "no parse of postgresql://host/x?password=s3cret&user=ann",
    ],
)
def test_message_is_shown_without_user_and_password(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:s3cret%20pa%2Fss@127.0.0.1:5612")
    shown = redact(text)
    assert not any(part in shown for part in ("s3cret", "ann", "YW5u"))
    assert len(shown) > 20


def test_part_of_a_password_with_an_unescaped_at_is_not_shown() -> None:
    shown = redact("failed to resolve host 'cret@nohost.invalid'", "postgresql://me:s3@cret@nohost.invalid:5/x")
    assert shown == "failed to resolve host 'nohost.invalid'"


def test_message_without_secrets_is_left_as_it_is() -> None:
    text = "cannot connect to http://host:5000/a@b: user said no; see models:/x@champion"
    assert redact(text) == text
