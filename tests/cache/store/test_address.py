"""What an address is, and that its password is shown nowhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.store import StoreAddress, StoreError
from cache.store.address import split_id

ID, RECIPE, SHA = "ab" * 32, "cd" * 32, "ef" * 32


@pytest.mark.parametrize(
    ("url", "shown", "is_remote"),
    [
        ("stores/team/", "stores/team", False),
        ("/mnt/team", "/mnt/team", False),
        ("file:///mnt/team/", "/mnt/team", False),
        ("S3://team/caches/", "s3://team/caches", True),
        ("hf://datasets/team/caches", "hf://datasets/team/caches", True),
        ("ssh://ann@host:2222/caches", "ssh://ann@host:2222/caches", True),
        ("ssh://ann:pass@word@host/caches", "ssh://***@host/caches", True),
        ("webdav://token@host/x", "webdav://***@host/x", True),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str, is_remote: bool) -> None:
    address = StoreAddress.parse(url)
    assert (address.shown, address.is_remote) == (shown, is_remote)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "the address of the store is empty"),
        ("s3://", "names no bucket or host"),
        ("s3://key:secret@team/x", r"s3://\*\*\*@team/x: credentials do not stand in s3:// addresses"),
        ("webdav://host/x?token=secret", "it ends before any"),
        ("https://host/x?token=secret", "https:// cannot be a store, which lists its files and takes new ones"),
        ("zip://secret.zip", "expected a folder, s3:// or ssh://, or gs://"),
        (" s3://team/secret", "begins or ends with a space"),
        ("secret ", "begins or ends with a space"),
        ("s3:/team/caches", r"did you mean s3://team/caches\?"),
        ("S3//team/caches/", r"did you mean s3://team/caches\?"),
        ("s3:team", r"did you mean s3://team\?"),
        ("s3:", r"did you mean s3://...\?"),
        ("ssh:ann:secret@host/x", r"did you mean ssh://\*\*\*@host/x\?"),
        ("file:/mnt/team", r"did you mean /mnt/team\?"),
        ("hf://datasets/team", "expected hf://datasets/OWNER/NAME"),
        ("hf://team/", "expected hf://datasets/OWNER/NAME"),
        ("simplecache::s3://key:secret@team", "a store's address is a folder, or PROTOCOL"),
        ("secret:word://x", "a store's address is a folder, or PROTOCOL"),
    ],
)
def test_what_is_no_address_is_refused_without_its_secrets(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        StoreAddress.parse(url)
    assert "secret" not in str(caught.value)


def test_the_home_folder_is_meant_by_its_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    address = StoreAddress.parse("~/caches")
    assert (address.shown, address.url) == ("/home/ann/caches", "/home/ann/caches")


@given(st.text(st.characters(codec="ascii", exclude_characters="/?@:#%", min_codepoint=33), min_size=6, max_size=20))
def test_no_form_of_an_address_has_the_password(password: str) -> None:
    address = StoreAddress.parse(f"ssh://ann:{password}-Z9@host/caches")
    for text in (str(address), repr(address), address.shown, address.redact(f"cannot use {password}-Z9 at host")):
        assert f"{password}-Z9" not in text


@pytest.mark.parametrize(
    ("url", "store", "wanted"),
    [
        (f"s3://team/caches/{ID[:8]}", "s3://team/caches", ID[:8]),
        (f"s3://team/{ID.upper()}/", "s3://team", ID),
        (f"stores/{RECIPE}/{ID[:12]}", "stores", f"{RECIPE}/{ID[:12]}"),
        (f"s3://team/{RECIPE}/{ID}", "s3://team", f"{RECIPE}/{ID}"),
        (f"{RECIPE}/{ID}", ".", f"{RECIPE}/{ID}"),
        (f"s3://team/{RECIPE}/{ID}.json", "s3://team", f"{RECIPE}/{ID}"),
        (f"s3://team/{RECIPE}/{ID}.{SHA}.h5", "s3://team", f"{RECIPE}/{ID}"),
    ],
)
def test_the_last_part_is_the_id(url: str, store: str, wanted: str) -> None:
    address, found = split_id(url)
    assert (address.shown, found) == (store, wanted)


@pytest.mark.parametrize(
    ("url", "store"),
    [
        ("s3://team", "s3://team"), ("s3://team/caches", "s3://team/caches"), ("s3://team/caches/abc", "s3://team/caches"),
        ("st/14e8", "st"), ("stores/t.h5", "stores/t.h5"), (f"s3://{ID}", f"s3://{ID}"),
    ],
)  # fmt: skip
def test_a_url_without_an_id_is_told_where_the_ids_are(url: str, store: str) -> None:
    with pytest.raises(StoreError, match=rf"does not end in an ID .*: softlabel cache list {store}$"):
        split_id(url)


def test_an_id_alone_is_told_that_its_store_lacks() -> None:
    with pytest.raises(StoreError, match="is an ID without its store: expected URL/ID"):
        split_id(ID[:8])
