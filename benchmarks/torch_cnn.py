"""cljax's convolution net in eager PyTorch: `conv2d` with SAME padding, ReLU, dense layers, one head for each task."""

from typing import Any

import numpy as np

from benchmarks import problem
from benchmarks.torch_cotraining import as_linear


def net_of(params: Any) -> Any:
  """The net of `problem.CNN`, from cljax's initial weights."""
  import torch
  from torch import nn
  from torch.nn import functional as F

  window, stride = problem.CNN["window"], problem.CNN["stride"]
  count = len(problem.CNN["channels"])
  names = ["first", *(f"hidden_{l}" for l in range(1, count + len(problem.CNN["hidden"])))]

  def around(size):
    """(before, after): the zeros around one side of a picture."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2

  class Net(nn.Module):
    def __init__(self):
      super().__init__()
      kernels = [np.array(params[name]["kernel"]) for name in names[:count]]
      kernels = [kernel.reshape(window, window, -1, kernel.shape[-1]).transpose(3, 2, 0, 1) for kernel in kernels]
      self.kernels = nn.ParameterList([nn.Parameter(torch.tensor(kernel.copy())) for kernel in kernels])
      biases = [torch.tensor(np.array(params[name]["bias"])) for name in names[:count]]
      self.biases = nn.ParameterList([nn.Parameter(bias) for bias in biases])
      self.dense = nn.ModuleList([as_linear(params[name]) for name in names[count:]])
      self.heads = nn.Parameter(torch.tensor(np.array(params["head"]["kernel"])).permute(1, 0, 2).contiguous())
      self.bias = nn.Parameter(torch.tensor(np.array(params["head"]["bias"])))

    def forward(self, x, task):
      x = x.view(-1, 1, problem.SIDE, problem.SIDE)
      for kernel, bias in zip(self.kernels, self.biases, strict=True):
        x = F.pad(x, (*around(x.shape[3]), *around(x.shape[2])))
        x = F.relu(F.conv2d(x, kernel, bias, stride=stride))
      x = x.permute(0, 2, 3, 1).flatten(1)  # as cljax orders them: channels last
      for layer in self.dense:
        x = F.relu(layer(x))
      return torch.einsum("bd,bdc->bc", x, self.heads[task]) + self.bias[task]

  return Net()
