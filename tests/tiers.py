"""What the tests leave to a release, `-m slow`: further subjects of a property that one shows already."""

from typing import Any

import pytest


def at_release(*cases: Any) -> list[Any]:
  """The cases of a parametrized test, each a value or a tuple of values, that a release runs."""
  return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]
