"""Draw the figures that compare kinds of evidence."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from mergeability.reporting.figures.style import MUTED, PALETTE, figure_layout, in_template, label, rounded


def r_by_images(rows: pd.DataFrame, images_of: Mapping[str, str]) -> go.Figure:
    """Plot each predictor's r against the number of images, with intervals over tasks.

    Args:
        rows: one row per predictor and number of images: `predictor`, `images`, `r`, `r_low`, `r_high`.
        images_of: predictor → kind of images that its evidence is measured on.

    Returns:
        The figure, one line per predictor.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import r_by_images
        >>> rows = pd.DataFrame(
        ...     {"predictor": "probe", "images": [16, 64], "r": [0.5, 0.6], "r_low": [0.3, 0.5], "r_high": [0.6, 0.7]}
        ... )
        >>> figure = r_by_images(rows, {"probe": "unlabelled"})
        >>> figure.data[0].name, figure.data[0].x, figure.layout.xaxis.title.text
        ('probe (unlabelled)', (16, 64), 'images of each task')
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
