"""The style of plots on the report and on the study's page, and plots as SVG without a screen."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "Plot", "legend", "plot", "set_height"]

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#767676"  # Okabe and Ito, on white
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "svg.fonttype": "none",  # text stays text: small, and as crisp as the page
    "svg.hashsalt": "report",  # the same data give the same file
}
P = ParamSpec("P")


@dataclass(frozen=True)
class Plot:
    """A plot for a page: title, SVG image as data URI, caption, alternative text."""

    title: str
    image: str
    caption: str
    alt: str


def plot(draw: Callable[Concatenate[Axes, P], tuple[str, str, str]]) -> Callable[P, Plot]:
    """Make a function that draws on axes and returns title, caption and alternative text return a :class:`Plot`."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Plot:
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(4.2, 3.0), layout="constrained")
            FigureCanvasSVG(figure)
            title, caption, alt = draw(figure.subplots(), *args, **kwargs)
            file = io.BytesIO()
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        image = "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
        return Plot(title, image, caption, alt)

    return drawn


def set_height(axes: Axes, inches: float) -> None:
    """Set the height of the axes' figure; the standard is 3."""
    axes.get_figure(root=True).set_figheight(inches)  # type: ignore[union-attr]


def legend(axes: Axes) -> None:
    """A legend above the axes."""
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0, handletextpad=0.4)
