"""What a packed data set looks like, in figures: class balance, tumour size and place, grey levels, examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from bench.data.census import REST, TUMOUR
from bench.data.describe import Description
from bench.data.pack import Pack, shown_channel
from bench.data.source import Pixels

HUES = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")  # Tol's, for the colour-blind


RED, EMPTY, GREY, OUTLINE = "#B2182B", "#C9CED6", "#5B6472", "#00E5A0"


SHADES = "inferno"  # even steps of lightness, so that it reads in print too


WIDTH = 8.6  # inches


DEPTHS = np.linspace(0, 1, 41)  # from the first slice of a stack to its last


LEVELS, SCORES = np.linspace(0, 256, 65), np.linspace(-3, 6, 46)  # edges of bins: grey levels, standard deviations


SIZES = {"small": 0.1, "median": 0.5, "large": 0.9}  # quantiles of tumour pixels over patients with tumour


def figures(pack: Pack, about: Description) -> dict[str, Figure]:
    """Figures by name; `examples` only where there is tumour to show."""
    drawn = {
        "class_balance": _class_balance(about),
        "patient_balance": _patient_balance(about),
        "tumour_area": _tumour_area(pack, about),
        "tumour_location": _tumour_location(pack, about),
        "tumour_levels": _tumour_levels(pack, about),
        "intensity": _intensity(pack, about),
    }
    if chosen := example_patients(about.patients):
        drawn["examples"] = _examples(pack, about, chosen)
    if pack.manifest.synthetic:
        for figure in drawn.values():
            figure.suptitle("SYNTHETIC: drawn phantoms, not patients", fontsize=9, color=RED)
    return drawn


def _canvas(rows: int, columns: int, height: float) -> tuple[Figure, NDArray[np.object_]]:
    """A figure `height` inches tall and its axes (rows, columns)."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _short(name: str) -> str:
    """A name as far as there is room for it beside an axis."""
    return name if len(name) <= 16 else f"{name[:15]}…"


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10, parse_math=False)


def _institutions(axes: Axes, places: Sequence[float], names: Sequence[str], *, room: int) -> None:
    """Name institutions below; upright where all of their letters are more than there is `room` for."""
    short = [_short(name) for name in names]
    upright = len("".join(short)) > room
    axes.set_xticks(places, short, rotation=90 if upright else 0, parse_math=False)
    axes.tick_params(axis="x", length=0)


def _class_balance(about: Description) -> Figure:
    rows = about.institutions.iloc[::-1]
    share = float(about.counts["positive_share"].iloc[0])
    figure, [[axes]] = _canvas(1, 1, 1.3 + 0.36 * len(rows))
    _title(axes, f"Slices with tumour: {share:.1%} of all")
    names = [f"{_short(str(name))} ({patients})" for name, patients in rows["patients"].items()]
    places, empty = np.arange(len(rows)), rows["slices"] - rows["positive_slices"]
    axes.barh(places, rows["positive_slices"], color=RED, label="tumour")
    axes.barh(places, empty, left=rows["positive_slices"], color=EMPTY, label="no tumour")
    for at, (slices, part) in enumerate(zip(rows["slices"], rows["positive_share"], strict=True)):
        axes.annotate(f"{part:.0%}", (slices, at), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(places, names, parse_math=False)
    axes.set(xlabel="slices", ylabel="institution (patients)")
    axes.margins(x=0.08)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2, fontsize=9)  # above the bars
    return figure


def _groups(values: pd.Series[float], about: Description) -> list[tuple[str, NDArray[np.float64]]]:
    """The values of each institution's patients, ascending; undefined ones are left out."""
    known = values.dropna()
    homes = about.patients["institution"].reindex(known.index)
    return [(str(name), np.sort(group.to_numpy(float))) for name, group in known.groupby(homes)]


