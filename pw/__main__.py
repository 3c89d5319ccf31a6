"""`python -m pw VERB key=value …`."""

import os
import sys

if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]  # else a random.py in the working directory would be imported instead of the library

from pw.cli import main

sys.exit(main())
