"""Figures that compare kinds of evidence."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from mergeability.reporting.figures.style import MUTED, PALETTE, figure_layout, in_template, label, rounded


def r_by_images(rows: pd.DataFrame, images_of: Mapping[str, str]) -> go.Figure:
    """Draw each predictor's r against the number of images, with intervals over tasks.

    Args:
        rows: `predictor`, `images`, `r`, `r_low`, `r_high`.
        images_of: predictor → the kind of images that its evidence is taken on.
    """
    figure = go.Figure(
        layout=figure_layout(
            xaxis={"title": {"text": "images of each task"}, "type": "log"},
            yaxis={"title": {"text": "r beyond the mean"}, "zerolinecolor": MUTED},
            height=440,
        )
    )
    for position, (predictor, own) in enumerate(rows.groupby("predictor", sort=False)):
        own = own.sort_values("images")
        figure.add_scatter(
            x=own["images"].tolist(),
            y=rounded(own["r"].to_numpy()),
            mode="lines+markers",
            name=f"{label(str(predictor))} ({images_of[str(predictor)]})",
            line={"color": PALETTE[position % len(PALETTE)], "width": 2},
            error_y={
                "array": rounded((own["r_high"] - own["r"]).to_numpy()),
                "arrayminus": rounded((own["r"] - own["r_low"]).to_numpy()),
                "thickness": 1,
                "width": 3,
            },
            hovertemplate=f"{in_template(predictor)}, %{{x}} images: %{{y:.3f}}<extra></extra>",
        )
    return figure
