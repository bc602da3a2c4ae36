"""`python -m srlm_fast.compare`."""

import sys

from srlm_fast.compare import main

if __name__ == "__main__":
    sys.exit(main())
