"""What a run changes about a method: the network it begins with, tasks it knows already, steps in place of epochs."""

import os

import chex
import jax
import numpy as np
import pytest
from flax import linen as nn

from cljax import artifacts, start
from cljax.errors import ConfigError
from cljax.experiment import assemble
from cljax.files import pack
from cljax.methods import METHODS
from cljax.named import OWN_FILES
from cljax.nets import headed
from cljax.pieces.gated import gated
from cljax.pieces.gates import autoencoder, means
from cljax.pieces.optimizers import sgd
from cljax.workdir import environment
from tests import toys
from tests.subjects import Subject, first


class Normed(nn.Module):
  @nn.compact
  def __call__(self, x, train: bool = False):
    return nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x.reshape(len(x), -1)))


def method_of(spec, name="finetune", **keywords):
  return METHODS[name](toys.mlp(spec), sgd(0.1), spec, **keywords)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
  """(a path with {seed}, what lies there)."""
  spec, _ = toys.stream()
  folder = tmp_path_factory.mktemp("networks")
  found = [jax.jit(method_of(spec).init)(jax.random.key(40 + seed)).params for seed in (0, 1)]
  for seed, params in enumerate(found):
    artifacts.write(artifacts.folder_of(folder, seed), {"start": params})
  return f"{folder}/parts/seed_{{seed}}/start.npz", found


def test_each_seed_begins_with_its_own_file_and_a_known_task_is_not_trained(networks):
  """Its row is asked, its edges run, and the next task takes so many steps as are counted."""
  path, params = networks
  spec, data = toys.stream()
  spec, data = spec._replace(rows=()), data
  method = method_of(spec, "ewc", guard={"name": "ewc", "strength": 3.0})
  it = Subject(
    assemble(
      method, spec, data, seeds=(0, 1), start_from=path, given_tasks=1, steps_per_task=2, chunk=4, log_every_steps=1
    )
  )
  carry, read = it.start(), it.experiment.own_files
  assert read["start"]["path"] == path and read == environment(read)[OWN_FILES]  # by what was in it
  chex.assert_trees_all_equal(*(jax.tree.map(np.asarray, tree) for tree in (first(carry.state).params, params[0])))
  kept, steps = {}, []

  def watch(unit, carry):
    steps.append(max(unit.stop) if unit.kind == "chunk" else 0)
    if unit.kind in ("exit", "evaluate"):
      kept[unit.kind, unit.at.task] = jax.tree.map(np.array, carry.state)

  carry = it.run(carry=carry, after=watch)
  assert sum(steps) == 2 * (spec.T - 1) == it.experiment.timeline.steps()
  for seed in (0, 1):
    known = jax.tree.map(lambda leaf, s=seed: leaf[s], kept["exit", 0].params)
    chex.assert_trees_all_equal(known, jax.tree.map(np.asarray, params[seed]))
  assert max(leaf.max() for leaf in jax.tree.leaves(kept["exit", 0].past.fisher)) > 0  # EWC looked at its rows
  assert (carry.right["task"][:, 1] >= 0).all()
  moved = jax.tree.map(lambda now, then: np.abs(np.asarray(now) - then).max(), first(carry.state).params, params[0])
  assert max(jax.tree.leaves(moved)) > 1e-3


def test_paths_by_seed():
  assert start.path_of("a/{seed}/{seed%3}.npz", 7) == "a/7/1.npz"
  assert start.path_of("a/{seed%0}/{sed}", 7) == "a/{seed%0}/{sed}"


def test_debug_keeps_its_few_steps():
  spec, _ = toys.stream()
  (phase,) = start.counted(method_of(spec, epochs=7), 500).phases
  assert (phase.epochs, phase.steps) == (0, 500)
  method = method_of(spec)
  short = method._replace(phases=(method.phases[0]._replace(epochs=0, steps=10),))
  assert start.counted(short, 500).phases[0].steps == 10 and start.counted(short, 4).phases[0].steps == 4


def test_a_file_of_a_run_that_diverged_and_what_is_no_file_are_refused(networks, tmp_path):
  spec, data = toys.stream()
  spec = spec._replace(rows=())
  artifacts.write(tmp_path, {"start": jax.tree.map(lambda leaf: leaf * np.nan, networks[1][0])})
  os.mkfifo(tmp_path / "pipe.npz")
  for name, words in (("start", r"start\.npz: .* holds NaN or infinity"), ("pipe", r"pipe\.npz is no file")):
    with pytest.raises(ConfigError, match=words):
      assemble(method_of(spec), spec, data, seeds=(0,), start_from=f"{tmp_path}/{name}.npz")


def test_files_of_the_seeds_must_be_alike(networks, tmp_path):
  spec, data = toys.stream()
  spec = spec._replace(rows=())
  artifacts.write(tmp_path / "seed_0", {"start": networks[1][0]})
  artifacts.write(tmp_path / "seed_1", {"start": {**networks[1][0], "more": np.zeros(2)}})
  path = f"{tmp_path}/seed_{{seed}}/start.npz"
  with pytest.raises(ConfigError, match="the files of seeds 0 and 1 hold arrays of other names or shapes"):
    assemble(method_of(spec), spec, data, seeds=(0, 1), start_from=path)
  with pytest.raises(ConfigError, match="seed_2/start.npz does not exist"):
    assemble(method_of(spec), spec, data, seeds=(0, 2), start_from=path)


