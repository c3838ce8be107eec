"""The table of methods: `config.method.name` picks a factory here."""

from collections.abc import Callable

from cljax.methods.er import er
from cljax.methods.finetune import finetune
from cljax.methods.joint import joint
from cljax.methods.routing import routing
from cljax.methods.single import single
from cljax.types import Method

METHODS: dict[str, Callable[..., Method]] = {
  "er": er,
  "finetune": finetune,
  "joint": joint,
  "routing": routing,
  "single": single,
}
