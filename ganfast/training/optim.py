"""The optimizer of both networks: Adam and the moving average of the weights, in flat buffers.

On a GPU it is one pass over memory, the Triton kernels of `ganfast.kernels.adam_ema`. Elsewhere it
calls the operation below torch's fused Adam on the same buffers, because the bookkeeping of
torch.optim takes as long as a small network's update.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ganfast.config import OptimConfig
from ganfast.engine.gradients import trainable, views_of
from ganfast.engine.weights import computing_copy
from ganfast.errors import RunError
from ganfast.fields import ends
from ganfast.kernels._triton import use_triton
from ganfast.kernels.adam_ema import adam_ema
from ganfast.models.members import is_known
from ganfast.training.scale import LossScale

_EPS = 1e-8
_fused_adam = partial(torch._fused_adam_, weight_decay=0.0, amsgrad=False, maximize=False)


class FlatAdam(torch.optim.Optimizer):
    """Adam whose weights, gradients, moments and average each lie in one buffer.

    The network's parameters become views into the buffer of weights. State per parameter is that of
    `torch.optim.Adam` (step, exp_avg, exp_avg_sq), as views that stay in place: loading copies into
    them. Rate, decay and step number are read on the device, so that a captured step goes on with
    new values.

    Args:
        net: its trainable parameters are moved; all must be of one type.
        rate: learning rate of a `move` that is called without one.
        optim: betas.
        average: a copy of ``net`` that follows it; None = none.
        compute: the type that ``net`` is computed in, where autocast would cast its weights again
            and again; None = the type of its weights.

    ``computing`` is the network to compute with: ``net`` itself, or a twin whose weights are copies
    of type ``compute``, renewed by each step. ``scale`` is what the gradients must have been
    computed times where ``compute`` is float16, else None.

    Raises:
        InputError: nothing to train, or parameters of several types.
    """

    def __init__(
        self,
        net: nn.Module,
        rate: float,
        optim: OptimConfig,
        average: nn.Module | None = None,
        compute: torch.dtype | None = None,
    ) -> None:
        self.parameters = trainable(net)
        defaults = {"lr": rate, "betas": (optim.beta1, ends(optim.beta2)[0]), "eps": _EPS}
        super().__init__(self.parameters, defaults)
        self.flat = _moved_into_one([p.data for p in self.parameters], self.parameters)
        self._own_gradient: Tensor | None = None
        self._moments = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self._steps = torch.zeros((), dtype=torch.float32, device=self.flat.device)
        first, second = (views_of(moment, self.parameters) for moment in self._moments)
        for p, m, v in zip(self.parameters, first, second, strict=True):
            self.state[p] = {"step": self._steps, "exp_avg": m, "exp_avg_sq": v}
        self.average = None
        if average is not None:  # frozen parameters never move, so their copies need not follow
            pairs = zip(average.parameters(), net.parameters(), strict=True)
            followers = [a for a, p in pairs if p.requires_grad]
            self.average = _moved_into_one([a.data for a in followers], followers)
        self._low, self.computing = None, net
        self.scale = LossScale(self.flat.device) if compute == torch.float16 else None
        if compute is not None:
            self._low = self.flat.to(compute)
            views = views_of(self._low, self.parameters)
            # A twin of a class that is not known would have attributes of its own.
            if is_known(net):
                self.computing = computing_copy(net, dict(zip(self.parameters, views, strict=True)))

    def step(  # type: ignore[override]
        self,
        rate: Tensor | None = None,
        decay: Tensor | None = None,
        limit: float = 0.0,
        beta2: Tensor | None = None,
    ) -> None:
        """`move`, in the hooks that torch puts around this name."""
        self.move(rate, decay, limit, beta2)

    @torch.no_grad()
    def move(
        self,
        rate: Tensor | None = None,
        decay: Tensor | None = None,
        limit: float = 0.0,
        beta2: Tensor | None = None,
    ) -> None:
        """Move the weights by their gradients, then the average after them, and renew the copies.

        Where there is a scale, the gradients are divided by it first. If they are not finite,
        nothing moves but the scale, and the step is not counted.

        Args:
            rate: learning rate, float64 0-d on the device; None = the rate given at the start.
            decay: what stays of the average, float64 0-d on the device; needed where there is one.
            limit: every weight is then clipped to [-limit, limit] (WGAN, arXiv:1701.07875,
                algorithm 1); 0 = no clipping.
            beta2: decay of the second moment, float64 0-d on the device; None = that of the start.
                As in torch's Adam, the bias correction takes the moments for made with it alone.

        Raises:
            RunError: the parameters were moved out of the buffer.
        """
        group, gradient, (m, v) = self.param_groups[0], self._gradient(), self._moments
        (beta1, fixed_beta2), eps = group["betas"], group["eps"]
        if rate is None:
            rate = torch.tensor(group["lr"], dtype=torch.float64, device=self.flat.device)
        if self.average is not None and decay is None:
            raise ValueError("this optimizer moves an average: give its decay")
        skip = None
        if self.scale is not None:
            self.scale.divide(gradient)
            skip = self.scale.skip
        # Torch's fused Adam takes beta2 from the host, which would stay as a phase was recorded.
        if beta2 is not None or (use_triton(self.flat) and self.flat.dtype == torch.float32):
            rates = self._steps, rate, rate if decay is None else decay
            fixed = beta1, fixed_beta2, eps, limit
            more = self.average, self._low, skip, beta2
            adam_ema(self.flat, gradient, m, v, *rates, *fixed, *more)
            return
        self._steps.add_(1)
        lr = rate.float() if rate.is_cuda else rate
        buffers: list[list[Tensor]] = [[self.flat], [gradient], [m], [v], [], [self._steps]]
        _fused_adam(*buffers, lr=lr, beta1=beta1, beta2=fixed_beta2, eps=eps, found_inf=skip)
        if limit:
            self.flat.clamp_(-limit, limit)
        if self.average is not None and decay is not None:
            share = 1 - decay
            if skip is not None:
                share = share * (1 - skip)
            self.average.lerp_(self.flat, share.to(self.flat.dtype))
        if skip is not None:
            self._steps.sub_(skip)
        self.renew()

    @torch.no_grad()
    def renew(self) -> None:
        """Copy the weights into ``computing``, after something other than `move` changed them."""
        if self._low is not None:
            self._low.copy_(self.flat)

    def flat_tensors(self) -> list[Tensor]:
        """Weights, both moments, and the average where there is one, (total,) each."""
        return [self.flat, *self._moments, *([] if self.average is None else [self.average])]

    def _gradient(self) -> Tensor:
        """All gradients, (total,), in the order of the parameters.

        It is the buffer that the gradients are views of, where they are; else a copy.
        """
        first = self.parameters[0].grad
        base = None if first is None else first._base
        if base is not None and (base.shape != self.flat.shape or base.dtype != self.flat.dtype):
            base = None
        offset = 0
        for p in self.parameters:
            if p.data_ptr() != self.flat.data_ptr() + offset:
                raise RunError(
                    "the network's parameters were moved after its optimizer was made; "
                    "make another one"
                )
            g = p.grad
            if base is not None and (
                g is None or g.stride() != p.stride() or g.data_ptr() != base.data_ptr() + offset
            ):
                base = None
            offset += p.numel() * p.element_size()
        if base is not None:
            return base
        if self._own_gradient is None:
            self._own_gradient = torch.zeros_like(self.flat)
        views = views_of(self._own_gradient, self.parameters)
        for p, view in zip(self.parameters, views, strict=True):
            view.zero_() if p.grad is None else view.copy_(p.grad)
            if self.scale is not None and p.grad is not None:
                p.grad = view  # who looks at it later is to see it divided
        return self._own_gradient

    def state_dict(self) -> dict[str, Any]:
        """That of torch's optimizers, and the scale where there is one."""
        scale = {} if self.scale is None else {"scale": self.scale.tensors()}
        return super().state_dict() | scale

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy a state into the tensors of this one; a parameter without state has never moved.

        The weights must be restored before: their copies for ``computing`` are renewed here.
        """
        # First of all: the parameters share one step number, which an absent one must not clear.
        for tensor in (self._steps, *self._moments):
            tensor.zero_()
        for index, p in enumerate(self.parameters):
            for name, value in state_dict["state"].get(index, {}).items():
                self.state[p][name].copy_(value)
        if self.scale is not None:
            self.scale.load(state_dict.get("scale", {}))
        self.renew()


def _moved_into_one(tensors: list[Tensor], owners: list[nn.Parameter]) -> Tensor:
    """One buffer with the values of all tensors; the owners become views of it."""
    total = sum(t.numel() for t in tensors)
    flat = torch.empty(total, dtype=tensors[0].dtype, device=tensors[0].device)
    for view, tensor, owner in zip(views_of(flat, tensors), tensors, owners, strict=True):
        view.copy_(tensor)
        owner.data = view
    return flat
