"""What goes wrong between here and a store: which of it passes, how long to try, and one sentence for the rest.

Never imports a backend: their exceptions are known by the names of their classes and by the codes of the servers.
Run: `softlabel cache list URL`
"""

import errno
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from cache.errors import CacheDiskFull, CacheError, printable

log = logging.getLogger(__name__)
Result = TypeVar("Result")

_MAX_TEXT = 200
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_PASSING_NUMBERS = {
    getattr(errno, name)
    for name in ("EBUSY", "EREMOTEIO", "ECONNRESET", "ETIMEDOUT", "EPIPE", "ENETUNREACH", "EHOSTUNREACH", "ENETDOWN",
                 "EAGAIN", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN")
    if hasattr(errno, name)
}  # fmt: skip
_PASSING_CODES = {
    "BadDigest", "IncompleteBody", "InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling",
    "XAmzContentSHA256Mismatch", "500", "502", "503", "504", "429",
}  # fmt: skip
_PASSING_CLASSES = {
    "ClientError@aiohttp", "ConnectionError@botocore",
    "HTTPClientError@botocore", "IncompleteReadError@botocore", "ResponseParserError@botocore",
    "ConnectionError@requests", "Timeout@requests", "ChunkedEncodingError@requests", "TransportError@httpx",
    "ProtocolError@urllib3", "IncompleteRead@http", "RemoteDisconnected@http", "SSHException@paramiko",
}  # fmt: skip
_LASTING_CLASSES = {"AuthenticationException@paramiko", "BadHostKeyException@paramiko"}
_NO_CREDENTIALS = {
    "NoCredentialsError@botocore", "PartialCredentialsError@botocore", "CredentialRetrievalError@botocore",
    "DefaultCredentialsError@google", "AuthenticationException@paramiko", "LocalTokenNotFoundError@huggingface_hub",
    "ProfileNotFound@botocore", "TokenRetrievalError@botocore", "SSOTokenLoadError@botocore",
}  # fmt: skip
_DENIED_CODES = {"AccessDenied", "AllAccessDisabled", "Forbidden", "403", "401"}
_WRONG_CREDENTIALS = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired",
}  # fmt: skip


class StoreError(CacheError):
    """A store could not be asked, or its answer is not one; the text has no secret."""


class ObjectRefused(StoreError):
    """One object of a store is not what its manifest says; the others may be."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for a store, and how often to try again."""

    connect_s: float = 10.0
    read_s: float = 30.0
    """Without a byte; an upload of one part has longer."""
    tries: int = 7
    """In a row without any progress; a piece that arrived starts the count anew."""
    first_tries: int = 3
    """The same before anything of this store has been heard: it may be the address that is wrong."""
    first_pause_s: float = 0.3
    """Doubles with each try."""
    longest_pause_s: float = 8.0

    def __post_init__(self) -> None:
        if not 0 < self.read_s <= 3600 or not 0 < self.connect_s <= 3600:
            raise StoreError(f"seconds to wait must be above 0 and at most 3600, got {self.connect_s}, {self.read_s}")
        if self.tries < 1 or self.first_tries < 1:
            raise StoreError(f"tries must be 1 or more, got {self.tries} and {self.first_tries}")

    @classmethod
    def of(cls, timeout_s: float) -> "Patience":
        """With so many seconds without a byte."""
        return cls(read_s=timeout_s, connect_s=min(cls.connect_s, timeout_s))

    def pause(self, failures: int) -> float:
        """Seconds before the next try."""
        return float(min(self.longest_pause_s, self.first_pause_s * 2 ** (failures - 1)))


def keep_trying(
    action: Callable[[], Result], patience: Patience, tries: Callable[[], int] | None = None
) -> Result:  # fmt: skip
    """The result of an action that is repeated while what it raises may pass."""
    failures = 0
    while True:
        try:
            return action()
        except Exception as error:
            failures += 1
            if not is_passing(error) or failures >= (tries() if tries else patience.tries):
                raise
            log.debug("try %d: %s", failures, type(error).__name__)
            time.sleep(patience.pause(failures))


