// In an <iframe srcdoc>, browsers resolve "#..." against the outer page, so the script scrolls to the section itself.
document.querySelector("nav").addEventListener("click", event => {
  const target = event.target.hash && document.getElementById(event.target.hash.slice(1));
  if (target) {
    event.preventDefault();
    target.scrollIntoView();
    target.focus({ preventScroll: true });
  }
});

for (const chart of document.querySelectorAll(".chart")) {
  const element = document.getElementById("vega-config");
  const config = JSON.parse(element.textContent);
  // Vega does not wrap a legend, so the number of its columns is computed from the chart's width.
  config.legend.columns = Math.max(1, Math.floor(chart.clientWidth / element.dataset.legendColumnWidth));
  vegaEmbed(chart, JSON.parse(chart.nextElementSibling.textContent), { actions: false, renderer: "svg", config });
}

// A click on a header sorts the table by its column: numbers from the highest, text from A; a second click reverses. Cells without a
// number stay last.
function sort(header) {
  const body = header.closest("table").tBodies[0];
  const isText = header.classList.contains("text");
  const before = header.getAttribute("aria-sort");
  const ascending = before ? before === "descending" : isText;
  const value = row => {
    const text = row.cells[header.cellIndex].textContent;
    return isText ? text : parseFloat(text.replaceAll(",", ""));
  };
  const compare = (a, b) => {
    if (!isText && (isNaN(a) || isNaN(b))) return isNaN(a) - isNaN(b);
    return (isText ? a.localeCompare(b) : a - b) * (ascending ? 1 : -1);
  };
  body.append(...[...body.rows].sort((one, other) => compare(value(one), value(other))));
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
}

for (const header of document.querySelectorAll("thead th")) {
  const button = document.createElement("button");
  button.append(...header.childNodes);
  button.addEventListener("click", () => sort(header));
  header.append(button);
}
