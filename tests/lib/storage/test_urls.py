"""One gate for all URLs, and a type that prints them without secrets."""

from __future__ import annotations

import copy
import logging
import pickle
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rudalle_lib.storage.urls import (
    SCHEMES,
    STORAGE_SCHEMES,
    TABLE_SCHEMES,
    Url,
    UrlError,
    check_url,
    hide_urls,
    is_local_url,
    local_path,
    path_of,
    public_url,
    remember_urls,
    scheme_of,
    storable_url,
    whole_url,
)

# --- the gate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "folder/table.csv",
        "/folder/table.csv",
        "./a:b.csv",
        "2026-01-01T10:00.csv",
        "a:b",
        "data:text/plain,hello",
        "таблица с пробелами.csv",
        "file:///folder/a%20b.csv",
        "file://localhost/folder",
        "s3://bucket/prefix",
        "s3://bucket/a#b?c%20d кот@e",
        "gs://bucket/x",
        "abfs://container@account.dfs.core.windows.net/x",
        "hf://datasets/owner/name@main/train.csv",
        "https://host/a.csv?X-Amz-Signature=1#part",
        "https://host/thumbnail?url=https://other/a::b.png",
        "http://[::1]:8080/a.csv",
    ],
)
def test_paths_and_urls_of_known_kinds_pass_unchanged(url: str) -> None:
    assert check_url(url).full == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "found an empty text"),
        ("  ", "found an empty text"),
        ("a\0b", "control characters"),
        ("a\nb", "control characters"),
        ("file:///a%00b", "control characters"),
        ("reference://x.png::http://stranger/refs.json", "chains of URLs"),
        ("simplecache::https://host/x", "chains of URLs"),
        ("zip://a.csv::s3://bucket/x.zip", "chains of URLs"),
        ("/local/x::http://host/y", "chains of URLs"),
        ("a::b", "chains of URLs"),
        ("reference://x", "unknown kind of URL; expected a local path or one of file://, s3://"),
        ("Reference://x", "unknown kind of URL"),
        ("github://owner:repo@main/x", "unknown kind of URL"),
        ("sftp://host/x", "unknown kind of URL"),
        ("ssh://host/x", "or one of .*, found ssh://"),
        ("ftp://host/x", "unknown kind of URL"),
        ("jupyter://host/x", "unknown kind of URL"),
        ("jlab://host/x", "unknown kind of URL"),
        ("smb://host/x", "unknown kind of URL"),
        ("webhdfs://host/x", "unknown kind of URL"),
        ("dask://host/x", "unknown kind of URL"),
        ("data://text", "unknown kind of URL"),
        ("local:///x", "unknown kind of URL"),
        ("memory://x", "unknown kind of URL"),
        ("demo://prompts", "unknown kind of URL"),
        ("htp://host/x", "did you mean http://"),
        ("s4://bucket/x", "did you mean s3://"),
        ("://bucket/x", "unknown kind of URL"),
        ("folder/x://y", "unknown kind of URL"),
        ("s3:/bucket/x", "s3:/ is not a URL; expected s3://bucket/prefix"),
        ("S3:/bucket/x", "expected s3://bucket/prefix"),
        ("https:/host/x", "expected https://host/path"),
        ("s3:bucket/x", "expected s3://bucket/prefix"),
        ("s3//bucket/x", "expected s3://bucket/prefix"),
        ("file:/x", "expected file:///folder/name"),
        ("local:x", "is not a URL"),
        ("C:\\data\\x", "C:/ is not a URL"),
        ("C:/data/x", "C:/ is not a URL"),
        ("s3://", "names no bucket; expected s3://bucket/prefix"),
        ("s3:///x", "names no bucket"),
        ("file://folder/x", "three slashes"),
        ("http:///x", "form https://host/path"),
        ("http://host:port/x", "form https://host/path"),
        ("http://[1::2/x", "chains"),
        ("http://[1/x", "form https://host/path"),
        ("http://ho st/x", "form https://host/path"),
        ("http://good.example\\@evil.example/x", "user name|form https"),
        ("s3://user:secret@bucket/x", "must not contain a user name or password"),
        ("s3://AKIAKEY:ab/cd+ef@bucket/x", "must not contain a user name or password"),
        ("https://token@host/x", "must not contain a user name or password"),
        ("https://me:secret@host/x", "must not contain a user name or password"),
        ("abfs://container:secret@account/x", "must not contain a user name or password"),
        ("gs://me@bucket/x", "must not contain a user name or password"),
    ],
)
def test_others_are_refused_with_one_sentence_without_the_url(url: str, words: str) -> None:
    with pytest.raises(UrlError, match=words) as raised:
        check_url(url)
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["a" * 10**6, "[" * 10**6, "a::" * 10**5, "s3://" + "a@:" * 10**5])
def test_long_texts_take_no_time(text: str) -> None:
    started = time.process_time()
    with pytest.raises(UrlError, match="at most 8,192 characters"):
        check_url(text)
    for shown in (text, text + " x:/y", text.replace("a", "https://h?")):
        hide_urls(shown)
        public_url(shown)
    assert time.process_time() - started < 5


def test_schemes_depend_on_the_purpose_and_not_on_the_case() -> None:
    assert check_url("demo://prompts", TABLE_SCHEMES) == "demo://prompts"
    assert check_url("memory://x", STORAGE_SCHEMES) == "memory://x"
    assert check_url(" S3://Bucket/Key ") == "s3://Bucket/Key"
    with pytest.raises(UrlError, match="unknown kind of URL; expected a local path or one of http"):
        check_url("s3://b/x", ("http", "https"))


