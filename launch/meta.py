"""Trains a learned update rule by a teacher, as a config of `cljax.meta` describes.

  python -m launch.meta --config=configs/papers/metateacher/meta.py:preset=smoke --workdir=runs/rule

The same command again goes on where it stopped. It leaves parts/seed_N/theta.npz, which the method that runs the rule
reads, parts/seed_N/start.npz, the network that it was trained from, and meta.json.
"""

from absl import flags
from ml_collections import config_flags

from cljax.errors import ConfigError
from cljax.meta.train import train
from launch import app, boards, config_flag, hosts
from launch.config_flag import CONFIG

flags.adopt_module_key_flags(boards)
flags.adopt_module_key_flags(hosts)
flags.adopt_module_key_flags(config_flag)
for name in ("workdir", "data_dir", "max_hours"):
  flags.declare_key_flag(name)


def main() -> None:
  hosts.use_platform()
  hosts.use_compilation_cache()
  boards.use_wandb()
  if CONFIG.value is None:
    raise ConfigError("--config is missing, for example --config=configs/papers/metateacher/meta.py:preset=smoke")
  overrides = config_flags.get_override_values(flags.FLAGS["config"])
  config = CONFIG.value.to_dict()
  if any(name.startswith(("data.", "net.")) for name in overrides):
    config["paper"] = config["preset"] = ""
  found = train(config, app.workdir(), data_dir=app.DATA_DIR.value, overrides=overrides, stop_asked=app.stop_asked)
  for s, seed in enumerate(found["seeds"]):
    for loss in found["curve"]["loss"][s][-1:]:
      print(
        f"seed {seed}: {found['segments'][s]} segments, {found['inner_steps'][s]} inner steps, "
        f"{found['episodes'][s]} episodes, loss {loss:.3g}, largest |c| {found['largest_cell'][s]:.1f}"
      )
    theta = "theta.npz and " if found.get("trains", "rule") == "rule" else ""
    print(f"written: {app.workdir()}/parts/seed_{seed}/{theta}start.npz")


if __name__ == "__main__":
  app.run(main)
