"""How CAT compares a task with those before it: what their features tell, against a network from scratch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from cljax.loops import mean_over
from cljax.methods.cat.reading import Readout, readout, right
from cljax.nets.modes import at_rest, begin
from cljax.ops.losses import cross_entropy
from cljax.pieces.descent import descend
from cljax.pieces.learner import Learner
from cljax.types import Array, Batch, Info, Key, Outputs, View

SeenFn = Callable[[Batch], Array]  # the features [T, B, D] behind the gates of each task


@flax.struct.dataclass
class Trials:
  """What is trained for the comparison of one task."""

  scratch: Any  # the params of a network
  readouts: Readout  # [T, ...], of each task's features
  opt_state: Any


class Comparison(NamedTuple):
  """The functions of a comparison with the tasks before [T] bool."""

  learner: Learner
  width: int  # of the features

  def begun(self, key: Key) -> Trials:
    """A network from scratch, and a readout for each task."""
    spec = self.learner.spec
    scratch, _ = begin(self.learner.net, jax.random.fold_in(key, 1), spec.x_shape)
    keys = jax.random.split(jax.random.fold_in(key, 2), spec.T)
    readouts = jax.vmap(partial(readout, D=self.width, C=spec.C))(keys)
    opt_state = self.learner.tx.init({"scratch": scratch, "readouts": readouts})
    return Trials(scratch, readouts, opt_state)

  def answers(self, params: Any, collections: Any, batch: Batch, seen: SeenFn) -> Array:
    """[T + 1, B, C] of each task's readout, and of the network from scratch."""
    read = seen(batch) @ params["readouts"]["kernel"] + params["readouts"]["bias"][:, None]
    scratch = at_rest(self.learner.net, params["scratch"], collections, batch.x, batch.task)
    return jnp.concatenate([read, scratch.logits[None]])

  def step(self, trials: Trials, collections: Any, batch: Batch, seen: SeenFn, before: Array) -> tuple[Trials, Info]:
    """A step of all trials at once; none where there is no task before."""

    def loss(params: Any, batch: Batch) -> tuple[Array, Info]:
      answers = self.answers(params, collections, batch, seen)
      each = jax.vmap(cross_entropy, (0, None))(answers, batch)
      out = Outputs(answers[-1], answers[-1], batch.task)
      return jnp.where(before, each[:-1], 0).sum() + each[-1], self.learner.judged(out, batch)[1]

    params = {"scratch": trials.scratch, "readouts": trials.readouts}
    params, opt_state, _, info = descend(self.learner.tx, loss, params, trials.opt_state, batch, rests=~before.any())
    return Trials(params["scratch"], params["readouts"], opt_state), info

  def similar(self, trials: Trials, collections: Any, view: View, seen: SeenFn, before: Array) -> Array:
    """[T] bool: those before whose readout is more often right about validation rows than the network from scratch."""

    def each(batch: Batch) -> Array:
      params = {"scratch": trials.scratch, "readouts": trials.readouts}
      return jax.vmap(right, (0, None), 1)(self.answers(params, collections, batch, seen), batch)

    score = mean_over(each, view, view.tasks.valid)
    return before & (score[:-1] > score[-1])
