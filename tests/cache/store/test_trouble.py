"""Which failures pass, how often they are tried again, and the sentence for those that stay."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from cache.errors import CacheDiskFull, CacheError
from cache.store import Patience, StoreError
from cache.store.trouble import explained, is_passing, keep_trying


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def of_botocore(name: str, code: str = "") -> Exception:
    from botocore import exceptions

    if code:
        return exceptions.ClientError({"Error": {"Code": code, "Message": "said so"}}, "GetObject")
    words = {"endpoint_url": "http://host", "error": "broken", "provider": "env", "cred_var": "KEY"}
    return getattr(exceptions, name)(**words)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError(), True),
        (asyncio.TimeoutError(), True),
        (OSError(errno.EBUSY, "slow down"), True),
        (OSError(errno.EIO, "broken"), False),
        (of_botocore("EndpointConnectionError"), True),
        (of_botocore("ReadTimeoutError"), True),
        (of_botocore("NoCredentialsError"), False),
        (of_botocore("", "SlowDown"), True),
        (of_botocore("", "AccessDenied"), False),
        (raised_from(FileNotFoundError("x"), of_botocore("", "NoSuchBucket")), False),
        (raised_from(OSError(errno.EREMOTEIO, "x"), of_botocore("", "InternalError")), True),
        (StoreError("refused"), False),
        (ValueError("x"), False),
    ],
)
def test_what_may_pass_is_known(error: Exception, passes: bool) -> None:
    assert is_passing(error) is passes


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (raised_from(FileNotFoundError("x"), of_botocore("", "NoSuchBucket")), "there is no such bucket or repository"),
        (raised_from(PermissionError("x"), of_botocore("", "AccessDenied")), "access to s3://team is denied"),
        (
            raised_from(PermissionError("x"), of_botocore("", "InvalidAccessKeyId")),
            "no credentials that s3://team takes",
        ),
        (of_botocore("NoCredentialsError"), "no credentials that s3://team takes"),
        (raised_from(of_botocore("EndpointConnectionError"), socket.gaierror(-2, "x")), "unknown host of s3://team"),
        (
            raised_from(of_botocore("EndpointConnectionError"), ConnectionRefusedError()),
            "nothing answers at the address",
        ),
        (of_botocore("ReadTimeoutError"), "s3://team did not answer in time"),
        (raised_from(of_botocore("SSLError"), TimeoutError()), "no secure connection to s3://team"),
        (OSError(errno.EIO, "secret word"), r"s3://team failed \(OSError: .*\*\*\* word\)"),
    ],
)
def test_each_failure_has_its_sentence(error: Exception, sentence: str) -> None:
    hidden = explained("s3://team", lambda text: text.replace("secret", "***"), is_folder=False)
    with pytest.raises(StoreError, match=sentence) as caught, hidden:
        raise error
    assert str(caught.value).isprintable()
    assert caught.value.__cause__ is None


def test_a_full_or_read_only_folder_is_told_as_one() -> None:
    for number, kind, sentence in (
        (errno.ENOSPC, CacheDiskFull, "no room in the store /mnt"),
        (errno.EROFS, StoreError, "the folder /mnt cannot be read or written"),
        (errno.EIO, StoreError, "is its drive still there"),
    ):
        with pytest.raises(kind, match=sentence), explained("/mnt", str, is_folder=True):
            raise OSError(number, "said")


def test_tries_are_bounded_and_pauses_grow_to_a_limit() -> None:
    patience, calls = Patience(tries=4, first_pause_s=0.001, longest_pause_s=0.003), []

    def fail() -> None:
        calls.append(1)
        raise ConnectionResetError("again")

    with pytest.raises(ConnectionResetError):
        keep_trying(fail, patience)
    assert len(calls) == 4
    assert [patience.pause(n) for n in (1, 2, 3, 9)] == [0.001, 0.002, 0.003, 0.003]
    for words in ({"tries": 0}, {"read_s": 0}, {"connect_s": 1e9}):
        with pytest.raises(CacheError):
            Patience(**words)
