"""What a method computes, as checksums: two methods of the same phases and shapes that hold other numbers differ.

The functions of a method that Python gives are closures: what they hold, a rate or a strength, stands in no config. It
stands in what JAX traces of them, which is hashed here equation by equation, with all constants. Names, addresses and
the numbering of variables do not enter, so that every process finds the same.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from cljax import loops
from cljax.data.sample import view_at
from cljax.experiment import Experiment
from cljax.timeline import edges_of
from cljax.traced import chunk_of, edge_of
from cljax.types import Clock, Method
from cljax.workdir import PACKAGES, switches, version

TRACED_BY = "traced_by"  # the key of what the checksums hang on beside the method
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
SAID = ("name", "debug_info")  # of an equation, which decides nothing
SHORT = 16  # digits of a checksum

Memo = dict[int, tuple[Jaxpr, str]]  # by identity, as programs share the parts that were traced once


def program_of(experiment: Experiment) -> dict[str, str]:
  """{event: the checksum of what it computes} for one seed: init, apply, and each phase's chunk and edges.

  Beside them stands that of all that traces them, the versions of packages and the source of cljax: under another one
  the others mean nothing.
  """
  memo: Memo = {}
  found = {name: digest(text_of(traced, memo)) for name, traced in traced_of(experiment).items()}
  return {TRACED_BY: traced_by(), **found}


def traced_of(experiment: Experiment) -> dict[str, ClosedJaxpr]:
  """{event: what is traced of it}, of shapes alone; the numbers of a sweep are arguments."""
  it, method = experiment, experiment.method
  number, key = jax.ShapeDtypeStruct((), jnp.int32), jax.eval_shape(lambda: jax.random.key(0))
  rows = [jax.ShapeDtypeStruct((2, *shape), kind) for shape, kind in ((it.spec.x_shape, jnp.float32), ((), jnp.int32))]
  state = jax.eval_shape(method.init, key)

  def shape(axis: int | None, part: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[axis is not None :], leaf.dtype), part)

  stream = jax.tree.map(shape, it.axes, it.stream, is_leaf=lambda node: node is None)
  seen = partial(view_at, heads=it.spec.heads) if it.spec.boundaries else lambda stream, t: view_at(stream, None)
  at = key, state, jax.eval_shape(seen, stream, number), Clock(*[number] * len(Clock._fields))
  asked: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "init": (lambda method, key: method.init(key), (key,)),
    "apply": (lambda method, *args: method.apply(*args), (state, *rows)),
  }
  if method.infers:
    asked["infer"] = (lambda method, *args: method.apply(*args, None), (state, rows[0]))
  for p, phase in enumerate(method.phases):
    asked[f"{phase.name}.chunk"] = (partial(chunk_of, p, it.timeline.chunk, loops.whole), (*at, number))
    asked |= {f"{phase.name}.{name}": (partial(edge_of, p, name), at) for name in edges_of(phase)}
  hyper = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in it.hyper}

  def trace(function: Callable[..., Any], args: tuple[Any, ...]) -> ClosedJaxpr:
    def one(hyper: Mapping[str, Any], *args: Any) -> Any:
      made: Method = it.make(hyper)
      return function(made, *args)

    return jax.make_jaxpr(one)(hyper, *args)

  return {name: trace(*each) for name, each in asked.items()}


def answer_of(experiment: Experiment) -> str:
  """The checksum of what a method computes for an answer, at the numbers of the first value of a sweep."""
  method, spec = experiment.method_of(0), experiment.spec
  x, slot = (jax.ShapeDtypeStruct((2, *of), kind) for of, kind in ((spec.x_shape, jnp.float32), ((), jnp.int32)))
  state = jax.eval_shape(method.init, jax.random.key(0))
  told = [jax.make_jaxpr(method.apply)(state, x, slot)]
  found = [jax.make_jaxpr(lambda state, x: method.apply(state, x, None))(state, x)] if method.infers else []
  return text_of(told + found, {})


def digest(text: str) -> str:
  """A checksum of a text."""
  return hashlib.sha256(text.encode()).hexdigest()[:SHORT]


def traced_by() -> str:
  """The checksum of what decides, beside a method, how it is traced: packages, cljax, the settings of JAX now."""
  return digest(repr((installed(), jax.default_backend(), sorted(switches().items()))))


@cache
def installed() -> str:
  """The checksum of the source of cljax and of the versions of packages, which no process changes."""
  sources = sorted(Path(__file__).parent.rglob("*.py"))
  own = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
  return digest(repr((own, [version(name) for name in PACKAGES])))


def array_text(array: Any) -> str:
  """Type, shape and bytes of a constant."""
  if jax.dtypes.issubdtype(getattr(array, "dtype", np.float32), jax.dtypes.prng_key):
    array = jax.random.key_data(array)
  found = np.ascontiguousarray(array)
  content = found.tobytes()
  return f"{found.dtype}{found.shape}{content.hex() if len(content) <= 16 else hashlib.sha256(content).hexdigest()}"


def text_of(value: Any, memo: Memo) -> str:
  """What an equation's parameter says, the same in each process."""
  if isinstance(value, ClosedJaxpr):
    return jaxpr_text(value.jaxpr, memo) + "".join(map(array_text, value.consts))
  if isinstance(value, Jaxpr):
    return jaxpr_text(value, memo)
  if isinstance(value, np.ndarray | np.generic | jax.Array):
    return array_text(value)
  if isinstance(value, Mapping):
    return "{" + ",".join(f"{key}:{text_of(value[key], memo)}" for key in sorted(value, key=str)) + "}"
  if isinstance(value, set | frozenset):
    return "{" + ",".join(sorted(text_of(each, memo) for each in value)) + "}"
  if isinstance(value, tuple | list):
    return "(" + ",".join(text_of(each, memo) for each in value) + ")"
  if callable(value):  # a rule of differentiation, say, which was followed already where it was asked for
    return "function"
  return ADDRESS.sub("", repr(value))


def jaxpr_text(jaxpr: Jaxpr, memo: Memo) -> str:
  """The checksum of a program without its constants, variables numbered as they come."""
  if id(jaxpr) in memo:
    return memo[id(jaxpr)][1]
  numbers: dict[Any, int] = {}

  def term(var: Any) -> str:
    if isinstance(var, Literal):
      return f"={array_text(var.val)}"
    return f"{numbers.setdefault(var, len(numbers))}:{var.aval}"

  def line(equation: Any) -> str:
    told = (f"{key}={text_of(value, memo)}" for key, value in sorted(equation.params.items()) if key not in SAID)
    ends = (" ".join(map(term, end)) for end in (equation.invars, equation.outvars))
    return f"{equation.primitive.name}[{','.join(told)}]{'>'.join(ends)}"

  lines = [" ".join(map(term, [*jaxpr.constvars, *jaxpr.invars])), *map(line, jaxpr.eqns)]
  found = digest("\n".join([*lines, " ".join(map(term, jaxpr.outvars))]))
  memo[id(jaxpr)] = (jaxpr, found)
  return found