@pytest.mark.parametrize(
  ("name", "settings", "words"),
  [
    ("finetune", {"given_tasks": 3}, "config.given_tasks=3 leaves nothing to learn of 3 tasks; use at most 2"),
    ("finetune", {"given_tasks": -1}, "config.given_tasks=-1 is too small"),
    ("finetune", {"start_from": "nowhere/start.npz"}, "nowhere/start.npz does not exist"),
    ("finetune", {"steps_per_task": -2}, "config.steps_per_task=-2 is too small"),
    ("joint", {"given_tasks": 1}, "config.given_tasks=1: a method that learns all tasks at once"),
    ("joint", {"start_from": "PATH"}, "a method that learns all tasks at once begins anew; leave it out"),
    ("single", {"start_from": "PATH"}, "this one answers by others than the `params` of its state"),
    *(
      (name, {"start_from": "PATH", "given_tasks": 1}, f"config.given_tasks=1: .* this method answers by {fields} of")
      for name, fields in {
        "hat": "`embeddings`",
        "packnet": "`finished`, `owner`",
        "wsn": "`bits`, `finished`, `scores`",
        "supsup": "`bits`, `finished`, `scores`",
        "cat": "`by_transfer`, `embeddings`, `similar`, `transfer`",
      }.items()
    ),
  ],
)
def test_refusals(networks, name, settings, words):
  spec, data = toys.stream()
  spec = spec._replace(rows=())
  settings = {key: networks[0] if value == "PATH" else value for key, value in settings.items()}
  with pytest.raises(ConfigError, match=words) as caught:
    assemble(method_of(spec, name), spec, data, seeds=(0, 1), **settings)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hat", "packnet"])
def test_a_network_alone_is_a_beginning_for_gates_and_masks(networks, name):
  """Where no task is known."""
  spec, data = toys.stream()
  assemble(method_of(spec, name), spec, data, seeds=(0, 1), start_from=networks[0])


def test_a_method_that_reads_all_that_it_answers_by_may_know_tasks(networks, tmp_path):
  spec, data = toys.stream()
  method = method_of(spec, "hat")
  shapes = jax.eval_shape(method.init, jax.random.key(0)).embeddings
  artifacts.write(tmp_path, {"embeddings": jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)})
  path = f"{tmp_path}/embeddings.npz"

  def load(state, parts):
    return state.replace(embeddings=artifacts.fill(state.embeddings, parts["embeddings"], path))

  reading = method._replace(load=load, reads={"embeddings": path})
  it = Subject(assemble(reading, spec, data, seeds=(0, 1), start_from=networks[0], given_tasks=1)).start()
  for leaf in jax.tree.leaves(it.state.embeddings):
    assert (np.asarray(leaf) == 1).all()


def test_a_method_behind_a_gate_begins_with_a_network_too(networks):
  spec, data = toys.stream()
  told = method_of(spec, "er", replay=2, capacity=6)
  settings = {"seeds": (0, 1), "start_from": networks[0], "given_tasks": 1}
  it = Subject(assemble(gated(told, means(spec)), spec, data, **settings)).start()
  chex.assert_trees_all_equal(jax.tree.map(np.asarray, first(it.state).method.params), networks[1][0])
  with pytest.raises(ConfigError, match="this method answers by `gates` of its state as well"):
    assemble(gated(told, autoencoder(spec)), spec, data, **settings)


def test_statistics_of_a_network_come_with_it(tmp_path):
  """And where the file has none of them, no task can be known."""
  spec, data = toys.stream()
  method = METHODS["finetune"](headed(Normed(), spec), sgd(0.1), spec)
  state = jax.jit(method.init)(jax.random.key(3))
  moved = jax.tree.map(lambda leaf: leaf + 1, state.collections)
  artifacts.write(tmp_path, {"alone": state.params})
  leaves = artifacts.read(tmp_path / "alone.npz")
  own = {f"collections{jax.tree_util.keystr(at)}": leaf for at, leaf in jax.tree_util.tree_leaves_with_path(moved)}
  (tmp_path / "whole.npz").write_bytes(pack(leaves | own))
  whole, alone = (str(tmp_path / f"{name}.npz") for name in ("whole", "alone"))
  it = Subject(assemble(method, spec, data, start_from=whole, given_tasks=1)).start()
  chex.assert_trees_all_equal(*(jax.tree.map(np.asarray, each) for each in (first(it.state).collections, moved)))
  assemble(method, spec, data, start_from=alone)
  with pytest.raises(ConfigError, match="this method answers by `collections` of its state as well"):
    assemble(method, spec, data, start_from=alone, given_tasks=1)
