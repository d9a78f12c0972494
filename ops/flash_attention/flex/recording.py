"""Records one call of a score_mod or mask_mod on scalar tensors as a program.

Whatever the function reads, in closures, partials, modules or globals, appears as a captured tensor
of the program, which therefore still computes the same when these names are bound anew.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from flash_attention.flex.program import AXES, ModError, Program, Value

__all__ = ["record"]

aten = torch.ops.aten

# Their results depend on the shape and dtype of an argument only, and so are constants.
OF_A_SHAPE = {
    aten.new_zeros,
    aten.new_ones,
    aten.new_full,
    aten.zeros_like,
    aten.ones_like,
    aten.full_like,
}
# In-place operations inside of torch's composite ones, of the shape alone: no other view of the
# elements can see them.
OF_THE_SHAPE_IN_PLACE = {aten.squeeze_: aten.squeeze, aten.unsqueeze_: aten.unsqueeze}
INTEGERS = (torch.int64, torch.int32)
# Methods that read elements without an operator.
READING = (Tensor.tolist, Tensor.numpy, Tensor.__array__)


class _Recorder(TorchDispatchMode):
    """Records every operator that is called, below autograd."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch's way out of loading its compiler, a second; no call comes from compiled code.
        return False

    def __init__(self, name: str, differentiable: bool) -> None:
        super().__init__()
        self.name = name
        self.differentiable = differentiable
        self.steps: list[Value] = []
        self._values = WeakTensorKeyDictionary()

    def add(self, tensor: Tensor, value: Value) -> Value:
        if tensor.device.type != "cpu":
            raise ModError(
                f"flex_attention: expected {self.name} to compute with tensors on the CPU, got one "
                f"on {tensor.device}"
            )
        value.dtype, value.shape = tensor.dtype, tuple(tensor.shape)
        self.steps.append(value)
        self._values[tensor] = value
        return value

    def value_of(self, tensor: Tensor) -> Value:
        """The value of a tensor; one that nothing here computed is captured."""
        found = self._values.get(tensor)
        return self.add(tensor, Value(tensor=tensor)) if found is None else found

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        values = tree_map_only(Tensor, self.value_of, (args, kwargs or {}))
        operands = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Value)]
        step = Value(
            frozenset().union(*(operand.axes for operand in operands)),
            target=self._recorded(func, operands),
            args=tuple(values[0]),
            kwargs=values[1],
        )
        self._check(func, step)
        self._check_gradient(func, (args, kwargs))
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in OF_A_SHAPE:
            return result
        if isinstance(result, Tensor):
            self.add(result, step)
        elif isinstance(result, (tuple, list)):
            self.steps.append(step)
            for place, each in enumerate(result):
                if isinstance(each, Tensor):
                    self.add(each, Value(step.axes, target=operator.getitem, args=(step, place)))
        return result

    def _recorded(self, func: Any, operands: list[Value]) -> Any:
        """The operator that returns a new tensor where `func` changes one."""
        if not func._schema.is_mutable:
            return func
        same = OF_THE_SHAPE_IN_PLACE.get(func.overloadpacket)
        if same is None or operands[0].target is None:
            raise ModError(
                f"flex_attention: expected {self.name} without in-place operations, got {func}; "
                "its form without the underscore returns a new tensor"
            )
        return getattr(same, func._overloadname)

    def _check(self, func: Any, step: Value) -> None:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise ModError(
                f"flex_attention: expected {self.name} without random numbers, got {func}"
            )
        reads = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        if step.axes and reads & set(func.tags) and not _is_gather(step):
            self.refuse_reading(func)

    def _check_gradient(self, func: Any, given: Any) -> None:
        """Refuses operations whose result has another gradient in the function than here."""
        if not self.differentiable or torch.is_grad_enabled():
            return
        if not func._schema.name.startswith("aten::"):  # a custom operator, with its own gradient
            return
        if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(given)):
            raise ModError(
                f"flex_attention: expected {self.name} without torch.autograd.Function and "
                f"torch.no_grad, since its gradient is that of its operations, got {func} in one; "
                "use torch's operators, and .detach() where no gradient is wanted"
            )

    def refuse_reading(self, func: object) -> None:
        raise ModError(
            f"flex_attention: expected {self.name} to compute with tensors for all indices at "
            f"once, got {func}, which reads an element of one; use torch.where in place of if, and "
            "tensors, integers and full slices as indices"
        )


