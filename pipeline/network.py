"""Whether a host of downloads can be reached, asked before a library tries for half a minute. Downloads nothing."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request


def check_network(host: str) -> None:
    """ConnectionError at once: without a network, a download is tried six times over half a minute."""
    if urllib.request.getproxies():
        return  # only the proxy knows
    if host == "huggingface.co":
        from huggingface_hub import constants

        host = urllib.parse.urlsplit(constants.ENDPOINT).hostname or host
    try:
        socket.create_connection((host, 443), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"no network connection to {host}") from error
