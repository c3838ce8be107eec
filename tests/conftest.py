"""One compilation cache for the session, and a compiler that is quick rather than good: no test times anything."""

import gc
import itertools
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.tiers import leave_to_a_release

OWN = None  # the folder that this process made; workers inherit it by the environment
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  OWN = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="cljax_test_cache_")
# Half the time that compiling takes by default. AVX has no fused multiply-add, which this compiler takes or leaves by
# what else a program computes, so that the last bits of one thing computed in two programs differ.
FLAGS = (
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_max_isa=AVX "
  "--xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # a twelfth of all time went into where lines came from


def pytest_unconfigure(config):
  if OWN:
    shutil.rmtree(OWN, ignore_errors=True)


# Whole files go to workers in this order, those that take minutes first, so that no worker ends long after the other.
LONG = ("methods", "watching", "launch", "notebooks", "devices", "lasem", "resume", "evaluate", "subnetwork", "engine")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by the marks
def pytest_collection_modifyitems(items):
  leave_to_a_release(items)

  def place(item):
    name = item.path.name.removesuffix("_test.py")
    return LONG.index(name) if name in LONG else len(LONG)

  items.sort(key=place)  # stable: the rest stays as it was


gc.set_threshold(100_000, 50, 1000)  # tracing makes many small objects, which `forget` gives back

MANY, ENOUGH = 25_000, 12_000  # memory maps, of which a process may have 65,530 and every compiled program takes some
ASKED_EVERY = 5  # tests: the kernel takes its time to write so many lines


def forget(most):
  """Gives all programs back where they take more than so many memory maps; else later tests find them compiled."""
  import jax

  maps = Path("/proc/self/maps")
  if not maps.exists() or maps.read_bytes().count(b"\n") > most:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
  """Files share programs, as long as there are not too many."""
  yield
  forget(ENOUGH)


@pytest.fixture(autouse=True)
def forget_many_programs(ended=itertools.count(1)):  # noqa: B008 - one count for all tests
  """So do some tests once there are many."""
  yield
  if next(ended) % ASKED_EVERY == 0 and Path("/proc/self/maps").exists():
    forget(MANY)
