"""Figures of a packed data set: class balance, tumour size and location, grey levels, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from bench.data.describe import Description, median_over_patients
from bench.data.pack import Pack, display_channel
from bench.data.source import Pixels
from bench.plotting import set_log_ticks, set_whole_ticks
from bench.structures import Structures, colour_of

HUES = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")  # Tol's colour-blind palette
RED, EMPTY, GREY, OUTLINE = "#B2182B", "#C9CED6", "#5B6472", "#00E5A0"
SHADES = "inferno"  # its lightness changes evenly, so it also reads in print
WIDTH = 8.6  # inches
DEPTHS = np.linspace(0, 1, 41)  # 0 is the first slice of a stack, 1 the last
LEVELS, SCORES = np.linspace(0, 256, 65), np.linspace(-3, 6, 46)  # edges of bins: grey levels, standard deviations
SIZES = {"small": 0.1, "median": 0.5, "large": 0.9}  # quantiles of tumour pixels over patients with tumour


def draw_figures(pack: Pack, description: Description) -> dict[str, Figure]:
    """Return the figures by name; `examples` only if some patient has tumour."""
    figures = {
        "class_balance": _draw_class_balance(description),
        "patient_balance": _draw_patient_balance(description),
        "tumour_area": _draw_tumour_area(pack, description),
        "tumour_location": _draw_tumour_location(pack, description),
        "tumour_levels": _draw_tumour_levels(pack, description),
        "intensity": _draw_intensity(pack, description),
    }
    if patients := choose_example_patients(description.patients):
        figures["examples"] = _draw_examples(pack, description, patients)
    if pack.manifest.synthetic:
        for figure in figures.values():
            figure.suptitle("SYNTHETIC: drawn phantoms, not patients", fontsize=9, color=RED)
    return figures


def _canvas(rows: int, columns: int, height: float) -> tuple[Figure, NDArray[np.object_]]:
    """Return a figure `height` inches tall and its axes (rows, columns)."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def shortened(name: str, length: int = 16) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _set_title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10, parse_math=False)


def _legend_above(axes: Axes) -> None:
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2, fontsize=9)


def _label_institutions(axes: Axes, places: Sequence[float], names: Sequence[str], *, room: int) -> None:
    """Write the names below the axes; vertically if they have more than `room` letters together."""
    labels = [shortened(name) for name in names]
    vertical = len("".join(labels)) > room
    axes.set_xticks(places, labels, rotation=90 if vertical else 0, parse_math=False)
    axes.tick_params(axis="x", length=0)


