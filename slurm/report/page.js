"use strict";
// The page's only script besides plotly: filters, clocks, the slider, colours, printing.
(() => {
  const byId = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const page = JSON.parse(byId("page-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const state = { hidden: new Set(), clock: "images", log: false, printing: false };

  // Colours: figures have those of the light page.
  const isDark = () => dark.matches && !state.printing;
  const colour = (light) => {
    const number = page.colours.light.indexOf(light);
    return isDark() && number >= 0 ? page.colours.dark[number] : light;
  };
  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function trace(original, chart) {
    const copy = structuredClone(original);
    const run = copy.meta.run;
    copy.visible = !state.hidden.has(run);
    if (copy.line) copy.line.color = colour(copy.line.color);
    copy.marker.color = colour(copy.marker.color);
    if (copy.error_y) copy.error_y.color = colour(copy.error_y.color);
    if (copy.meta.training && state.clock !== "images") {
      copy.x = page.runs[run].clocks[state.clock];
    }
    copy.showlegend &&= chart.legend;
    return copy;
  }

  function axis(original) {
    return {
      automargin: true, gridcolor: variable("--line"), linecolor: variable("--line"),
      zerolinecolor: variable("--line"), tickfont: { size: 11 }, exponentformat: "SI", nticks: 6,
      ...original, title: { ...original.title, font: { size: 11.5 }, standoff: 6 },
    };
  }

  function draw(chart) {
    const figure = chart.figure, div = byId(`chart-${chart.key}`);
    const layout = structuredClone(figure.layout);
    delete layout.title; // it is the caption
    layout.xaxis = axis(layout.xaxis);
    layout.yaxis = axis(layout.yaxis);
    if (chart.training) {
      layout.xaxis.title.text = page.clocks[state.clock];
      if (state.log) layout.yaxis.type = "log";
    }
    const isBars = figure.data[0] && figure.data[0].type === "bar";
    if (isBars) layout.yaxis.title.text = "";
    Object.assign(layout, {
      autosize: true, margin: { l: 52, r: 12, t: 8, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)", hovermode: isBars ? "closest" : "x",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12,
              color: state.printing ? "#1d2026" : variable("--text") },
      legend: { orientation: "h", traceorder: "normal", y: -0.22, yanchor: "top", x: 0, font: { size: 11 } },
      hoverlabel: { namelength: 40 }, dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    });
    if (state.printing) layout.width = div.closest(".alone") ? 660 : 330;
    const config = { responsive: true, displaylogo: false, displayModeBar: false };
    return Plotly.react(div, figure.data.map((t) => trace(t, chart)), layout, config);
  }

  const drawAll = () => Promise.all(page.charts.map(draw));
  const redrawTraining = () => page.charts.filter((c) => c.training).forEach(draw);

  function paint() { // dots of runs
    for (const dot of all("[data-colour]")) dot.style.setProperty("--dot", colour(dot.dataset.colour));
  }

  // Filters.
  function filterRuns() {
    state.hidden = new Set(all("input[name=run]").filter((b) => !b.checked).map((b) => Number(b.value)));
    for (const part of all("[data-run]")) part.hidden = state.hidden.has(Number(part.dataset.run));
    keep();
    return drawAll();
  }
  function filterSettings() {
    const words = byId("find-setting").value.toLowerCase();
    let shown = 0;
    for (const row of all("#settings-table tbody tr")) {
      row.hidden = !row.textContent.toLowerCase().includes(words);
      shown += !row.hidden;
    }
    byId("settings-shown").textContent = `${shown} shown`;
  }

  // Samples: the slider goes through all times at which a run has a picture.
  function showSamples() {
    const place = Number(byId("place").value), seen = page.places[place];
    byId("place-shown").textContent = `${seen.toLocaleString("en")} images`;
    byId("place").setAttribute("aria-valuetext", `${seen} images seen`);
    for (const figure of all("[data-grids]")) {
      const grids = page.runs[Number(figure.dataset.grids)].grids;
      const found = grids.filter((grid) => grid.images_seen <= seen);
      const grid = found.length ? found[found.length - 1] : grids[0];
      const image = figure.querySelector("img");
      if (image.getAttribute("src") !== grid.file) image.src = grid.file;
      image.alt = grid.alt;
      figure.querySelector(".at").textContent = grid.label;
    }
    keep();
  }
  function showSeed() {
    const box = byId("seed");
    const seed = Math.min(Math.max(Math.trunc(Number(box.value)) || 0, 0), Number(box.max));
    for (const tile of all(".tile")) {
      const columns = Number(tile.dataset.columns), rows = Number(tile.dataset.rows);
      const column = seed % columns, row = Math.floor(seed / columns);
      tile.style.backgroundSize = `${columns * 100}% ${rows * 100}%`;
      const at = (index, count) => (count > 1 ? (index / (count - 1)) * 100 : 0);
      tile.style.backgroundPosition = `${at(column, columns)}% ${at(row, rows)}%`;
      tile.style.visibility = seed < Number(tile.dataset.seeds) ? "visible" : "hidden";
      tile.setAttribute("aria-label", `Place ${seed}, ${tile.dataset.label}`);
    }
    keep();
  }

  // What was chosen survives a reload, which --serve does.
  const controls = () => all("input:not([type=checkbox]), select").filter((c) => c.id);
  function keep() {
    const kept = { hidden: [...state.hidden], log: byId("log").checked };
    for (const control of controls()) kept[control.id] = control.value;
    try { sessionStorage.setItem(page.name, JSON.stringify(kept)); } catch { /* not everywhere */ }
  }
  function restore() {
    let kept = null;
    try { kept = JSON.parse(sessionStorage.getItem(page.name)); } catch { /* not everywhere */ }
    if (!kept) return;
    for (const control of controls()) if (control.id in kept) control.value = kept[control.id];
    byId("log").checked = kept.log;
    for (const box of all("input[name=run]")) box.checked = !kept.hidden.includes(Number(box.value));
  }

  async function follow() {
    try {
      const answer = await fetch("assets/made.json", { cache: "no-store" });
      if (answer.ok && (await answer.json()).made !== page.made) location.reload();
    } catch { /* the server has ended: the page stays as it is */ }
  }

  const on = (id, event, action) => { const e = byId(id); if (e) e.addEventListener(event, action); };
  function start() {
    if (page.follow) restore();
    paint();
    for (const tile of all(".tile")) tile.style.backgroundImage = `url("${tile.dataset.file}")`;
    for (const box of all("input[name=run]")) box.addEventListener("change", filterRuns);
    state.clock = byId("clock").value;
    state.log = byId("log").checked;
    on("clock", "change", () => { state.clock = byId("clock").value; redrawTraining(); keep(); });
    on("log", "change", () => { state.log = byId("log").checked; redrawTraining(); keep(); });
    on("find-setting", "input", filterSettings);
    on("place", "input", showSamples);
    on("seed", "input", showSeed);
    dark.addEventListener("change", () => { paint(); drawAll(); });
    addEventListener("beforeprint", () => { state.printing = true; paint(); drawAll(); });
    addEventListener("afterprint", () => { state.printing = false; paint(); drawAll(); });
    if (byId("place")) { if (!page.follow || !byId("place").value) byId("place").value = page.places.length - 1; showSamples(); }
    if (byId("seed")) showSeed();
    filterRuns().then(() => { document.body.dataset.ready = "yes"; });
    if (page.follow) setInterval(follow, 1000 * page.follow);
  }
  start();
})();
