"""What the engine calls inside its programs, compiled by itself; called as it is, each operation is compiled alone."""

import jax

from cljax.data import sample

view_at = jax.jit(sample.view_at, static_argnums=2)
fetch = jax.jit(sample.fetch)
pool_of = jax.jit(sample.pool_of)
warped_rows = jax.jit(sample.warped_rows, static_argnums=3)
