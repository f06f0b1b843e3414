"""The optimizer of both networks: Adam and the moving average of the weights over one flat buffer each, with nothing read back.

One pass over memory as a Triton kernel (`ganfast.kernels.adam_ema`); elsewhere what torch's fused Adam calls, on the same buffers:
its own bookkeeping takes as long as a small network's update.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ganfast.config import OptimConfig
from ganfast.engine.gradients import trainable, views_of
from ganfast.engine.weights import computing_copy
from ganfast.errors import RunError
from ganfast.kernels._triton import use_triton
from ganfast.kernels.adam_ema import adam_ema, adam_rates

_EPS = 1e-8


class FlatAdam(torch.optim.Optimizer):
    """Adam whose weights, gradients, moments and average each lie in one buffer; the network's parameters become views into it.

    State per parameter is that of `torch.optim.Adam` (step, exp_avg, exp_avg_sq), as views that stay where they are: loading copies
    into them. Rate, decay and step number are read on the device, so a captured step goes on with new ones.

    Args:
        net: whose trainable parameters to move, all of one type.
        rate: learning rate where `move` is given none.
        optim: betas.
        average: a copy of ``net`` that follows it; None = none.
        compute: the type that ``net`` is computed in, where autocast would cast its weights again and again; None = as it is.

    ``computing`` is the network to compute with: ``net`` itself, or its twin whose weights of type ``compute`` each step renews.

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
        super().__init__(
            self.parameters, {"lr": rate, "betas": (optim.beta1, optim.beta2), "eps": _EPS}
        )
        self.flat = _moved_into_one([p.data for p in self.parameters], self.parameters)
        self._own_gradient: Tensor | None = None
        self._moments = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self._steps = torch.zeros((), dtype=torch.float32, device=self.flat.device)
        first, second = (views_of(moment, self.parameters) for moment in self._moments)
        for p, m, v in zip(self.parameters, first, second, strict=True):
            self.state[p] = {"step": self._steps, "exp_avg": m, "exp_avg_sq": v}
        self.average = None
        if average is not None:  # frozen ones never move, so their copies need not follow
            follow = [
                a
                for a, p in zip(average.parameters(), net.parameters(), strict=True)
                if p.requires_grad
            ]
            self.average = _moved_into_one([a.data for a in follow], follow)
        self._low = None if compute is None else self.flat.to(compute)
        low = (
            {}
            if self._low is None
            else dict(zip(self.parameters, views_of(self._low, self.parameters), strict=True))
        )
        self.computing = computing_copy(net, low) if low else net

    def step(
        self, rate: Tensor | None = None, decay: Tensor | None = None, limit: float = 0.0
    ) -> None:  # type: ignore[override]
        """`move`, in the hooks that torch puts around this name."""
        self.move(rate, decay, limit)

    @torch.no_grad()
    def move(
        self, rate: Tensor | None = None, decay: Tensor | None = None, limit: float = 0.0
    ) -> None:
        """Move the weights by their gradients, then the average after them, and renew the copies.

        Args:
            rate: learning rate, float64 0-d on the device; None = the one given at the start.
            decay: what stays of the average, float64 0-d on the device; needed where there is one.
            limit: every weight is then clipped to [-limit, limit] (WGAN, arXiv:1701.07875, algorithm 1); 0 = none is.

        Raises:
            RunError: the parameters were moved out of the buffer.
        """
        group, gradient, (m, v) = self.param_groups[0], self._gradient(), self._moments
        (beta1, beta2), eps = group["betas"], group["eps"]
        rate = (
            torch.tensor(group["lr"], dtype=torch.float64, device=self.flat.device)
            if rate is None
            else rate
        )
        if self.average is not None and decay is None:
            raise ValueError("this optimizer moves an average: give its decay")
        self._steps.add_(1)
        if use_triton(self.flat) and self.flat.dtype == torch.float32:
            rates = adam_rates(self._steps, rate, rate if decay is None else decay, beta1, beta2)
            adam_ema(
                self.flat,
                gradient,
                m,
                v,
                rates,
                beta1,
                beta2,
                eps,
                self.average,
                None if limit else self._low,
            )
            if limit:
                self.flat.clamp_(-limit, limit)
                self.renew()
            return
        torch._fused_adam_(
            [self.flat],
            [gradient],
            [m],
            [v],
            [],
            [self._steps],
            lr=rate.float() if rate.is_cuda else rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
        if self.average is not None and decay is not None:
            self.average.lerp_(self.flat, (1 - decay).to(self.flat.dtype))
        if limit:
            self.flat.clamp_(-limit, limit)
        self.renew()

    @torch.no_grad()
    def renew(self) -> None:
        """Make the weights of ``computing`` those of the network, which something else than `move` has changed."""
        if self._low is not None:
            self._low.copy_(self.flat)

    def _gradient(self) -> Tensor:
        """All gradients, (total,): the buffer that they are views of in the order of the parameters, else a copy."""
        first = self.parameters[0].grad
        base = None if first is None else first._base
        fits = base is not None and base.shape == self.flat.shape and base.dtype == self.flat.dtype
        offset = 0
        for p in self.parameters:
            if p.data_ptr() != self.flat.data_ptr() + offset:
                raise RunError(
                    "the network's parameters were moved after its optimizer was made; make another one"
                )
            fits = fits and p.grad is not None and p.grad.stride() == p.stride()
            fits = fits and p.grad.data_ptr() == base.data_ptr() + offset  # type: ignore[union-attr]
            offset += p.numel() * p.element_size()
        if fits and base is not None:
            return base
        if self._own_gradient is None:
            self._own_gradient = torch.zeros_like(self.flat)
        for p, view in zip(
            self.parameters, views_of(self._own_gradient, self.parameters), strict=True
        ):
            view.zero_() if p.grad is None else view.copy_(p.grad)
        return self._own_gradient

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy a state into the one that is here, which stays where it is; a parameter without state has moved never.

        The weights themselves are restored before: their copies are made of them here.
        """
        for index, p in enumerate(self.parameters):
            entry = state_dict["state"].get(index, {})
            for name, mine in self.state[p].items():
                mine.copy_(entry[name]) if name in entry else mine.zero_()
        self.renew()


def _moved_into_one(tensors: list[Tensor], owners: list[nn.Parameter]) -> Tensor:
    """One buffer with the values of all tensors, of which the owners become views."""
    flat = torch.empty(
        sum(t.numel() for t in tensors), dtype=tensors[0].dtype, device=tensors[0].device
    )
    for view, tensor, owner in zip(views_of(flat, tensors), tensors, owners, strict=True):
        view.copy_(tensor)
        owner.data = view
    return flat