def _patient_balance(about: Description) -> Figure:
    every = about.patients["positive_share"]
    figure, [[axes]] = _canvas(1, 1, 3.2)
    start, ticks = 0, {}
    for name, shares in _groups(every, about):
        stop = start + len(shares)
        axes.bar(range(start, stop), 1 - shares, bottom=shares, width=0.85, color=EMPTY)
        axes.bar(range(start, stop), shares, width=0.85, color=RED)
        pooled = about.institutions.loc[name, "positive_share"]
        axes.hlines(pooled, start - 0.5, stop - 0.5, color="0.1", linewidth=1.2)
        ticks[name] = (start + stop - 1) / 2
        start = stop + 1  # a gap between institutions
    low, middle, high = every.min(), every.median(), every.max()
    _title(axes, f"Slices with tumour, patient by patient: median {middle:.0%}, from {low:.0%} to {high:.0%}")
    axes.set(ylabel="share of slices", ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.margins(x=0.01)
    _institutions(axes, list(ticks.values()), list(ticks), room=70)
    return figure


def _tumour_area(pack: Pack, about: Description) -> Figure:
    areas = pack.index.loc[pack.index["positive"], "pixels"].to_numpy()
    totals = about.patients["tumour_pixels"].to_numpy()
    totals = totals[totals > 0]
    figure, [[left, right]] = _canvas(1, 2, 3.1)
    _sizes(left, areas, f"{len(areas):,} positive slices", "tumour area of a slice (pixels)", "slices")
    _sizes(right, totals, f"{len(totals):,} patients with tumour", "tumour of all slices (pixels)", "patients")
    return figure


def _sizes(axes: Axes, sizes: NDArray[np.int64], title: str, size: str, counted: str) -> None:
    _title(axes, title)
    axes.set(xscale="log", xlabel=size, ylabel=counted)
    if not len(sizes):
        return
    bins = np.geomspace(sizes.min(), sizes.max() + 1, 31)
    axes.hist(sizes, bins=list(bins), color=HUES[0], edgecolor="white", linewidth=0.6)
    axes.margins(y=0.18)
    for share, style in ((0.05, "--"), (0.5, "-"), (0.95, "--")):
        value = float(np.quantile(sizes, share))
        axes.axvline(value, color=RED, linewidth=1.1, linestyle=style)
        axes.annotate(
            f"{value:,.0f}", (value, 1), (-3, -1), xycoords=axes.get_xaxis_transform(),
            textcoords="offset points", ha="right", va="top", fontsize=8, color=RED,
        )  # fmt: skip


def _tumour_location(pack: Pack, about: Description) -> Figure:
    count, positive = len(pack.index), int(pack.index["positive"].sum())
    figure, [[place, depth]] = _canvas(1, 2, 3.7)
    _title(place, f"in the plane: {positive:,} positive slices")
    drawn = place.imshow(100 * about.census.tumour / max(positive, 1), cmap=SHADES, vmin=0)
    figure.colorbar(drawn, ax=place, label="positive slices with tumour here (%)", shrink=0.8)
    limits, head = place.axis(), about.census.head
    for share, style in ((0.05, ":"), (0.5, "-")):
        if head.min() < share * count <= head.max():
            place.contour(head, [share * count], colors="white", linewidths=0.9, linestyles=style)
    place.axis(limits)
    place.set(xticks=[], yticks=[])
    place.spines[:].set_visible(False)
    _title(depth, f"along the stack: {len(about.patients):,} patients")
    depth.fill_between(DEPTHS, by_depth(pack), color=RED, alpha=0.85, linewidth=0)
    depth.set(xlim=(0, 1), ylim=(0, 1), xlabel="place in the stack", ylabel="patients with tumour there")
    depth.set_xticks([0, 0.5, 1], ["first slice", "middle", "last slice"])
    depth.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def by_depth(pack: Pack) -> NDArray[np.float64]:
    """Share of patients with tumour on the slice nearest to each of `DEPTHS`."""
    stacks = [pack.index["positive"].to_numpy()[pack.rows([case])] for case in pack.cases]
    there = np.array([stack[np.rint(DEPTHS * (len(stack) - 1)).astype(int)] for stack in stacks], float)
    share: NDArray[np.float64] = there.mean(0)
    return share


def _tumour_levels(pack: Pack, about: Description) -> Figure:
    channels = pack.manifest.channels
    figure, grid = _canvas(2, len(channels), 4.6)
    auroc = about.contrast["auroc"].groupby(level="channel").median()
    for column, channel in enumerate(channels):
        raw, scored = grid[:, column]
        name = _short(channel)
        counts = about.census.levels[:, column]
        _title(raw, name if np.isnan(auroc[channel]) else f"{name}: AUROC {auroc[channel]:.2f}")
        _densities(raw, counts, np.broadcast_to(np.arange(256.0), (len(counts), 256)), LEVELS)
        _densities(scored, counts, _standardised(counts.sum(1)), SCORES)
        raw.set_xlabel("grey level")
        scored.set_xlabel("standard deviations")
    for axes in grid[:, 0]:
        axes.set_ylabel("share of pixels")
    if grid[0, -1].get_legend_handles_labels()[0]:
        grid[0, -1].legend(frameon=False, fontsize=9, loc="upper right")
    return figure


def _standardised(head: NDArray[np.int64]) -> NDArray[np.float64]:
    """Grey levels 0 to 255 as each patient's scores (P, 256), from the histograms (P, 256) of the heads."""
    values, count = np.arange(256), np.maximum(head.sum(1), 1)
    apart = values - (head @ values / count)[:, None]
    sd = np.sqrt((head * apart**2).sum(1) / count)
    scores: NDArray[np.float64] = apart / np.where(sd > 0, sd, 1)[:, None]
    return scores


def _densities(
    axes: Axes, counts: NDArray[np.int64], values: NDArray[np.float64], edges: NDArray[np.float64]
) -> None:
    """Draw tumour against rest: pixels (P, 2, 256) at `values` (P, 256), a distribution a patient, averaged."""
    for kind, colour, label in ((REST, GREY, "rest of the head"), (TUMOUR, RED, "tumour")):
        shares = [
            np.histogram(at, edges, weights=pixels)[0] / pixels.sum()
            for pixels, at in zip(counts[:, kind], values, strict=True)
            if pixels.any()
        ]
        if shares:
            axes.stairs(np.mean(shares, 0), edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(np.mean(shares, 0), edges, color=colour, linewidth=1.3, label=label)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, None), yticks=[])


