"use strict";

// What the page holds, the choice among it, and tables of what is chosen; no page is needed here.
const makeData = (content, statistics) => {
  const text = (value) => (value === null || value === undefined ? "unknown" : value === "" ? "none" : String(value));
  const named = (place) => content.names[place];

  const settingOf = (run) =>
    run.penalty === null ? "unknown" : run.penalty === "none" ? "none" : `${run.penalty}, λ = ${run.strength}`;

  const runs = content.runs.map((run) => {
    const outcomes = new Map(content.targets.map((target) => [target, new Map()]));
    for (const [target, method, values] of run.outcomes ?? []) outcomes.get(target).set(named(method), values);
    return {
      ...run,
      a: run.ends ? run.ends[0] : [],
      b: run.ends ? run.ends[1] : [],
      outcomes,
      setting: settingOf(run),
      methods: run.methods.map(named),
      repeatedMethods: new Set(run.repeated_methods.map(named)),
      variant: run.variant ?? "",
      taskNames: run.tasks.map((task) => content.tasks[task]),
      ownBy: new Map(run.tasks.map((task, place) => [task, run.own[place]])),
      metrics: new Map((run.metrics ?? []).map(([name, values]) => [named(name), values])),
      age: run.repeated ? "older repeats" : "newest",
    };
  });
  const trainings = content.trainings.map((row) => {
    const one = Object.fromEntries(content.training_columns.map((name, place) => [name, row[place]]));
    return { ...one, variant: one.variant ?? "", setting: settingOf(one) };
  });

  const byNumber = (a, b) => (a ?? Infinity) - (b ?? Infinity);
  const byText = (a, b) => text(a).localeCompare(text(b));
  const plainFirst = (a, b) => (b === "none") - (a === "none") || byText(a, b);
  const asFound = () => 0;

  // A facet: its values in order, and those that are not chosen. Values are compared as text.
  function facet(name, caption, of, order, trained) {
    const found = new Map();
    const add = (value) => found.set(text(value), value);
    for (const run of runs) of(run).forEach(add);
    if (trained) for (const one of trainings) add(one[name]);
    const values = [...found].sort((a, b) => order(a[1], b[1])).map(([label]) => label);
    return { name, caption, values, excluded: new Set(), place: new Map(values.map((value, at) => [value, at])), of };
  }
  const facets = [
    facet("method", "Merge method", (run) => run.methods, asFound, false),
    facet("penalty", "Penalty", (run) => [run.penalty], plainFirst, true),
    facet("strength", "Strength λ", (run) => [run.strength], byNumber, true),
    facet("seed", "Seed", (run) => [run.seed], byNumber, true),
    facet("suite", "Suite", (run) => [run.suite], byText, false),
    facet("model", "Model", (run) => [run.model], byText, true),
    facet("variant", "Variant", (run) => [run.variant], byText, true),
    facet("other", "Other settings", (run) => [run.other], byText, false),
    facet("task", "Task", (run) => run.taskNames, asFound, true),
    facet("age", "Merges evaluated again", (run) => [run.age], byText, false),
  ];
  const facetOf = Object.fromEntries(facets.map((one) => [one.name, one]));
  // Of some runs only single methods are repeated: these are hidden by the same choice.
  if (runs.some((run) => run.repeatedMethods.size)) facetOf.age.values = ["newest", "older repeats"];
  facetOf.age.excluded.add("older repeats");
  const choice = { pairs: "both" };

  const RUN_FACETS = ["penalty", "strength", "seed", "suite", "model", "variant", "other", "age"];
  const allowed = (name, value) => !facetOf[name].excluded.has(text(value));
  const allowedOf = (name) => (run) => facetOf[name].of(run).every((value) => allowed(name, value));
  const shownRuns = () => runs.filter((run) => RUN_FACETS.every((name) => allowedOf(name)(run)));
  const shownTrainings = () =>
    trainings.filter((one) => ["task", "penalty", "strength", "seed", "model", "variant"].every((name) => allowed(name, one[name])));
  // A method that a newer run repeats with the same models and options would count twice.
  const shownMethods = (run) =>
    run.methods.filter(
      (method) => allowed("method", method) && (allowed("age", "older repeats") || !run.repeatedMethods.has(method)),
    );

  // The places of a run's pairs whose tasks are chosen: both, or at least one.
  function shownPairs(run) {
    const tasks = content.tasks.map((task) => allowed("task", task));
    const kept = choice.pairs === "both" ? (a, b) => tasks[a] && tasks[b] : (a, b) => tasks[a] || tasks[b];
    return run.a.map((_, place) => place).filter((place) => kept(run.a[place], run.b[place]));
  }

  const settings = [...new Map([...runs, ...trainings].map((one) => [one.setting, one])).values()]
    .sort((a, b) => plainFirst(a.penalty, b.penalty) || byNumber(a.strength, b.strength))
    .map((one) => one.setting);
  const settingPlace = new Map(settings.map((setting, place) => [setting, place]));
  const dimensions = [
    ["setting", "penalty and λ"],
    ["method", "merge method"],
    ["seed", "seed"],
    ["task", "task"],
    ["strength", "λ"],
    ["penalty", "penalty"],
    ["suite", "suite"],
    ["model", "model"],
    ["variant", "variant"],
    ["other", "other settings"],
    ["none", "nothing"],
  ];
  const order = (dimension, label) =>
    (dimension === "setting" ? settingPlace : facetOf[dimension]?.place)?.get(label) ?? -1;
  const count = (dimension) =>
    dimension === "setting" ? settings.length : dimension === "none" ? 1 : facetOf[dimension].values.length;

  // Call with every chosen outcome; a grouping by task meets each pair twice, once for each of its chosen tasks.
  function eachOutcome(target, byTask, visit) {
    for (const run of shownRuns()) {
      const pairs = shownPairs(run);
      for (const method of shownMethods(run)) {
        const values = run.outcomes.get(target)?.get(method);
        if (!values) continue;
        for (const place of pairs) {
          if (values[place] === null) continue;
          const ends = byTask ? [run.a[place], run.b[place]].filter((one) => allowed("task", content.tasks[one])) : [-1];
          for (const task of ends) visit(run, method, place, values[place], task < 0 ? "" : content.tasks[task]);
        }
      }
    }
  }

  function labelOf(name, run, method, task) {
    if (name === "none") return "";
    if (name === "method") return method;
    if (name === "task") return task;
    return text(run[name]);
  }

  // Group the chosen outcomes: labels of the dimensions, values, the models' own accuracies, and runs.
  function groups(target, names) {
    const found = new Map();
    let [last, group] = [[], null];
    eachOutcome(target, names.includes("task"), (run, method, place, value, task) => {
      // Outcomes of one run and method come one after another: their labels are written once.
      if (run !== last[0] || method !== last[1] || task !== last[2]) {
        const labels = names.map((name) => labelOf(name, run, method, task));
        const key = JSON.stringify(labels);
        if (!found.has(key)) found.set(key, { labels, values: [], own: [], runs: new Set() });
        [last, group] = [[run, method, task], found.get(key)];
      }
      const own = [run.a[place], run.b[place]].map((one) => run.ownBy.get(one) ?? null);
      group.values.push(value);
      group.own.push(own.includes(null) ? null : (own[0] + own[1]) / 2);
      group.runs.add(run);
    });
    return [...found.values()].sort((a, b) =>
      names.reduce((so, name, at) => so || order(name, a.labels[at]) - order(name, b.labels[at]), 0),
    );
  }

  // One point per group that has both accuracies, over the same pairs.
  function tradeOff(target, names) {
    const points = groups(target, names).flatMap((group) => {
      const both = group.values.map((_, at) => at).filter((at) => group.own[at] !== null);
      if (!both.length) return [];
      const x = statistics.mean(both.map((at) => group.own[at]));
      const y = statistics.mean(both.map((at) => group.values[at]));
      return [{ labels: group.labels, x, y, n: both.length, runs: group.runs.size }];
    });
    statistics.onFront(points).forEach((front, place) => (points[place].front = front));
    return points;
  }

  // What a heat map can show: outcomes of methods, then metrics.
  function columns() {
    const found = new Map();
    for (const target of content.targets) {
      for (const run of shownRuns()) {
        for (const method of shownMethods(run)) {
          if (run.outcomes.get(target).has(method)) found.set(JSON.stringify([target, method]), [target, method]);
        }
      }
    }
    for (const run of shownRuns()) {
      for (const metric of run.metrics.keys()) found.set(JSON.stringify(["metric", metric]), ["metric", metric]);
    }
    return [...found].map(([key, [kind, name]]) => ({ key, kind, name }));
  }

  // The mean of a column over the chosen runs, task by task.
  function matrix(kind, name) {
    const sums = new Map();
    const used = new Set();
    let from = 0;
    for (const run of shownRuns()) {
      const shown = kind === "metric" || shownMethods(run).includes(name);
      const values = kind === "metric" ? run.metrics.get(name) : run.outcomes.get(kind)?.get(name);
      if (!values || !shown) continue;
      from += 1;
      for (const place of shownPairs(run)) {
        if (values[place] === null) continue;
        const ends = [run.a[place], run.b[place]].sort((a, b) => a - b);
        ends.forEach((task) => used.add(task));
        const key = ends.join(" ");
        const [sum, number] = sums.get(key) ?? [0, 0];
        sums.set(key, [sum + values[place], number + 1]);
      }
    }
    const tasks = [...used].sort((a, b) => a - b);
    const cell = (a, b) => sums.get([a, b].sort((x, y) => x - y).join(" ")) ?? [NaN, 0];
    const z = tasks.map((a) => tasks.map((b) => (a === b || !cell(a, b)[1] ? null : cell(a, b)[0] / cell(a, b)[1])));
    const n = tasks.map((a) => tasks.map((b) => (a === b ? 0 : cell(a, b)[1])));
    return { tasks: tasks.map((task) => content.tasks[task]), z, n, runs: from };
  }

  // The protocols and predictors of the chosen runs, in order of appearance.
  function studied(part) {
    const found = new Map();
    for (const run of shownRuns()) {
      for (const row of run[part] ?? []) {
        const [protocol, predictor] = part === "scores" ? [row[0], named(row[3])] : [row[0], named(row[1])];
        if (!found.has(protocol)) found.set(protocol, new Set());
        found.get(protocol).add(predictor);
      }
    }
    return found;
  }

  function predicted(protocol, predictor) {
    const points = [];
    for (const run of shownRuns()) {
      const [pairs, methods] = [shownPairs(run), shownMethods(run)];
      for (const [ofProtocol, ofPredictor, of, values] of run.predictions ?? []) {
        const method = named(of);
        if (ofProtocol !== protocol || named(ofPredictor) !== predictor || !methods.includes(method)) continue;
        const measured = run.outcomes.get(run.target)?.get(method) ?? [];
        for (const place of pairs) {
          if (values[place] === null || (measured[place] ?? null) === null) continue;
          points.push({ x: measured[place], y: values[place], method, run, place });
        }
      }
    }
    return points;
  }

  // Mean correlation by predictor and method over the chosen runs: predictor → method → [mean, runs].
  function correlations(protocol, target) {
    const found = new Map();
    for (const run of shownRuns()) {
      const methods = shownMethods(run);
      for (const [ofProtocol, ofTarget, of, by, r] of run.scores ?? []) {
        const [method, predictor] = [named(of), named(by)];
        if (ofProtocol !== protocol || ofTarget !== target || !methods.includes(method)) continue;
        if (!found.has(predictor)) found.set(predictor, new Map());
        const own = found.get(predictor);
        if (!own.has(method)) own.set(method, []);
        own.get(method).push(r);
      }
    }
    return found;
  }

  // Mean coefficients over the chosen runs, and how far those of every two methods agree.
  function fingerprints(protocol, predictor) {
    const byMethod = new Map();
    for (const run of shownRuns()) {
      const methods = shownMethods(run);
      for (const [ofProtocol, by, of, metrics, values] of run.coefficients ?? []) {
        const method = named(of);
        if (ofProtocol !== protocol || named(by) !== predictor || !methods.includes(method)) continue;
        if (!byMethod.has(method)) byMethod.set(method, new Map());
        const own = byMethod.get(method);
        metrics.forEach((metric, at) => {
          if (values[at] === null) return;
          if (!own.has(named(metric))) own.set(named(metric), []);
          own.get(named(metric)).push(values[at]);
        });
      }
    }
    const methods = [...byMethod.keys()];
    const metrics = [...new Set(methods.flatMap((method) => [...byMethod.get(method).keys()]))];
    const weight = (method, metric) => {
      const values = byMethod.get(method).get(metric);
      return values ? statistics.mean(values) : null;
    };
    const weights = metrics.map((metric) => methods.map((method) => weight(method, metric)));
    const compared = (measure) =>
      methods.map((first, i) =>
        methods.map((second, j) => {
          if (first === second) return null;
          const both = weights.filter((row) => row[i] !== null && row[j] !== null);
          const value = measure(both.map((row) => row[i]), both.map((row) => row[j]));
          return Number.isNaN(value) ? null : value;
        }),
      );
    return {
      methods,
      metrics,
      weights,
      overlap: compared(statistics.topOverlap),
      agreement: compared(statistics.signAgreement),
    };
  }

  return {
    runs, trainings, facets, choice, dimensions, targets: content.targets, tasks: content.tasks, text, count, order,
    shownRuns, shownTrainings, shownMethods, groups, tradeOff, columns, matrix, studied, predicted, correlations,
    fingerprints,
  };
};
