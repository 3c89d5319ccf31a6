"""Imported for its effect, first of all where workers are forked from: `experiments` is the suite's there, too."""

from pw.io.paths import import_suite_first

import_suite_first()
