"""The flag --config, which two mains share."""

from typing import Any

from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

by_attribute = config_path._get_item_or_attribute


def field_first(config: Any, field: Any, field_path: str | None = None) -> Any:
  """A field of a config, also where `ConfigDict` has a method of that name, such as `config.method.update`.

  The library looks for attributes first, and then refuses the flag for being a method.
  """
  if isinstance(config, ConfigDict) and field in config:
    return config[field]
  return by_attribute(config, field, field_path)


config_path._get_item_or_attribute = field_first

CONFIG = config_flags.DEFINE_config_file("config", None, "File and variant, FILE.py:key=value.", lock_config=True)
