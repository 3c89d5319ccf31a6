"""Imported first in the process that forks workers, so that `experiments` is the suite's there, too."""

from pw.io.paths import import_suite_first

import_suite_first()
