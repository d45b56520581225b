"use strict";
const { figures, templates } = JSON.parse(document.getElementById("data").textContent);
const plots = [...document.querySelectorAll("[data-figure]")];
const dark = matchMedia("(prefers-color-scheme: dark)");
const ofScreen = () => templates[dark.matches ? "dark" : "light"];
const eachPlot = change => plots.forEach(plot => Plotly.relayout(plot, change));
const PAPER = 680; // pixels of a printed page between its margins

for (const plot of plots) {
  const { data, layout } = figures[plot.dataset.figure];
  Plotly.newPlot(plot, data, { ...layout, template: ofScreen() }, { responsive: true, displayModeBar: false });
}

dark.addEventListener("change", () => eachPlot({ template: ofScreen() }));

// a printed page is light and narrow, and folded sections are on it
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const section of folded) section.open = true;
  eachPlot({ template: templates.light, width: PAPER });
});
addEventListener("afterprint", () => {
  for (const section of folded) section.open = false;
  eachPlot({ template: ofScreen(), width: null, autosize: true });
});

for (const box of document.querySelectorAll("[data-optional]")) {
  box.addEventListener("change", () => {
    const plot = box.closest("figure").querySelector("[data-figure]");
    const members = plot.data.flatMap((trace, place) => trace.meta === box.dataset.optional ? [place] : []);
    Plotly.restyle(plot, { visible: box.checked }, members);
  });
}

// a plot in a folded section had no width when the window changed
for (const section of document.querySelectorAll("details")) {
  section.addEventListener("toggle", () => {
    if (section.open) for (const plot of section.querySelectorAll("[data-figure]")) Plotly.Plots.resize(plot);
  });
}

const unfold = () => {
  const section = document.getElementById(location.hash.slice(1));
  if (section) section.open = true;
};
addEventListener("hashchange", unfold);
for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", () => setTimeout(unfold));
unfold();
