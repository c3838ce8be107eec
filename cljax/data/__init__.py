"""The table of streams: `config.stream.name` picks a builder here."""

from collections.abc import Callable

from cljax.data.class_lists import class_lists
from cljax.data.mixed import copies, datasets
from cljax.data.noisy_subsets import noisy_subsets
from cljax.data.own import from_arrays
from cljax.data.streams import permuted, rotated, split
from cljax.data.subsets import subsets
from cljax.data.transfers import transfer
from cljax.types import Spec, Stream

__all__ = ["STREAMS", "from_arrays"]

STREAMS: dict[str, Callable[..., tuple[Spec, Stream]]] = {
  "class_lists": class_lists,
  "copies": copies,
  "datasets": datasets,
  "noisy_subsets": noisy_subsets,
  "permuted": permuted,
  "rotated": rotated,
  "split": split,
  "subsets": subsets,
  "transfer": transfer,
}
