"""The outlier atlas on the terminal and as pictures."""

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from int8pass.bench.charts import save
from int8pass.experiments.atlas import LAYER_SHARE, MAGNITUDE, POSITION_SHARE, Atlas, Feature

_SHOWN = 20  # features in the pictures of shares and magnitudes
_OUTLIER, _OTHER = "#d62728", "#9a9a9a"


def feature_table(atlas: Atlas, limit: int = _SHOWN) -> Table:
    """A row a feature that reaches 6, most frequent first."""
    shown = Table(box=box.SIMPLE_HEAD)
    for heading in ("feature", "layers", "positions", "quartiles", "largest |x|", "one-sided", "outlier feature"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for feature in atlas.features[:limit]:
        shown.add_row(
            str(feature.index),
            f"{feature.layers:.0%}",
            f"{feature.positions:.1%}",
            _quartiles(feature),
            f"{feature.largest:.1f}",
            "yes" if feature.one_sided else "no",
            "yes" if feature.is_outlier else "",
        )
    return shown


def summary(atlas: Atlas) -> str:
    """The atlas in the words of the paper's Table 4 and Figure 3."""
    found = atlas.outliers
    hidden = len(atlas.features) - _SHOWN
    lines = [f"... and {hidden} features more that reach {MAGNITUDE:g}"] if hidden > 0 else []
    lines.append(
        f"{len(found)} of {atlas.width} features are outlier features (|x| >= {MAGNITUDE:g} in at least "
        f"{LAYER_SHARE:.0%} of the layers and at {POSITION_SHARE:.0%} of the positions), "
        f"{sum(feature.one_sided for feature in found)} of them one-sided"
    )
    lines.append(
        f"an outlier feature occurs in {atlas.layers_affected:.0%} of the layers and at "
        f"{atlas.positions_affected:.1%} of the positions"
    )
    lines.append(f"the largest |x| of all other features: {atlas.largest_other:.1f}")
    return "\n".join(lines)


def heat_map(atlas: Atlas, path: Path, title: str) -> Path:
    """The largest |x| of every feature at every place."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    made = Figure(figsize=(13.0, 1.6 + 0.26 * len(atlas.places)), dpi=100, layout="constrained")
    axis = made.subplots()
    image = axis.imshow(
        atlas.peaks.clamp_min(1.0).numpy(), aspect="auto", interpolation="nearest", cmap="magma_r",
        norm=LogNorm(1.0, max(10.0, float(atlas.peaks.max()))),
    )  # fmt: skip
    axis.set_yticks(
        range(len(atlas.places)), [f"layer {place.layer}  {place.name}" for place in atlas.places], fontsize=9
    )
    for feature in _apart(atlas.features, atlas.width / 60):
        color = _OUTLIER if feature.is_outlier else "#555555"
        place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
        axis.annotate(str(feature.index), (feature.index, -0.5), fontsize=9, color=color, **place)
    axis.set_xlabel(f"feature (above: those that reach {MAGNITUDE:g}; red: the outlier features)", fontsize=10)
    axis.set_title(f"{title}: largest |x| of each feature\n", fontsize=12)
    bar = made.colorbar(image, ax=axis, pad=0.01, format=lambda value, _: f"{value:g}")
    bar.ax.axhline(MAGNITUDE, color="black", linewidth=1.5)
    bar.set_label(f"largest |x| (line: {MAGNITUDE:g})", fontsize=10)
    return save(made, path)


def shares(atlas: Atlas, path: Path, title: str) -> Path:
    """Bars of the share of layers and positions of each feature, and the range of its values that reach 6."""
    from matplotlib.figure import Figure

    features = atlas.features[:_SHOWN]
    made = Figure(figsize=(13.0, 1.8 + 0.28 * len(features)), dpi=100, layout="constrained")
    axes = made.subplots(1, 3, sharey=True)
    made.suptitle(f"{title}: features with |x| >= {MAGNITUDE:g}, outlier features in red", fontsize=12)
    _bars(axes[0], [feature.layers for feature in features], features, LAYER_SHARE, "share of layers")
    _bars(axes[1], [feature.positions for feature in features], features, POSITION_SHARE, "share of positions")
    for row, feature in enumerate(features):
        first, middle, third = feature.quartiles
        axes[2].plot([first, third], [row, row], color=_color(feature), linewidth=7, solid_capstyle="butt")
        axes[2].plot([middle], [row], marker="|", color="black", markersize=12)
    axes[2].axvspan(-MAGNITUDE, MAGNITUDE, color="#eeeeee", zorder=0)
    axes[2].set_xlabel(f"values with |x| >= {MAGNITUDE:g}: first to third quartile, and median", fontsize=10)
    axes[0].set_yticks(range(len(features)), [str(feature.index) for feature in features], fontsize=9)
    axes[0].set_ylabel("feature", fontsize=10)
    axes[0].invert_yaxis()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return save(made, path)


def _bars(axis: Any, values: list[float], features: tuple[Feature, ...], limit: float, label: str) -> None:
    axis.barh(range(len(values)), values, color=[_color(feature) for feature in features], height=0.7)
    axis.axvline(limit, color="black", linewidth=1, linestyle="--")
    axis.set_xlabel(f"{label} (line: {limit:.0%})", fontsize=10)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _apart(features: tuple[Feature, ...], distance: float) -> list[Feature]:
    """The features whose numbers do not run into that of a more frequent one."""
    kept: list[Feature] = []
    for feature in features:
        if all(abs(feature.index - other.index) >= distance for other in kept):
            kept.append(feature)
    return kept


def _color(feature: Feature) -> str:
    return _OUTLIER if feature.is_outlier else _OTHER


def _quartiles(feature: Feature) -> str:
    return ", ".join(f"{value:.1f}" for value in feature.quartiles)
