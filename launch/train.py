"""Trains what a config describes.

  python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart
  python -m launch.train --config=configs/papers/cotraining/table1.py:stream=mnist_perm,method=er --workdir=runs/er

The same command again goes on where it stopped. A config whose `sweep` lists several cells runs them all, each into a
folder of its own under the work dir.
"""

import jax
from absl import flags
from ml_collections import config_flags

from cljax.config import complete
from cljax.errors import ConfigError
from cljax.methods.exhibits import EXHIBITS
from cljax.overrides import relabel
from cljax.report.tables import text_table
from cljax.run import train
from cljax.sweep import apart_in
from launch import app, boards, cells, config_files, config_flag, hosts, shards
from launch.config_flag import CONFIG

flags.adopt_module_key_flags(boards)
flags.adopt_module_key_flags(hosts)
flags.adopt_module_key_flags(shards)
flags.adopt_module_key_flags(config_flag)
for name in ("workdir", "data_dir", "max_hours"):
  flags.declare_key_flag(name)


def main() -> int | None:
  share = shards.shard()
  hosts.use_platform(join=share is None)
  hosts.use_compilation_cache()
  boards.use_wandb()
  if CONFIG.value is None:
    raise ConfigError("--config is missing, for example --config=configs/quickstart.py")
  overrides = config_flags.get_override_values(flags.FLAGS["config"])
  path, _, arg = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
  module = config_files.load_config(path)
  with config_files.written_in(path):
    found = module.sweep(arg) if hasattr(module, "sweep") else [{}]
  if len(found) > 1:
    cells.run_cells(module, found, app.workdir(), overrides, app.DATA_DIR.value, share)
    return None
  # of one cell that is what the table has in it, whatever else the file would take where nothing is said
  config = cells.cell_config(module, found[0], overrides) if found and found[0] else complete(CONFIG.value)
  if apart_in(config):
    cells.run_configs(cells.spread(config, overrides), app.workdir(), overrides, app.DATA_DIR.value, share)
    return None
  if share:
    raise ConfigError(f"--shard={shards.SHARD.value} is of the cells of a table, and --config={path}:{arg} has one")
  relabel(config, overrides)
  outcome = train(config, app.workdir(), data_dir=app.DATA_DIR.value, overrides=overrides, stop_asked=app.stop_asked)
  if jax.process_index() == 0:
    if outcome.sweep:
      cells.finish(app.workdir())
      return None
    print(text_table([outcome.result], exhibits=EXHIBITS))
    print(f"written: {app.workdir()}/result.json")
  return None


if __name__ == "__main__":
  app.run(main)
