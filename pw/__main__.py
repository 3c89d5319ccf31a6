"""`python -m pw VERB key=value …`."""

import sys

from pw.cli import main

sys.exit(main())
