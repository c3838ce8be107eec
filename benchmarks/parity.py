"""cljax's EWC, SI, LwF, A-GEM and GEM against Avalanche's strategies of these names, by what they learn.

python -m benchmarks.parity
python -m benchmarks.parity --methods=ewc,si --seeds=2
python -m benchmarks.parity --write

Both sides learn the same rows in the same order from the same initial weights with one head; needs PyTorch and
Avalanche, `pip install 'cljax[peers]'`. --write writes benchmarks/PARITY.md. Exit code 1 where the two sides are the
same algorithm and do not agree.
"""

import sys

import jax
from absl import flags

from benchmarks import parity_page, rows
from benchmarks.parity_cases import METHODS, Found, cases, chosen
from benchmarks.parity_sides import Course, Side, Size, apart
from cljax.errors import ConfigError
from launch import app, config_files, hosts

flags.adopt_module_key_flags(hosts)

# Mains of launch/ have flags of these names: whoever imports two of them runs neither.
WANTED = flags.DEFINE_list("methods", [], f"Some of {', '.join(METHODS)}.", allow_override=True)
SEEDS = flags.DEFINE_integer(
  "seeds", Size().seeds, "Initial weights, permutations and orders.", lower_bound=1, allow_override=True
)
WRITE = flags.DEFINE_bool(
  "write", False, "Writes benchmarks/PARITY.md; needs all methods and at least 3 seeds.", allow_override=True
)
PAGE = config_files.ROOT / "benchmarks" / "PARITY.md"


def check(missing: list[str]) -> None:
  """
  Args:
    missing: of PyTorch and Avalanche, what is not installed.

  Raises:
    ConfigError: something is missing, or --write with flags that do not go together with it.
  """
  if missing:
    raise ConfigError(f"this compares with {' and '.join(missing)}, which is not here: pip install 'cljax[peers]'")
  if not WRITE.value:
    return
  if config_files.installed():
    raise ConfigError("--write writes into benchmarks/ of a checkout, and this is an installed package")
  if WANTED.value or SEEDS.value < Size().seeds:
    raise ConfigError(f"--write needs all methods and at least --seeds={Size().seeds}")


def measure(names: list[str], size: Size) -> list[Found]:
  """What each case of these methods found."""
  with jax.default_matmul_precision("highest"):
    course = Course(size)
    given = course.given()
    plain = course.ours("finetune", {})
    known: dict[str, Side] = {}
    found = []
    for case in cases(size):
      if case.name not in names:
        continue
      own = repr(case.ours)
      known[own] = known.get(own) or course.ours(*case.ours)
      theirs = course.theirs(case.called, given)
      found.append(
        Found(case, known[own].accuracy, theirs.accuracy, apart(known[own], theirs), apart(known[own], plain))
      )
      print(f"{case.text}, {case.setup}: done", file=sys.stderr, flush=True)
  return found


def main() -> int:
  names = chosen(WANTED.value)
  check([told for module, told in parity_page.NEEDED.items() if not rows.present(module)])
  jax.config.update("jax_num_cpu_devices", 1)
  hosts.use_platform()
  size = Size(seeds=SEEDS.value)
  found = measure(names, size)
  print(parity_page.table(found))
  print(parity_page.notes(names))
  if WRITE.value:
    PAGE.write_text(parity_page.page(found, size))
    print(f"written: {PAGE}")
  return int(any(one.case.alike and not one.agrees() for one in found))


if __name__ == "__main__":
  app.run(main)
