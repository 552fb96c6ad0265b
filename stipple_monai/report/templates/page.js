"use strict";
// Tables: a click on a heading sorts by its column, a second one the other way round; what is
// missing stays last.
const NUMBER = /^[<>≈+−-]?\s*\d[\d,]*(\.\d+)?(e[+−-]?\d+)?(?=$|[\s%(×])/i;
function valueOf(cell) {
  const text = cell.textContent.trim();
  return text === "–" ? "" : text;
}
function numberOf(text) {
  return parseFloat(text.replace(/−/g, "-").replace(/[<>≈,\s]/g, ""));
}
function sortTable(table, column, direction) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [valueOf(row.cells[column]), row]);
  const numeric = rows.every(([text]) => !text || NUMBER.test(text));
  rows.sort(([a], [b]) => {
    if (!a || !b) return Number(!a) - Number(!b);
    const order = numeric
      ? numberOf(a) - numberOf(b)
      : a.localeCompare(b, "en", { numeric: true });
    return direction * order;
  });
  body.append(...rows.map(([, row]) => row));
}
for (const table of document.querySelectorAll("table.sorts")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      sortTable(table, column, up ? 1 : -1);
    });
  });
}
// Viewers: a slider for each plane, boxes that hide layers.
for (const viewer of document.querySelectorAll(".viewer")) {
  const planes = JSON.parse(viewer.querySelector("script").textContent);
  viewer.querySelectorAll(".plane").forEach((figure, number) => {
    const { slices } = planes[number];
    const image = figure.querySelector("img.scan");
    const slider = figure.querySelector("input[type=range]");
    const where = figure.querySelector(".where");
    const show = (index) => {
      const now = slices[index];
      image.src = now.image;
      image.alt = `${image.dataset.of}, ${now.where}`;
      where.textContent = now.where;
      for (const layer of figure.querySelectorAll("img.layer")) {
        const source = now.layers[layer.dataset.layer];
        if (source) layer.src = source;
        layer.classList.toggle("empty", !source);
      }
      for (const mark of figure.querySelectorAll(".mark")) {
        mark.classList.toggle("away", Number(mark.dataset.slice) !== index);
      }
      for (const key of figure.querySelectorAll("button")) {
        key.setAttribute("aria-pressed", String(Number(key.dataset.slice) === index));
      }
      if (slider) {
        slider.value = index;
        slider.setAttribute("aria-valuetext", now.where);
      }
    };
    if (slider) {
      slider.addEventListener("input", () => show(Number(slider.value)));
      figure.querySelector(".stack").addEventListener("click", () => slider.focus());
    }
    for (const key of figure.querySelectorAll("button")) {
      key.addEventListener("click", () => show(Number(key.dataset.slice)));
    }
  });
  for (const box of viewer.querySelectorAll("input[type=checkbox]")) {
    const apply = () => viewer.classList.toggle(`no-${box.value}`, !box.checked);
    box.addEventListener("change", apply);
    apply();
  }
}
