"""LASEM, lifelong architecture search by EM (Lee, Behpour and Eaton 2021, "Sharing less is more: lifelong learning in
deep networks with selective layer transfer", https://proceedings.mlr.press/v139/lee21a.html, Algorithm 1).

Each task decides for each convolution whether it takes it from the tensors that all tasks share or has its own. For a
batch, all 2^d configurations are run on one set of parameters:

1. E-step, dropout off: the posterior of the configurations, prior times likelihood of the labels (Equation 2);
2. M-step, dropout on: one step of the optimizer on the cross-entropies weighted by the posterior, which moves shared
   and own parameters by the configurations that use them (Equations 3 and 4), in one backward pass;
3. the prior counts the most probable configuration (Equation 1).

At the end of a task the most probable configuration by the prior is committed, and shared tensors that it does not use
are rolled back, as in both of the authors' programs, where the paper is silent. The optimizer starts anew with each
task; its rate falls with the epochs of the whole lifetime, lr / (1 + decay * epoch).

`likelihood='product', prior='counts'` is the paper; `mean` and `posteriors` are the authors' later program. Beyond the
paper: M-steps on the best configuration alone, with an E-step at every r-th batch (`m_step='best', e_every=8`), or once
the prior is sharp (`m_step='until'`). `choose='static'` gives the comparators that fix the configuration (`layers=
'none'` under hard sharing is single-task learning), `random` draws one for each task, `search` trains all of them
on each task and keeps the best, `fixed` keeps a posterior for the ablation of Figure 6.
"""

import optax
from flax import linen as nn

from cljax.declared import declared
from cljax.methods.lasem.em import EM, State
from cljax.methods.lasem.keywords import Selection, bits, check
from cljax.methods.lasem.search import Search
from cljax.pieces.learner import Fit
from cljax.pieces.transfer import Decay, Transfer, layered
from cljax.types import Array, Method, Outputs, Phase, Spec


@declared("method", given=3)
def lasem(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  fit: Fit = Fit(),
  transfer: Transfer = Transfer(),
  selection: Selection = Selection(),
  decay: Decay = Decay(),
) -> Method:
  """Layers shared or a task's own, by EM, by a fixed configuration, or at random.

  Raises:
    ConfigError: a net that is no stack of convolutions, a stream with one head, or keywords that do not fit the net.
  """
  nets = layered(net, spec, transfer)
  groups = nets.groups
  check(selection, len(groups), nets.activations(fit.batch_size))
  em = EM(nets, tx, selection, bits(selection.layers, len(groups)), decay, fit.epochs)

  def apply(state: State, x: Array, slot: Array) -> Outputs:
    return nets.apply(state.layers, state.now, em.config(state), x, slot)

  branches = selection.choose == "em" and selection.m_step != "all"
  if selection.choose == "search":
    search, epochs = Search(em), fit.epochs * 2 ** len(groups)
    phase = Phase("fit", fit.batch_size, em.step, epochs, enter=search.enter, tick=search.tick, exit=search.leave)
    phase = phase._replace(trials=2 ** len(groups))
    return Method(search.init, (phase,), apply, search.report, told=True, needs_boundaries=True, needs_valid=True)
  phase = Phase("fit", fit.batch_size, em.step, fit.epochs, enter=em.enter, exit=em.leave)
  return Method(em.init, (phase,), apply, em.report, told=True, needs_boundaries=True, branches=branches)
