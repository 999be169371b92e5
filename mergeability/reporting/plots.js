"use strict";

// Draw Plotly's figures in the look of all pages.
const plots = (() => {
  const look = {
    font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif", size: 12.5, color: "#1f2933" },
    margin: { l: 8, r: 8, t: 12, b: 8 },
    paper_bgcolor: "#fff",
    plot_bgcolor: "#fff",
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", xanchor: "left" },
    hoverlabel: { bgcolor: "#fff", bordercolor: "#c4ced8", font: { color: "#1f2933" } },
  };
  const axis = { automargin: true, gridcolor: "#e9edf2", zerolinecolor: "#c4ced8", linecolor: "#c4ced8" };
  const options = { responsive: true, displaylogo: false, displayModeBar: false };

  // On a phone the cells of a heat map are smaller than what is written in them: hovering still tells.
  function fitting(trace, box) {
    const cell = trace.z?.length && trace.texttemplate ? (0.62 * box.clientWidth) / trace.z[0].length : Infinity;
    return cell < 32 ? { ...trace, texttemplate: "" } : trace;
  }

  function draw(box, figure) {
    const layout = { ...look, ...figure.layout };
    for (const name of ["xaxis", "yaxis"]) layout[name] = { ...axis, ...figure.layout[name] };
    if (!layout.height) layout.autosize = true;
    Plotly.react(box, figure.data.map((trace) => fitting(trace, box)), layout, options);
  }

  return { draw };
})();
