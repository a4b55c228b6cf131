"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");

function look() {
  const [ink, line] = dark.matches ? ["#c9d3dd", "#323b45"] : ["#3d444d", "#e1e5ea"];
  const axis = {labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line,
                labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal"};
  return {background: "transparent", view: {stroke: null}, axis: axis, text: {color: ink},
          legend: {labelColor: ink, titleColor: ink, orient: "top", columns: innerWidth < 600 ? 3 : 8,
                   labelFontSize: 12, symbolType: "circle", symbolOpacity: 1}};
}

// ast: Vega interprets its expressions, so that the page needs no eval.
async function drawCharts() {
  for (const spec of document.querySelectorAll("script.spec")) {
    const options = {actions: false, renderer: "svg", ast: true, config: look(),
                     tooltip: {theme: dark.matches ? "dark" : "light"}};
    try {
      await vegaEmbed("#" + spec.dataset.chart, JSON.parse(spec.textContent), options);
    } catch (error) {  // the other charts can still be drawn
      console.error(spec.dataset.chart, error);
      document.getElementById(spec.dataset.chart).textContent = "This chart could not be drawn; its figures are in the table below.";
    }
  }
  document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
}

function sortBy(header) {
  const row = header.parentElement, body = header.closest("table").tBodies[0];
  const column = [...row.children].indexOf(header), numeric = header.classList.contains("number");
  const order = header.ariaSort === (numeric ? "descending" : "ascending") ? !numeric : numeric;
  for (const other of row.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", order ? "descending" : "ascending");
  const key = (one) => one.children[column].dataset.value ?? "";
  const compare = (one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === "" || b === "") return (a === "") - (b === "");  // what is unknown stands last
    return (order ? -1 : 1) * (numeric ? Number(a) - Number(b) : a.localeCompare(b));
  };
  body.append(...[...body.rows].sort(compare));
}

for (const button of document.querySelectorAll("table.sortable th button")) {
  button.addEventListener("click", () => sortBy(button.parentElement));
}
dark.addEventListener("change", drawCharts);
drawCharts();
