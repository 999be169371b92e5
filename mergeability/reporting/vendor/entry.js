// The parts of plotly.js that figures of this package use; scatter is in the core.
const Plotly = require("plotly.js/lib/core");

Plotly.register([require("plotly.js/lib/bar"), require("plotly.js/lib/box"), require("plotly.js/lib/heatmap")]);
module.exports = Plotly;