def _draw_class_balance(description: Description) -> Figure:
    rows = description.institutions.iloc[::-1]
    share = float(description.counts["positive_share"].iloc[0])
    figure, [[axes]] = _canvas(1, 1, 1.3 + 0.36 * len(rows))
    _set_title(axes, f"Slices with {description.noun}: {share:.1%} of all")
    names = [f"{shortened(str(name))} ({patients})" for name, patients in rows["patients"].items()]
    places, empty = np.arange(len(rows)), rows["slices"] - rows["positive_slices"]
    axes.barh(places, rows["positive_slices"], color=RED, label=description.noun)
    axes.barh(places, empty, left=rows["positive_slices"], color=EMPTY, label=f"no {description.noun}")
    for place, (slices, positive) in enumerate(zip(rows["slices"], rows["positive_share"], strict=True)):
        end, offset = (slices, place), (4, 0)
        axes.annotate(f"{positive:.0%}", end, offset, textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(places, names, parse_math=False)
    axes.set(xlabel="slices", ylabel="institution (patients)")
    set_whole_ticks(axes, "x")
    axes.margins(x=0.08)
    _legend_above(axes)
    return figure


def _by_institution(values: pd.Series[float], description: Description) -> list[tuple[str, NDArray[np.float64]]]:
    """Return each institution with the sorted values of its patients; undefined values are left out."""
    defined = values.dropna()
    institutions = description.patients["institution"].reindex(defined.index)
    return [(str(name), np.sort(group.to_numpy(float))) for name, group in defined.groupby(institutions)]


def _draw_patient_balance(description: Description) -> Figure:
    all_shares = description.patients["positive_share"]
    figure, [[axes]] = _canvas(1, 1, 3.2)
    start, ticks = 0, {}
    for name, shares in _by_institution(all_shares, description):
        stop = start + len(shares)
        axes.bar(range(start, stop), 1 - shares, bottom=shares, width=0.85, color=EMPTY)
        axes.bar(range(start, stop), shares, width=0.85, color=RED)
        pooled = description.institutions.loc[name, "positive_share"]
        axes.hlines(pooled, start - 0.5, stop - 0.5, color="0.1", linewidth=1.2)
        ticks[name] = (start + stop - 1) / 2
        start = stop + 1  # a gap between institutions
    low, middle, high = all_shares.min(), all_shares.median(), all_shares.max()
    _set_title(
        axes, f"Slices with {description.noun} per patient: median {middle:.0%}, from {low:.0%} to {high:.0%}"
    )
    axes.set(ylabel="share of slices", ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.margins(x=0.01)
    _label_institutions(axes, list(ticks.values()), list(ticks), room=70)
    return figure


def _draw_tumour_area(pack: Pack, description: Description) -> Figure:
    noun, areas = description.noun, list(description.pixel_counts.areas.T)
    totals = [pd.Series(own).groupby(pack.index["case"]).sum().to_numpy() for own in areas]
    slices, patients = (int(np.any(sizes, axis=0).sum()) for sizes in (areas, totals))
    figure, [[left, right]] = _canvas(1, 2, 3.1)
    _draw_sizes(left, pack.structures, areas, f"{slices:,} positive slices", f"{noun} area of a slice", "slices")
    if len(areas) > 1:
        _legend_above(left)
    title = f"{patients:,} patients with {noun}"
    _draw_sizes(right, pack.structures, totals, title, f"{noun} of all slices", "patients")
    return figure


def _colours(structures: Structures, single: str) -> dict[str, str]:
    """Return the colour of each structure by its name, `single` for the only one."""
    alone = len(structures) == 1
    return {name: single if alone else colour_of(k) for k, name in enumerate(structures.names)}


def _draw_sizes(
    axes: Axes,
    structures: Structures,
    sizes: Sequence[NDArray[np.int64]],
    title: str,
    size: str,
    counted: str,
) -> None:
    """Draw a histogram of the pixels of each structure where it has some, `sizes` (K, N)."""
    _set_title(axes, title)
    axes.set(xscale="log", xlabel=f"{size} (pixels)", ylabel=counted)
    every = np.concatenate(sizes)
    if not every.any():
        return
    bins = np.geomspace(every[every > 0].min(), every.max() + 1, 31)
    lines = {0.05: "--", 0.5: "-", 0.95: "--"}
    for row, (own, (name, colour)) in enumerate(zip(sizes, _colours(structures, HUES[0]).items(), strict=True)):
        own, line = own[own > 0], colour if len(sizes) > 1 else RED
        axes.hist(
            own,
            bins=list(bins),
            color=colour,
            edgecolor="white",
            linewidth=0.6,
            label=name,
            alpha=1 - 0.4 * (row > 0),
        )
        for share in lines if len(own) else ():
            value = float(np.quantile(own, share))
            axes.axvline(value, color=line, linewidth=1.1, linestyle=lines[share])
            axes.annotate(
                f"{value:,.0f}", (value, 1), (-3, -1 - 9 * row), xycoords=axes.get_xaxis_transform(),
                textcoords="offset points", ha="right", va="top", fontsize=8, color=line,
            )  # fmt: skip
    axes.margins(y=0.18)
    set_whole_ticks(axes, "y")
    set_log_ticks(axes, "x")


def _draw_tumour_location(pack: Pack, description: Description) -> Figure:
    count, positive = len(pack.index), int(pack.index["positive"].sum())
    figure, [[plane, depth]] = _canvas(1, 2, 3.7)
    _set_title(plane, f"in the plane: {positive:,} positive slices")
    image = plane.imshow(100 * description.pixel_counts.tumour / max(positive, 1), cmap=SHADES, vmin=0)
    figure.colorbar(image, ax=plane, label=f"positive slices with {description.noun} here (%)", shrink=0.8)
    limits, head = plane.axis(), description.pixel_counts.head
    for share, style in ((0.05, ":"), (0.5, "-")):
        if head.min() < share * count <= head.max():
            plane.contour(head, [share * count], colors="white", linewidths=0.9, linestyles=style)
    plane.axis(limits)
    plane.set(xticks=[], yticks=[])
    plane.spines[:].set_visible(False)
    _set_title(depth, f"along the stack: {len(description.patients):,} patients")
    shares = share_by_depth(pack, description.pixel_counts.areas)
    for own, (name, colour) in zip(shares, _colours(pack.structures, RED).items(), strict=True):
        depth.fill_between(DEPTHS, own, color=colour, alpha=0.85 / len(shares), linewidth=0)
        if len(shares) > 1:
            depth.plot(DEPTHS, own, color=colour, label=name)
            _legend_above(depth)
    depth.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="position in the stack", ylabel=f"patients with {description.noun} there"
    )
    depth.set_xticks([0, 0.5, 1], ["first slice", "middle", "last slice"])
    depth.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def share_by_depth(pack: Pack, areas: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of patients with each structure on the slice nearest to each of `DEPTHS`, (K, D).

    `areas` (N, K) are the pixels of each structure in each slice of the pack.
    """
    stacks = [areas[pack.rows([case])] > 0 for case in pack.cases]
    marked = np.array([stack[np.rint(DEPTHS * (len(stack) - 1)).astype(int)] for stack in stacks], float)
    return np.asarray(marked.mean(0).T)


def _draw_tumour_levels(pack: Pack, description: Description) -> Figure:
    channels = pack.manifest.channels
    figure, grid = _canvas(2, len(channels), 4.6)
    auroc = median_over_patients(description.contrast)["auroc"]
    kinds = {f"rest of the {description.pixel_counts.region}": GREY} | _colours(pack.structures, RED)
    for column, channel in enumerate(channels):
        raw, standardised = grid[:, column]
        name = shortened(channel)
        counts = description.pixel_counts.levels[:, column]
        own = auroc[auroc.index.get_level_values("channel") == channel].dropna()
        known = ", ".join(f"{value:.2f}" for value in own)
        _set_title(raw, f"{name}: AUROC {known}" if known else name)
        _draw_densities(raw, counts, np.broadcast_to(np.arange(256.0), (len(counts), 256)), LEVELS, kinds)
        _draw_densities(standardised, counts, _standardised_levels(counts.sum(1)), SCORES, kinds)
        raw.set_xlabel("grey level")
        standardised.set_xlabel("standard deviations")
    for axes in grid[:, 0]:
        axes.set_ylabel("share of pixels")
    if grid[0, -1].get_legend_handles_labels()[0]:
        grid[0, -1].legend(frameon=False, fontsize=9, loc="upper right")
    return figure


def _standardised_levels(head: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standardise the grey levels 0 to 255 for each patient (P, 256), from histograms of the heads (P, 256)."""
    values, count = np.arange(256), np.maximum(head.sum(1), 1)
    deviation = values - (head @ values / count)[:, None]
    sd = np.sqrt((head * deviation**2).sum(1) / count)
    return np.asarray(deviation / np.where(sd > 0, sd, 1)[:, None])


def _draw_densities(
    axes: Axes,
    counts: NDArray[np.int64],
    values: NDArray[np.float64],
    edges: NDArray[np.float64],
    kinds: Mapping[str, str],
) -> None:
    """Draw each kind of pixel, its colour by its name in `kinds`, from counts (P, 1 + K, 256), over patients.

    `values` (P, 256) are the levels of a patient.
    """
    for kind, (label, colour) in enumerate(kinds.items()):
        shares = [
            np.histogram(levels, edges, weights=pixels)[0] / pixels.sum()
            for pixels, levels in zip(counts[:, kind], values, strict=True)
            if pixels.any()
        ]
        if shares:
            axes.stairs(np.mean(shares, 0), edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(np.mean(shares, 0), edges, color=colour, linewidth=1.3, label=label)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, None), yticks=[])


def _draw_intensity(pack: Pack, description: Description) -> Figure:
    channels = pack.manifest.channels
    figure, grid = _canvas(1, len(channels), 3.3)
    brightest = description.contrast["rest_mean"].max()
    for axes, channel in zip(grid[0], channels, strict=True):
        level = (
            description.contrast["rest_mean"]
            .xs(channel, level="channel")
            .groupby(level="case", sort=False)
            .first()
        )
        ratio = f": maximum / minimum {level.max() / level.min():.1f}" if level.min() > 0 else ""
        _set_title(axes, f"{shortened(channel)}{ratio}")
        groups = _by_institution(level, description)
        for place, (_, levels) in enumerate(groups):
            jitter = 0.3 * np.sin(2.4 * np.arange(len(levels)))  # keeps equal levels from hiding each other
            axes.scatter(place + jitter, levels, s=14, color=HUES[place % len(HUES)], alpha=0.8, linewidth=0)
            axes.hlines(np.median(levels), place - 0.4, place + 0.4, color="0.1", linewidth=1.4)
        axes.set_ylim(0, 1.05 * brightest if brightest > 0 else 1)
        _label_institutions(axes, range(len(groups)), [name for name, _ in groups], room=20)
    grid[0, 0].set_ylabel(f"mean grey level of the {description.pixel_counts.region}")
    return figure


def choose_example_patients(patients: pd.DataFrame) -> dict[str, str]:
    """Choose patients with a small, a median and a large tumour; fewer if few patients have tumour."""
    pixels = next(str(name) for name in patients if str(name).endswith("_pixels"))
    ranked = patients[patients[pixels] > 0].sort_values(pixels, kind="stable")
    if ranked.empty:
        return {}
    chosen = {size: str(ranked.index[round(share * (len(ranked) - 1))]) for size, share in SIZES.items()}
    return {size: case for size, case in chosen.items() if chosen["median"] != case or size == "median"}


def _draw_examples(pack: Pack, description: Description, patients: dict[str, str]) -> Figure:
    channels = pack.manifest.channels
    channel = display_channel(channels)
    figure, grid = _canvas(len(patients), 4, 2.12 * len(patients) + 0.8)
    for row, (size, case) in zip(grid, patients.items(), strict=True):
        rows = pack.rows([case])
        slices = pack.index.iloc[rows]
        largest = int(slices["pixels"].to_numpy().argmax())
        bright = max(float(np.percentile(pack.images[rows][..., channel], 99.5)), 1)
        scan, masks = pack.images[rows[largest]][..., channel], pack.truth(rows[largest])
        _draw_example(
            row, scan, dict(zip(_colours(pack.structures, OUTLINE).values(), masks, strict=True)), bright
        )
        number, area = slices["slice"].iloc[largest], slices["pixels"].iloc[largest]
        total = description.patients[f"{description.noun}_pixels"][case]
        row[0].set_ylabel(f"{size} {description.noun}: {total:,} px\nslice {number}: {area:,} px", fontsize=9)
    for axes, title in zip(grid[0], (shortened(channels[channel]), "in colour", "mask", "overlay"), strict=True):
        _set_title(axes, title)
    shades = ScalarMappable(cmap=SHADES)
    scale = figure.colorbar(shades, ax=grid, location="bottom", shrink=0.3, aspect=26, pad=0.02)
    scale.set_ticks([0, 1], labels=["0", "99.5th percentile"], fontsize=8)
    return figure


def _draw_example(
    row: NDArray[np.object_], scan: Pixels, masks: Mapping[str, NDArray[np.bool_]], bright: float
) -> None:
    """Draw a slice on four axes, with the masks (H, W) of structures by their colour."""
    for axes in row:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    grey, colour, truth, overlay = row
    for axes, shades in ((grey, "gray"), (colour, SHADES), (overlay, "gray")):
        axes.imshow(scan, cmap=shades, vmin=0, vmax=bright, interpolation="nearest")
    limits, (height, width) = overlay.axis(), scan.shape
    picture = np.zeros((height, width, 3))
    for colour, mask in masks.items():
        picture[mask] = to_rgb(colour if len(masks) > 1 else "white")
        padded = np.arange(-1, width + 1), np.arange(-1, height + 1), np.pad(mask, 1)  # closed along the border
        overlay.contourf(*padded, [0.5, 1.5], colors=colour, alpha=0.25)
        overlay.contour(*padded, [0.5], colors=colour, linewidths=1.2)
    truth.imshow(picture, interpolation="nearest")
    overlay.axis(limits)
