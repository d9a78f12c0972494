"""C++ models on parameters that Python owns: see models/python/bound_model.h."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from flash_attention import models
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from support.model_fixtures import Fixture, small

pytestmark = pytest.mark.once

HEAD = "model.head.linear.weight"


def windows(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(3, 24, 1, dtype=dtype)


def model_in_double(**settings: object) -> models.PatchTST:
    return small(dropout=0.0, **settings).eval().double()


def scaled_parameters(model: torch.nn.Module, factor: float) -> dict[str, torch.Tensor]:
    return {
        name: (factor * parameter).detach().requires_grad_(parameter.requires_grad)
        for name, parameter in model.named_parameters()
    }


def gradients(model: torch.nn.Module, run: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of all parameters, by a backward of `run`'s sum of squares."""
    model.zero_grad()
    run().square().sum().backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], msg=name)


# --- threads --------------------------------------------------------------------------------------


def in_threads(work: Callable[[int], None], threads: int = 4) -> None:
    """Run work(0), work(1), ... at once; the first exception is raised here."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(threads)

    def run(index: int) -> None:
        barrier.wait()
        try:
            work(index)
        except BaseException as error:  # noqa: BLE001  (raised below)
            failures.append(error)

    workers = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_threads_with_parameters_of_their_own_get_their_own_gradients(checkpointing: bool) -> None:
    model, x = model_in_double(gradient_checkpointing=checkpointing), windows()
    native, own = model._engine.native, model._engine.tensors(model)
    none = (None,) * 4

    def step(factor: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
        given = [(factor * t.detach()).requires_grad_(t.requires_grad) for t in own]
        output = native.forward(given, False, x, *none)
        trained = [t for t in given if t.requires_grad]
        return output.detach(), torch.autograd.grad(output.square().sum(), trained)

    factors = [0.5, 0.75, 1.25, 1.5]
    expected = [step(factor) for factor in factors]

    def work(index: int) -> None:
        for _ in range(20):
            output, found = step(factors[index])
            torch.testing.assert_close(output, expected[index][0])
            torch.testing.assert_close(found, expected[index][1])

    in_threads(work)


def test_threads_in_training_and_evaluation_mode_at_once() -> None:
    model, x = small(dropout=0.9, head_dropout=0.9), windows(torch.float32)
    native, tensors = model._engine.native, model._engine.tensors(model)
    expected = native.forward(tensors, False, x, None, None, None, None).detach()
    statistics = [t for t in tensors if not t.requires_grad and t.dim() == 1]
    frozen = [t.clone() for t in statistics]

    def work(index: int) -> None:
        for _ in range(20):
            training = index % 2 == 0
            given = tensors if not training else [t.detach().clone() for t in tensors]
            output = native.forward(given, training, x, None, None, None, None)
            assert training or torch.equal(output, expected)

    in_threads(work)
    assert all(map(torch.equal, statistics, frozen))


def test_copies_used_in_threads_are_independent() -> None:
    model, x = model_in_double(), windows()
    expected = model(x).detach()

    def work(index: int) -> None:
        for _ in range(5):
            other = copy.deepcopy(model)
            with torch.no_grad():
                other.get_parameter(HEAD).mul_(index)
            other(x).sum().backward()
            assert torch.equal(model(x).detach(), expected)

    in_threads(work)
    assert all(parameter.grad is None for parameter in model.parameters())


# --- between forward and backward -----------------------------------------------------------------


@pytest.fixture(params=["plain", "checkpointing"])
def pending(request: pytest.FixtureRequest) -> Iterator[tuple[models.PatchTST, Callable]]:
    """A model whose forward has run, and what checks the gradients of that forward."""
    model = model_in_double(gradient_checkpointing=request.param == "checkpointing")
    x = windows()
    expected = gradients(model, lambda: model(x))
    parameters = dict(model.named_parameters())
    model.zero_grad()
    loss = model(x).square().sum()

    def check() -> None:
        loss.backward()
        found = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        assert_equal(found, expected)

    yield model, check


def test_a_pending_backward_survives_a_copy(pending: tuple) -> None:
    model, check = pending
    copy.deepcopy(model)(windows()).sum().backward()
    check()


def test_a_pending_backward_survives_assigned_weights(pending: tuple) -> None:
    model, check = pending
    model.load_state_dict(scaled_parameters(model, 2.0), assign=True, strict=False)
    model(windows()).sum().backward()
    check()


def test_a_pending_backward_survives_training_mode(pending: tuple) -> None:
    model, check = pending
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # train() moves them
    model.train()
    functional_call(model, buffers, (windows(),))
    model.eval()
    check()


def test_a_pending_backward_survives_another_dtype(pending: tuple) -> None:
    model, check = pending
    other = copy.deepcopy(model).float()
    parameters = {name: parameter.detach() for name, parameter in other.named_parameters()}
    buffers = dict(other.named_buffers())
    functional_call(model, parameters | buffers, (windows(torch.float32),))
    check()


def test_a_pending_backward_refuses_weights_loaded_in_place(pending: tuple) -> None:
    model, check = pending
    model.load_state_dict(scaled_parameters(model, 2.0), strict=False)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        check()


def test_a_pending_backward_survives_hooks_that_pack_saved_tensors() -> None:
    model, x = model_in_double(), windows()
    expected = gradients(model, lambda: model(x))
    model.zero_grad()
    with torch.autograd.graph.save_on_cpu():
        loss = model(x).square().sum()
    functional_call(model, scaled_parameters(model, 2.0), (x,)).sum().backward()
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert_equal(found, expected)


def test_frozen_weights_replaced_before_the_backward_do_not_reach_it(typical: Fixture) -> None:
    """A recomputed layer must compute with the weights of its forward.

    Hooks pack the saved tensors, so that none of them refers to the C++ model's parameters.
    """
    model = typical.model(torch.float64, gradient_checkpointing=True).eval().requires_grad_(False)
    batch = typical.windows(torch.float64)
    series = batch["insample_y"].requires_grad_()

    def gradient(between: Callable[[], object]) -> torch.Tensor:
        with torch.autograd.graph.save_on_cpu():
            loss = typical.forward(model, batch).square().sum()
        between()
        return torch.autograd.grad(loss, series)[0]

    expected = gradient(lambda: None)
    others = {name: 2 * tensor for name, tensor in model.named_parameters()}
    found = gradient(lambda: functional_call(model, others, (batch,)))
    torch.testing.assert_close(found, expected)


# --- torch's own machinery ------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["hooks", "reentrant"])
def test_torchs_checkpoint_gives_the_same_gradients(typical: Fixture, use_reentrant: bool) -> None:
    model = typical.model(torch.float64)
    batch = typical.windows(torch.float64)
    series = batch.pop("insample_y").requires_grad_()

    def run(y: torch.Tensor) -> torch.Tensor:
        return model(batch | {"insample_y": y})

    def seeded(call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def seeded_call() -> torch.Tensor:
            torch.manual_seed(3)
            return call()

        return seeded_call

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    expected = gradients(model, seeded(lambda: run(series)))
    model.load_state_dict(buffers, strict=False)
    found = gradients(model, seeded(lambda: checkpoint(run, series, use_reentrant=use_reentrant)))
    assert_equal(found, expected)


def test_compiled_training_steps_are_those_of_the_model() -> None:
    model, x = model_in_double(), windows()
    compiled = torch.compile(model, backend="aot_eager")
    assert_equal(gradients(model, lambda: compiled(x)), gradients(model, lambda: model(x)))


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """Of this process alone."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def test_distributed_data_parallel_trains(typical: Fixture, process_group: None) -> None:
    model = typical.model(torch.float64)
    batch = typical.windows(torch.float64)
    reference = copy.deepcopy(model)
    parallel = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    for _ in range(2):
        expected = gradients(reference, lambda: typical.forward(reference, batch))
        found = gradients(model, lambda: typical.forward(parallel, batch))
        if typical.model_class in ("TFT", "FEDformer"):  # some parameters are not used
            found = {name: found[name] for name in expected}
        assert_equal(found, expected)


