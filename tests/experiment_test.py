"""What an experiment is made of: axes, settings and numbers of a row; files that a method reads; all refusals."""

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import artifacts, files
from cljax.config import default
from cljax.data.arrays import axes_of
from cljax.data.streams import stack
from cljax.errors import ConfigError
from cljax.experiment import assemble
from cljax.recipe import recipe
from cljax.settings import Settings
from cljax.types import Outputs, Spec, nothing
from tests import toys
from tests.subjects import Subject


def reading(spec, path):
  """Fine-tuning that begins with the head of a file, times the number of a second one."""
  plain = toys.plain(spec)

  def load(state, parts):
    head = artifacts.fill(state.params["head"], parts["head"], path)
    scale = parts["scale"]["['number']"]
    return state.replace(params={**state.params, "head": jax.tree.map(lambda leaf: leaf * scale, head)})

  reads = {"head": f"{path}/head.npz", "scale": f"{path}/scale.npz"}
  return plain._replace(load=load, reads=reads)


@pytest.mark.parametrize(
  ("leaf", "words"),
  [
    (np.ones(2, np.int32), r"\['w'\] holds int32, but float32 is needed here"),
    (np.ones(2, complex), r"\['w'\] holds complex128, but float32"),
    (np.array(["a", "b"]), r"holds <U1, no numbers"),
    (np.ones(3, np.float32), r"has the shape \(3,\), but \(2,\) is needed"),
  ],
)
def test_a_file_of_other_numbers_is_refused_by_its_name(leaf, words, tmp_path):
  like = {"w": jax.ShapeDtypeStruct((2,), np.float32)}
  path = tmp_path / "mine.npz"
  artifacts.write(tmp_path, {"mine": {"w": np.ones(2)}})
  assert artifacts.fill(like, artifacts.read(path), path)["w"].dtype == np.float32
  path.write_bytes(files.pack({"['w']": leaf}))
  with pytest.raises(ConfigError, match=f"mine.npz.*{words}"):
    artifacts.fill(like, artifacts.read(path), path)


@pytest.fixture
def written(tmp_path):
  """(folder, the head that lies there)."""
  spec, _ = toys.stream()
  head = toys.plain(spec).init(jax.random.key(7)).params["head"]
  artifacts.write(tmp_path, {"head": head, "scale": {"number": np.float32(2)}})
  return tmp_path, head


def test_what_a_method_reads_reaches_the_state_of_every_seed(written):
  """The other leaves are those of `init`, and the numbers of the files are arguments of the compiled function."""
  folder, head = written
  spec, data = toys.stream()
  it = toys.experiment(reading(spec, folder), spec, data)
  subject = Subject(it)
  for name in ("head", "scale"):
    (folder / f"{name}.npz").unlink()  # read once, before anything is traced
  state = subject.start().state
  own = jax.vmap(toys.plain(spec).init)(subject.compiled["keys"](jnp.arange(2), jnp.array([0])))
  expected = jax.tree.map(lambda leaf: jnp.stack([2 * leaf] * 2), head)
  chex.assert_trees_all_equal(state.params["head"], expected)
  np.testing.assert_allclose(state.params["first"]["kernel"], own.params["first"]["kernel"], rtol=1e-6)
  other = it._replace(parts=jax.tree.map(lambda leaf: 3 * leaf, it.parts))
  again = Subject(other, subject, ()).start().state
  np.testing.assert_allclose(again.params["head"]["kernel"], 9 * state.params["head"]["kernel"], rtol=1e-6)
  assert subject.compiled["init"]._cache_size() == 1


@pytest.mark.parametrize(
  ("wrong", "words"),
  [
    ("missing", r"head.npz does not exist; .* holds scale.npz"),
    ("damaged", "head.npz is damaged"),
    ("shape", r"\['bias'\] has the shape \(8,\), but \(12,\) is needed here"),
  ],
)
def test_a_file_that_does_not_fit_is_refused_before_anything_is_trained(written, wrong, words):
  folder, _ = written
  spec, data = toys.stream()
  if wrong == "missing":
    (folder / "head.npz").unlink()
  if wrong == "damaged":
    (folder / "head.npz").write_bytes(b"PK no zip")
  if wrong == "shape":
    artifacts.write(folder, {"head": toys.plain(spec._replace(heads=2)).init(jax.random.key(0)).params["head"]})
  with pytest.raises(ConfigError, match=words):
    toys.experiment(reading(spec, folder), spec, data)


