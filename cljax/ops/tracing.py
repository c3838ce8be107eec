"""Functions traced once: tracing is Python, and costs as much as compiling does."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import jaxpr_as_fun


def traced(fn: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], Any]:
  """(`fn` for arguments like these, the shapes of what it gives), for the body of a loop whose carry needs the shapes.

  `jax.eval_shape` before the loop would go through `fn`, a whole training step say, a second time.

  Args:
    fn: of trees of arrays; may read arrays around it, as the body of a loop may.
    args: arrays, of which only shapes and dtypes count.
  """
  program, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
  run, structure = jaxpr_as_fun(program), jax.tree.structure(shapes)
  return lambda *args: jax.tree.unflatten(structure, run(*jax.tree.leaves(args))), shapes
