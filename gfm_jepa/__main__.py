"""`python -m gfm_jepa` is `gfm-jepa`."""

import sys

from .cli import main

sys.exit(main())
