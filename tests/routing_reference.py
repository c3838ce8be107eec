"""Algorithm 1 of Collier et al. 2020, written from its text: loops, float64 and gradients by hand."""

import chex
import jax
import numpy as np
import scipy.special

from cljax.types import NONE
from tests.routing_steps import BATCH, DATA, LR, REPLAY, E, L, T, at, by_head


class Paper:
  def __init__(self, state, k=(2, 2), lr=LR, cotrain_lr=LR, router_lr=LR, gate_scale=1.0, **options):
    params = jax.tree.map(lambda leaf: np.array(leaf, np.float64), state.params)
    self.W = [params[name]["kernel"].reshape(-1, E, 3) for name in ("first", "hidden_1")]
    self.b = [params[name]["bias"].reshape(E, 3) for name in ("first", "hidden_1")]
    self.V, self.c = by_head(params["head"]["kernel"]), by_head(params["head"]["bias"])
    self.R, self.used = np.array(state.router, np.float64), np.zeros((L, T, E), bool)
    self.k, self.lr, self.cotrain_lr, self.router_lr, self.scale = k, lr, cotrain_lr, router_lr, gate_scale
    self.options, self.memory, self.skipped = options, {}, np.zeros(T, int)

  def kept(self, l, t):
    """Indices of the top k of R[l, t], ties to the lower."""
    return np.argsort(-self.R[l, t], kind="stable")[: self.k[l]]

  def routed_gates(self, task):
    gates = np.zeros((L, len(task), E))
    for l in range(L):
      for i, t in enumerate(task):
        gates[l, i, self.kept(l, t)] = scipy.special.softmax(self.R[l, t, self.kept(l, t)])
    return gates

  def gradients(self, x, y, task, gates):
    """Loss, and its gradients by W, b, V, c and the gates."""
    inputs, before = [x], []
    for l in range(L):
      before.append(np.stack([inputs[l] @ self.W[l][:, e] + self.b[l][e] for e in range(E)], axis=1))
      inputs.append(sum(gates[l][:, [e]] * np.maximum(before[l][:, e], 0) for e in range(E)))
    logits = np.stack([inputs[L][i] @ self.V[:, t] + self.c[t] for i, t in enumerate(task)])
    p = scipy.special.softmax(logits, axis=1)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    error = (p - np.eye(4)[y]) / len(y)
    dV, dc, down = np.zeros_like(self.V), np.zeros_like(self.c), np.zeros_like(inputs[L])
    for i, t in enumerate(task):
      dV[:, t] += np.outer(inputs[L][i], error[i])
      dc[t] += error[i]
      down[i] = self.V[:, t] @ error[i]
    dW, db, dgates = [None] * L, [None] * L, np.zeros_like(gates)
    for l in reversed(range(L)):
      dgates[l] = np.stack([(np.maximum(before[l][:, e], 0) * down).sum(axis=1) for e in range(E)], axis=1)
      dz = np.stack([gates[l][:, [e]] * down * (before[l][:, e] > 0) for e in range(E)], axis=1)
      dW[l] = np.stack([inputs[l].T @ dz[:, e] for e in range(E)], axis=1)
      db[l] = dz.sum(axis=0)
      down = sum(dz[:, e] @ self.W[l][:, e].T for e in range(E))
    return loss, dW, db, dV, dc, dgates

  @property
  def theta(self):
    """All that moves; the arrays themselves."""
    return [*self.W, *self.b, self.V, self.c, self.R]

  def move(self, rates, gradient):
    """By rates and gradients of theta's arrays."""
    for w, rate, g in zip(self.theta, rates, gradient, strict=True):
      w -= rate * g

  def learn(self, x, y, task):
    """SGD through the routes, for experts, heads and R."""
    weights = self.routed_gates(task)
    loss, dW, db, dV, dc, dgates = self.gradients(x, y, task, self.scale * weights)
    self.move([*[self.lr] * (2 * L + 2), self.router_lr], [*dW, *db, dV, dc, self.by_router(task, weights, dgates)])
    return loss

  def by_router(self, task, weights, dgates):
    """The gradient of R, of those of the gates."""
    dR = np.zeros_like(self.R)
    for l in range(L):
      for i, t in enumerate(task):
        w, d = weights[l, i], self.scale * dgates[l, i]
        dR[l, t] += w * (d - w @ d)
    return dR

  def cotrain(self, x, y, task, t):
    """SGD with all unused experts, R left alone."""
    unused = ~self.used.any(axis=1)
    none_left = ~unused.any(axis=1)
    if none_left.all() or (none_left.any() and self.options.get("exhausted") != "routed"):
      self.skipped[t] += 1
      return
    gates = self.scale * self.routed_gates(task)
    for l in range(L):
      if not none_left[l]:
        gates[l] = unused[l] / unused[l].sum()
    _, dW, db, dV, dc, _ = self.gradients(x, y, task, gates)
    rates = self.cotrain_lr * unused[..., None]  # [L, E, 1]
    heads = self.cotrain_lr * self.options.get("cotrain_update_heads", True)
    self.move([*rates, *rates, heads, heads, 0], [*dW, *db, dV, dc, np.zeros_like(self.R)])

  def read(self, place):
    """Picture, label and task of (task, row) pairs, straight from the bank."""
    task = np.array([t for t, _ in place], int)
    pictures = [DATA.bank.x[row].reshape(-1)[DATA.tasks.train.warp.index[t]] / 255 for t, row in place]
    return np.array(pictures), DATA.bank.y[[row for _, row in place]], task

  def step(self, plan, t):
    pairs = list(zip(plan.place.task.tolist(), plan.place.row.tolist(), strict=True))
    current = [pairs[w] for w in range(BATCH) if plan.live[w]]
    replayed = [self.memory[int(plan.slot[w])] for w in range(BATCH, BATCH + REPLAY) if plan.live[w]]
    assert replayed == [pairs[w] for w in range(BATCH, BATCH + REPLAY) if plan.live[w]]
    if self.options.get("update") == "union":
      loss = self.learn(*self.read(current + replayed))
    else:
      loss = self.learn(*self.read(current))
      if replayed:
        self.learn(*self.read(replayed))
    for w in range(BATCH):
      if plan.slot[w] != NONE:
        self.memory[int(plan.slot[w])] = pairs[w]
    for row in range(t + 1) if self.options.get("refresh_all_seen") else [t]:
      for l in range(L):
        self.used[l, row] = np.isin(np.arange(E), self.kept(l, row))
    self.cotrain(*self.read(current if self.options.get("cotrain_rows") == "current" else current + replayed), t)
    return loss