def _is_gather(step: Value) -> bool:
    """Whether it indexes with integers, whose number is that of the elements read."""
    if step.operation is not aten.index:
        return False
    return all(index is None or index.dtype in INTEGERS for index in step.args[1])


class _Indexing(TorchFunctionMode):
    """Makes table[q_idx] an operation on the tensor q_idx, which torch would read."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if _has_scalar_tensors(index):
                tensors = [torch.tensor(each) if type(each) is int else each for each in index]
                places = [None if isinstance(each, slice) else each for each in tensors]
                while places[-1] is None:  # the rest is taken as a whole in any case
                    places.pop()
                return aten.index.Tensor(args[0], places)
        if func in READING and self._recorder.value_of(args[0]).axes:
            self._recorder.refuse_reading(func)
        return func(*args, **(kwargs or {}))


def _has_scalar_tensors(index: tuple[Any, ...]) -> bool:
    """Whether there are integer tensors, and else only integers and full slices."""
    tensors = [each for each in index if isinstance(each, Tensor)]
    others = [each for each in index if not isinstance(each, Tensor)]
    return (
        bool(tensors)
        and all(each.dtype in INTEGERS for each in tensors)
        and all(type(each) is int or each == slice(None) for each in others)
    )


def _saving_nothing() -> saved_tensors_hooks:
    """For a graph without a backward: the hooks of a checkpoint outside see none of it."""
    return saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing)


def record(
    name: str,
    function: Callable[..., Any],
    score_dtype: torch.dtype | None,
    score_has_gradient: bool = False,
) -> Program:
    """The program of a score_mod, whose scores have `score_dtype`, or else of a mask_mod.

    Raises:
        ModError: a function that raises, changes or reads tensors, draws random numbers, returns
            something other than a scalar, or while gradients are recorded hides one.
        TypeError: one that is no function, or returns another dtype.
    """
    if not callable(function):
        raise TypeError(f"flex_attention: expected {name} to be a function, got {function!r}")
    # torch.func has gradients of its own, and no hooks.
    functional = torch._C._are_functorch_transforms_active()
    differentiable = score_dtype is not None and torch.is_grad_enabled() and not functional
    recorder = _Recorder(name, differentiable)
    scores = [] if score_dtype is None else [torch.zeros((), dtype=score_dtype)]
    if score_has_gradient and differentiable:  # a copy: autograd refuses to change a leaf in place
        scores = [each.requires_grad_().clone() for each in scores]
    examples = [*scores, *(torch.zeros((), dtype=torch.int64) for _ in AXES)]
    names = AXES if score_dtype is None else ("score", *AXES)
    arguments = {
        axis: recorder.add(example, Value(frozenset({axis})))
        for axis, example in zip(names, examples, strict=True)
    }
    try:
        with (
            torch.set_grad_enabled(differentiable),
            _saving_nothing() if differentiable else nullcontext(),
            torch.autocast("cpu", enabled=False),
            recorder,
            _Indexing(recorder),
        ):
            result = function(*examples)
    except ModError:
        raise
    except Exception as error:
        signature = f"{name}({', '.join([*names[:-2], 'q_idx', 'kv_idx'])})"
        raise ModError(
            f"flex_attention: expected a {signature} of scalar tensors, got "
            f"{type(error).__name__}: {error}"
        ) from error
    _check_result(name, result, score_dtype)
    return Program(name, arguments, recorder.steps, recorder.value_of(result))


def _check_result(name: str, result: object, score_dtype: torch.dtype | None) -> None:
    kind = "bool" if score_dtype is None else "floating"
    if not isinstance(result, Tensor):
        raise TypeError(f"flex_attention: expected {name} to return a tensor, got {result!r}")
    if result.shape != ():
        raise ModError(
            f"flex_attention: expected {name} to return a scalar for scalars, got a tensor of "
            f"shape {list(result.shape)}"
        )
    right = result.dtype == torch.bool if score_dtype is None else result.is_floating_point()
    if not right:
        raise TypeError(
            f"flex_attention: expected {name} to return a {kind} tensor, got {result.dtype}"
        )
