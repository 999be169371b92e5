"use strict";

// The arithmetic of the table of pairs: percentiles, similar pairs, filters and orders. It touches no page.
const pairMath = (() => {
  const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);

  // The share of the other pairs with a lower value, ties counted half, in [0, 100]; null without another pair.
  function percentile(values, place) {
    if (!known(values[place])) return null;
    let [lower, equal, others] = [0, 0, 0];
    values.forEach((value, at) => {
      if (at === place || !known(value)) return;
      others += 1;
      if (value < values[place]) lower += 1;
      else if (value === values[place]) equal += 1;
    });
    return others ? (100 * (lower + equal / 2)) / others : null;
  }

  function standardised(values) {
    const own = values.filter(known);
    const mean = own.reduce((sum, value) => sum + value, 0) / own.length;
    const deviation = Math.sqrt(own.reduce((sum, value) => sum + (value - mean) ** 2, 0) / own.length);
    return deviation > 1e-12 * Math.abs(mean) ? values.map((value) => (known(value) ? (value - mean) / deviation : null)) : null;
  }

  // The nearest pairs by standardised metrics: [place, distance], the root of the mean square over common metrics.
  function similar(columns, place, count) {
    const scaled = columns.map(standardised).filter((column) => column && known(column[place]));
    const found = [];
    const pairs = columns[0]?.length ?? 0;
    for (let other = 0; other < pairs; other += 1) {
      if (other === place) continue;
      let [sum, common] = [0, 0];
      for (const column of scaled) {
        if (!known(column[other])) continue;
        sum += (column[other] - column[place]) ** 2;
        common += 1;
      }
      if (common) found.push([other, Math.sqrt(sum / common)]);
    }
    return found.sort((one, two) => one[1] - two[1] || one[0] - two[0]).slice(0, count);
  }

  // Words that names must contain, and conditions such as ties<0.8 on columns; the names of unknown columns.
  function parse(text, columns) {
    const [words, conditions, unknown] = [[], [], []];
    for (const token of text.toLowerCase().split(/\s+/)) {
      const [, name, sign, bound] = /^(.+?)(<=|>=|<|>)(-?\d*\.?\d+(?:e-?\d+)?)$/.exec(token) ?? [];
      if (name === undefined) {
        if (token && token !== "+") words.push(token);
      } else if (columns.has(name)) conditions.push([columns.get(name), sign, Number(bound)]);
      else unknown.push(name);
    }
    return { words, conditions, unknown };
  }

  const holds = {
    "<": (value, bound) => value < bound,
    ">": (value, bound) => value > bound,
    "<=": (value, bound) => value <= bound,
    ">=": (value, bound) => value >= bound,
  };

  function filtered(names, { words, conditions }) {
    const kept = [];
    names.forEach((name, place) => {
      const text = name.toLowerCase();
      if (!words.every((word) => text.includes(word))) return;
      if (conditions.every(([values, sign, bound]) => known(values[place]) && holds[sign](values[place], bound))) kept.push(place);
    });
    return kept;
  }

  // Undefined values come last in either direction.
  function sorted(places, values, descending) {
    const compare = (one, two) =>
      typeof one === "string" || typeof two === "string" ? String(one).localeCompare(String(two), "en", { numeric: true }) : one - two;
    return [...places].sort((one, two) => {
      const [left, right] = [values[one], values[two]];
      if (!known(left) || !known(right)) return known(right) - known(left) || one - two;
      return (descending ? -1 : 1) * compare(left, right) || one - two;
    });
  }

  return { known, percentile, similar, parse, filtered, sorted };
})();
