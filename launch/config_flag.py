"""The flag --config, which two mains share."""

from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "File and variant, FILE.py:key=value.", lock_config=True)
