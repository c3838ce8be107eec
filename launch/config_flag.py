"""The flag --config, which two mains share."""

import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from cljax.errors import ConfigError
from launch.app import refuse
from launch.config_files import prepared

by_attribute = config_path._get_item_or_attribute


def field_first(config: Any, field: Any, field_path: str | None = None) -> Any:
  """A field of a config, also where `ConfigDict` has a method of that name, such as `config.method.update`.

  The library looks for attributes first, and then refuses the flag for being a method.
  """
  if isinstance(config, ConfigDict) and field in config:
    return config[field]
  return by_attribute(config, field, field_path)


config_path._get_item_or_attribute = field_first


class Parser(flags.ArgumentParser):
  """Reads a config file, and then the choices that the command line names, which bring keywords of their own."""

  def __init__(self, of_file: flags.ArgumentParser):
    self.of_file = of_file

  def parse(self, path: str) -> Any:
    config = prepared(self.of_file.parse(path), flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False))
    if isinstance(config, ConfigDict):
      config.lock()
    return config


try:
  CONFIG = config_flags.DEFINE_config_file("config", None, "File and variant, FILE.py:key=value.", lock_config=True)
except flags.Error as error:  # it reads --flagfile=FILE at once
  sys.exit(refuse(ConfigError(str(error).removeprefix("ERROR:: "))))
flags.FLAGS["config"].parser = Parser(flags.FLAGS["config"].parser)