def halve(model: torch.nn.Module) -> None:
    """What the other process does."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)


def test_another_process_changes_shared_weights() -> None:
    model, x = model_in_double().share_memory(), windows()
    expected = copy.deepcopy(model)
    halve(expected)
    model(x).sum().backward()
    process = multiprocessing.get_context("spawn").Process(target=halve, args=(model,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert torch.equal(model(x), expected(x))
    assert all(parameter.is_shared() for parameter in model.parameters())


def test_shared_memory_keeps_a_pending_backward() -> None:
    model, x = model_in_double(), windows()
    expected = gradients(model, lambda: model(x))
    model.zero_grad()
    loss = model(x).square().sum()
    model.share_memory()
    loss.backward()
    assert_equal({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, expected)


def test_an_optimizer_in_the_backward_trains() -> None:
    model, x = small(), windows(torch.float32)
    for parameter in model.parameters():
        if parameter.requires_grad:
            optimizer = torch.optim.SGD([parameter], lr=0.1)

            def step(_: torch.Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
                optimizer.step()
                optimizer.zero_grad()

            parameter.register_post_accumulate_grad_hook(step)
    before = copy.deepcopy(model.state_dict())
    model(x).sum().backward()
    assert not torch.equal(model.state_dict()[HEAD], before[HEAD])


# --- what cannot work must say so -----------------------------------------------------------------


def test_a_tangent_of_a_parameter_is_refused() -> None:
    model, x = model_in_double(), windows()
    weight = model.get_parameter(HEAD)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(weight.detach(), torch.ones_like(weight))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            functional_call(model, {HEAD: dual}, (x,))


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_transforms_of_parameters_are_refused(transform: str) -> None:
    model, x = model_in_double(), windows()

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return functional_call(model, {HEAD: weight}, (x,)).square().sum()

    weight = model.get_parameter(HEAD).detach()
    calls = {
        "grad": lambda: torch.func.grad(loss)(weight),
        "vmap": lambda: torch.func.vmap(loss)(torch.stack([weight, weight])),
        "jvp": lambda: torch.func.jvp(loss, (weight,), (weight,)),
    }
    with pytest.raises(NotImplementedError, match=rf"{HEAD}: .*torch\.func"):
        calls[transform]()
