"""Which build this is. `build.sh` writes the commit into the archive's copy of this file.

Nothing else may live here: the file is data that the build rewrites.
"""

VERSION = "0.1.0"
COMMIT = "tree"
FULL = VERSION if COMMIT == "tree" else f"{VERSION}+{COMMIT}"
