"""Stores by URL."""

from __future__ import annotations

import os
import sys

import pytest

from weft.checkpoint.keep import Keep
from weft.checkpoint.memory import InMemorySaver
from weft.checkpoint.postgres import PostgresSaver
from weft.checkpoint.sqlite import SqliteSaver
from weft.checkpoint.url import from_url
from weft.errors import InputError


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///runs.db", "runs.db"),
        ("sqlite:///some/where/runs.db", "some/where/runs.db"),
        ("sqlite:////var/lib/runs.db", "/var/lib/runs.db"),
        ("SQLite:///runs.db", "runs.db"),
        ("sqlite:///100%25%20sure%3F.db", "100% sure?.db"),
        ("sqlite:///%C3%A9.db", "é.db"),
    ],
)
def test_sqlite_urls(url, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = from_url(url)
    assert isinstance(store, SqliteSaver)
    assert store.path == os.path.realpath(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["memory:", "memory://", "MEMORY:"])
def test_memory_urls(url):
    assert isinstance(from_url(url), InMemorySaver)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "runs.db",
        "sqlite:",
        "sqlite:runs.db",
        "sqlite://",
        "sqlite:///",
        "sqlite://runs.db",
        "sqlite://host/runs.db",
        "sqlite:///runs.db#there",
        "memory:shared",
        "memory:///x",
        "mysql://host/db",
        "http://[broken",
        "http://me:s3cret@[broken",
        "file:///runs.db",
    ],
)
def test_other_urls_are_refused_with_what_is_possible(url):
    with pytest.raises(InputError, match="sqlite:///runs.db") as caught:
        from_url(url)
    assert "s3cret" not in str(caught.value)
    assert repr(url)[:6] in str(caught.value)


def test_options_stand_behind_the_question_mark(tmp_path):
    store = from_url(
        f"sqlite:///{tmp_path}/runs.db?timeout=5&lease=8&days=30&failed_days=90&last=7&max_bytes=2GB"
    )
    assert isinstance(store, SqliteSaver)
    assert (store.path, store.lease) == (os.path.realpath(tmp_path / "runs.db"), 8.0)
    assert store.keep == Keep(days=30, failed_days=90, last=7, max_bytes=2_000_000_000)
    assert from_url("memory:?last=7").keep == Keep(last=7)
    assert from_url("memory:").keep is None


def test_options_of_ours_are_taken_out_of_a_postgres_url():
    store = from_url(
        "postgresql://me:s%2F3@host:5433/db?application_name=a%20b&schema=mine&pooled=true&lease=9&last=7"
    )
    assert isinstance(store, PostgresSaver)
    assert repr(store) == "<PostgresSaver postgresql://host:5433/db (schema 'mine')>"
    assert (store.lease, store.keep) == (9.0, Keep(last=7))
    assert store._address.pooled
    assert store._address.params["application_name"].startswith("a b")
    assert store._address.params["password"] == "s/3"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:///runs.db?timeot=5", "no option 'timeot'; there are timeout, lease, days"),
        ("sqlite:///runs.db?days=soon", "days cannot be 'soon'"),
        ("sqlite:///runs.db?last=1.5", "last cannot be '1.5'"),
        ("sqlite:///runs.db?max_bytes=much", "'2GB', not 'much'"),
        ("sqlite:///runs.db?schema=mine", "no option 'schema'"),
        ("postgresql://host/db?pooled=maybe", "pooled cannot be 'maybe'"),
    ],
)
def test_options_that_are_none_are_refused(url, says):
    with pytest.raises(InputError, match=says):
        from_url(url)


def test_the_memory_of_sqlite_is_refused_by_name():
    with pytest.raises(InputError, match="InMemorySaver"):
        from_url("sqlite:///:memory:")


def test_a_nul_in_the_path_is_refused():
    with pytest.raises(InputError, match="path of a file"):
        from_url("sqlite:///a%00b")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
@pytest.mark.parametrize("password", ["s3cret", "s3cret%2Fs3cret", "%20s3cret"])
def test_postgres_urls_are_libpqs_and_passwords_are_not_shown(scheme, password):
    store = from_url(f"{scheme}://me:{password}@host:5433/db?target_session_attrs=read-write")
    assert isinstance(store, PostgresSaver)
    assert repr(store) == "<PostgresSaver postgresql://host:5433/db (schema 'weft')>"


@pytest.mark.parametrize(
    "url", ["postgresql://me:s3cret@host/db?no_such=option", "postgresql://me:s3cret@[broken/db"]
)
def test_a_postgres_url_that_is_none_is_refused_without_its_password(url):
    with pytest.raises(InputError, match="postgresql://") as caught:
        from_url(url)
    assert "s3cret" not in str(caught.value)


def test_without_psycopg_a_postgres_url_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "weft.checkpoint.postgres", raising=False)
    monkeypatch.delitem(sys.modules, "weft.checkpoint.postgres_link", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'weft\[postgres\]'"):
        from_url("postgresql://host/db")


@pytest.mark.parametrize("name", ["timeout", "lease", "days", "last", "max_bytes"])
def test_an_option_without_a_value_is_refused(name):
    """It was meant to say something; without it, nothing would ever be forgotten."""
    with pytest.raises(InputError, match=f"{name} .*''"):
        from_url(f"sqlite:///runs.db?{name}=")