def _intensity(pack: Pack, about: Description) -> Figure:
    channels = pack.manifest.channels
    figure, grid = _canvas(1, len(channels), 3.3)
    brightest = about.contrast["rest_mean"].max()
    for axes, channel in zip(grid[0], channels, strict=True):
        level = about.contrast["rest_mean"].xs(channel, level="channel")
        apart = f": {level.max() / level.min():.1f}-fold apart" if level.min() > 0 else ""
        _title(axes, f"{_short(channel)}{apart}")
        groups = _groups(level, about)
        for at, (_, members) in enumerate(groups):
            aside = 0.3 * np.sin(2.4 * np.arange(len(members)))  # so that equal levels do not hide each other
            axes.scatter(at + aside, members, s=14, color=HUES[at % len(HUES)], alpha=0.8, linewidth=0)
            axes.hlines(np.median(members), at - 0.4, at + 0.4, color="0.1", linewidth=1.4)
        axes.set_ylim(0, 1.05 * brightest if brightest > 0 else 1)
        _institutions(axes, range(len(groups)), [name for name, _ in groups], room=20)
    grid[0, 0].set_ylabel("mean grey level of the head")
    return figure


def example_patients(patients: pd.DataFrame) -> dict[str, str]:
    """Those with a small, a median and a large tumour, as far as there are so many with tumour."""
    ranked = patients[patients["tumour_pixels"] > 0].sort_values("tumour_pixels", kind="stable")
    if ranked.empty:
        return {}
    chosen = {size: str(ranked.index[round(share * (len(ranked) - 1))]) for size, share in SIZES.items()}
    return {size: case for size, case in chosen.items() if chosen["median"] != case or size == "median"}


def _examples(pack: Pack, about: Description, chosen: dict[str, str]) -> Figure:
    channels = pack.manifest.channels
    channel = shown_channel(channels)
    figure, grid = _canvas(len(chosen), 4, 2.12 * len(chosen) + 0.8)
    for row, (size, case) in zip(grid, chosen.items(), strict=True):
        rows = pack.rows([case])
        slices = pack.index.iloc[rows]
        largest = int(slices["pixels"].to_numpy().argmax())
        bright = max(float(np.percentile(pack.images[rows][..., channel], 99.5)), 1)
        _example(row, pack.images[rows[largest]][..., channel], pack.masks[rows[largest]], bright)
        number, area = slices["slice"].iloc[largest], slices["pixels"].iloc[largest]
        total = about.patients["tumour_pixels"][case]
        row[0].set_ylabel(f"{size} tumour: {total:,} px\nslice {number}: {area:,} px", fontsize=9)
    for axes, title in zip(grid[0], (_short(channels[channel]), "in colour", "mask", "overlay"), strict=True):
        _title(axes, title)
    scale = figure.colorbar(
        ScalarMappable(cmap=SHADES), ax=grid, location="bottom", shrink=0.3, aspect=26, pad=0.02
    )
    scale.set_ticks([0, 1], labels=["0", "99.5th percentile"], fontsize=8)
    return figure


def _example(row: NDArray[np.object_], scan: Pixels, mask: Pixels, bright: float) -> None:
    for axes in row:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    grey, colour, truth, overlay = row
    for axes, shades in ((grey, "gray"), (colour, SHADES), (overlay, "gray")):
        axes.imshow(scan, cmap=shades, vmin=0, vmax=bright, interpolation="nearest")
    truth.imshow(mask, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    limits, (height, width) = overlay.axis(), mask.shape
    padded = np.arange(-1, width + 1), np.arange(-1, height + 1), np.pad(mask, 1)  # closed along the border
    overlay.contourf(*padded, [0.5, 1.5], colors=OUTLINE, alpha=0.25)
    overlay.contour(*padded, [0.5], colors=OUTLINE, linewidths=1.2)
    overlay.axis(limits)
