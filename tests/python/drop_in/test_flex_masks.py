"""flex_attention with BlockMasks: results, gradients, and what the kernels compute."""

from __future__ import annotations

import pytest
import torch
from flash_attention.flex import blocks
from torch import Tensor
from torch.nn.attention.flex_attention import (
    BlockMask,
    and_masks,
    create_block_mask,
    noop_mask,
    or_masks,
)

from support.flex_reference import (
    BATCH,
    BLOCK_SIZE,
    HEADS,
    LENGTH,
    Mod,
    assert_close,
    block_mask,
    call,
    dense,
    inputs,
    watch,
    with_gradients,
)

# The kernels' instruction sets are tested with the operator.
pytestmark = pytest.mark.once

LENGTHS = torch.tensor([LENGTH - 20, LENGTH])
DOCUMENTS = torch.arange(LENGTH).ge(torch.tensor([[7], [30], [33]])).sum(0)
OWN_DOCUMENTS = torch.stack([DOCUMENTS, DOCUMENTS.flip(0)]).int()
SHIFTS = torch.tensor([0, 3, -2, 10])
KEPT = torch.arange(BATCH * LENGTH).remainder(7).view(BATCH, LENGTH) != 3
TABLE = torch.arange(LENGTH).outer(torch.arange(LENGTH)).remainder(5) != 2