def test_the_defaults_of_a_config_are_those_of_the_settings():
  assert {name: default()[name] for name in Settings._fields} == Settings()._asdict()


def test_axes_are_found():
  """As `stack` gives them, whatever differs by seed; one seed may have the axis, or do without."""
  spec, one = toys.stream(seed=0)
  _, other = toys.stream((12, 41, 19), seed=5)
  data, axes = stack([one, other])
  rows = (30, 41, 40)
  it = assemble(toys.plain(spec), spec._replace(rows=()), data, seeds=(3, 4))
  assert it.axes == axes and it.spec.rows == rows
  np.testing.assert_array_equal(it.timeline.rows, [[30, 23, 40], [12, 41, 19]])
  assert jax.tree.leaves(axes_of(spec, one, 1)) == []
  alone = jax.tree.map(lambda leaf: leaf[None], one)
  assert set(jax.tree.leaves(axes_of(spec, alone, 1))) == {0}


def test_a_config_is_read_once():
  """A recipe does not look into the config again; numbers that the method does not have are refused."""
  config = toys.config_of({"name": "er", "capacity": 20}, tasks=2)
  spec = toys.stream((30, 23))[0]
  make = recipe(config, spec)
  config.method.batch_size, config.optimizer.name = 7, "none"
  assert make({}).phases[0].batch == make({"lr": 0.5}).phases[0].batch == 10
  with pytest.raises(ConfigError, match="hyper='capacity' is not known"):
    make({"capacity": 3})


@flax.struct.dataclass
class Scaled:
  scale: jax.Array


def scaled(hyper):
  """A method whose state is a number of its row."""
  plain = toys.plain(toys.stream()[0])
  return plain._replace(
    init=lambda key: Scaled(hyper["scale"] * jnp.ones(())),
    apply=lambda state, x, slot: Outputs(state.scale * jnp.ones((len(x), 4)), x, slot),
    report=lambda state: {"parameters": 1, "memory_bytes": 0, "scale": state.scale},
  )


def test_numbers_of_a_row_are_arguments_of_one_program():
  spec, data = toys.stream()
  it = Subject(assemble(scaled, spec, data, seeds=(0, 0, 1), hyper={"scale": (1, 2.5, 4)}))
  np.testing.assert_array_equal(it.start().state.scale, [1, 2.5, 4])
  other = Subject(assemble(scaled, spec, data, seeds=(0, 0, 1), hyper={"scale": 3}), it, ())
  np.testing.assert_array_equal(other.start().state.scale, [3, 3, 3])
  assert it.compiled["init"]._cache_size() == 1
  assert it.experiment.method_of(0).init(None).scale == 1


def changed(data, **changes):
  """The stream with the leaf at each path replaced by a function of it."""

  def replace(record, names, change):
    if not names:
      return change(record)
    return record._replace(**{names[0]: replace(getattr(record, names[0]), names[1:], change)})

  for path, change in changes.items():
    data = replace(data, path.split("__"), change)
  return data


def by_slot(hyper):
  return toys.plain(toys.stream()[0])._replace(told=True)


def test_a_method_that_finds_its_task_is_never_asked_without_a_slot():
  """In place of the readouts that tell no task: the task told, and inferred."""
  spec, data = toys.stream()
  method = by_slot({})._replace(infers=True)
  for wanted in ((), ("domain",), ("class", "task"), ("inferred", "class")):
    assert assemble(method, spec, data, readouts=wanted).readouts == ("task", "inferred")


