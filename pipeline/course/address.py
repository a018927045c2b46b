"""The address of a course server: what is a usable one, and who can read along. Sends nothing."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass

from pipeline.course.token import Token
from pipeline.errors import CourseError

VARIABLE = "SOFTLABEL_COURSE_SERVER"


@dataclass(frozen=True)
class Address:
    """An http or https URL without credentials, query or fragment; a path in it is kept."""

    url: str
    """Without a slash at its end."""

    @property
    def is_plain(self) -> bool:
        """Whether all that is sent can be read on the way."""
        return self.url.startswith("http:")

    @property
    def host(self) -> str:
        """Host and port."""
        return urllib.parse.urlsplit(self.url).netloc

    def check_without(self, token: Token) -> None:
        """CourseError where the token stands in the address, which is shown and remembered."""
        path = urllib.parse.urlsplit(self.url).path
        if any(segment and token.redact(segment) == token.redact(token.reveal()) for segment in path.split("/")):
            raise CourseError("the address of --server has the token in it: leave out what comes after the host")


def parse_address(text: str) -> Address:
    """The address in a text that a user typed; CourseError says what is wrong with it."""
    text = text.strip()
    bare = text.partition("://")[2] or text
    # Before anything that shows the text: these parts may hold secrets.
    if "@" in bare or "?" in bare or "#" in bare:
        raise CourseError("--server takes an address without user, password, query or fragment: http://HOST[:PORT]")
    if not text.isprintable() or " " in text or "\\" in text:
        raise CourseError(f"--server {text!r} is no address: expected http://HOST[:PORT]")
    if "://" not in text:
        raise CourseError(f"--server {text} has no scheme: write http://{text}")
    try:
        parts = urllib.parse.urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0:
        raise CourseError(f"--server {text} is no address: expected http://HOST[:PORT]")
    if parts.scheme not in ("http", "https"):
        raise CourseError(f"--server {text}: expected http:// or https://, got {parts.scheme}://")
    return Address(f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}")


def notice_of(address: Address) -> str:
    """One line where the token would travel in the clear, else nothing."""
    if not address.is_plain:
        return ""
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(address.url, get_environ_proxies(address.url, None))
    host = urllib.parse.urlsplit(proxy if "://" in proxy else f"//{proxy}").hostname if proxy else ""
    through = f" and through the proxy {host}" if host else ""
    return f"plain http: your token travels in the clear to {address.host}{through}; whoever is on the way can read it"
