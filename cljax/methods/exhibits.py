"""The table of exhibits, the twin of METHODS: what a report shows of some methods beside what it shows of all.

An exhibit is told by what a result holds and not by a method's name. Yours comes in by a line here, or from outside:

  def figures(result, arrays, title):
    figure, axes = plots.canvas(5, 4)
    axes[0, 0].plot(arrays["mine"][0])  # `mine`: what the method's report told, [S, T]
    return {"mine": figure}

  def columns(result):
    return {"mine": metrics.spread(result["report"]["mine"])}  # one number a seed, after the last task

  mine = Exhibit(("mine",), columns=columns, figures=figures)
  pages.write_report(workdir, exhibits={**EXHIBITS, "mine": mine})
"""

from cljax.methods.expert_gate.exhibits import RELATEDNESS, TURNED
from cljax.methods.lasem.exhibits import CHOSEN, SHARED
from cljax.methods.learned_rule.exhibits import MULTIPLIERS
from cljax.methods.routing.exhibits import ROUTING
from cljax.methods.subnetwork.exhibits import FROZEN, ONSETS, SUBNETWORKS, WATCHED
from cljax.report.curves import OUTPUT_WITHIN, READOUT_WITHIN
from cljax.report.exhibits import Exhibit
from cljax.report.frontier import FRONTIER
from cljax.report.representation import READOUT, READOUT_ADAM

EXHIBITS: dict[str, Exhibit] = {
  "routing": ROUTING,
  "relatedness": RELATEDNESS,
  "turned": TURNED,
  "subnetworks": SUBNETWORKS,
  "frozen": FROZEN,
  "onsets": ONSETS,
  "watched": WATCHED,
  "shared_layers": SHARED,
  "chosen": CHOSEN,
  "frontier": FRONTIER,
  "readout": READOUT,
  "readout_adam": READOUT_ADAM,
  "multipliers": MULTIPLIERS,
  "output_within": OUTPUT_WITHIN,
  "readout_within": READOUT_WITHIN,
}
