"""What the campaigns `kill_builds.py`, `damage_caches.py` and `fill_disks.py` are made of. Not installed."""
