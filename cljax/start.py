"""What a run changes about a method: it reads files, begins with a network that was trained before, counts its steps.

A path with `{seed}` in it is one file for each seed, `{seed%3}` three files that seeds take in turn.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from cljax import artifacts
from cljax.errors import ConfigError
from cljax.types import Array, Method, Phase, Spec, State

START = "start"  # the part that `begun_from` reads
PARAMS, OTHERS = "params", "collections"  # of a network, as fields of a state and as the beginnings of names in a file
SEED = re.compile(r"\{seed(?:%([1-9]\d*))?\}")

FIT = "fit"  # the phase that `steps_per_task` counts

MakeFn = Callable[[Mapping[str, Any]], Method]  # numbers of one row of the seed axis, traced or not -> the method
Parts = dict[str, dict[str, np.ndarray]]  # part -> its leaves by their paths; with a leading [S] where seeds differ


def path_of(path: str, seed: int) -> str:
  """The path for one seed."""
  return SEED.sub(lambda found: str(seed % int(found[1]) if found[1] else seed), path)


def read_parts(method: Method, seeds: Sequence[int]) -> tuple[Parts, dict[str, int | None]]:
  """(the leaves of every file that the method reads, by part; the axis of the seeds of each part, 0 or None).

  Raises:
    ConfigError: a file is missing or damaged, holds NaN or infinity, or does not fit the method's state or those of
      other seeds.
  """
  parts: Parts = {}
  axes: dict[str, int | None] = {}
  own = dict.fromkeys(seeds)
  files: dict[int, dict[str, Any]] = {seed: {} for seed in own}
  for name, path in method.reads.items():
    axes[name] = 0 if SEED.search(path) else None
    if axes[name] is None:
      parts[name] = artifacts.read(path)
    for seed in own:
      files[seed][name] = artifacts.read(path_of(path, seed)) if axes[name] == 0 else parts[name]
  for seed in own:
    for name, part in files[seed].items():
      artifacts.check_finite(part, path_of(method.reads[name], seed))
  if files[seeds[0]]:
    for seed in own if 0 in axes.values() else seeds[:1]:
      jax.eval_shape(lambda key, found: method.load(method.init(key), found), jax.random.key(0), files[seed])
  for name in (name for name, axis in axes.items() if axis == 0):
    first = files[seeds[0]][name]
    for seed in own:
      if {leaf: each.shape for leaf, each in files[seed][name].items()} != {k: v.shape for k, v in first.items()}:
        raise ConfigError(
          f"{method.reads[name]}: the files of seeds {seeds[0]} and {seed} hold arrays of other names or shapes"
        )
    parts[name] = {leaf: np.stack([files[seed][name][leaf] for seed in seeds]) for leaf in first}
  return parts, axes


def network_of(state: State) -> State:
  """The state of the method itself, where a gate stands before it."""
  return state if hasattr(state, "params") or not hasattr(state, "method") else state.method


def begun_from(method: Method, path: str) -> Method:
  """The method whose network begins as the `params` of a file say, and its other collections where the file has them;
  '' is the method as it is.

  Its state must hold them as `params`, as that of every method does that trains one network from task to task; see
  `check_start`.
  """
  if not path:
    return method

  def load(state: State, parts: Mapping[str, Mapping[str, Array]]) -> State:
    state = method.load(state, {name: part for name, part in parts.items() if name != START})
    own, found = network_of(state), parts[START]
    filled = own.replace(params=artifacts.fill(own.params, found, path))
    if others := {name.removeprefix(OTHERS): leaf for name, leaf in found.items() if name.startswith(OTHERS)}:
      filled = filled.replace(collections=artifacts.fill(own.collections, others, path))
    return filled if own is state else state.replace(method=filled)

  return method._replace(load=load, reads={**method.reads, START: path})


def paths_of(state: State) -> list[str]:
  """The path of each leaf; behind a gate that in the state of the method itself."""
  return [jax.tree_util.keystr(path).removeprefix(".method") for path, _ in jax.tree_util.tree_leaves_with_path(state)]


def field_of(path: str) -> str:
  """The field of a state that a leaf is of."""
  return re.split(r"[.\[]", path.removeprefix("."))[0]


def vars_of(atoms: Iterable[Any]) -> set[Any]:
  """Those that are no plain numbers."""
  return {atom for atom in atoms if not isinstance(atom, Literal)}


def answering(method: Method, spec: Spec, told: bool = True) -> tuple[Any, set[str]]:
  """(shape of the logits to two rows, paths of the leaves of the state that they hang on).

  Args:
    told: whether the rows' task is told.
  """
  state = jax.eval_shape(method.init, jax.random.key(0))
  leaves, structure = jax.tree.flatten(state)
  x, slot = np.zeros((2, *spec.x_shape), np.float32), np.zeros(2, np.int32) if told else None

  def logits(own: list[Array]) -> Array:
    return method.apply(jax.tree.unflatten(structure, own), x, slot).logits

  traced, out = jax.make_jaxpr(logits, return_shape=True)(leaves)
  asked = vars_of(traced.jaxpr.outvars)
  for equation in reversed(traced.jaxpr.eqns):
    if asked & set(equation.outvars):
      asked |= vars_of(equation.invars)
  return out, {path for path, var in zip(paths_of(state), traced.jaxpr.invars, strict=True) if var in asked}


def drawn(method: Method) -> set[str]:
  """Paths of the leaves of the state that begin as random numbers."""
  traced, state = jax.make_jaxpr(method.init, return_shape=True)(jax.random.key(0))
  random = set(traced.jaxpr.invars)
  for equation in traced.jaxpr.eqns:
    if random & vars_of(equation.invars):
      random |= set(equation.outvars)
  ends = zip(paths_of(state), traced.jaxpr.outvars, strict=True)
  return {path for path, var in ends if vars_of([var]) & random}


def loaded(method: Method, parts: Parts) -> set[str]:
  """Paths of the leaves of the state that are read from files.

  Args:
    parts: of one seed.
  """
  state = jax.eval_shape(method.init, jax.random.key(0))
  leaves, structure = jax.tree.flatten(state)

  def load(own: list[Array]) -> list[Array]:
    return jax.tree.leaves(method.load(jax.tree.unflatten(structure, own), parts))

  traced = jax.make_jaxpr(load)(leaves).jaxpr
  return {
    path for path, *ends in zip(paths_of(state), traced.invars, traced.outvars, strict=True) if ends[0] is not ends[1]
  }


def check_start(method: Method, path: str, spec: Spec) -> None:
  """
  Raises:
    ConfigError: a network to begin with, and a method that does not answer by the `params` of its state.
  """
  if not path:
    return
  if all(phase.joint for phase in method.phases):
    raise ConfigError(f"config.start_from={path!r}: a method that learns all tasks at once begins anew; leave it out")
  if PARAMS not in map(field_of, answering(method, spec)[1]):
    raise ConfigError(
      f"config.start_from={path!r} is for methods that train one network from task to task, and this one answers by "
      "others than the `params` of its state; leave it out"
    )


def check_known(
  method: Method, path: str, given: int, spec: Spec, parts: Parts, axes: Mapping[str, int | None]
) -> None:
  """
  Args:
    given: how many tasks are known already.
    parts, axes: what `read_parts` gives.

  Raises:
    ConfigError: a known task that would be answered by numbers that no file holds and no step has trained.
  """
  if not path or not given:
    return
  one = {
    name: {path: leaf if axes[name] is None else leaf[0] for path, leaf in part.items()} for name, part in parts.items()
  }
  lacking = answering(method, spec)[1]
  if method.infers:
    lacking |= answering(method, spec, told=False)[1] & drawn(method)
  if lacking := lacking - loaded(method, one):
    names = ", ".join(sorted({f"`{field_of(name)}`" for name in lacking}))
    raise ConfigError(
      f"config.given_tasks={given}: {path} holds the network of the known tasks, and this method answers by {names} of "
      "its state as well, which would be as they were drawn: set it to 0, give the method the file of these where it "
      "has a keyword for one, or take a method that answers by its network alone"
    )


def counted(method: Method, steps: int) -> Method:
  """The method with so many steps in its phase `fit`, in place of epochs; 0 is the method as it is.

  Raises:
    ConfigError: no such phase.
  """
  if not steps:
    return method
  if FIT not in (names := [phase.name for phase in method.phases]):
    raise ConfigError(
      f"config.steps_per_task={steps} is for methods with a phase `fit`, and this one has {', '.join(names)}: set it "
      "to 0, and count epochs by config.method"
    )

  def of(phase: Phase) -> Phase:
    """A phase that counts steps already, as `config.debug` leaves them, takes no more of them."""
    return phase._replace(epochs=0, steps=min(phase.steps or steps, steps)) if phase.name == FIT else phase

  return method._replace(phases=tuple(map(of, method.phases)))


def adapted(method: Method | MakeFn, path: str, steps: int) -> Method | MakeFn:
  """The method, or what makes it, with `begun_from` and `counted`."""
  if isinstance(method, Method):
    return counted(begun_from(method, path), steps)
  if not (path or steps):
    return method
  return lambda hyper: counted(begun_from(method(hyper), path), steps)


def check_given(given: int, spec: Spec, oracle: bool) -> None:
  """
  Raises:
    ConfigError: tasks that are taken as learnt where they cannot be.
  """
  if given >= spec.T:
    raise ConfigError(f"config.given_tasks={given} leaves nothing to learn of {spec.T} tasks; use at most {spec.T - 1}")
  if given and (oracle or not spec.boundaries):
    raise ConfigError(
      f"config.given_tasks={given}: a method that learns all tasks at once, or a stream that hides its boundaries "
      "(config.stream.boundaries=False), has no tasks that come before; set it to 0"
    )
