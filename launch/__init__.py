"""The mains. Their figures are files and never windows, whatever MPLBACKEND names: it is read when matplotlib is
imported, and one that does not exist would end there."""

import os

os.environ["MPLBACKEND"] = "agg"
