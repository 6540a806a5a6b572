"""Prompt Valet's entry: `python3 pv.py …` from the tree, `__main__` inside pv.pyz."""

import importlib.util
import sys

# Nothing here speaks TLS. Without this http.client and hashlib load OpenSSL: 5 MB of memory, and a
# large thing to have in a server that lets nobody in. Python has SHA-2 of its own, unless it was
# built without.
if any(importlib.util.find_spec(name) for name in ("_sha2", "_sha256")):
    sys.modules["ssl"] = sys.modules["_hashlib"] = None  # type: ignore[assignment]

from pv_lib.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
