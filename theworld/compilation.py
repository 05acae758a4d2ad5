"""Compiled functions: `torch.compile` with Inductor, without a fault that it has before torch 2.15.

A kernel that loops over a row twice may store values in its first loop and read them back in its second one. Triton may
give the two to different threads, and earlier versions of torch put no barrier between them, so that a thread sometimes
reads what was there before (https://github.com/pytorch/pytorch/issues/190517). On an H200 with torch 2.11, gradients of
random tokens were wrong by factors of thousands, while the loss was right. Here, such a kernel keeps its row in
registers instead, which is also faster.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

MAX_SHAPES = 256  # of one compiled function; PyTorch's own limit of 8 would end in functions that are not compiled
LONGEST_ROW = 8192  # that a kernel keeps in registers


def can_compile() -> bool:
    """Whether torch.compile can make kernels here: it needs Triton and a C compiler."""
    from torch.utils._triton import has_triton

    return has_triton() and any(map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc", "clang")))


def compile_function(
    function: Callable[..., Any],
    *,
    fullgraph: bool = True,
    options: Mapping[str, Any] | None = None,
    backend: str | Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """`function`, compiled for each shape of its arguments; call it inside `compiling`.

    Args:
        fullgraph: whether code that the compiler cannot read is an error.
        options: of Inductor.
        backend: of `torch.compile`; None is `inductor`.
    """
    chosen = None if options is None else dict(options)
    return torch.compile(function, fullgraph=fullgraph, dynamic=False, backend=backend or inductor, options=chosen)


def compiling() -> contextlib.AbstractContextManager[Any]:
    """A context in which one compiled function may have MAX_SHAPES shapes."""
    from torch._dynamo import config  # not above: it takes a second, and a CPU does without it

    return config.patch(recompile_limit=MAX_SHAPES)


def mark_dynamic(tensor: torch.Tensor, *dimensions: int) -> None:
    """These dimensions may have another size in the next call."""
    from torch import _dynamo

    _dynamo.mark_dynamic(tensor, list(dimensions))


def inductor(graph: Any, inputs: Any, *, options: dict[str, Any] | None = None) -> Any:
    """Inductor as a backend of `torch.compile`, with `one_pass` in the forward and in the backward graph."""
    from torch._functorch import config as autograd
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.virtualized import V

    config: Any = torch.compiler.config
    with contextlib.ExitStack() as stack:
        stack.enter_context(V.set_choices_handler(one_pass()))
        # kernels that were made without these choices may be in torch's cache
        stack.enter_context(config.patch(cache_key_tag=f"{config.cache_key_tag} theworld one pass"))
        # otherwise the backward graph is compiled when it is first called, which is after this context
        stack.enter_context(autograd.patch(force_non_lazy_backward_lowering=True))
        return compile_fx(graph, inputs, config_patches=options)


@cache
def one_pass() -> Any:
    """Inductor's own choices, but kernels that reduce rows and also write them read each row once."""
    from torch._inductor.choices import InductorChoices
    from torch._inductor.utils import sympy_product
    from torch._inductor.virtualized import V

    class OnePass(InductorChoices):
        @staticmethod
        def should_use_persistent_reduction(features: Any, cooperative_reduction: bool) -> bool:
            sizes = V.graph.sizevars
            whole = features.numel * features.reduction_numel
            writes_rows = any(
                not node.is_reduction() and sizes.statically_known_equals(sympy_product(node.get_ranges()[0]), whole)
                for node in features.scheduler_nodes()
            )
            if writes_rows and sizes.statically_known_leq(features.reduction_numel, LONGEST_ROW):
                return True
            return bool(InductorChoices.should_use_persistent_reduction(features, cooperative_reduction))

    return OnePass()
