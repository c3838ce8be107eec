"""The table of methods: `config.method.name` picks a factory here."""

from collections.abc import Callable

from cljax.methods.apd import apd
from cljax.methods.cat import cat
from cljax.methods.confident import confident
from cljax.methods.darts import darts
from cljax.methods.den import den
from cljax.methods.der import der, derpp
from cljax.methods.discriminative import discriminative
from cljax.methods.er import er
from cljax.methods.expert_gate import expert_gate
from cljax.methods.finetune import finetune, under
from cljax.methods.hat import hat
from cljax.methods.joint import joint
from cljax.methods.lasem import lasem
from cljax.methods.learned_rule import learned_rule
from cljax.methods.lwf import lwf
from cljax.methods.mer import mer
from cljax.methods.packnet import packnet
from cljax.methods.progressive import progressive
from cljax.methods.routing import routing
from cljax.methods.single import single
from cljax.methods.spg import spg
from cljax.methods.subnetwork import subnetwork
from cljax.methods.supsup import supsup
from cljax.methods.wsn import wsn
from cljax.types import Method

METHODS: dict[str, Callable[..., Method]] = {
  "agem": under("agem"),
  "apd": apd,
  "cat": cat,
  "confident": confident,
  "darts": darts,
  "den": den,
  "der": der,
  "derpp": derpp,
  "discriminative": discriminative,
  "er": er,
  "ewc": under("ewc"),
  "expert_gate": expert_gate,
  "finetune": finetune,
  "gem": under("gem"),
  "hat": hat,
  "joint": joint,
  "lasem": lasem,
  "learned_rule": learned_rule,
  "lwf": lwf,
  "mas": under("mas"),
  "mer": mer,
  "ogd": under("ogd"),
  "packnet": packnet,
  "progressive": progressive,
  "routing": routing,
  "si": under("si"),
  "single": single,
  "spg": spg,
  "subnetwork": subnetwork,
  "supsup": supsup,
  "wsn": wsn,
}
PLAINEST = "finetune"  # of a config that names none
WITHOUT_BOUNDARIES = ("finetune", "er", "subnetwork", "der", "derpp", "mer")  # need not know where tasks begin
