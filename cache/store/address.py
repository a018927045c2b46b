"""Where a store is: the URL, the form of it that may be shown, and the ID behind it. Never connects.

A password in a URL stays in it: it is neither shown, nor logged, nor remembered.
Run: `softlabel cache pull URL/ID -o t.h5`
"""

import os
import re
import shlex
from dataclasses import dataclass, field
from urllib.parse import unquote

from cache.errors import printable
from cache.store.trouble import StoreError

FOLDER = "file"
MIN_ID_DIGITS = 8
TRIED = ("s3", "s3a", "ssh", "sftp")
UNTRIED = ("gs", "gcs", "hf", "az", "abfs", "abfss", "adl", "webdav", "memory")
"""They list their files and take new ones, too, but nothing here was ever pushed to one."""
_SLIP = re.compile(rf"({'|'.join((*TRIED, *UNTRIED, FOLDER, 'https?'))})(?::/?(?!/)|//)(.*)", re.IGNORECASE)
"""A protocol without all of its ://, which would be the name of a folder."""
_OF_HUB = ("datasets", "spaces", "models", "buckets")
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_NAME_IN_STORE = re.compile(r"([0-9a-f]{64})(?:\.[0-9a-f]{64}\.h5|\.json)")
_ID = re.compile(rf"[0-9a-f]{{{MIN_ID_DIGITS},64}}")
_HIDDEN = "***"
_SHOWS_USERS = ("ssh", "sftp")
"""Where the name of a user is needed to come back; elsewhere what stands before the @ may be a token."""
_TAKES_NO_USERS = ("s3", "s3a", "gs", "gcs", "hf")
"""Whose credentials come from elsewhere: there the @ would become a part of a bucket's name."""


@dataclass(frozen=True)
class StoreAddress:
    """A store's URL, taken apart."""

    protocol: str
    shown: str
    """For people, logs and files: without password, without a slash at the end."""
    url: str = field(repr=False)
    """For fsspec; of a folder its path."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Texts that must not be shown, longest first."""

    @classmethod
    def parse(cls, url: str) -> "StoreAddress":
        """A folder's path, or PROTOCOL://...; StoreError for what is no address."""
        if url != url.strip():
            raise StoreError("the address of the store begins or ends with a space: leave it out")
        if slip := _SLIP.fullmatch(url):
            raise StoreError(_did_you_mean(slip.group(1).lower(), slip.group(2).lstrip("/")))
        found = _PROTOCOL.match(url)
        if "://" in url and (found is None or "::" in url):
            raise StoreError(
                "a store's address is a folder, or PROTOCOL://NAME/PATH without :: (not shown: it may have a password)"
            )
        protocol = found.group(1).lower() if found else FOLDER
        if protocol in (FOLDER, "local"):
            path = os.path.expanduser(url[found.end() :] if found else url)
            if not path:
                raise StoreError("the address of the store is empty: name a folder, or a URL such as s3://BUCKET/PATH")
            return cls(FOLDER, path.rstrip("/") or "/", os.path.abspath(path))
        assert found is not None
        if protocol not in (*TRIED, *UNTRIED):
            raise StoreError(
                f"{protocol}:// cannot be a store, which lists its files and takes new ones: expected a folder, s3:// "
                "or ssh://, or gs://, hf://, az://, abfs:// or webdav://, which were not tried"
            )
        host, slash, path = url[found.end() :].rstrip("/").partition("/")
        user, at, machine = host.rpartition("@")
        hidden = _shown_user(user, protocol)
        shown = f"{protocol}://{hidden}{at and '@'}{machine}{slash}{path}"
        if "?" in shown:
            raise StoreError(f"{printable(shown.partition('?')[0])}... is no address of a store: it ends before any ?")
        if not machine:
            raise StoreError(f"{printable(shown)} names no bucket or host: expected {protocol}://NAME/PATH")
        if protocol == "hf" and len(f"{machine}/{path}".rstrip("/").split("/")) < 2 + (machine in _OF_HUB):
            raise StoreError(f"{printable(shown)} names no repository: expected hf://datasets/OWNER/NAME")
        if at and protocol in _TAKES_NO_USERS:
            raise StoreError(
                f"{printable(shown)}: credentials do not stand in {protocol}:// addresses; leave out all up to the @, "
                "they are taken from where the provider's own tools have them (docs/share.md)"
            )
        return cls(protocol, shown, f"{protocol}://{host}{slash}{path}", _secrets(user, hidden))

    @property
    def is_remote(self) -> bool:
        """Whether what is pushed leaves this machine by another way than a folder."""
        return self.protocol not in (FOLDER, "memory")

    def redact(self, text: str) -> str:
        """A text, such as a library's error, without what must not be shown."""
        for secret in self.secrets:
            text = text.replace(secret, _HIDDEN)
        return text

    def __str__(self) -> str:
        return self.shown


def split_id(url: str) -> tuple[StoreAddress, str]:
    """URL/ID -> (the store, ID); ID is a prefix of an id, RECIPE_ID/CONTENT_ID, or a file's name in a listing.

    The ID comes back as `PREFIX` or `RECIPE_ID/PREFIX`, in lower case.
    """
    rest, _, last = url.rstrip("/").rpartition("/")
    name = last.lower()
    if found := _NAME_IN_STORE.fullmatch(name):
        name = found.group(1)
    has_store = bool(rest) and not rest.endswith(":/")
    if _ID.fullmatch(name) and not rest:
        raise StoreError(f"{name} is an ID without its store: expected URL/ID, such as s3://TEAM/caches/{name}")
    if not _ID.fullmatch(name) or not has_store:
        shown = printable(StoreAddress.parse(url).shown)
        is_cut = has_store and re.fullmatch("[0-9a-f]+", name)
        where = printable(StoreAddress.parse(rest).shown) if is_cut else shown
        raise StoreError(
            f"{shown} does not end in an ID ({MIN_ID_DIGITS} to 64 digits of 0-9a-f): expected URL/ID; "
            f"the IDs: softlabel cache list {shlex.quote(where)}"
        )
    before, _, recipe = rest.rpartition("/")
    if not before.endswith(":/") and re.fullmatch("[0-9a-f]{64}", recipe.lower()):
        return StoreAddress.parse(before or "."), f"{recipe.lower()}/{name}"
    return StoreAddress.parse(rest), name


def _did_you_mean(protocol: str, rest: str) -> str:
    """About an address whose :// is not one; shows no password."""
    try:
        meant = StoreAddress.parse(f"{protocol}://{'/' * (protocol == FOLDER)}{rest}").shown
    except StoreError:
        meant = f"{protocol}://..."
    return f"the address of the store lacks its ://: did you mean {printable(meant)}? (A folder of that name: ./NAME)"


def _shown_user(user: str, protocol: str) -> str:
    is_name = ":" not in user and protocol in _SHOWS_USERS
    return user if is_name or not user else _HIDDEN


def _secrets(user: str, hidden: str) -> tuple[str, ...]:
    if not user or hidden == user:
        return ()
    name, _, password = user.partition(":")
    texts = {user, password or name}
    texts |= {unquote(text) for text in texts}
    return tuple(sorted(filter(None, texts), key=len, reverse=True))
