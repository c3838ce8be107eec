"""Well-known baselines by name, on the streams that published numbers of them exist on.

COMMAND: python -m launch.train --workdir=W --config=configs/baselines.py:method=ewc,stream=mnist_split
Methods: finetune, ewc, online_ewc, si, mas, agem, gem, ogd, lwf, er, er_ring, er_balanced, der, derpp, mer, hat,
cat, packnet, wsn, supsup, spg, single, joint. Streams: mnist_permuted, mnist_rotated, mnist_permuted10, mnist_split,
cifar100_split. Scenarios of mnist_split: task, domain, class. `preset=smoke` takes the embedded digits, `search=yes`
searches rate and strength on validation rows.
"""

from configs.papers.baselines.table1 import get_config, sweep

__all__ = ["get_config", "sweep"]
