"""Prompt Valet's entry: `python3 pv.py …` from the tree, `__main__` inside pv.pyz."""

import sys

from pv_lib.app import main

if __name__ == "__main__":
    sys.exit(main())