def causal(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
    return q >= kv


def near(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
    return q - kv < 12


def prefix(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
    return kv < LENGTHS[b] - 10


MASKS: dict[str, tuple[str, Mod]] = {
    "none": ("kernels", noop_mask),
    "causal": ("kernels", causal),
    "causal, swapped": ("kernels", lambda b, h, q, kv: kv < q + 1),
    "causal, one side": ("kernels", lambda b, h, q, kv: 0 <= q - kv),
    "from the query on": ("kernels", lambda b, h, q, kv: kv - q >= 0),
    "window": ("kernels", lambda b, h, q, kv: (q >= kv) & (q - kv <= 12)),
    "window of torch's functions": ("kernels", and_masks(causal, near)),
    "window on both sides": ("kernels", lambda b, h, q, kv: (q - kv).abs() <= 9),
    "uneven window": ("kernels", lambda b, h, q, kv: (kv - q < 4) & (-kv + q < 8)),
    "diagonal": ("kernels", lambda b, h, q, kv: q == kv),
    "prefix": ("kernels", or_masks(causal, prefix)),
    "padding": ("kernels", lambda b, h, q, kv: kv < LENGTHS[b]),
    "causal padding": (
        "kernels",
        lambda b, h, q, kv: (q >= kv) & (kv < LENGTHS[b]) & (q < LENGTHS[b]),
    ),
    "shifted by head": ("kernels", lambda b, h, q, kv: kv <= q + SHIFTS[h]),
    "keys": ("kernels", lambda b, h, q, kv: KEPT[b, kv]),
    "causal keys": ("kernels", lambda b, h, q, kv: KEPT[b, kv] & (q >= kv)),
    "no key": ("kernels", lambda b, h, q, kv: q < 0),
    "documents": ("packed", lambda b, h, q, kv: DOCUMENTS[q] == DOCUMENTS[kv]),
    "causal documents": (
        "packed",
        lambda b, h, q, kv: (OWN_DOCUMENTS[b, kv] == OWN_DOCUMENTS[b, q]) & (q >= kv),
    ),
    "windows in documents": (
        "packed",
        lambda b, h, q, kv: (DOCUMENTS[q] == DOCUMENTS[kv]) & ((q - kv).abs() < 5),
    ),
    "documents in pieces": (
        "blocks",
        lambda b, h, q, kv: DOCUMENTS[q].remainder(2) == DOCUMENTS[kv].remainder(2),
    ),
    "documents and padding": (
        "blocks",
        lambda b, h, q, kv: (DOCUMENTS[q] == DOCUMENTS[kv]) & (kv < LENGTHS[b]),
    ),
    "dilated": ("blocks", lambda b, h, q, kv: (q - kv).remainder(3) == 0),
    "dilated windows by head and batch": (
        "blocks",
        lambda b, h, q, kv: ((q - kv).abs() < 10 * h + 4) & ((q - kv).remainder(b + 2) == 0),
    ),
    "window and first keys": (
        "blocks",
        lambda b, h, q, kv: ((q - kv < 12) | (kv < 2)) & (q >= kv),
    ),
    "outside a window": ("blocks", lambda b, h, q, kv: (q - kv).abs() >= 9),
    "growing windows": ("blocks", lambda b, h, q, kv: (q >= kv) & (2 * kv >= q)),
    "not causal": ("blocks", lambda b, h, q, kv: ~(q >= kv)),
    "table": ("blocks", lambda b, h, q, kv: TABLE[q, kv]),
    "further in one head": ("kernels", lambda b, h, q, kv: (q >= kv) | (h == 2) & (q - kv > -7)),
    "constant": ("kernels", lambda b, h, q, kv: torch.ones((), dtype=torch.bool)),
}
every_mask = pytest.mark.parametrize("name", MASKS)


@every_mask
def test_masks_match_the_definition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected_path, mask_mod = MASKS[name]
    mask, tensors, paths = block_mask(mask_mod), inputs(), watch(monkeypatch)
    found = call(tensors, block_mask=mask)
    expected = with_gradients(dense(*tensors, mask_mod=mask_mod)[:1], tensors)
    assert_close(with_gradients([found], tensors), expected)
    assert_close(
        with_gradients(call(tensors, block_mask=mask, return_lse=True), tensors),
        with_gradients(dense(*tensors, mask_mod=mask_mod), tensors),
    )
    assert paths.only == expected_path


@pytest.mark.parametrize("name", ["causal", "window", "documents", "dilated", "table"])
def test_float32_masks(name: str) -> None:
    tensors = inputs(dtype=torch.float32)
    mask_mod = MASKS[name][1]
    out = call(tensors, block_mask=block_mask(mask_mod))
    expected = with_gradients(dense(*tensors, mask_mod=mask_mod)[:1], tensors)
    assert_close(with_gradients([out], tensors), expected, torch.float32)


@pytest.mark.parametrize(
    "mask_mod",
    [
        causal,
        lambda b, h, q, kv: q + 30 >= kv,
        lambda b, h, q, kv: (q - kv).abs() < 6,
        lambda b, h, q, kv: (q + 30 - kv).abs() < 6,
    ],
    ids=["first keys", "last keys", "window at the first", "window at the last"],
)
@pytest.mark.parametrize("lengths", [(20, 50), (50, 20), (1, 50)], ids=str)
def test_other_numbers_of_keys_than_of_queries(
    lengths: tuple[int, int], mask_mod: Mod, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, paths = inputs(*lengths), watch(monkeypatch)
    mask = block_mask(mask_mod, 1, *lengths)
    found = with_gradients(call(tensors, block_mask=mask, return_lse=True), tensors)
    assert paths.only == "kernels"
    assert_close(found, with_gradients(dense(*tensors, mask_mod=mask_mod), tensors))


def listed(*kinds: str) -> tuple[Tensor, Tensor]:
    """Counts and indices of the blocks of "1" in each row, for from_kv_blocks."""
    rows = [[n for n, kind in enumerate(row) if kind == "1"] for row in kinds]
    counts = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    indices = torch.tensor([row + [0] * (4 - len(row)) for row in rows], dtype=torch.int32)
    return counts.view(1, 1, -1), indices.view(1, 1, -1, 4)


@pytest.mark.parametrize("mask_mod", [None, causal], ids=["whole blocks", "causal"])
def test_lists_of_blocks_decide(mask_mod: Mod | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask_mod is for the blocks that are listed as partial; others are attended or not."""
    partial, full = listed("1000", "0100", "1001", "0000"), listed("0001", "1000", "0000", "0000")
    mask = BlockMask.from_kv_blocks(
        *partial,
        *full,
        BLOCK_SIZE=BLOCK_SIZE,
        mask_mod=mask_mod,
        seq_lengths=(LENGTH, LENGTH),
        compute_q_blocks=False,
    )
    blocks = torch.zeros(2, 4, 4, dtype=torch.bool)
    for place, (counts, indices) in enumerate((partial, full)):
        for row in range(4):
            blocks[place, row, indices[0, 0, row, : counts[0, 0, row]].long()] = True
    elements = blocks.repeat_interleave(BLOCK_SIZE, 1).repeat_interleave(BLOCK_SIZE, 2)

    def expected_mask(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        own = noop_mask(b, h, q, kv) if mask_mod is None else mask_mod(b, h, q, kv)
        return elements[0, q, kv] & own | elements[1, q, kv]

    tensors, paths = inputs(), watch(monkeypatch)
    found = with_gradients(call(tensors, block_mask=mask, return_lse=True), tensors)
    assert paths.only == "blocks"
    assert_close(found, with_gradients(dense(*tensors, mask_mod=expected_mask), tensors))


def test_masks_without_full_blocks_and_of_other_block_sizes() -> None:
    tensors = inputs()
    for mask_mod in (causal, MASKS["dilated"][1]):
        expected = dense(*tensors, mask_mod=mask_mod)[0]
        for size, separate in ((5, True), ((7, 33), False), (128, True), (1 << 30, False)):
            if size == 1 << 30:  # torch's own mask for no mask, with a mask_mod
                ones = torch.ones(1, 1, 1, dtype=torch.int32)
                mask = BlockMask.from_kv_blocks(
                    ones,
                    ones.unsqueeze(3) - 1,
                    BLOCK_SIZE=size,
                    mask_mod=mask_mod,
                    seq_lengths=(1, 1),
                )
            else:
                mask = create_block_mask(
                    mask_mod,
                    None,
                    None,
                    LENGTH,
                    LENGTH,
                    device="cpu",
                    BLOCK_SIZE=size,
                    separate_full_blocks=separate,
                )
            assert_close([call(tensors, block_mask=mask)], [expected])


def test_a_slice_of_a_mask_with_a_mask_mod_set() -> None:
    """The way to decode with a mask of torch's."""
    query, key, value = inputs()
    mask = block_mask(MASKS["dilated"][1])[:, :, 2:3]
    first = 2 * BLOCK_SIZE
    mask.mask_mod = lambda b, h, q, kv: (q + first - kv).remainder(3) == 0
    mask.seq_lengths = (BLOCK_SIZE, LENGTH)
    rows = query[:, :, first : first + BLOCK_SIZE]
    expected = dense(query, key, value, mask_mod=MASKS["dilated"][1])[0]
    found = call([rows, key, value], block_mask=mask)
    assert_close([found], [expected[:, :, first : first + BLOCK_SIZE]])


def test_empty_blocks_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in scores: each block of queries is compared with the 3 blocks of keys near it."""
    length, counts = 1024, []

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return ((q - kv).abs() < BLOCK_SIZE) & ((q + kv) % 3 != 0)

    def counted(query: Tensor, key: Tensor) -> Tensor:
        counts.append(query.size(0) * query.size(1) * query.size(2) * key.size(2))
        return product(query, key)

    product = blocks.product
    monkeypatch.setattr(blocks, "product", counted)
    mask = create_block_mask(
        mask_mod, None, None, length, length, device="cpu", BLOCK_SIZE=BLOCK_SIZE
    )
    call(inputs(length, length), block_mask=mask)
    assert 0 < sum(counts) <= BATCH * HEADS * length * 3 * BLOCK_SIZE
