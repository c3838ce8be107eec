"""Runs the tables of a paper and prints ours beside the published numbers.

  python -m launch.reproduce --paper=cotraining --preset=gem1000 --workdir=runs/gem1000 [--seeds=15]

The same command again skips finished cells and goes on with the others. On several machines that share the work dir,
here on the second of eight, each takes a share, and at the end what others have left:

  python -m launch.reproduce --paper=cotraining --workdir=gs://bucket/paper --shard=2/8
"""

from absl import flags

from cljax.errors import ConfigError, choose
from launch import app, boards, cells, config_files, hosts, shards

flags.adopt_module_key_flags(boards)
flags.adopt_module_key_flags(hosts)
flags.adopt_module_key_flags(shards)
for name in ("workdir", "data_dir", "max_hours"):
  flags.declare_key_flag(name)

PAPER = flags.DEFINE_string("paper", "", "A folder of configs/papers.")
PRESET = flags.DEFINE_string("preset", "paper", "A preset of its table, e.g. paper, gem1000 or smoke.")
SEEDS = flags.DEFINE_integer("seeds", None, "Number of seeds; by default the config's.", lower_bound=1)
ONLY = flags.DEFINE_string("only", "", "Pins further keys of the table, e.g. stream=mnist_perm.")


def main() -> None:
  share = shards.shard()
  hosts.use_platform(join=share is None)
  hosts.use_compilation_cache()
  boards.use_wandb()
  papers = config_files.ROOT / "configs" / "papers"
  known = sorted(path.name for path in papers.iterdir() if (path / "table1.py").exists())
  if not PAPER.value:
    raise ConfigError(f"--paper is missing: one of {', '.join(known)}, for example --paper={known[0]} --preset=smoke")
  choose("--paper", PAPER.value, known, "cljax list configs")
  module = config_files.load_config(str(papers / PAPER.value / "table1.py"))
  arg = f"preset={PRESET.value}" + (f",{ONLY.value}" if ONLY.value else "")
  overrides = {} if SEEDS.value is None else {"num_seeds": SEEDS.value}
  cells.run_cells(module, module.sweep(arg), app.workdir(), overrides, app.DATA_DIR.value, share)


if __name__ == "__main__":
  app.run(main)
