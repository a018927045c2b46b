"""A folder on another machine, over ssh: only on hosts that the user knows, and with time limits.

fsspec's own class takes any host for the right one. Run: `softlabel cache push t.h5 ssh://USER@HOST/PATH`
"""

from typing import Any

from cache.store.moving import MovingFiles
from cache.store.trouble import Patience, StoreError


class SshFiles(MovingFiles):
    """With keys of the agent or of ~/.ssh, or with a password of the URL."""

    def backend(self) -> Any:
        """fsspec's, connecting in our way."""
        patience = self.patience

        def connect(made: Any) -> None:
            made.client, made.ftp = _connected(made.host, made.ssh_kwargs, patience)

        return type("KnownHosts", (super().backend(),), {"_connect": connect})


def _connected(host: str, words: dict[str, Any], patience: Patience) -> tuple[Any, Any]:
    """(client, its SFTP session)."""
    import paramiko

    class Refuse(paramiko.MissingHostKeyPolicy):
        """For a host without a known key; one with another key than the known one is refused by paramiko."""

        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            """Always raises."""
            raise StoreError(
                f"{hostname} is not among your known hosts: connect to it once with ssh, compare its key, then "
                "run the same command again"
            )

    client = paramiko.SSHClient()
    client.load_system_host_keys()
    client.set_missing_host_key_policy(Refuse())
    limits = dict.fromkeys(("timeout", "banner_timeout", "auth_timeout"), patience.connect_s)
    client.connect(host, **limits, **words)
    session = client.open_sftp()
    session.get_channel().settimeout(patience.read_s)
    return client, session
