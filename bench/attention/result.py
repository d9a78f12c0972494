"""The measurement of one point, and the JSON row that keeps it."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from bench.attention import points
from bench.attention.points import Point
from bench.common.formatting import rounded

Quartiles = tuple[float, float, float]
"""Lower quartile, median, upper quartile."""

LIMIT_NAMES = {"fma": "the FMA peak", "tiles": "the tile peak", "copy": "a copy's bandwidth"}

POINT_FIELDS = tuple(f.name for f in fields(Point))
DEFAULTS = {f.name: f.default for f in fields(Point) if f.default is not MISSING}


@dataclass(frozen=True)
class Result:
    """One point at one instruction set.

    Attributes:
        seconds: median time of one call of each candidate; the first candidate is the subject.
        ratio: time of every other candidate over the subject's, paired by round.
        fma: FLOP/s of one core's multiply-adds alone, of vectors or of tiles, median over the
            rounds of this point.
        fma_quartiles: its lower and upper quartile; absent from older records.
        product: FLOP/s of torch.mm, where it was sampled.
        share: the subject's FLOP/s over those of the multiply-adds on as many cores, paired by
            round; absent from older records and in decode.
        part: the `--group` whose own run measured it later; empty for the run of all groups.
    """

    isa: str
    point: Point
    seconds: dict[str, float]
    ratio: dict[str, Quartiles]
    fma: float
    fma_quartiles: tuple[float, float] | None = None
    product: float | None = None
    share: Quartiles | None = None
    part: str = ""

    @property
    def run(self) -> str:
        """Key in `Record.runs` of the run that measured it: `avx2`, or `avx2 decode`."""
        return f"{self.isa} {self.part}".strip()

    @property
    def subject(self) -> str:
        return next(iter(self.seconds))

    def times_as_fast(self, rival: str) -> float:
        """Median ratio of the rival's time to the subject's."""
        return self.ratio[rival][1]

    def rate(self, candidate: str | None = None) -> float:
        """FLOP/s, of the subject by default."""
        return self.point.flops / self.seconds[candidate or self.subject]

    @property
    def limit(self) -> str:
        """What bounds the subject: a key of LIMIT_NAMES."""
        if "copy" in self.ratio:
            return "copy"
        return "tiles" if points.on_tiles(self.point.dtype, self.isa) else "fma"

    @property
    def share_of_limit(self) -> Quartiles | None:
        """The subject's rate over that of the limit, paired by round; None in older records."""
        return self.ratio.get("copy", self.share)

    @property
    def percent_of_limit(self) -> float:
        """The median share, or in older records the share of the medians."""
        if self.share_of_limit is not None:
            return 100 * self.share_of_limit[1]
        return 100 * self.rate() / (self.point.threads * self.fma)

    def row(self, short: bool = False) -> dict[str, Any]:
        """For JSON; `short` omits what `from_row` can restore."""
        point = asdict(self.point)
        if short:
            point = {name: x for name, x in point.items() if DEFAULTS.get(name) != x}
        row: dict[str, Any] = {"isa": self.isa, **point}
        if self.part:
            row["part"] = self.part
        row["seconds"] = {name: rounded(x) for name, x in self.seconds.items()}
        row["ratio"] = {name: [rounded(x) for x in q] for name, q in self.ratio.items()}
        row["fma_gflops"] = rounded(self.fma / 1e9)
        if self.fma_quartiles is not None:
            row["fma_gflops_quartiles"] = [rounded(x / 1e9) for x in self.fma_quartiles]
        if self.product is not None:
            row["product_gflops"] = rounded(self.product / 1e9)
        if self.share is not None:
            row["share"] = [rounded(x) for x in self.share]
        if not short:
            row["flops"] = self.point.flops
            row["bytes"] = self.point.bytes
            row["gflops"] = rounded(self.rate() / 1e9)
            row["limit"] = self.limit
            row["percent_of_limit"] = rounded(self.percent_of_limit)
        return row


def from_row(row: dict[str, Any]) -> Result:
    """The inverse of `Result.row`."""
    product, share = row.get("product_gflops"), row.get("share")
    fma_quartiles = row.get("fma_gflops_quartiles")
    return Result(
        isa=row["isa"],
        point=Point(**{name: row[name] for name in POINT_FIELDS if name in row}),
        seconds=row["seconds"],
        ratio={name: tuple(quartiles) for name, quartiles in row["ratio"].items()},
        fma=row["fma_gflops"] * 1e9,
        fma_quartiles=None if fma_quartiles is None else tuple(x * 1e9 for x in fma_quartiles),
        product=None if product is None else product * 1e9,
        share=None if share is None else tuple(share),
        part=row.get("part", ""),
    )