@given(st.text(max_size=40), st.sampled_from(["", "::", "://", "s3://", "http://", "a@", "?"]))
def test_any_text_passes_or_is_refused(text: str, middle: str) -> None:
    url = middle.join(["x", text])
    try:
        checked = check_url(url)
    except UrlError as error:
        assert str(error)
        return
    assert scheme_of(checked) in ("", *SCHEMES)
    assert checked.full.strip() == url.strip() or scheme_of(checked)


def test_parts_of_urls() -> None:
    assert [scheme_of(url) for url in ("a", "S3://b", "file:///x")] == ["", "s3", "file"]
    assert is_local_url("a") and is_local_url("file:///a") and not is_local_url("s3://a")
    assert local_path("a%20b") == "a%20b" and local_path("file:///a%20b/%D0%BA") == "/a b/к"
    assert path_of("s3://bucket/a#b?c.csv") == "/a#b?c.csv"
    assert path_of("https://host/a.csv?x=1.png#y") == "/a.csv"
    assert path_of("folder/a#b.csv") == "folder/a#b.csv"


# --- without secrets -----------------------------------------------------------------------------

SIGNED = "https://me:pw@host/a.csv?X-Amz-Signature=secret#secret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (SIGNED, "https://host/a.csv"),
        ("s3://bucket/a b", "s3://bucket/a b"),
        ("s3://bucket/a#b?c", "s3://bucket/a#b?c"),
        ("s3://bucket/a?X-Amz-Signature=secret", "s3://bucket/a"),
        ("s3://KEY:sec/ret@bucket/x", "s3://bucket/x"),
        ("abfs://container@account/x", "abfs://container@account/x"),
        ("abfs://container:secret@account/x", "abfs://account/x"),
        ("sftp://me:secret@host/x?secret", "sftp://host/x"),
        ("https:/host/x?token=secret", "https:/host/x"),
        ("reference://x::http://me:secret@h/r?secret", "reference://x::http://h/r"),
        ("http://[::1]:80/x?secret", "http://[::1]:80/x"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("/a/b?c#d", "/a/b?c#d"),
    ],
)
def test_a_url_is_shown_without_secrets(url: str, shown: str) -> None:
    assert public_url(url) == shown
    assert hide_urls(f"cannot read {url!r}: 403") == f"cannot read {shown!r}: 403"


def test_a_url_prints_itself_without_secrets_everywhere(caplog: pytest.LogCaptureFixture) -> None:
    url = Url(SIGNED)
    logging.getLogger("x").warning("read %s and %r", url, [url])
    try:
        raise ValueError(url)
    except ValueError as error:
        texts = [str(error), repr(error)]
    texts += [str(url), repr(url), f"{url}", f"{url:>50}", str({"a": url}), caplog.text]
    assert all("host/a.csv" in text and "secret" not in text for text in texts)
    assert all("pw" not in text for text in texts)


def test_a_url_is_its_whole_text_for_everything_else() -> None:
    url = Url(SIGNED)
    assert url == SIGNED and hash(url) == hash(SIGNED) and url.full == SIGNED and len(url) > 40
    assert url.has_secrets and not Url("s3://b/x").has_secrets
    for same in (pickle.loads(pickle.dumps(url)), copy.deepcopy(url), Url(url)):
        assert type(same) is Url and same.full == SIGNED
    assert type(url.full) is str
    assert Path(Url("/a/b")) == Path("/a/b")


# --- signatures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Algorithm=AWS4&X-Amz-Credential=secret&X-Amz-Expires=9&X-Amz-Signature=secret",
        "X-Goog-Signature=secret&X-Goog-Date=1",
        "Expires=1&Signature=secret&Key-Pair-Id=secret",
        "AWSAccessKeyId=secret&Expires=1&Signature=secret",
        "sv=2020&se=2030&sr=b&sp=r&sig=secret",
        "token=secret",
        "access_token=secret",
        "auth=secret",
        "password=secret",
        "api_key=secret",
        "secret",
    ],
)
def test_a_stored_url_lacks_its_signature_and_renewed_ones_are_the_same(query: str) -> None:
    url = f"https://host/a.png?w=10&{query}"
    stored = storable_url(url)
    assert stored == "https://host/a.png?w=10"
    assert whole_url(stored) == url
    renewed = url.replace("secret", "token-2")
    assert storable_url(renewed) == stored and whole_url(stored) == renewed


def test_urls_of_different_images_stay_different() -> None:
    urls = [
        "https://host/image?id=5",
        "https://host/image?id=6",
        "https://host/image?key=photos/a.png",
        "https://host/image?key=photos/b.png",
        "https://host/image?keyword=cat&author=me&design=x",
        "https://host/image?keyword=dog&author=me&design=x",
        "https://host/image?photos/a.png",
        "https://host/image?photos/b.png",
        "https://host/image?hidden=4f9a63b1c8d24e7f",
        "https://host/image",
    ]
    stored = [storable_url(url) for url in urls]
    assert len(set(stored)) == len(urls)
    assert [whole_url(one) for one in stored] == urls
    assert "4f9a63b1c8d24e7f" not in "".join(stored) and "photos" not in "".join(stored)
    assert stored[0] == urls[0]


def test_paths_and_keys_are_stored_as_they_are() -> None:
    for url in ("folder/a#b?c.png", "s3://bucket/a?b#c", "https://host/a.png"):
        assert storable_url(url) == url == whole_url(url)
    assert storable_url("https://host/a.png#part") == "https://host/a.png"


def test_another_process_can_be_told_of_whole_urls() -> None:
    remember_urls([Url("https://host/z.png?token=secret")])
    assert whole_url("https://host/z.png") == "https://host/z.png?token=secret"
