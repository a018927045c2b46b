"""A push or a pull in a process of its own, which kills itself once so many bytes have arrived.

Usage: killed_store.py push FILE URL PIECE_BYTES KILL_AFTER | pull URL ID OUT PIECE_BYTES KILL_AFTER
"""

import os
import signal
import sys

from cache.store import Patience, Store, download, places, s3


def main(words: list[str]) -> None:
    *asked, piece_bytes, kill_after = words
    download._FIRST_PIECE = download._MOST_PIECE = int(piece_bytes)
    s3.PART_BYTES = places._PIECE_BYTES = int(piece_bytes)
    arrived = 0

    def progress(n_bytes: int) -> None:
        nonlocal arrived
        arrived += n_bytes
        if arrived >= int(kill_after) > 0:
            os.kill(os.getpid(), signal.SIGKILL)

    patience = Patience(read_s=5, first_pause_s=0.02)
    if asked[0] == "push":
        Store(asked[2], patience=patience).push(asked[1], progress=progress)
    else:
        store = Store(asked[1], patience=patience)
        store.pull(store.find(asked[2]), asked[3], progress=progress)


if __name__ == "__main__":
    main(sys.argv[1:])
