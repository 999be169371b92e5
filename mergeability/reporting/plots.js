"use strict";

// Draw Plotly's figures in the look of all pages, light or dark, and save them as images.
const plots = (() => {
  // Figures are written in the colours of the light theme; these take their place in the dark one.
  const DARK = {
    "#1f2933": "#e4eaf0", "#6b7785": "#a3b1bf", "#e3e8ee": "#2c3742", "#e9edf2": "#27313b", "#eef1f4": "#222b34",
    "#c4ced8": "#465462", "#fff": "#12181f", "#d5dbe1": "#55616d", "#2166ac": "#62a8ea", "#3a9276": "#55b797",
    "#8c564b": "#c48a7d", "#4d4d4d": "#b5b5b5", "#17807e": "#3fb8b4", "#7a9a01": "#a5c332", "#d6604d": "#ec7f6d",
  };
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
  const drawn = new Map();

  const coloured = (part) => {
    if (typeof part === "string") return DARK[part] ?? part;
    if (Array.isArray(part)) return part.map(coloured);
    if (part === null || typeof part !== "object") return part;
    return Object.fromEntries(Object.entries(part).map(([key, inner]) => [key, coloured(inner)]));
  };

  // On a phone the cells of a heat map are smaller than what is written in them: hovering still tells.
  function fitting(trace, box) {
    const cell = trace.z?.length && trace.texttemplate ? (0.62 * box.clientWidth) / trace.z[0].length : Infinity;
    return cell < 32 ? { ...trace, texttemplate: "" } : trace;
  }

  // Names of columns that are narrower than a line of text would cover each other.
  const crowded = (figure, box) => figure.data.some((trace) => trace.z?.length && trace.z[0].length * 11 > 0.8 * box.clientWidth);

  function complete(box, figure, dark) {
    const layout = { ...look, ...figure.layout };
    for (const name of ["xaxis", "yaxis"]) layout[name] = { ...axis, ...figure.layout[name] };
    if (crowded(figure, box)) Object.assign(layout.xaxis, { showticklabels: false, ticks: "" });
    if (!layout.height) layout.autosize = true;
    const whole = { data: figure.data.map((trace) => fitting(trace, box)), layout };
    return dark ? coloured(whole) : whole;
  }

  function draw(box, figure) {
    drawn.set(box, figure);
    const { data, layout } = complete(box, figure, theme.dark);
    Plotly.react(box, data, layout, options);
  }

  // Images are light, for papers and slides.
  async function image(box, format) {
    const whole = complete(box, drawn.get(box), false);
    const size = { width: Math.max(box.clientWidth, 700), height: Math.max(box.clientHeight, 300), scale: format === "png" ? 2 : 1 };
    return Plotly.toImage({ ...whole, config: options }, { format, ...size });
  }

  theme.follow(() => drawn.forEach((figure, box) => box.isConnected && draw(box, figure)));
  return { draw, image };
})();