class Guarded(Paper):
  """The same under a pull of `strength * importance * (w - anchor)` on all that moves, with SI's path integral."""

  def __init__(self, state, importance, anchor, strength, **options):
    super().__init__(state, **options)
    self.importance, self.anchor = (Paper(state.moved(tree, None)).theta for tree in (importance, anchor))
    self.strength, self.path = strength, [np.zeros_like(w) for w in self.theta]

  def move(self, rates, gradient):
    pulls = [self.strength * F * (w - a) for F, w, a in zip(self.importance, self.theta, self.anchor, strict=True)]
    for path, rate, g, pull in zip(self.path, rates, gradient, pulls, strict=True):
      path += g * rate * (g + pull)
    super().move(rates, [g + pull for g, pull in zip(gradient, pulls, strict=True)])

  def fisher(self, pairs):
    """The mean over (task, row) pairs of the squares of each row's own gradient, through the gates of evaluation."""
    total = [np.zeros_like(w) for w in self.theta]
    for pair in pairs:
      x, y, task = self.read([pair])
      weights = self.routed_gates(task)
      _, dW, db, dV, dc, dgates = self.gradients(x, y, task, self.scale * weights)
      for sum_, g in zip(total, [*dW, *db, dV, dc, self.by_router(task, weights, dgates)], strict=True):
        sum_ += g**2 / len(pairs)
    return total


def assert_follows_the_paper(schedule, states, infos, paper):
  """Step by step, to 1e-5."""
  for i, t in enumerate(schedule.t):
    loss = paper.step(at(schedule.plan, i), int(t))
    now = at(states, i)
    expected = {
      "first": {"kernel": paper.W[0].reshape(-1, E * 3), "bias": paper.b[0].ravel()},
      "hidden_1": {"kernel": paper.W[1].reshape(-1, E * 3), "bias": paper.b[1].ravel()},
      "head": {"kernel": paper.V.reshape(len(paper.V), -1), "bias": paper.c.ravel()},
    }
    chex.assert_trees_all_close(now.params, jax.tree.map(np.float32, expected), atol=1e-5)
    chex.assert_trees_all_close(now.router, np.float32(paper.R), atol=1e-5)
    np.testing.assert_array_equal(now.used, paper.used)
    np.testing.assert_array_equal(now.skipped, paper.skipped)
    np.testing.assert_allclose(infos["loss"][i], loss, atol=1e-5)
