"use strict";

// Figures and tables of what is chosen: each panel is a function that makes one that draws it.
const makePanels = (data, statistics, parts, style) => {
  const TARGETS = { norm_acc: "normalised accuracy", acc: "accuracy" };
  const PROTOCOLS = { loto: "one new task (leave one task out)", l2to: "two new tasks (leave two tasks out)" };
  const MOST_POINTS = 4000;
  const { escaped, number, plural, cells, choice, table, time, fill, draw, panel } = parts;
  const colour = (dimension, label, place) => {
    const at = data.order(dimension, label);
    return style.palette[(at < 0 ? place : at) % style.palette.length];
  };

  const targetOptions = () => data.targets.map((target) => [target, TARGETS[target]]);
  const dimensionOptions = (without) =>
    data.dimensions.filter(([name]) => !without.includes(name)).filter(([name]) => name === "none" || data.count(name) > 1 || name === "method" || name === "setting");
  const protocolOptions = (studied) => [...studied.keys()].map((name) => [name, PROTOCOLS[name] ?? name]);
  const predictorOptions = (studied, protocol) => [...(studied.get(protocol) ?? [])].map((name) => [name, name]);
  const heading = (name) => data.dimensions.find(([one]) => one === name)[1];
  const counted = (names) => (names.includes("task") ? " A pair counts for each of its chosen tasks." : "");
  const mixed = () => {
    const runs = data.shownRuns();
    const different = ["suite", "model", "other"].filter((name) => new Set(runs.map((run) => run[name])).size > 1);
    return different.length
      ? ` The shown runs differ in ${different.map(heading).join(", ")}: filter or group by them to compare like with like.`
      : "";
  };

  // Labels that do not fit next to each other lean to the left, where the page has room below them.
  const turned = (plot, labels) =>
    labels.reduce((sum, label) => sum + label.length * 7 + 14, 0) > plot.clientWidth - 60 ? { tickangle: -60 } : {};

  function merged(update) {
    const own = panel("merged");
    const target = choice(own.controls, "outcome", update);
    const along = choice(own.controls, "along the axis", update);
    const colours = choice(own.controls, "colours", update);
    const within = choice(own.controls, "split by", update);
    target.offer(targetOptions());
    const several = data.count("setting") > 1;
    along.offer(dimensionOptions(["none"]), several ? "setting" : "method");
    colours.offer(dimensionOptions([]), several ? "method" : data.count("suite") > 1 ? "suite" : "none");
    within.offer(dimensionOptions([]).reverse(), several && data.count("seed") > 1 && data.count("method") < 3 ? "seed" : "none");
    return () => {
      const names = [...new Set([along.value, within.value, colours.value])];
      const rows = data.groups(target.value, names).map((group) => {
        const of = (name) => group.labels[names.indexOf(name)];
        const axis = within.value === "none" || within.value === along.value ? of(along.value) : `${of(along.value)} · ${of(within.value)}`;
        return { ...group, axis, colour: of(colours.value), ...statistics.summary(group.values) };
      });
      own.note(rows.length ? `${counted(names)}${mixed()}`.trim() : "No outcomes are shown: no run that is chosen has merged anything.");
      own.plots[0].hidden = own.tables[0].hidden = !rows.length;
      if (!rows.length) return;
      const series = [...new Set(rows.map((row) => row.colour))];
      const traces = series.map((label, place) => {
        const some = rows.filter((row) => row.colour === label);
        const column = (name) => some.map((row) => row[name]);
        return {
          type: "box",
          name: escaped(label || "all"),
          showlegend: series.length > 1,
          x: some.map((row) => escaped(row.axis)),
          q1: column("q1"),
          median: column("median"),
          q3: column("q3"),
          lowerfence: column("low"),
          upperfence: column("high"),
          mean: column("mean"),
          boxmean: true,
          marker: { color: colour(colours.value, label, place) },
          line: { width: 1.5 },
          hoverinfo: "x+y+name",
        };
      });
      const axis = [...new Set(rows.map((row) => escaped(row.axis)))];
      const layout = {
        boxmode: "group",
        xaxis: { type: "category", categoryorder: "array", categoryarray: axis, showgrid: false, title: { text: heading(along.value) }, ...turned(own.plots[0], axis) },
        yaxis: { title: { text: TARGETS[target.value] } },
        height: 440,
      };
      draw(own.plots[0], { data: traces, layout }, `Boxes of ${TARGETS[target.value]} by ${heading(along.value)}; the table below has the numbers.`);
      const shown = names.filter((name) => name !== "none");
      table(
        own.tables[0],
        "Merged accuracy by group",
        [...shown.map((name) => [heading(name), true]), ...["runs", "pairs", "mean", "sd over pairs", "worst", "median", "best"].map((name) => [name, false])],
        rows.map((row) => [
          ...shown.map((name) => row.labels[names.indexOf(name)]),
          String(row.runs.size),
          String(row.n),
          ...[row.mean, row.sd, row.low, row.median, row.high].map((value) => number(value)),
        ]),
      );
    };
  }

  function pairs(update) {
    const own = panel("pairs");
    const column = choice(own.controls, "shown", update);
    return () => {
      const groups = { ...TARGETS, metric: "metric" };
      column.offer(data.columns().map(({ key, kind, name }) => [key, name.replaceAll("_", " "), groups[kind]]));
      const [kind, name] = column.value ? JSON.parse(column.value) : [];
      const found = column.value ? data.matrix(kind, name) : { tasks: [] };
      own.plots[0].hidden = !found.tasks.length;
      if (!found.tasks.length) return own.note("No pair is shown: choose at least two tasks and a run that measured them.");
      own.note(`The mean over ${plural(found.runs, "run")}. Grey cells were not measured.${mixed()}`);
      const values = found.z.flat().filter((value) => value !== null);
      let [low, high] = [Math.min(...values), Math.max(...values)];
      const signed = low < 0 && high > 0;
      if (signed) [low, high] = [-Math.max(-low, high), Math.max(-low, high)];
      const names = found.tasks.map(escaped);
      const trace = {
        type: "heatmap",
        x: names,
        y: names,
        z: found.z,
        zmin: low,
        zmax: high > low ? high : low + 1,
        colorscale: signed ? style.diverging : style.sequential,
        customdata: found.n,
        text: found.z.map(cells(Math.max(-low, high))),
        texttemplate: names.length <= 12 ? "%{text}" : "",
        textfont: { size: 10 },
        xgap: 1,
        ygap: 1,
        hoverongaps: false,
        hovertemplate: "%{y} + %{x}<br>%{z:.4g}, mean of %{customdata}<extra></extra>",
        colorbar: { orientation: "h", y: 1.01, yanchor: "bottom", thickness: 9, len: 0.7, outlinewidth: 0, tickfont: { size: 10 } },
      };
      const ticks = { type: "category", showgrid: false, dtick: 1, tickfont: { size: names.length > 12 ? 9 : 11 } };
      const layout = {
        plot_bgcolor: "#eef1f4",
        xaxis: { ...ticks, tickangle: -60, constrain: "domain" },
        yaxis: { ...ticks, autorange: "reversed", scaleanchor: "x", constrain: "domain" },
        height: Math.min(640, Math.max(360, own.plots[0].clientWidth * 1.05)),
      };
      draw(own.plots[0], { data: [trace], layout }, `Heat map of ${name} for every pair of tasks.`);
    };
  }

  function tradeOff(update) {
    const own = panel("trade-off");
    const target = choice(own.controls, "outcome", update);
    const per = choice(own.controls, "one point per", update);
    target.offer([...targetOptions()].reverse());
    per.offer([
      [JSON.stringify(["method", "setting"]), "method, penalty and λ"],
      [JSON.stringify(["method", "setting", "seed"]), "method, penalty, λ and seed"],
      [JSON.stringify(["setting"]), "penalty and λ (mean over methods)"],
      [JSON.stringify(["method", "model", "suite"]), "method, model and suite"],
    ]);
    return () => {
      const names = JSON.parse(per.value);
      const points = data.tradeOff(target.value, names);
      own.note(points.length ? mixed().trim() : "No point is shown: no run that is chosen has both accuracies of its models and of merges.");
      own.plots[0].hidden = own.tables[0].hidden = !points.length;
      if (!points.length) return;
      const series = [...new Set(points.map((point) => point.labels[0]))];
      const traces = series.map((label, place) => {
        const some = points.filter((point) => point.labels[0] === label);
        return {
          type: "scatter",
          mode: "markers",
          name: escaped(label),
          x: some.map((point) => point.x),
          y: some.map((point) => point.y),
          text: some.map((point) => escaped(point.labels.join(" · "))),
          marker: {
            color: colour(names[0], label, place),
            size: some.map((point) => (point.front ? 13 : 8)),
            line: { color: "#1f2933", width: some.map((point) => (point.front ? 2 : 0)) },
          },
          hovertemplate: "%{text}<br>single-task %{x:.3f}, merged %{y:.3f}<extra></extra>",
        };
      });
      const front = points.filter((point) => point.front).sort((a, b) => a.x - b.x || b.y - a.y);
      traces.unshift({
        type: "scatter",
        mode: "lines",
        name: "Pareto front",
        x: front.map((point) => point.x),
        y: front.map((point) => point.y),
        line: { color: "#6b7785", width: 1.5, dash: "dot" },
        hoverinfo: "skip",
      });
      const layout = {
        xaxis: { title: { text: "single-task accuracy" } },
        yaxis: { title: { text: `merged ${TARGETS[target.value]}` } },
        height: 460,
      };
      draw(own.plots[0], { data: traces, layout }, "Merged accuracy against single-task accuracy; the table below has the numbers.");
      const ordered = [...points].sort((a, b) => b.front - a.front || b.y - a.y);
      table(
        own.tables[0],
        "Merged and single-task accuracy",
        [...names.map((name) => [heading(name), true]), ["runs", false], ["pairs", false], ["single-task", false], ["merged", false], ["Pareto front", true]],
        ordered.map((point) => [...point.labels, String(point.runs), String(point.n), number(point.x), number(point.y), point.front ? "yes" : ""]),
        ordered.map((point) => point.front),
      );
    };
  }

  function predicted(update) {
    const own = panel("predicted");
    const protocol = choice(own.controls, "validated by", update);
    const predictor = choice(own.controls, "predictor", update);
    return () => {
      const [scored, drawn] = [data.studied("scores"), data.studied("predictions")];
      const either = new Map([...scored, ...drawn]);
      protocol.offer(protocolOptions(either), drawn.has("l2to") ? "l2to" : [...drawn.keys()][0]);
      const offered = predictorOptions(drawn, protocol.value);
      predictor.offer(offered, offered.some(([name]) => name === "ridge") ? "ridge" : undefined);
      const points = data.predicted(protocol.value, predictor.value);
      const found = data.correlations(protocol.value, data.shownRuns().find((run) => run.scores)?.target);
      own.tables[0].hidden = !found.size;
      own.plots[0].hidden = !points.length;
      if (!points.length && !found.size) return own.note("No run that is chosen made predictions.");
      const every = Math.ceil(points.length / MOST_POINTS);
      const less = every > 1 ? ` Of ${plural(points.length, "point")}, every ${every}th is drawn.` : "";
      const without = found.size ? "" : " Their correlations are undefined or were not recorded.";
      own.note(points.length ? `A pair that several folds predict is shown at their mean.${less}${without}` : "The predictions of these runs are not on this page; their correlations are.");
      const methods = [...new Set(points.map((point) => point.method))];
      const traces = methods.map((method, place) => {
        const some = points.filter((point, at) => point.method === method && at % every === 0);
        return {
          type: "scatter",
          mode: "markers",
          name: escaped(method),
          x: some.map((point) => point.x),
          y: some.map((point) => point.y),
          text: some.map(({ run, place: pair }) => escaped(`${data.tasks[run.a[pair]]} + ${data.tasks[run.b[pair]]}, ${run.folder}`)),
          marker: { color: colour("method", method, place), size: 6, opacity: 0.7 },
          hovertemplate: "%{text}<br>measured %{x:.3f}, predicted %{y:.3f}<extra></extra>",
        };
      });
      if (points.length) {
        const measured = points.map((point) => point.x);
        const [low, high] = [measured.reduce((a, b) => Math.min(a, b)), measured.reduce((a, b) => Math.max(a, b))];
        const exact = { type: "line", x0: low, y0: low, x1: high, y1: high, layer: "below", line: { color: "#a9b4c0", width: 1.5, dash: "dot" } };
        const layout = { xaxis: { title: { text: "measured" } }, yaxis: { title: { text: "predicted" } }, shapes: [exact], height: 460 };
        draw(own.plots[0], { data: traces, layout }, `Predicted outcomes against measured outcomes of ${predictor.value}.`);
      }
      const columns = [...new Set([...found.values()].flatMap((row) => [...row.keys()]))];
      const middle = (row) => statistics.mean([...row.values()].map(statistics.mean));
      table(
        own.tables[0],
        "Correlation of predicted and measured outcomes, mean over the chosen runs",
        [["predictor", true], ["mean", false], ...columns.map((method) => [method, false])],
        [...found]
          .sort((a, b) => middle(b[1]) - middle(a[1]))
          .map(([name, row]) => [name, number(middle(row)), ...columns.map((method) => (row.has(method) ? number(statistics.mean(row.get(method))) : "–"))]),
      );
    };
  }

  function fingerprints(update) {
    const own = panel("fingerprints");
    const protocol = choice(own.controls, "validated by", update);
    const predictor = choice(own.controls, "predictor", update);
    const grid = (rows, columns, z, extreme, scale, words) => ({
      type: "heatmap",
      x: columns.map(escaped),
      y: rows.map(escaped),
      z,
      zmin: extreme[0],
      zmax: extreme[1],
      colorscale: scale,
      showscale: false,
      text: z.map(cells(Math.max(-extreme[0], extreme[1]))),
      texttemplate: "%{text}",
      textfont: { size: 10 },
      xgap: 1,
      ygap: 1,
      hoverongaps: false,
      hovertemplate: `%{y}, %{x}<br>${words} %{z:.3f}<extra></extra>`,
    });
    // On a narrow screen long names would leave no room for the cells.
    const shortened = (name) => (name.length > 24 ? `${name.slice(0, 15)}…${name.slice(-8)}` : name);
    const layout = (rows, title, narrow) => ({
      plot_bgcolor: "#eef1f4",
      xaxis: { type: "category", showgrid: false, side: "top", title: { text: title } },
      yaxis: {
        type: "category",
        autorange: "reversed",
        showgrid: false,
        tickmode: "array",
        tickvals: rows.map(escaped),
        ticktext: rows.map((name) => escaped(narrow ? shortened(name) : name)),
        tickfont: { size: narrow ? 10 : 11 },
      },
      height: 120 + 22 * rows.length,
    });
    const map = (plot, rows, columns, z, extreme, scale, title, described) => {
      const narrow = plot.clientWidth < 500;
      const trace = grid(rows, columns, z, extreme, scale, title);
      if (narrow && rows.length > columns.length) trace.texttemplate = "";
      draw(plot, { data: [trace], layout: layout(rows, title, narrow) }, described);
    };
    return () => {
      const studied = data.studied("coefficients");
      protocol.offer(protocolOptions(studied));
      const offered = predictorOptions(studied, protocol.value);
      predictor.offer(offered, offered.some(([name]) => name === "ridge") ? "ridge" : undefined);
      const found = data.fingerprints(protocol.value, predictor.value);
      own.note(found.methods.length ? "" : "No coefficients are shown: no run that is chosen fitted a predictor that has them.");
      const several = found.methods.length > 1;
      own.plots.forEach((plot, place) => (plot.hidden = place ? !several : !found.methods.length));
      own.tables[0].hidden = !several;
      if (!found.methods.length) return;
      const largest = Math.max(...found.weights.flat().map((value) => Math.abs(value ?? 0))) || 1;
      const metrics = found.metrics.map((name) => name.replaceAll("_", " "));
      map(own.plots[0], metrics, found.methods, found.weights, [-largest, largest], style.diverging, "coefficient", `Coefficients of ${predictor.value} for each metric and method.`);
      if (!several) return;
      for (const [place, z, title] of [[1, found.overlap, "overlap of the five largest"], [2, found.agreement, "share of equal signs"]]) {
        map(own.plots[place], found.methods, found.methods, z, [0, 1], style.sequential, title, `${title} between methods; the table below has the numbers.`);
      }
      const rows = found.methods.flatMap((first, i) =>
        found.methods.slice(i + 1).map((second, j) => [first, second, number(found.overlap[i][i + 1 + j], 2), number(found.agreement[i][i + 1 + j], 2)]),
      );
      table(own.tables[0], "Agreement of methods", [["method", true], ["other method", true], ["overlap of the five largest", false], ["share of equal signs", false]], rows);
    };
  }

  function runs() {
    const own = panel("runs");
    return () => {
      const shown = data.shownRuns();
      own.note(shown.length ? "" : "No analysis is chosen.");
      own.tables[0].hidden = !shown.length;
      const columns = [
        ["report", true, (run) => (run.report ? { href: run.report, text: run.folder } : run.folder)],
        ["suite", true, (run) => data.text(run.suite)],
        ["model", true, (run) => data.text(run.model)],
        ["penalty and λ", true, (run) => run.setting],
        ["seed", true, (run) => data.text(run.seed)],
        ["variant", true, (run) => run.variant || "–"],
        ["pairs", false, (run) => run.pairs.toLocaleString("en")],
        ["minutes", false, (run) => number(run.seconds === null ? null : run.seconds / 60, 1)],
        ["finished", true, (run) => time(run)],
        ["repeated", true, (run) => (run.repeated ? "later" : "–")],
        ["other settings", true, (run) => run.other || "–"],
        ["methods", true, (run) => run.methods.join(", ") || "–"],
      ];
      fill(own.tables[0], "Analyses", columns, shown);
    };
  }

  function trainings() {
    const own = panel("trainings");
    return () => {
      const shown = data.shownTrainings();
      own.note(shown.length ? "" : "No training is chosen or was found.");
      own.tables[0].hidden = !shown.length;
      const gain = (one) => (one.accuracy === null || one.base_accuracy === null ? null : one.accuracy - one.base_accuracy);
      const columns = [
        ["task", true, (one) => one.task],
        ["model", true, (one) => data.text(one.model)],
        ["penalty and λ", true, (one) => one.setting],
        ["seed", true, (one) => data.text(one.seed)],
        ["variant", true, (one) => one.variant || "–"],
        ["accuracy", false, (one) => number(one.accuracy)],
        ["base accuracy", false, (one) => number(one.base_accuracy)],
        ["gain", false, (one) => number(gain(one))],
        ["seconds", false, (one) => number(one.seconds, 1)],
        ["memory, GiB", false, (one) => number(one.peak_memory_gib, 2)],
        ["finished", true, (one) => time(one)],
      ];
      fill(own.tables[0], "Training runs", columns, shown);
    };
  }

  return { merged, pairs, "trade-off": tradeOff, predicted, fingerprints, runs, trainings };
};