@pytest.mark.parametrize(
  ("wrong", "words"),
  [
    ({"evalute": "all"}, "setting='evalute' is not known. Did you mean evaluate?"),
    ({"evaluate": "some"}, "config.evaluate='some' is not known"),
    ({"chunk": -1}, "config.chunk=-1 is too small; the least is 0"),
    ({"chunk": 2.0}, "config.chunk=2.0 must be"),
    ({"every_task": 1}, "config.every_task=1 must be"),
    ({"seed_executor": "pmap"}, "config.seed_executor='pmap' is not known"),
    ({"data_devices": 7}, "config.data_devices=7 does not divide"),
    ({"seeds": ()}, "seeds"),
    ({"seeds": (0, -1)}, "seeds"),
    ({"seeds": (0.5,)}, "seeds"),
    ({"readouts": ("tasks",)}, "readouts='tasks' is not known. Did you mean task?"),
    ({"readouts": ("inferred",)}, "does not find the task by itself"),
    ({"method": by_slot, "readouts": ("class", "task")}, "'class' does not tell it which: set config.stream.scenario="),
    ({"method": by_slot, "readouts": ("domain",)}, r"config.gate.name=autoencoder \| entropy \| means"),
    ({"hyper": {"lr": 0.1}}, "this method is finished"),
    ({"method": scaled, "hyper": {"scale": (1, 2, 3)}}, r"hyper\['scale'\]=\(1, 2, 3\) must be a finite number"),
    ({"method": scaled, "hyper": {"scale": np.nan}}, "must be a finite number"),
    ({"method": scaled, "hyper": {"scale": "1"}}, "must be a finite number"),
    ({"T": 4}, r"the stream has 3 tasks, but spec\.T=4"),
    ({"C": 5}, r"stream.tasks.classes has the shape \(3, 4\), but \(3, 5\)"),
    ({"x_shape": (4, 4)}, r"bank.x has the shape \(120, 4, 4, 1\), which fits neither"),
    ({"x_shape": (4, 4, 2)}, r"bank.x has the shape \(4, 4, 1\), but \(4, 4, 2\)"),
    ({"rows": (30, 23, 41)}, r"spec.rows=\(30, 23, 41\), but the stream's tasks have \(30, 23, 40\)"),
    ({"bank__x": lambda x: x.astype(int)}, "stream.bank.x is int64"),
    ({"bank__y": lambda y: y + 1}, "stream.bank.y holds 1 to 4, but may hold 0 to 3"),
    ({"bank__y": lambda y: y * 1.0}, "stream.bank.y is float64, not whole numbers"),
    ({"tasks__train__idx": lambda idx: idx + 100}, "tasks.train.idx holds .*, but may hold 0 to 119"),
    ({"tasks__train__count": lambda count: count * 0}, "task 1, 2, 3 has no training rows"),
    ({"tasks__valid__idx": lambda idx: idx[:2]}, "tasks.valid.idx has the shape"),
    ({"test__idx": lambda idx: idx - 1}, "stream.test.idx holds -1"),
    ({"test__warp__index": lambda index: index[:2]}, "test.warp.index has the shape .* which fits neither"),
    ({"axes": toys.stream()[1].bank}, "axes=.* must be a stream of 0 or None"),
    ({"tasks__label_map": lambda leaf: leaf + 1}, "tasks.label_map holds 1 to 4, but may hold 0 to 3"),
  ],
)  # fmt: skip
def test_refusals(wrong, words):
  spec, data = toys.stream()
  paths = {name: wrong[name] for name in wrong if "__" in name}
  told = {name: wrong[name] for name in wrong if name in Spec._fields}
  method = wrong.get("method", toys.plain(spec))
  others = {name: wrong[name] for name in wrong if name not in {*paths, *told, "method"}}
  with pytest.raises(ConfigError, match=words):
    assemble(method, spec._replace(**told), changed(data, **paths), **{"seeds": (0, 1), **others})


@pytest.mark.parametrize(
  ("wrong", "words"),
  [
    ({"report": nothing}, r"this method has no number 'parameters' in its report: let `report\(state\)`"),
    ({"report": lambda state: {"parameters": 1}}, "no number 'memory_bytes' in its report"),
    ({"report": lambda state: {"parameters": jnp.ones(2), "memory_bytes": 0}}, "no number 'parameters'"),
    ({"report": lambda state: jnp.ones(2)}, "no number 'parameters'"),
    ({"slots": 2}, "no number 'slot' in its report"),
  ],
)
def test_a_method_whose_report_says_too_little_is_refused_before_anything_is_trained(wrong, words):
  spec, data = toys.stream()
  with pytest.raises(ConfigError, match=words):
    assemble(toys.plain(spec)._replace(**wrong), spec, data)


def test_phases_of_one_name_are_refused():
  """A compiled function is known by it: both would take the steps of the last one."""
  spec, data = toys.stream()
  method = toys.columns(spec)
  scout, fit = method.phases
  with pytest.raises(ConfigError, match="this method has the phases fit, fit: give 'fit' another name"):
    assemble(method._replace(phases=(scout._replace(name="fit"), fit)), spec, data)


def test_a_method_that_branches_takes_no_vmap():
  spec, data = toys.stream()
  with pytest.raises(ConfigError, match="config.seed_executor='vmap' is refused for this method"):
    assemble(toys.plain(spec)._replace(branches=True), spec, data, seed_executor="vmap")
