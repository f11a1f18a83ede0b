"""What compiled linear layers have in common, whatever they multiply with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rudalle_lib import kernels
from rudalle_lib.kernels.abi import LinearArgs


class Workspace:
    """Memory shared by layers that run one after another."""

    def __init__(self) -> None:
        self._tensors: dict[torch.dtype, Tensor] = {}

    def get(self, size: int, dtype: torch.dtype) -> Tensor:
        """Return a tensor of at least this many elements, the same one each time if it suffices."""
        if dtype not in self._tensors or self._tensors[dtype].numel() < size:
            self._tensors[dtype] = torch.empty(size, dtype=dtype)
        return self._tensors[dtype]


class CompiledLinear(nn.Module):
    """A linear layer for inference by a kernel of `LinearArgs`.

    Args:
        inputs: width of x.
        outputs: width of the result.
        weight: in the layout of the kernel.
        bias: [outputs], in the dtype of the inputs.
    """

    kernel: str
    """Name of the compiled function, without the dtype."""

    def __init__(self, inputs: int, outputs: int, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.bias = bias
        self._weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer. [..., inputs] -> [..., outputs], both in the dtype of the bias."""
        return self._multiply(x, gelu=False)

    def forward_gelu(self, x: Tensor) -> Tensor:
        """Apply the layer and then GELU (tanh form), in one pass."""
        return self._multiply(x, gelu=True)

    def _multiply(self, x: Tensor, gelu: bool) -> Tensor:
        output = x.new_empty(*x.shape[:-1], self.outputs)
        self.bind(output, x.contiguous(), Workspace(), gelu).run()
        return output

    def bind(
        self, output: Tensor, x: Tensor, workspace: Workspace, gelu: bool = False
    ) -> kernels.Operation:
        """Prepare `forward` or `forward_gelu` on fixed tensors.

        Args:
            output: [..., outputs], contiguous, is overwritten by each run.
            x: [..., inputs], contiguous.
            workspace: memory that no other operation uses at the same time.
            gelu: whether to apply GELU.

        Raises:
            ValueError: x has another shape or dtype.
        """
        if x.shape[-1] != self.inputs or x.dtype != self.bias.dtype:
            raise ValueError(
                f"x: expected [..., {self.inputs}] in {self.bias.dtype}, "
                f"found {list(x.shape)} in {x.dtype}"
            )
        args = LinearArgs(
            rows=x.numel() // self.inputs,
            inputs=self.inputs,
            outputs=self.outputs,
            gelu=gelu,
            input=x.data_ptr(),
            weight=self._weight.data_ptr(),
            bias=self.bias.data_ptr(),
            output=output.data_ptr(),
        )
        tensors = x, output, *self._complete(args, workspace)
        return kernels.operation(self.kernel, x.dtype, args, self._weight.numel(), *tensors)

    def _complete(self, args: LinearArgs, workspace: Workspace) -> tuple[Tensor, ...]:
        """Set the arguments that only this kernel has; return the tensors they point to."""
        raise NotImplementedError


def point_to_scale(args: LinearArgs, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Set what 8-bit layers need: the scales [outputs] and memory for the steps of the rows."""
    steps = torch.empty(args.rows)
    args.scale, args.steps = scale.data_ptr(), steps.data_ptr()
    return scale, steps
