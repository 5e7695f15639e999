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
