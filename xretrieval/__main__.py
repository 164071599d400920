"""`python -m xretrieval` is `xretrieval`."""

import sys

from xretrieval.main import main

sys.exit(main())
