"use strict";

// Numbers from lists of numbers; no page is needed here.
const statistics = (() => {
  // Like numpy.quantile: linear between the two nearest values.
  function quantile(sorted, share) {
    const at = share * (sorted.length - 1);
    const below = Math.floor(at);
    const above = Math.min(below + 1, sorted.length - 1);
    return sorted[below] + (at - below) * (sorted[above] - sorted[below]);
  }

  function mean(values) {
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : NaN;
  }

  // The standard deviation is that of the values themselves (n, not n − 1).
  function summary(values) {
    const sorted = Float64Array.from(values).sort();
    const centre = mean(values);
    return {
      n: values.length,
      mean: centre,
      sd: Math.sqrt(mean(values.map((value) => (value - centre) ** 2))),
      low: sorted[0],
      q1: quantile(sorted, 0.25),
      median: quantile(sorted, 0.5),
      q3: quantile(sorted, 0.75),
      high: sorted[sorted.length - 1],
    };
  }

  // A point is on the front if no other is at least as good in both and better in one.
  function onFront(points) {
    const order = points.map((_, place) => place).sort((a, b) => points[b].x - points[a].x || points[b].y - points[a].y);
    const front = new Array(points.length).fill(false);
    let best = -Infinity;
    for (let start = 0; start < order.length; ) {
      // Points of one x are compared with each other first: only the highest of them can be on the front.
      const highest = points[order[start]].y;
      let end = start;
      for (; end < order.length && points[order[end]].x === points[order[start]].x; end += 1) {
        front[order[end]] = points[order[end]].y === highest && highest > best;
      }
      best = Math.max(best, highest);
      start = end;
    }
    return front;
  }

  // The largest coefficients by magnitude; a zero selects nothing.
  function leading(weights, count) {
    const order = weights.map((_, place) => place).sort((a, b) => Math.abs(weights[b]) - Math.abs(weights[a]) || a - b);
    return new Set(order.slice(0, count).filter((place) => weights[place] !== 0));
  }

  // Share of metrics among the `count` largest of both; NaN of none.
  function topOverlap(first, second, count = 5) {
    const top = Math.min(count, first.length);
    if (!top) return NaN;
    const chosen = leading(second, top);
    return [...leading(first, top)].filter((place) => chosen.has(place)).length / top;
  }

  // Share of metrics whose coefficients have equal sign; 0 equals 0 only.
  function signAgreement(first, second) {
    return mean(first.map((weight, place) => Number(Math.sign(weight) === Math.sign(second[place]))));
  }

  return { quantile, mean, summary, onFront, topOverlap, signAgreement };
})();
