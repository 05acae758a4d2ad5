"""The switch `fast_path` and its rule, and the shapes that are kept."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from theworld.compilation import compile_function, compiling, one_pass
from theworld.cuda_graphs import CudaGraphs, Graphs, Recent
from theworld.fast_path import check_fast_path, uses_fast_path, without_gpu

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("fast_path", "reason", "pays", "expected"),
    [
        ("auto", None, False, False),
        ("auto", None, True, True),
        ("auto", "it is too small", True, False),
        ("on", None, False, True),
        ("off", None, True, False),
    ],
)
def test_the_rule(fast_path: str, reason: str | None, pays: bool, expected: bool) -> None:
    assert uses_fast_path(fast_path, reason, pays=pays) is expected


def test_what_is_wanted_and_impossible_is_an_error() -> None:
    assert without_gpu(torch.device("cuda", 0)) is None
    with pytest.raises(ValueError, match="fast_path is on, but it is too small; set it to auto or off"):
        uses_fast_path("on", "it is too small", pays=True)
    with pytest.raises(ValueError, match="fast_path is 'yes'; choose one of auto, on, off"):
        check_fast_path("yes")
    with pytest.raises(ValueError, match="fast_path is on, but it needs an NVIDIA GPU, and the model is on cpu"):
        check_fast_path("on", CPU)
    assert check_fast_path("auto", CPU) == "auto"


def test_recent_values() -> None:
    recent: Recent[int] = Recent(2)
    made = []

    def get(key: str) -> int:
        return recent.get(key, lambda: made.append(key) or len(made))  # type: ignore[func-returns-value]

    assert [get("a"), get("b"), get("a"), get("c"), get("a"), get("b")] == [1, 2, 1, 3, 1, 4]
    recent.keep_for("other weights")
    assert not recent.values


def test_a_function_is_recorded_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, a replay is a call; what it reads and writes stays where it is."""
    captured = []

    def capture(graphs: Graphs, function: object, device: torch.device) -> object:
        captured.append(device)
        function()  # type: ignore[operator]
        return function

    monkeypatch.setattr(Graphs, "capture", capture)
    calls = []

    def double(x: torch.Tensor, *, bias: int) -> torch.Tensor:
        calls.append(x.data_ptr())
        return 2 * x + bias

    graphs = CudaGraphs(double, max_graphs=1)
    for number in range(4):
        x = torch.full((3,), float(number))
        graphs(x, bias=1)
        assert (calls[-1] == x.data_ptr()) is (number == 0)
    assert captured == [CPU]
    graphs(torch.zeros(3), bias=2)
    assert captured == [CPU], "another argument is another graph"
    graphs(torch.zeros(3), bias=2)
    assert len(captured) == 2
    assert len(graphs.recorded.values) == 1


def test_a_backend_of_its_own_takes_no_options_of_inductor() -> None:
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        seen.append(graph)
        return graph.forward

    function = compile_function(lambda x: x + 1, backend=backend)
    with compiling():
        assert torch.equal(function(torch.zeros(2)), torch.ones(2))
    assert len(seen) == 1


def test_forward_and_backward_are_compiled_with_our_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward graph may be compiled later than the forward one, when the choices are the default ones again."""
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._inductor import compile_fx
    from torch._inductor.virtualized import V

    seen = []

    def compile_graph(graph: torch.fx.GraphModule, inputs: list[torch.Tensor], **unused: object) -> object:
        seen.append(V.choices is one_pass())
        return make_boxed_func(graph.forward)

    monkeypatch.setattr(compile_fx, "compile_fx", partial(compile_fx.compile_fx, inner_compile=compile_graph))
    function = compile_function(lambda x: (x.sin() * x).sum())
    x = torch.ones(3, requires_grad=True)
    with compiling():
        function(x).backward()
    assert seen == [True, True]
    assert x.grad is not None


@pytest.mark.gpu
def test_graphs_are_captured_again_after_all_were_dropped() -> None:
    x = torch.zeros(4, device="cuda")
    graphs = Graphs()
    for number in range(1, 4):
        replay = graphs.capture(lambda: x.add_(1), x.device)  # three calls before it
        replay()
        assert x.tolist() == [4.0 * number] * 4
        del replay
        torch.cuda.empty_cache()


@pytest.mark.gpu
def test_recorded_results_are_those_of_the_function() -> None:
    graphs = CudaGraphs(lambda x, y: (x @ y, x.sum()))
    for size in (4, 8, 4, 8, 4):
        x, y = torch.randn(size, size, device="cuda"), torch.randn(size, size, device="cuda")
        product, total = graphs(x, y)
        torch.testing.assert_close(product, x @ y)
        torch.testing.assert_close(total, x.sum())


def test_kernels_that_write_the_rows_they_reduce_read_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second loop could read values back before they are written (pytorch#190517)."""
    sympy = pytest.importorskip("sympy")
    from torch._inductor.choices import InductorChoices
    from torch._inductor.sizevars import SizeVarAllocator
    from torch._inductor.virtualized import V

    def node(reduces: bool, *ranges: int) -> SimpleNamespace:
        sizes = [sympy.Integer(size) for size in ranges]
        return SimpleNamespace(is_reduction=lambda: reduces, get_ranges=lambda: (sizes, []))

    def persists(rows: int, width: int, *nodes: SimpleNamespace) -> bool:
        features = SimpleNamespace(
            numel=sympy.Integer(rows),
            reduction_numel=sympy.Integer(width),
            scheduler_nodes=lambda: nodes,
        )
        return bool(one_pass().should_use_persistent_reduction(features, False))

    monkeypatch.setattr(InductorChoices, "should_use_persistent_reduction", lambda features, cooperative: False)
    total, norm, small = node(True, 300), node(False, 3, 100, 2560), node(False, 300)
    with V.set_graph_handler(SimpleNamespace(sizevars=SizeVarAllocator())):  # type: ignore[arg-type]
        assert persists(300, 2560, total, norm)
        assert persists(300, 2560, total, small, norm)
        assert not persists(300, 2560, total, small), "a product with one row, which is left to Inductor"
        assert not persists(300, 10**6, total, node(False, 300, 10**6))