def is_passing(error: BaseException) -> bool:
    """Whether trying again may help: a connection that broke, a server that is busy, bytes that arrived wrong."""
    kinds, code = _kinds(error), code_of(error)
    if kinds & (_LASTING_CLASSES | _NO_CREDENTIALS) or isinstance(error, CacheError):
        return False
    if code:
        return code in _PASSING_CODES
    # An HTTP library wraps a certificate that is not trusted into a failed connection.
    if any("SSLCertVerificationError" in kind for kind in kinds):
        return False
    if kinds & _PASSING_CLASSES:
        return True
    return any(
        isinstance(one, (ConnectionError, TimeoutError, EOFError))
        or "TimeoutError" in type(one).__name__
        or (isinstance(one, OSError) and one.errno in _PASSING_NUMBERS)
        for one in _chain(error)
    )


def code_of(error: BaseException) -> str:
    """The code that a server answered with, such as NoSuchBucket; empty without one."""
    for one in _chain(error):
        response: Any = getattr(one, "response", None)
        if isinstance(response, dict):  # botocore
            return str(response.get("Error", {}).get("Code", ""))
        if isinstance(status := getattr(response, "status_code", None), int):  # requests, httpx
            return str(status)
        if "HttpError@gcsfs" in _kinds(one) and isinstance(status := getattr(one, "code", None), int):
            return str(status)
    return ""


@contextmanager
def explained(shown: str, redact: Callable[[str], str], *, is_folder: bool) -> Iterator[None]:
    """Inside, what a backend raises becomes one sentence about the store, without secrets."""
    try:
        yield
    except (CacheError, AssertionError):
        raise
    except NotImplementedError:
        raise StoreError(f"{printable(shown)} can only be read: this kind of address takes no files") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise CacheDiskFull(
                f"no room in the store {shown} ({error.strerror}): what arrived stays; free some space, then run the "
                "same command again"
            ) from error
        # Without the chain: a library's own text may have the password in it, and --debug would show it.
        raise StoreError(printable(redact(_sentence(shown, error, is_folder=is_folder)))) from None


def _sentence(shown: str, error: Exception, *, is_folder: bool) -> str:
    kinds, code = _kinds(error), code_of(error)
    text = printable(str(error) or type(error).__name__)[:_MAX_TEXT]
    if is_folder:
        number = error.errno if isinstance(error, OSError) else None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else text
        if number in _READ_ONLY:
            return f"the folder {shown} cannot be read or written ({reason}): ask for the right to, or choose another"
        return f"the folder {shown} failed ({reason}): is its drive still there?"
    if code == "NoSuchBucket" or kinds & {"RepositoryNotFoundError@huggingface_hub"}:
        return f"there is no such bucket or repository: {shown}; check the name, or make it first"
    if "BadHostKeyException@paramiko" in kinds:
        return (
            f"the host of {shown} has another key than the one in ~/.ssh/known_hosts: ask its owner; nothing was sent"
        )
    if kinds & _NO_CREDENTIALS or code in _WRONG_CREDENTIALS:
        said = f"{code}: " if code else ""
        return (
            f"no credentials that {shown} takes ({said}{text}): log in with the provider's own tool, or set its "
            "variables (docs/share.md)"
        )
    if code in _DENIED_CODES or isinstance(error, PermissionError):
        return f"access to {shown} is denied ({code or text}): ask its owner for the right to read, or to write"
    if any("SSL" in kind for kind in kinds):
        return f"no secure connection to {shown} ({text})"
    if any(kind.startswith("gaierror@") or "DNSError" in kind for kind in kinds):
        return f"unknown host of {shown} ({text}): check the address and the network"
    if any(kind.startswith("ConnectionRefusedError@") for kind in kinds):
        return f"nothing answers at the address of {shown} ({text}): check it, and whether the server runs"
    if any("Timeout" in kind for kind in kinds):
        return f"{shown} did not answer in time: check the network, or wait longer with --timeout SECONDS"
    if is_passing(error):
        return f"no connection to {shown}, or it broke again and again ({text}): what arrived stays; try again later"
    if isinstance(error, FileNotFoundError):
        return f"{shown}: not there ({text})"
    return f"{shown} failed ({code or type(error).__name__}: {text})"


def _chain(error: BaseException) -> list[BaseException]:
    """An exception, what it was raised from, and so on."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found:
        found.append(one)
        one = one.__cause__ or one.__context__
    return found


def _kinds(error: BaseException) -> set[str]:
    """Class@package of all that an exception is, and is raised from."""
    return {
        f"{kind.__name__}@{kind.__module__.partition('.')[0]}" for one in _chain(error) for kind in type(one).__mro__
    }
